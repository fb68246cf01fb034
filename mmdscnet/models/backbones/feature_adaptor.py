"""The trained part in front of a head where the backbone is frozen and its features are stored."""

from collections import OrderedDict
from collections.abc import Sequence

from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class FeatureAdaptor(BaseModule):
    r"""Residual 1x1 convolutions on stored features, in the place of the backbone.

    .. math:: f' = f + A(f)

    with :math:`A` one convolution, or two with a ReLU between them. The last one starts at zero:
    at step 0 a head sees the features as they were stored.

    Other levels of the backbone that are stored in front of the features are handed on as they
    are, for a head that groups pixels by them, such as ``DSCHead`` with ``group_index``.

    Args:
        in_channels: Channels D of the features.
        level_channels: Channels D_1, D_2, ... of the levels stored in front of them, as
            ``tools/store_features.py --levels`` does.
        hidden_channels: Channels between two convolutions; None for a single one.
        init_cfg: Initialisation config of mmengine.
    """

    def __init__(
        self,
        in_channels: int,
        level_channels: Sequence[int] = (),
        hidden_channels: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.split_channels = [*level_channels, in_channels]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden_channels is not None:
            layers['expand'] = nn.Conv2d(in_channels, hidden_channels, 1)
            layers['relu'] = nn.ReLU(inplace=True)
        last = nn.Conv2d(hidden_channels or in_channels, in_channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        layers['project'] = last
        self.change = nn.Sequential(layers)

    def forward(self, feats: Tensor) -> tuple[Tensor, ...]:
        """Adapt features.

        Args:
            feats: Stored features, of any floating type, shape (N, D_1 + D_2 + ... + D, h, w).

        Returns:
            The levels as stored, float32, each of shape (N, D_i, h, w), and last the adapted map,
            float32 but for autocast, shape (N, D, h, w).

        Raises:
            ValueError: If the number of channels is another.
        """
        if feats.shape[1] != sum(self.split_channels):
            *level_channels, in_channels = self.split_channels
            raise ValueError(
                f'features of {feats.shape[1]} channels are not level_channels={level_channels} '
                f'and in_channels={in_channels}: set both to what index.json of the features says, '
                'or store these levels with tools/store_features.py --levels, into a new folder'
            )
        *levels, last = feats.float().split(self.split_channels, dim=1)
        return (*levels, last + self.change(last))
