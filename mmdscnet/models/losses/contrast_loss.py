"""What both contrasts are configured by."""

from torch import nn


class ContrastLoss(nn.Module):
    """A contrast with its temperature, weight and name.

    Args:
        temperature: Divisor of the cosine similarity, positive.
        loss_weight: Weight in the objective, Eq. 13.
        loss_name: Key in the log.

    Raises:
        ValueError: If ``temperature`` is not positive, or ``loss_name`` does not begin with
            ``loss_`` (mmengine would log the loss but not train it).
    """

    def __init__(self, temperature: float, loss_weight: float, loss_name: str) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f'temperature={temperature} must be positive: the default is 0.1')
        if not loss_name.startswith('loss_'):
            raise ValueError(
                f'loss_name={loss_name!r} must begin with "loss_": mmengine trains only such keys'
            )
        self.temperature = temperature
        self.loss_weight = loss_weight
        self.loss_name = loss_name
