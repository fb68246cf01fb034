"""What revises the CAMs of any head: SEAM's pixel correlation module."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmdscnet.functional.pixel_correlation import correlate_pixels, keep_winning_cams

IMAGE_CHANNELS = 3
# How the released implementation of SEAM starts the embedding.
RELEASED_INIT = dict(
    type='Kaiming',
    layer='Conv2d',
    mode='fan_in',
    override=dict(type='Xavier', name='fuse', distribution='uniform', gain=4),
)


@MODELS.register_module()
class PixelCorrelationModule(BaseModule):
    """Let pixels that look alike share their CAMs (PCM).

    What looks alike is learnt by three 1x1 convolutions, on taps of the backbone from which the
    gradient is cut off, and on the image itself. SEAM, CVPR 2020, Sec. 3.4.

    Args:
        in_channels: Channels of each tap.
        in_index: Which of the backbone's outputs are the taps.
        channels: Channels to which each tap is reduced.
        init_cfg: Initialisation, as in mmengine.

    Raises:
        ValueError: If the three lists are not of one length.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 1024),
        in_index: Sequence[int] = (0, 1),
        channels: Sequence[int] = (64, 128),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or RELEASED_INIT)
        if not len(in_channels) == len(in_index) == len(channels):
            raise ValueError(
                f'in_channels={in_channels}, in_index={in_index} and channels={channels} must have '
                'one entry a tap each'
            )
        self.in_index = tuple(in_index)
        self.reduce = nn.ModuleList(
            nn.Conv2d(wide, narrow, 1, bias=False)
            for wide, narrow in zip(in_channels, channels, strict=True)
        )
        width = sum(channels)
        self.fuse = nn.Conv2d(IMAGE_CHANNELS + width, width, 1, bias=False)

    def forward(self, images: Tensor, feats: Sequence[Tensor], cam_logits: Tensor) -> Tensor:
        """Revise CAMs.

        Args:
            images: Normalised images, shape (N, 3, H, W).
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            cam_logits: Class evidence of any head, unbounded, shape (N, K, h, w); no gradient
                flows into it.

        Returns:
            Revised maps in [0, 1], background first, shape (N, K + 1, h, w).
        """
        taps = [feats[index].detach() for index in self.in_index]
        reduced = [F.relu(conv(tap)) for conv, tap in zip(self.reduce, taps, strict=True)]
        size = cam_logits.shape[2:]
        parts = [
            F.interpolate(part, size, mode='bilinear', align_corners=True)
            for part in (images.to(reduced[0].dtype), *reduced)
        ]
        return correlate_pixels(keep_winning_cams(cam_logits), self.fuse(torch.cat(parts, dim=1)))
