import pytest
import torch
from mmseg.registry import MODELS

from mmdscnet.functional.pixel_contrast import pixel_prototype_contrast

LABELS = torch.tensor([[[0, 1, 2]], [[1, 255, 0]], [[2, 2, 0]]])


@pytest.fixture
def maps():
    """Embeddings, CAMs, pseudo labels and image-level labels."""
    embeddings = torch.randn(3, 4, 1, 3, requires_grad=True)
    return embeddings, torch.rand(3, 2, 1, 3), LABELS, torch.ones(3, 2)


def build(**kwargs):
    return MODELS.build(dict(type='PixelPrototypeLoss', **kwargs))


def test_value_is_the_weighted_contrast(maps):
    expected = 0.1 * pixel_prototype_contrast(*maps, temperature=0.1)
    assert expected > 0
    torch.testing.assert_close(build()(*maps), expected)


def test_weight_scales_the_loss_and_temperature_is_passed_on(maps):
    once = build(loss_weight=1.0, temperature=0.5)(*maps)
    torch.testing.assert_close(once, pixel_prototype_contrast(*maps, temperature=0.5))
    torch.testing.assert_close(build(loss_weight=2.5, temperature=0.5)(*maps), 2.5 * once)


def test_name_in_the_log_is_settable():
    assert build().loss_name == 'loss_prototype'
    assert build(loss_name='loss_other').loss_name == 'loss_other'


def test_gradient_reaches_labelled_pixels_only(maps):
    build()(*maps).backward()
    assert torch.equal(maps[0].grad.abs().sum(dim=1) > 0, LABELS != 255)


def test_nothing_to_contrast_is_an_attached_zero(maps):
    embeddings, cams, labels, image_labels = maps
    loss = build()(embeddings, cams, torch.full_like(labels, 255), image_labels)
    assert loss == 0
    loss.backward()
    assert embeddings.grad.count_nonzero() == 0


def test_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match='temperature=0 must be positive'):
        build(temperature=0)
