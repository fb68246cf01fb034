"""AffinityNet: learn which pixels belong together, then let CAMs walk along."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmdscnet.functional.cam import background_score
from mmdscnet.functional.pixel_affinity import affinity_loss, pair_affinities, pair_labels
from mmdscnet.functional.random_walk import random_walk


@MODELS.register_module()
class AffinityHead(BaseModule):
    """Embed the pixels so that close ones of one class are alike, and spread CAMs among these.

    Takes the place of any ``decode_head`` in mmseg's ``EncoderDecoder``. Trains on label maps with
    ignored pixels (``combine_affinity_labels``); what it predicts are the stored CAMs of an image
    after a random walk, background first, so that mmseg's argmax is the pseudo label.
    Ahn and Kwak, CVPR 2018 (AffinityNet).

    Args:
        num_classes: Classes with background, K + 1.
        in_channels: Channels of each tap.
        in_index: Which of the backbone's outputs are the taps.
        channels: Channels to which each tap is reduced; their sum is E.
        radius: Distance in grid pixels below which two pixels are compared, at least 2.
        power: Exponent of the affinities in the walk, positive.
        num_steps: Steps of the walk.
        bg_alpha: Exponent of the power rule of the background, positive.
        align_corners: How maps are resized, as in mmseg.
        ignore_index: Label of pixels of which nothing is known.
        loss_name: Key in the log, begins with ``loss_``.
        init_cfg: Initialisation, as in mmengine; by default that of the released implementation.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int] = (512, 1024, 4096),
        in_index: Sequence[int] = (0, 1, 2),
        channels: Sequence[int] = (64, 128, 256),
        radius: int = 5,
        power: float = 8.0,
        num_steps: int = 64,
        bg_alpha: float = 6.0,
        align_corners: bool = False,
        ignore_index: int = 255,
        loss_name: str = 'loss_affinity',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or default_init_cfg())
        if num_classes < 2:
            raise ValueError(
                f'num_classes={num_classes} must count the background and at least one class'
            )
        if not len(in_channels) == len(in_index) == len(channels):
            raise ValueError(
                f'in_channels={in_channels}, in_index={in_index} and channels={channels} must have '
                'one entry a tap'
            )
        if bg_alpha <= 0:
            raise ValueError(f'bg_alpha={bg_alpha} must be positive: the paper uses 6')
        if not loss_name.startswith('loss_'):
            raise ValueError(
                f'loss_name={loss_name!r} must begin with "loss_": mmengine trains only such keys'
            )
        self.in_index = tuple(in_index)
        self.num_classes = num_classes
        self.out_channels = num_classes
        self.radius = radius
        self.power = power
        self.num_steps = num_steps
        self.bg_alpha = bg_alpha
        self.align_corners = align_corners
        self.ignore_index = ignore_index
        self.loss_name = loss_name
        self.reductions = nn.ModuleList(
            nn.Conv2d(wide, narrow, 1, bias=False)
            for wide, narrow in zip(in_channels, channels, strict=True)
        )
        self.embedding = nn.Conv2d(sum(channels), sum(channels), 1, bias=False)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Embed the pixels.

        Args:
            feats: Outputs of the backbone; a tap has the shape (N, D, h, w) with its own D and, if
                need be, its own grid.

        Returns:
            Embeddings, above -1, on the largest grid of the taps, shape (N, E, h, w).
        """
        taps = [
            F.elu(reduction(feats[index]))
            for index, reduction in zip(self.in_index, self.reductions, strict=True)
        ]
        size = max(tap.shape[2:] for tap in taps)
        return F.elu(self.embedding(torch.cat([self.resize(tap, size) for tap in taps], dim=1)))

    def loss(
        self, feats: Sequence[Tensor], data_samples: list[SegDataSample], train_cfg: Any
    ) -> dict[str, Tensor]:
        """Compare the affinities of a batch with its label maps.

        Args:
            feats: Outputs of the backbone, as for :meth:`forward`.
            data_samples: Samples with ``gt_sem_seg``, class ids of shape (1, H, W).
            train_cfg: Not used; mmseg passes it.

        Returns:
            The loss, a scalar, under ``loss_name``.

        Raises:
            ValueError: If a sample has no label map.
        """
        labels = stack_label_maps(data_samples)
        embeddings = self.forward(feats)
        on_grid = F.interpolate(labels.float(), embeddings.shape[2:], mode='nearest-exact')
        pairs = pair_labels(on_grid.squeeze(1).long(), self.radius, self.ignore_index)
        return {self.loss_name: affinity_loss(pair_affinities(embeddings, self.radius), pairs)}

    def predict(self, feats: Sequence[Tensor], img_metas: list[dict], test_cfg: Any) -> Tensor:
        """Let the stored CAMs of the images walk along the affinities.

        Only the background and the classes that have a CAM take part; the walk treats each class
        on its own, so this changes nothing but the cost.

        Args:
            feats: Outputs of the backbone, as for :meth:`forward`.
            img_metas: Meta information of the images: ``cams`` in [0, 1], shape (C, H0, W0), and
                ``cam_classes``, the C class ids in 1..K.
            test_cfg: The segmentor's.

        Returns:
            Scores in [0, 1], background first, 0 for classes without a CAM, at the size of the
            input, shape (N, K + 1, H, W).

        Raises:
            ValueError: If an image has no CAMs or they do not fit the head, or if the input is
                another view than that of the CAMs.
        """
        refuse_other_views(img_metas, test_cfg or {})
        slots = pad_sequence([self.read_slots(meta) for meta in img_metas], batch_first=True)
        embeddings = self.forward(feats)
        height, width = embeddings.shape[2:]
        scores = [
            F.adaptive_avg_pool2d(self.read_scores(meta, embeddings.device), (height, width))
            for meta in img_metas
        ]
        affinities = pair_affinities(embeddings, self.radius)
        walked = random_walk(
            pad_sequence(scores, batch_first=True),
            affinities,
            self.radius,
            self.power,
            self.num_steps,
        )
        input_shape = img_metas[0].get('pad_shape', img_metas[0]['img_shape'])
        maps = self.resize(walked, input_shape[:2])
        empty = maps.new_zeros(len(maps), self.num_classes, *maps.shape[2:])
        # The slot of a padded channel is 0 and so are its scores: adding it changes nothing.
        index = slots.to(maps.device)[:, :, None, None].expand_as(maps)
        return empty.scatter_add(1, index, maps)

    def resize(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Resize maps as the segmentor does.

        Args:
            maps: Maps, shape (N, C, h, w).
            size: Height and width in pixels.

        Returns:
            Maps, shape (N, C, *size).
        """
        return F.interpolate(maps, tuple(size), mode='bilinear', align_corners=self.align_corners)

    def read_scores(self, img_meta: dict, device: torch.device) -> Tensor:
        """Complete the CAMs of an image by its background.

        Args:
            img_meta: Meta information of the image, checked by :meth:`read_slots`.
            device: Where the scores are wanted.

        Returns:
            Scores in [0, 1], background first, shape (C + 1, H0, W0).
        """
        cams = torch.tensor(np.asarray(img_meta['cams'], dtype=np.float32), device=device)
        # The empty map in the background's place is the strongest where an image has no class.
        scores = F.pad(cams, (0, 0, 0, 0, 1, 0))
        scores[:1] = background_score(scores[None], bg_thr=0, bg_alpha=self.bg_alpha)[0]
        return scores

    def read_slots(self, img_meta: dict) -> Tensor:
        """Read the class ids of the CAMs of an image.

        Args:
            img_meta: Meta information of the image.

        Returns:
            0 for the background, then the ids in 1..K, int64, shape (C + 1,).

        Raises:
            ValueError: If the image has no CAMs, or not one for each of some classes of the head.
        """
        image = img_meta.get('img_path', 'an image')
        if 'cams' not in img_meta or 'cam_classes' not in img_meta:
            raise ValueError(
                f'{image} has no cams and cam_classes to refine: put LoadCAMs into the test '
                'pipeline'
            )
        classes = [int(class_id) for class_id in img_meta['cam_classes']]
        shape = np.shape(img_meta['cams'])
        if len(shape) != 3 or len(classes) != shape[0]:
            raise ValueError(
                f'{image} has cams of the shape {shape} and cam_classes={classes}: give one map '
                '(H, W) a class'
            )
        if len(set(classes) & set(range(1, self.num_classes))) != len(classes):
            raise ValueError(
                f'{image} has cam_classes={classes}, which must be different ids in '
                f'1..{self.num_classes - 1}: set model.decode_head.num_classes to that of the head '
                'which made the CAMs (background counts)'
            )
        return torch.tensor([0, *classes])


