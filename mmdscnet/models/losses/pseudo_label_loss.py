"""The pixel-wise term of DSCNet's objective."""

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.functional.pseudo_label import pixel_cross_entropy
from mmdscnet.models.losses.weighted_loss import WeightedLoss


@MODELS.register_module()
class PseudoLabelLoss(WeightedLoss):
    """The evidence of every pixel says what its pseudo label says.

    DSCNet, arXiv:2405.04913, Eq. 13.

    Args:
        loss_weight: Weight in the objective.
        loss_name: Key in the log, begins with ``loss_``.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_pseudo') -> None:
        super().__init__(loss_weight, loss_name)

    def forward(
        self, cam_logits: Tensor, pseudo_labels: Tensor, align_corners: bool = False
    ) -> Tensor:
        """Average the cross entropy of the labelled pixels.

        Args:
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).
            pseudo_labels: Labels 0..K, or 255 for pixels that are left out, int64, shape (N, H, W).
            align_corners: How the evidence is resized to the labels, as in mmseg.

        Returns:
            The weighted loss, a scalar.
        """
        loss = pixel_cross_entropy(cam_logits, pseudo_labels, align_corners=align_corners)
        return self.loss_weight * loss
