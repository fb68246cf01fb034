import pytest

from mmdscnet.models.losses import PGCLLoss, SGCLLoss
from mmdscnet.models.losses.contrast_loss import ContrastLoss
from mmdscnet.models.losses.weighted_loss import WeightedLoss


def test_settings_are_kept():
    loss = ContrastLoss(temperature=0.2, loss_weight=3.0, loss_name='loss_mine')
    assert (loss.temperature, loss.loss_weight, loss.loss_name) == (0.2, 3.0, 'loss_mine')
    assert not list(loss.parameters())
    assert isinstance(loss, WeightedLoss)


@pytest.mark.parametrize('kind', [PGCLLoss, SGCLLoss])
@pytest.mark.parametrize('temperature', [0, -0.1])
def test_temperature_that_is_not_positive_is_refused(kind, temperature):
    with pytest.raises(ValueError, match=f'temperature={temperature} must be positive'):
        kind(temperature=temperature)


@pytest.mark.parametrize('kind', [PGCLLoss, SGCLLoss])
@pytest.mark.parametrize('name', ['pgcl', 'my_loss_pgcl', ''])
def test_name_that_mmengine_would_not_train_is_refused(kind, name):
    with pytest.raises(ValueError, match=f'loss_name=\'{name}\' must begin with "loss_"'):
        kind(loss_name=name)


def test_weight_of_zero_is_allowed():
    assert PGCLLoss(loss_weight=0.0).loss_weight == 0