def default_init_cfg() -> dict:
    """Initialise as the released implementation does.

    Returns:
        Config of mmengine.
    """
    embedding = dict(type='Xavier', name='embedding', distribution='uniform', gain=4)
    return dict(type='Kaiming', mode='fan_in', layer='Conv2d', override=embedding)


def stack_label_maps(data_samples: list[SegDataSample]) -> Tensor:
    """Collect the label maps of a batch.

    Args:
        data_samples: Samples with ``gt_sem_seg``, class ids of shape (1, H, W).

    Returns:
        Class ids, shape (N, 1, H, W).

    Raises:
        ValueError: If a sample has no label map.
    """
    for sample in data_samples:
        if 'gt_sem_seg' not in sample:
            raise ValueError(
                f'{sample.get("img_path", "an image")} has no gt_sem_seg: give the data set the '
                'folder of the affinity labels (pseudo_label_folder) and load them in its '
                'pipeline'
            )
    return torch.stack([sample.gt_sem_seg.data for sample in data_samples])


def refuse_other_views(img_metas: list[dict], test_cfg: Any) -> None:
    """Refuse an input that shows something else than the stored CAMs of the image.

    Args:
        img_metas: Meta information of the images.
        test_cfg: The segmentor's.

    Raises:
        ValueError: If the input is cut into windows, padded or flipped.
    """
    if test_cfg.get('mode') == 'slide':
        raise ValueError(
            "test_cfg.mode='slide' would spread the CAMs of the whole image in each window: "
            "use mode='whole'"
        )
    if any(any(meta.get('img_padding_size', ())) for meta in img_metas):
        raise ValueError(
            'the stored CAMs do not cover the padding of the image: test with batch_size=1 and '
            'without data_preprocessor.test_cfg'
        )
    if any(meta.get('flip') for meta in img_metas):
        raise ValueError(
            'the stored CAMs are those of the image as it is: take the flip out of the test '
            'pipeline'
        )
