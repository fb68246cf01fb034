"""SEAM's regularisation across views and across the pixel correlation."""

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.functional.equivariance import cross_distance
from mmdscnet.models.losses.weighted_loss import WeightedLoss


@MODELS.register_module()
class EquivariantCrossLoss(WeightedLoss):
    """Equivariant cross regularisation (ECR): revised CAMs of a view are the other view's CAMs.

    SEAM, CVPR 2020, Eq. 7. It trains what revises the CAMs and not the CAMs.

    Args:
        share: Share of the differences of an image that count, the largest ones, in (0, 1].
        loss_weight: Weight in the objective.
        loss_name: Key in the log, begins with ``loss_``.

    Raises:
        ValueError: If ``share`` lies outside (0, 1].
    """

    def __init__(
        self, share: float = 0.2, loss_weight: float = 1.0, loss_name: str = 'loss_ecr'
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if not 0 < share <= 1:
            raise ValueError(f'share={share} must lie in (0, 1]: SEAM uses 0.2')
        self.share = share

    def forward(
        self, first: Tensor, second: Tensor, first_revised: Tensor, second_revised: Tensor
    ) -> Tensor:
        """Compare the revised CAMs of each view with the CAMs of the other, all of one size.

        Args:
            first: CAMs of a view in [0, 1], shape (N, K, h, w).
            second: CAMs of the other view, shape (N, K, h, w).
            first_revised: Revised maps of the first view, background first, shape (N, K + 1, h, w).
            second_revised: Revised maps of the second view, shape (N, K + 1, h, w).

        Returns:
            The weighted loss, a scalar.
        """
        there = cross_distance(second, first_revised, self.share)
        back = cross_distance(first, second_revised, self.share)
        return self.loss_weight * (there + back)
