"""Semantic-wise graph contrast."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.models.losses.contrast_loss import ContrastLoss


@MODELS.register_module()
class SGCLLoss(ContrastLoss):
    """Semantic-wise graph contrast: a class's graph node against the pixels pseudo-labelled so.

    DSCNet, arXiv:2405.04913, Eq. 9.

    Note:
        The print contrasts the node, a vector, with the pseudo label, a map. Here the key is the
        mean embedding of the pixels that carry the label.

    Args:
        temperature: Divisor of the cosine similarity, positive.
        loss_weight: Weight in the objective: beta of Eq. 13.
        loss_name: Key in the log, begins with ``loss_``.
        kwargs: As for :class:`ContrastLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        loss_weight: float = 0.4,
        loss_name: str = 'loss_sgcl',
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, loss_weight, loss_name, **kwargs)

    def forward(
        self,
        nodes: Tensor,
        valid: Tensor,
        keys: Tensor,
        key_valid: Tensor,
        memory: Tensor,
        memory_valid: Tensor,
    ) -> Tensor:
        """Contrast the class nodes of the global batch with its pseudo-labelled regions.

        Args:
            nodes: Class nodes, shape (N, A, E).
            valid: Whether the image has this class, bool, shape (N, A).
            keys: Mean embedding of the pixels of each pseudo label, shape (N, A, E).
            key_valid: Whether any pixel carries the label, bool, shape (N, A).
            memory: Class memory, as one more key image, shape (1, A, E).
            memory_valid: Whether the memory holds the class, bool, shape (1, A).

        Returns:
            The weighted loss, a scalar.
        """
        return self.contrast(
            nodes, valid, keys, key_valid, memory, memory_valid, own_image_is_positive=True
        )
