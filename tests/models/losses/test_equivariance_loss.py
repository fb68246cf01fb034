import pytest
import torch
from mmseg.registry import MODELS


def build(**kwargs):
    return MODELS.build(dict(type='EquivarianceLoss', **kwargs))


@pytest.fixture
def views():
    return [torch.rand(2, 3, 4, 5, requires_grad=True) for _ in range(2)]


def test_value_is_the_mean_absolute_difference(views):
    expected = sum(
        abs(one - other)
        for one, other in zip(*(view.flatten().tolist() for view in views), strict=True)
    )
    loss = build()(*views)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected / 120, rel=1e-5)


def test_weight_scales_the_loss(views):
    torch.testing.assert_close(build(loss_weight=2.5)(*views), 2.5 * build()(*views))
    assert build(loss_weight=0.0)(*views) == 0


def test_both_views_are_trained_towards_each_other(views):
    loss = build()(*views)
    gradients = torch.autograd.grad(loss, views)
    torch.testing.assert_close(gradients[0], -gradients[1])
    assert all(gradient.count_nonzero() == 120 for gradient in gradients)
    moved = [view - 0.01 * gradient for view, gradient in zip(views, gradients, strict=True)]
    assert build()(*moved) < loss


def test_bfloat16_loss_is_close(views):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = build()(*(view.bfloat16() for view in views))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(build()(*views).item(), rel=1e-2)


def test_loss_holds_nothing_to_save():
    assert not build().state_dict()
