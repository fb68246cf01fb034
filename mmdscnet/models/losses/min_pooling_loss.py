"""SEAM's demand that some of every image be background."""

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.functional.equivariance import pool_lowest
from mmdscnet.models.losses.weighted_loss import WeightedLoss


@MODELS.register_module()
class MinPoolingLoss(WeightedLoss):
    """The least covered part of an image is covered by no class.

    Source: the released implementation of SEAM (CVPR 2020).

    Args:
        share: Share of the pixels that count, in (0, 1].
        loss_weight: Weight in the objective.
        loss_name: Key in the log, begins with ``loss_``.

    Raises:
        ValueError: If ``share`` lies outside (0, 1].
    """

    def __init__(
        self, share: float = 0.25, loss_weight: float = 1.0, loss_name: str = 'loss_min_pooling'
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if not 0 < share <= 1:
            raise ValueError(f'share={share} must lie in (0, 1]: SEAM uses 0.25')
        self.share = share

    def forward(self, maps: Tensor) -> Tensor:
        """Average the strongest class where it is weakest.

        Args:
            maps: Maps of the classes, zero for absent ones, shape (N, K, h, w).

        Returns:
            The weighted loss, a scalar.
        """
        return self.loss_weight * pool_lowest(maps, self.share)
