"""What every loss is configured by."""

from torch import nn


class WeightedLoss(nn.Module):
    """A loss with its weight in the objective and its name.

    Args:
        loss_weight: Weight in the objective.
        loss_name: Key in the log.

    Raises:
        ValueError: If ``loss_name`` does not begin with ``loss_`` (mmengine would log the loss but
            not train it).
    """

    def __init__(self, loss_weight: float, loss_name: str) -> None:
        super().__init__()
        if not loss_name.startswith('loss_'):
            raise ValueError(
                f'loss_name={loss_name!r} must begin with "loss_": mmengine trains only such keys'
            )
        self.loss_weight = loss_weight
        self.loss_name = loss_name
