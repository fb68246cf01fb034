"""What both contrasts are configured by."""

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
