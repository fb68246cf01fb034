"""SEAM's regularisation by the CAMs of two views."""

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.functional.equivariance import view_distance
from mmdscnet.models.losses.weighted_loss import WeightedLoss


@MODELS.register_module()
class EquivarianceLoss(WeightedLoss):
    """Equivariant regularisation (ER): both views of an image have the same CAMs.

    SEAM, CVPR 2020, Eq. 2.

    Args:
        loss_weight: Weight in the objective.
        loss_name: Key in the log, begins with ``loss_``.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_er') -> None:
        super().__init__(loss_weight, loss_name)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare the CAMs of two views.

        Args:
            first: CAMs in [0, 1], shape (N, K, h, w).
            second: CAMs of the other view at the same size, shape (N, K, h, w).

        Returns:
            The weighted loss, a scalar.
        """
        return self.loss_weight * view_distance(first, second)
