"""MobileNetV2 whose dilated stages still fit their ImageNet weights."""

from typing import Any

from mmseg.models.backbones import MobileNetV2
from mmseg.registry import MODELS


@MODELS.register_module()
class ContractedMobileNetV2(MobileNetV2):
    """MobileNetV2 that dilates a stage from its second block on.

    Where a stage gives up its stride, its first block still sees the grid of the stage before, and
    the blocks behind it need the holes. mmseg's MobileNetV2 dilates the first block and no other,
    which spoils pre-trained features; its ResNet has ``contract_dilation`` for the same purpose.
    Here the outputs at output stride 16 or 8 are those at 32, computed more densely.

    Args:
        kwargs: As for mmseg's ``MobileNetV2``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        before = 1
        for dilation, name in zip(self.dilations, self.layers, strict=True):
            for block in getattr(self, name):
                depthwise = block.conv[-2].conv
                depthwise.dilation = depthwise.padding = (before, before)
                before = dilation
        # The base class waits for train(); a distributed wrapper by then expects their gradients.
        self._freeze_stages()
