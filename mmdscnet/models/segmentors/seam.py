"""SEAM: a CAM network that looks at two views of every image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor

from mmdscnet.functional.cam import stretch_cams
from mmdscnet.models.decode_heads.cam_head import HeadOutputs, resize_maps


class View(NamedTuple):
    """What the network sees in one view of a batch, at the size of the view.

    Attributes:
        outputs: What the head makes of it; evidence of shape (N, K, H, W).
        revised: The CAMs after the pixel correlation, in [0, 1], background first, shape
            (N, K + 1, H, W).
    """

    outputs: HeadOutputs
    revised: Tensor


@MODELS.register_module()
class SEAM(EncoderDecoder):
    """Train a CAM network to see the same in an image and in a small copy of it.

    Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
    Segmentation", CVPR 2020. The head may be a ``CAMHead`` (SEAM itself) or a ``DSCHead`` (DSCNet
    on SEAM): its own losses are averaged over the two views, and SEAM's are computed from the CAMs
    that it would export, the refined ones where it refines.

    With a ``DSCHead`` each view is a batch of its own: it has its own graph, and the class memory
    moves once a view.

    The head's loss against pseudo labels, where it has one, is that of the first view alone: stored
    labels are those of the image, and online ones are made of the head's CAMs, before the pixel
    correlation.

    The cross regularisation and the minimum pooling train the pixel correlation alone; backbone
    and head learn from the classification, the contrasts and the equivariance.

    The CAMs at inference are those after the pixel correlation; where pixels read the classes of
    their groups, they seed these groups. With ``test_cfg.refine=False`` they
    are those of the plain classifier.

    Note:
        The released implementation classifies the background too. That channel takes part in no
        loss and no CAM, so it does not exist here.

    Args:
        args: As for mmseg's ``EncoderDecoder``.
        pcm: Config of the pixel correlation module.
        equivariance: Config of the loss between the CAMs of the views (ER).
        cross_equivariance: Config of the loss between revised CAMs and CAMs (ECR).
        min_pooling: Config of the loss that leaves a part of the image uncovered.
        view_scale: Size of the second view relative to the first, in (0, 1).
        kwargs: As for mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If ``view_scale`` lies outside (0, 1), or there is an auxiliary head, which no
            loss would train.
    """

    def __init__(
        self,
        *args: Any,
        pcm: dict,
        equivariance: dict,
        cross_equivariance: dict,
        min_pooling: dict,
        view_scale: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < view_scale < 1:
            raise ValueError(f'view_scale={view_scale} must lie in (0, 1): SEAM uses 0.3')
        if self.with_auxiliary_head:
            raise ValueError('auxiliary_head would not be trained by SEAM: set it to None')
        self.pcm = MODELS.build(pcm)
        self.equivariance = MODELS.build(equivariance)
        self.cross_equivariance = MODELS.build(cross_equivariance)
        self.min_pooling = MODELS.build(min_pooling)
        self.view_scale = view_scale
        # Maps grow to the size of a view as the head says, and to that of the image without
        # aligned corners: images are resized in this way.
        self.align_corners = False

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Compute the losses of a batch from its image-level labels.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            data_samples: Samples with ``gt_image_label``, (K,) values in {0, 1}, and
                ``gt_sem_seg`` where stored pseudo labels are the target.

        Returns:
            The losses of the head, averaged over the views (but that against pseudo labels, of the
            first), and those of SEAM, scalars.
        """
        image_labels = self.decode_head.require_image_labels(data_samples)
        stored_labels = self.decode_head.require_stored_labels(data_samples)
        small_inputs = shrink(inputs, self.view_scale)
        views = [self.see(view, image_labels) for view in (inputs, small_inputs)]
        losses = average_losses([self.head_losses(view, image_labels) for view in views])
        pixelwise = self.decode_head.pseudo_label_losses(
            views[0].outputs, image_labels, stored_labels
        )
        losses |= add_prefix(pixelwise, 'decode')
        size = image_size(small_inputs)
        cams = [self.compare_at(view.outputs.best_logits, image_labels, size) for view in views]
        with_background = F.pad(image_labels, (1, 0), value=1)
        revised = [self.compare_at(view.revised, with_background, size) for view in views]
        present = image_labels[:, :, None, None]
        lowest = [self.min_pooling(view.revised[:, 1:] * present) for view in views]
        losses[self.min_pooling.loss_name] = torch.stack(lowest).mean()
        losses[self.equivariance.loss_name] = self.equivariance(*cams)
        losses[self.cross_equivariance.loss_name] = self.cross_equivariance(*cams, *revised)
        return losses

    def head_losses(self, view: View, image_labels: Tensor) -> dict[str, Tensor]:
        """Compute the losses of the head on one view.

        Args:
            view: The view.
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            Classification losses of the maps at the size of the view, and the contrasts.
        """
        losses = self.decode_head.classification_losses(view.outputs, image_labels)
        return losses | view.outputs.contrasts

    def see(self, inputs: Tensor, image_labels: Tensor) -> View:
        """Run backbone, head and pixel correlation on one view.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The view.
        """
        feats = self.extract_feat(inputs)
        outputs = self.decode_head.describe_batch(feats, image_labels)
        revised = self.pcm(inputs, feats, outputs.best_logits)
        size, align_corners = image_size(inputs), self.decode_head.align_corners
        return View(outputs.resize(size, align_corners), resize_maps(revised, size, align_corners))

    def compare_at(self, maps: Tensor, present: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalise the maps of a view and bring them to the size at which views are compared.

        Args:
            maps: Maps at the size of the view, shape (N, C, H, W).
            present: Which of them count, in {0, 1}, shape (N, C).
            size: Height and width in pixels.

        Returns:
            Maps in [0, 1], zero where they do not count, shape (N, C, *size).
        """
        return resize_maps(stretch_cams(maps, present), size, align_corners=True)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Score background and classes at every pixel of the input.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            batch_img_metas: Meta information of the images.

        Returns:
            As the head's ``predict``: scores in [0, 1] or unbounded evidence, shape
            (N, K + 1, H, W).
        """
        evidence, image_labels = self.predict_evidence(inputs, batch_img_metas, self.test_cfg)
        return self.decode_head.finish(evidence, image_labels, batch_img_metas, self.test_cfg)

    def predict_evidence(
        self, inputs: Tensor, batch_img_metas: list[dict], test_cfg: Any
    ) -> tuple[Tensor, Tensor]:
        """Compute the evidence from which the CAMs of images are made.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            batch_img_metas: Meta information of the images; ``gt_image_label`` where labels are
                given.
            test_cfg: As for the head's ``predict``.

        Returns:
            Class evidence, in [0, 1] after the pixel correlation, else unbounded, shape
            (N, K, h, w), and image-level labels in {0, 1}, shape (N, K).
        """
        feats, head = self.extract_feat(inputs), self.decode_head
        refine = (test_cfg or {}).get('refine', True)
        if head.reads_classes:
            test_cfg = dict(test_cfg or {}, refine=False)
        evidence, image_labels = head.predict_evidence(feats, batch_img_metas, test_cfg)
        if refine:
            evidence = self.revise(inputs, feats, evidence)
        if refine and head.reads_classes:
            evidence = head.read_classes(feats, evidence, image_labels)
        return evidence, image_labels

    def revise(self, inputs: Tensor, feats: Sequence[Tensor], evidence: Tensor) -> Tensor:
        """Give the CAMs after the pixel correlation.

        Args:
            inputs: Normalised images, shape (N, 3, H, W).
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            evidence: Class evidence, unbounded, shape (N, K, h, w).

        Returns:
            CAMs in [0, 1], shape (N, K, h, w).
        """
        revised: Tensor = self.pcm(inputs, feats, evidence)
        return revised[:, 1:]


def shrink(inputs: Tensor, scale: float) -> Tensor:
    """Make the small view of images.

    Args:
        inputs: Normalised images, shape (N, 3, H, W).
        scale: Size relative to the input.

    Returns:
        Images, shape (N, 3, floor(H * scale), floor(W * scale)).
    """
    height, width = image_size(inputs)
    return resize_maps(inputs, (int(height * scale), int(width * scale)), align_corners=True)


def image_size(inputs: Tensor) -> tuple[int, int]:
    """Read the height and width of images in pixels."""
    return inputs.shape[2], inputs.shape[3]


def average_losses(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average losses of the same names.

    Args:
        losses: One dict a view.

    Returns:
        The mean of each, by its key in the log.
    """
    names = losses[0]
    return {f'decode.{name}': torch.stack([one[name] for one in losses]).mean() for name in names}
