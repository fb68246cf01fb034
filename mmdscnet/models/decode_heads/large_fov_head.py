"""The segmentation head of DeepLab-v1, for second stages on ResNet38d."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class LargeFOVHead(BaseDecodeHead):
    """Look far around every pixel by one dilated convolution, then classify it.

    3x3 convolution with dilation, 1x1 convolution, dropout, 1x1 classifier; ReLU between. The
    variant "LargeFOV" of DeepLab (Chen et al., ICLR 2015, arXiv:1412.7062), with the widths of the
    second stage after SEAM on ResNet38d, which has a ``norm_cfg``: the hidden convolutions then
    have a normalisation in place of their bias.

    Note:
        Dropout is mmseg's, which drops whole channels.

    Args:
        in_channels: Channels of the feature map.
        channels: Channels of both hidden layers.
        dilation: Dilation of the first convolution, in pixels of the feature map.
        dropout_ratio: Share of channels dropped before the classifier, in [0, 1).
        **kwargs: As for mmseg's ``BaseDecodeHead``, ``num_classes`` among them.

    Raises:
        ValueError: If ``dilation`` is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 512,
        *,
        dilation: int = 12,
        dropout_ratio: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, channels, dropout_ratio=dropout_ratio, **kwargs)
        if dilation < 1:
            raise ValueError(f'dilation={dilation} must be at least 1, which is a plain 3x3 window')
        layer = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.hidden = nn.Sequential(
            # Padding by the dilation keeps the size.
            ConvModule(self.in_channels, channels, 3, padding=dilation, dilation=dilation, **layer),
            ConvModule(channels, channels, 1, **layer),
        )

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Score the classes at every pixel of the feature map.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).

        Returns:
            Logits, shape (N, num_classes, h, w).
        """
        return self.cls_seg(self.hidden(self._transform_inputs(feats)))
