"""Pixel-wise group contrast."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.models.losses.contrast_loss import ContrastLoss


@MODELS.register_module()
class PGCLLoss(ContrastLoss):
    """Pixel-wise group contrast: a class's pixel group against the groups of other images.

    DSCNet, arXiv:2405.04913, Eq. 6 and 7.

    Args:
        temperature: Divisor of the cosine similarity, positive.
        loss_weight: Weight in the objective: alpha of Eq. 13.
        loss_name: Key in the log, begins with ``loss_``.
        kwargs: As for :class:`ContrastLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        loss_weight: float = 0.6,
        loss_name: str = 'loss_pgcl',
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, loss_weight, loss_name, **kwargs)

    def forward(
        self, groups: Tensor, valid: Tensor, memory: Tensor, memory_valid: Tensor
    ) -> Tensor:
        """Contrast the groups of the global batch with each other and with the class memory.

        Args:
            groups: Group embeddings, shape (N, A, E).
            valid: Whether the image has this group, bool, shape (N, A).
            memory: Class memory, as one more key image, shape (1, A, E).
            memory_valid: Whether the memory holds the class, bool, shape (1, A).

        Returns:
            The weighted loss, a scalar.
        """
        return self.contrast(
            groups, valid, groups, valid, memory, memory_valid, own_image_is_positive=False
        )
