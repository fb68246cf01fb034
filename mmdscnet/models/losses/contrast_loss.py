"""What both contrasts are configured by."""

import torch
from torch import Tensor

from mmdscnet.functional.contrast import class_contrast
from mmdscnet.models.losses.weighted_loss import WeightedLoss


class ContrastLoss(WeightedLoss):
    """A contrast with its temperature, weight and name.

    Args:
        temperature: Divisor of the cosine similarity, positive.
        loss_weight: Weight in the objective, Eq. 13.
        loss_name: Key in the log.
        positive_in_denominator: False for the denominator as printed, of negatives alone.
        min_correlation: Keys of the class that resemble the anchor less than this are no positives,
            a cosine in [-1, 1]; None asks for the class alone.
        background_is_anchor: Whether the backgrounds of two images attract each other, as if the
            background were a class.

    Raises:
        ValueError: If ``temperature`` is not positive, or as for :class:`WeightedLoss`.
    """

    def __init__(
        self,
        temperature: float,
        loss_weight: float,
        loss_name: str,
        positive_in_denominator: bool = True,
        min_correlation: float | None = None,
        background_is_anchor: bool = False,
    ) -> None:
        super().__init__(loss_weight, loss_name)
        self.positive_in_denominator = positive_in_denominator
        self.min_correlation = min_correlation
        self.background_is_anchor = background_is_anchor
        if temperature <= 0:
            raise ValueError(f'temperature={temperature} must be positive: the default is 0.1')
        self.temperature = temperature

    def contrast(
        self,
        anchors: Tensor,
        valid: Tensor,
        keys: Tensor,
        key_valid: Tensor,
        memory: Tensor,
        memory_valid: Tensor,
        own_image_is_positive: bool,
    ) -> Tensor:
        """Contrast the class slots of images with keys and with the class memory.

        Args:
            anchors: One vector a class slot, shape (N, A, E).
            valid: Whether the image has the class, bool, shape (N, A).
            keys: One vector a class slot of the same images, shape (N, A, E).
            key_valid: Whether the key exists, bool, shape (N, A).
            memory: Class memory, as one more key image, shape (1, A, E).
            memory_valid: Whether the memory holds the class, bool, shape (1, A).
            own_image_is_positive: As for :func:`class_contrast`.

        Returns:
            The weighted loss, a scalar.
        """
        loss = class_contrast(
            anchors,
            valid,
            torch.cat([keys, memory]),
            torch.cat([key_valid, memory_valid]),
            self.temperature,
            own_image_is_positive=own_image_is_positive,
            positive_in_denominator=self.positive_in_denominator,
            min_correlation=self.min_correlation,
            background_is_anchor=self.background_is_anchor,
        )
        return self.loss_weight * loss
