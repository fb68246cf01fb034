"""The plain CAM head: the baseline, and what DSCHead extends."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmdscnet.functional.cam import (
    background_score,
    image_scores,
    normalize_cams,
    predict_image_labels,
    stretch_cams,
)
from mmdscnet.functional.pseudo_label import check_ignore_band, make_pseudo_labels

NORMALIZATIONS = {'max': normalize_cams, 'min_max': stretch_cams}


class HeadOutputs(NamedTuple):
    """What a head makes of a batch in training.

    Attributes:
        cam_logits: Class evidence of the plain classifier, unbounded, shape (N, K, h, w).
        refined_logits: Class evidence of a head that refines its CAMs, shape (N, K, h, w); None
            from any other head.
        contrasts: Losses that image-level labels do not give, by their key in the log.
    """

    cam_logits: Tensor
    refined_logits: Tensor | None
    contrasts: dict[str, Tensor]

    @property
    def best_logits(self) -> Tensor:
        """The evidence from which the head's CAMs are made: refined where there is such."""
        return self.cam_logits if self.refined_logits is None else self.refined_logits

    def resize(self, size: tuple[int, int], align_corners: bool) -> 'HeadOutputs':
        """Resize the maps.

        Args:
            size: Height and width in pixels.
            align_corners: How maps are resized, as in mmseg.

        Returns:
            The same with all maps at ``size``, in float32.
        """
        plain = resize_maps(self.cam_logits, size, align_corners)
        if self.refined_logits is None:
            return self._replace(cam_logits=plain)
        refined = resize_maps(self.refined_logits, size, align_corners)
        return self._replace(cam_logits=plain, refined_logits=refined)


