import pytest
from mmseg.registry import MODELS
from torch import nn

from mmdscnet.models.losses.weighted_loss import WeightedLoss

SEAM_LOSSES = dict(
    EquivarianceLoss='loss_er', EquivariantCrossLoss='loss_ecr', MinPoolingLoss='loss_min_pooling'
)
ALL_LOSSES = dict(
    SEAM_LOSSES, PGCLLoss='loss_pgcl', SGCLLoss='loss_sgcl', PseudoLabelLoss='loss_pseudo'
)


def test_settings_are_kept():
    loss = WeightedLoss(loss_weight=3.0, loss_name='loss_mine')
    assert (loss.loss_weight, loss.loss_name) == (3.0, 'loss_mine')
    assert isinstance(loss, nn.Module)
    assert not loss.state_dict()


@pytest.mark.parametrize('name', ['er', 'my_loss_er', 'Loss_er', ''])
def test_name_that_mmengine_would_not_train_is_refused(name):
    with pytest.raises(ValueError, match=f'loss_name=\'{name}\' must begin with "loss_"'):
        WeightedLoss(loss_weight=1.0, loss_name=name)


@pytest.mark.parametrize('kind', ALL_LOSSES)
def test_every_loss_has_a_weight_and_a_name(kind):
    assert MODELS.build(dict(type=kind)).loss_name == ALL_LOSSES[kind]
    loss = MODELS.build(dict(type=kind, loss_weight=0.0, loss_name='loss_other'))
    assert isinstance(loss, WeightedLoss)
    assert (loss.loss_weight, loss.loss_name) == (0.0, 'loss_other')
    with pytest.raises(ValueError, match='loss_name=\'other\' must begin with "loss_"'):
        MODELS.build(dict(type=kind, loss_name='other'))


@pytest.mark.parametrize('kind', SEAM_LOSSES)
def test_terms_of_seam_have_weight_one_by_default(kind):
    assert MODELS.build(dict(type=kind)).loss_weight == 1.0
