"""The trained part in front of a head where the backbone is frozen and its features are stored."""

from collections import OrderedDict

from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class FeatureAdaptor(BaseModule):
    r"""Residual 1x1 convolutions on stored features, in the place of the backbone.

    .. math:: f' = f + A(f)

    with :math:`A` one convolution, or two with a ReLU between them. The last one starts at zero:
    at step 0 a head sees the features as they were stored.

    Args:
        in_channels: Channels D of the features.
        hidden_channels: Channels between two convolutions; None for a single one.
        init_cfg: Initialisation config of mmengine.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int | None = None, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden_channels is not None:
            layers['expand'] = nn.Conv2d(in_channels, hidden_channels, 1)
            layers['relu'] = nn.ReLU(inplace=True)
        last = nn.Conv2d(hidden_channels or in_channels, in_channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        layers['project'] = last
        self.change = nn.Sequential(layers)

    def forward(self, feats: Tensor) -> tuple[Tensor]:
        """Adapt features.

        Args:
            feats: Stored features, of any floating type, shape (N, D, h, w).

        Returns:
            One map, float32 but for autocast, shape (N, D, h, w).
        """
        feats = feats.float()
        return (feats + self.change(feats),)