@MODELS.register_module()
class CAMHead(BaseModule):
    """Classify the image by a 1x1 convolution whose maps are the CAMs.

    Takes the place of any ``decode_head`` in mmseg's ``EncoderDecoder``. Trains on
    ``gt_image_label`` of the data samples alone (mean of the multi-label soft margin losses). What
    it predicts are the scores [background, CAMs], so that mmseg's argmax is the pseudo label.
    DSCNet, arXiv:2405.04913, Eq. 1.

    With ``pseudo_label`` every pixel also learns from its pseudo label (Eq. 12, 13): one that the
    head makes of its own CAMs in each step, normalised as at inference, or one that was stored
    before and comes as ``gt_sem_seg``. ``PseudoLabelHook`` says which, and from when on.

    At inference the classes are those of ``gt_image_label`` where the samples have one (the
    papers' protocol), otherwise those that the head itself predicts.

    Args:
        in_channels: Channels of the feature map, D.
        num_classes: Classes with background, K + 1.
        in_index: Which of the backbone's outputs to use.
        dropout_ratio: Share of channels dropped before the classifier, in [0, 1).
        bg_thr: Background score of the pseudo labels, in [0, 1).
        bg_alpha: Exponent of the power rule that replaces ``bg_thr``.
        score_thr: Probability above which a predicted class counts as present, in [0, 1].
        align_corners: How maps are resized, as in mmseg.
        normalization: What makes CAMs of evidence at inference: ``'max'`` divides a class by its
            peak, ``'min_max'`` subtracts its lowest value before (as SEAM does).
        pseudo_label: Config of the loss against pseudo labels; None leaves it out.
        fg_thr: Pixels of a class whose CAM is below this are left out of that loss where the head
            makes the labels; None leaves out none.
        online_labels: Rule of the pseudo labels that training makes, where it is not that of the
            exported CAMs: any of ``bg_thr``, ``bg_alpha`` and ``fg_thr``.
        init_cfg: Initialisation, as in mmengine.

    Raises:
        ValueError: If a value is out of its range.
    """

    pseudo_label_target = 'online'
    """Whence the pseudo labels of training come, set by ``PseudoLabelHook``: ``'online'`` from the
    head itself, never reading a mask, or ``'stored'`` from ``gt_sem_seg``."""

    pseudo_label_scale = 1.0
    """Factor of the loss against pseudo labels, set by ``PseudoLabelHook``."""

    predicted_scores: Tensor | None = None
    """Image-level logits of the plain classifier in the last prediction, shape (N, K). No label
    takes part in them, whether the CAMs were masked and refined by given or by predicted ones."""

    reads_classes = False
    """Whether the CAMs are what pixels read of groups that plain CAMs seed."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        in_index: int = -1,
        dropout_ratio: float = 0.0,
        bg_thr: float = 0.25,
        bg_alpha: float | None = None,
        score_thr: float = 0.5,
        align_corners: bool = False,
        normalization: str = 'max',
        pseudo_label: dict | None = None,
        fg_thr: float | None = None,
        online_labels: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Normal', std=0.01, layer='Conv2d'))
        if num_classes < 2:
            raise ValueError(
                f'num_classes={num_classes} must count the background and at least one class'
            )
        if not (0 <= bg_thr < 1 and 0 <= score_thr <= 1):
            raise ValueError(
                f'bg_thr={bg_thr} must lie in [0, 1), where CAMs live, and '
                f'score_thr={score_thr}, a probability, in [0, 1]'
            )
        if bg_alpha is not None and bg_alpha <= 0:
            raise ValueError(f'bg_alpha={bg_alpha} must be positive, or None for a constant bg_thr')
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f'normalization={normalization!r} is none of {list(NORMALIZATIONS)}: choose one'
            )
        own_rule = dict(bg_thr=bg_thr, bg_alpha=bg_alpha, fg_thr=fg_thr)
        if unknown := (online_labels or {}).keys() - own_rule.keys():
            raise ValueError(
                f'online_labels has {sorted(unknown)}, which nothing reads: its keys are '
                f'{list(own_rule)}'
            )
        self.online_rule = own_rule | (online_labels or {})
        for rule in (own_rule, self.online_rule):
            check_ignore_band(**rule)
        self.in_index = in_index
        self.num_classes = num_classes
        self.out_channels = num_classes
        self.bg_thr = bg_thr
        self.bg_alpha = bg_alpha
        self.score_thr = score_thr
        self.align_corners = align_corners
        self.normalization = normalization
        self.fg_thr = fg_thr
        self.pseudo_label_loss = MODELS.build(pseudo_label) if pseudo_label else None
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.classifier = nn.Conv2d(in_channels, num_classes - 1, 1, bias=False)

    def forward(self, feats: Sequence[Tensor], image_labels: Tensor | None = None) -> Tensor:
        """Compute the evidence from which the head's CAMs are made.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K); None to predict them.

        Returns:
            Class evidence, unbounded, shape (N, K, h, w).
        """
        return self.plain_evidence(feats)

    def plain_evidence(self, feats: Sequence[Tensor]) -> Tensor:
        """Apply the 1x1 classifier of Eq. 1.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).

        Returns:
            Class evidence, unbounded, shape (N, K, h, w).
        """
        return self.classifier(self.dropout(feats[self.in_index]))

    def loss(
        self, feats: Sequence[Tensor], data_samples: list[SegDataSample], train_cfg: Any
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch from its image-level labels.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            data_samples: Samples with ``gt_image_label``, (K,) values in {0, 1}, and
                ``gt_sem_seg`` where stored pseudo labels are the target.
            train_cfg: Not used; mmseg passes it.

        Returns:
            As :meth:`loss_by_image_labels`.

        Raises:
            ValueError: If a sample has no image-level label, one of another class count, or no
                stored pseudo label where these are the target.
        """
        image_labels = self.require_image_labels(data_samples)
        stored_labels = self.require_stored_labels(data_samples)
        return self.loss_by_image_labels(feats, image_labels, stored_labels)

    def loss_by_image_labels(
        self, feats: Sequence[Tensor], image_labels: Tensor, stored_labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses from tensors.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).
            stored_labels: Pseudo labels 0..K or 255, int64, shape (N, H, W); None for those that
                the head makes.

        Returns:
            :meth:`classification_losses`, the contrasts of :meth:`describe_batch`, and
            :meth:`pseudo_label_losses`.
        """
        outputs = self.describe_batch(feats, image_labels)
        losses = self.classification_losses(outputs, image_labels) | outputs.contrasts
        return losses | self.pseudo_label_losses(outputs, image_labels, stored_labels)

    def classification_losses(
        self, outputs: HeadOutputs, image_labels: Tensor
    ) -> dict[str, Tensor]:
        """Compare the evidence with image-level labels.

        Args:
            outputs: Evidence, at any size.
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            ``loss_cls`` of the plain classifier, a scalar.
        """
        return dict(loss_cls=classification_loss(outputs.cam_logits, image_labels))

    def pseudo_label_losses(
        self, outputs: HeadOutputs, image_labels: Tensor, stored_labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Compare the evidence of every pixel with its pseudo label (Eq. 13).

        Args:
            outputs: Evidence, of which the best is trained.
            image_labels: Image-level labels in {0, 1}, shape (N, K).
            stored_labels: As for :meth:`loss_by_image_labels`.

        Returns:
            The loss by its key in the log; nothing where none is configured.
        """
        if self.pseudo_label_loss is None:
            return {}
        labels = stored_labels
        if labels is None:
            labels = self.make_online_labels(self.labelling_logits(outputs), image_labels)
        losses = [
            self.pseudo_label_loss(logits, labels, self.align_corners)
            for logits in self.taught_logits(outputs)
        ]
        return {self.pseudo_label_loss.loss_name: self.pseudo_label_scale * sum(losses)}

    def labelling_logits(self, outputs: HeadOutputs) -> Tensor:
        """Choose the evidence of which pseudo labels are made.

        Args:
            outputs: Evidence of the head.

        Returns:
            Class evidence, unbounded, shape (N, K, h, w).
        """
        return outputs.best_logits

    def taught_logits(self, outputs: HeadOutputs) -> list[Tensor]:
        """Choose the evidence that learns from pseudo labels.

        Args:
            outputs: Evidence of the head.

        Returns:
            Class evidence of one classifier or more, unbounded, each of shape (N, K, h, w).
        """
        return [outputs.best_logits]

    def make_online_labels(self, cam_logits: Tensor, image_labels: Tensor) -> Tensor:
        """Label every pixel (Eq. 12) by the rule of ``online_labels``, leaving out its ignore band.

        Args:
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            Labels 0..K or 255, without gradient, int64, shape (N, h, w).
        """
        cams = NORMALIZATIONS[self.normalization](cam_logits.detach(), image_labels)
        return make_pseudo_labels(cams, **self.online_rule)

    def describe_batch(self, feats: Sequence[Tensor], image_labels: Tensor) -> HeadOutputs:
        """Compute everything of which the losses are made.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The evidence.
        """
        return HeadOutputs(self.plain_evidence(feats), None, {})

    def predict(self, feats: Sequence[Tensor], img_metas: list[dict], test_cfg: Any) -> Tensor:
        """Score background and classes at every pixel of the input.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            img_metas: Meta information of the images; ``gt_image_label`` where labels are given.
            test_cfg: The segmentor's; ``cam_output='logits'`` asks for the unbounded evidence
                under an all-zero background channel, to be merged over scales and flips;
                ``refine=False`` for the plain CAMs of a head that refines them.

        Returns:
            Scores in [0, 1], background first, at the size of the input, shape (N, K + 1, H, W).

        Raises:
            ValueError: If the segmentor cuts the image into windows or pads it.
        """
        evidence, image_labels = self.predict_evidence(feats, img_metas, test_cfg)
        return self.finish(evidence, image_labels, img_metas, test_cfg)

    def predict_evidence(
        self, feats: Sequence[Tensor], img_metas: list[dict], test_cfg: Any
    ) -> tuple[Tensor, Tensor]:
        """Compute the evidence of images, under the labels that are given or else predicted.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            img_metas: Meta information of the images; ``gt_image_label`` where labels are given.
            test_cfg: As for :meth:`predict`.

        Returns:
            Class evidence, unbounded, shape (N, K, h, w), and image-level labels in {0, 1}, shape
            (N, K).

        Raises:
            ValueError: If the segmentor cuts the image into windows or pads it.
        """
        test_cfg = test_cfg or {}
        refuse_windows_and_padding(img_metas, test_cfg)
        plain = self.plain_evidence(feats)
        self.predicted_scores = image_scores(plain).detach()
        image_labels = self.stack_image_labels(img_metas)
        if image_labels is None:
            image_labels = self.predict_labels(plain)
        if test_cfg.get('refine', True):
            return self.forward(feats, image_labels), image_labels
        return plain, image_labels

    def finish(
        self, evidence: Tensor, image_labels: Tensor, img_metas: list[dict], test_cfg: Any
    ) -> Tensor:
        """Bring evidence to the size of the input, and turn it into what ``test_cfg`` asks for.

        Args:
            evidence: Class evidence, unbounded, shape (N, K, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).
            img_metas: Meta information of the images.
            test_cfg: As for :meth:`predict`.

        Returns:
            As :meth:`predict`.
        """
        size = tuple(img_metas[0].get('pad_shape', img_metas[0]['img_shape'])[:2])
        cam_logits = resize_maps(evidence, size, self.align_corners)
        if (test_cfg or {}).get('cam_output') == 'logits':
            return F.pad(cam_logits, (0, 0, 0, 0, 1, 0))
        return self.score_maps(cam_logits, image_labels)

    def predict_labels(self, cam_logits: Tensor) -> Tensor:
        """Choose the classes of images without a label.

        Args:
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).

        Returns:
            Image-level labels in {0, 1}, at least one class an image, shape (N, K).
        """
        return predict_image_labels(image_scores(cam_logits), self.score_thr)

    def score_maps(self, cam_logits: Tensor, image_labels: Tensor) -> Tensor:
        """Turn class evidence into the scores whose argmax is the pseudo label.

        Args:
            cam_logits: Class evidence, unbounded, shape (N, K, H, W).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            Scores in [0, 1], background first, shape (N, K + 1, H, W).
        """
        cams = NORMALIZATIONS[self.normalization](cam_logits, image_labels)
        return torch.cat([background_score(cams, self.bg_thr, self.bg_alpha), cams], dim=1)

    def require_image_labels(self, data_samples: list[SegDataSample]) -> Tensor:
        """Collect the image-level labels that training needs.

        Args:
            data_samples: Samples with ``gt_image_label``, (K,) values in {0, 1}.

        Returns:
            Labels in {0, 1} on the head's device, shape (N, K).

        Raises:
            ValueError: If a sample has no image-level label, or one of another class count.
        """
        image_labels = self.stack_image_labels([sample.metainfo for sample in data_samples])
        if image_labels is None:
            raise ValueError(
                'the training samples have no gt_image_label: give the data set image_labels=... '
                'and end its pipeline with PackWSSSInputs'
            )
        return image_labels

    def require_stored_labels(self, data_samples: list[SegDataSample]) -> Tensor | None:
        """Collect the stored pseudo labels where training needs them.

        Args:
            data_samples: Samples with ``gt_sem_seg``, 0..K or 255, shape (1, H, W).

        Returns:
            Labels, int64, shape (N, H, W); None where there is no loss against pseudo labels, or
            the head makes them: then no mask is looked at.

        Raises:
            ValueError: If a sample has none.
        """
        if self.pseudo_label_loss is None or self.pseudo_label_target == 'online':
            return None
        for sample in data_samples:
            if 'gt_sem_seg' not in sample:
                raise ValueError(
                    f'{sample.get("img_path", "an image")} has no gt_sem_seg, but the head learns '
                    'from stored pseudo labels: put dict(type="LoadStoredLabels") after the image '
                    'loader of the training pipeline, or give PseudoLabelHook target="online"'
                )
        return torch.cat([sample.gt_sem_seg.data for sample in data_samples]).long()

    def stack_image_labels(self, img_metas: list[dict]) -> Tensor | None:
        """Collect the image-level labels of a batch.

        Args:
            img_metas: Meta information of the images: ``gt_image_label``, or ``pred_image_label``
                where ``CAMTTAModel`` predicted it from all views of an image.

        Returns:
            Labels in {0, 1} on the head's device, shape (N, K); None if no image has one.

        Raises:
            ValueError: If only some images have a label, or one has another class count.
        """
        keys = ('gt_image_label', 'pred_image_label')
        key = next((key for key in keys if any(key in meta for meta in img_metas)), None)
        if key is None:
            return None
        for meta in img_metas:
            self.check_image_label(meta, key)
        labels = np.stack([meta[key] for meta in img_metas])
        stacked = torch.from_numpy(labels.astype(np.float32))
        return stacked.to(self.classifier.weight.device, non_blocking=True)

    def check_image_label(self, img_meta: dict, key: str) -> None:
        """Check that an image has a label, and one that fits the head.

        Args:
            img_meta: Meta information of the image.
            key: Where its label is.

        Raises:
            ValueError: If it has no label or one of another class count.
        """
        image = img_meta.get('img_path', 'an image')
        label = img_meta.get(key)
        if label is None:
            raise ValueError(
                f'{image} has no {key} but others of its batch have: label all images of '
                'the data set or none'
            )
        if len(label) != self.num_classes - 1:
            raise ValueError(
                f'{image} has an image-level label of {len(label)} classes, the head expects '
                f'{self.num_classes - 1}: set model.decode_head.num_classes={len(label) + 1} '
                '(background counts)'
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse a checkpoint of another class count, which mmengine would load in part."""
        weight = state_dict.get(f'{prefix}classifier.weight')
        if weight is not None and len(weight) != self.num_classes - 1:
            raise ValueError(
                f'the checkpoint has {len(weight)} foreground classes ({prefix}classifier), the '
                f'model {self.num_classes - 1}: set model.decode_head.num_classes='
                f'{len(weight) + 1}, or load the backbone only (init_cfg=dict(type="Pretrained", '
                'checkpoint=..., prefix="backbone."))'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def refuse_windows_and_padding(img_metas: list[dict], test_cfg: Any) -> None:
    """Refuse what would make the CAMs of an image depend on more than the image.

    Args:
        img_metas: Meta information of the images.
        test_cfg: The segmentor's.

    Raises:
        ValueError: If the segmentor cuts the image into windows or pads it.
    """
    if test_cfg.get('mode') == 'slide':
        raise ValueError(
            "test_cfg.mode='slide' would normalise the CAMs of each window to its own peak: "
            "use mode='whole'"
        )
    if any(any(meta.get('img_padding_size', ())) for meta in img_metas):
        raise ValueError(
            'the CAMs of a padded image would depend on the size of its batch mates: test with '
            'batch_size=1 and without data_preprocessor.test_cfg'
        )


def resize_maps(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize maps bilinearly, in float32 also under autocast.

    Args:
        maps: Maps, shape (N, C, h, w).
        size: Height and width in pixels.
        align_corners: Whether the centres of the corner pixels stay in place, as in torch.

    Returns:
        Maps, shape (N, C, *size).
    """
    return F.interpolate(maps.float(), size, mode='bilinear', align_corners=align_corners)


def classification_loss(cam_logits: Tensor, image_labels: Tensor) -> Tensor:
    """Compare image scores with image-level labels.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).

    Returns:
        Multi-label soft margin loss, a scalar.
    """
    return F.multilabel_soft_margin_loss(image_scores(cam_logits), image_labels)
