import pytest
import torch
from mmseg.registry import MODELS

from mmdscnet.functional.pixel_contrast import pixel_contrast

LABELS = torch.tensor([[[0, 1, 2]], [[1, 255, 0]], [[2, 2, 0]]])


@pytest.fixture
def maps():
    """Embeddings, CAMs, pseudo labels and image-level labels."""
    embeddings = torch.randn(3, 4, 1, 3, requires_grad=True)
    return embeddings, torch.rand(3, 2, 1, 3), LABELS, torch.ones(3, 2)


def build(**kwargs):
    return MODELS.build(dict(type='PixelContrastLoss', **kwargs))


def test_value_is_the_weighted_contrast(maps):
    expected = 0.6 * pixel_contrast(maps[0], LABELS, temperature=0.1)
    assert expected > 0
    torch.testing.assert_close(build()(*maps), expected)


@pytest.mark.parametrize('chunk', [None, 1, 100])
def test_chunks_change_nothing(maps, chunk):
    torch.testing.assert_close(build(chunk=chunk)(*maps), build()(*maps))


def test_weight_scales_the_loss_and_temperature_is_passed_on(maps):
    once = build(loss_weight=1.0, temperature=0.5)(*maps)
    torch.testing.assert_close(once, pixel_contrast(maps[0], LABELS, temperature=0.5))
    torch.testing.assert_close(build(loss_weight=2.5, temperature=0.5)(*maps), 2.5 * once)


def test_name_in_the_log_is_settable():
    assert build().loss_name == 'loss_pixel_contrast'
    assert build(loss_name='loss_other').loss_name == 'loss_other'


def test_gradient_reaches_labelled_pixels_only(maps):
    build()(*maps).backward()
    assert torch.equal(maps[0].grad.abs().sum(dim=1) > 0, LABELS != 255)


def test_a_step_down_the_gradient_lowers_the_loss(maps):
    embeddings, *others = maps
    loss = build()(*maps)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert build()(embeddings - 0.01 * gradient, *others) < loss


def test_nothing_to_contrast_is_an_attached_zero(maps):
    embeddings, cams, labels, image_labels = maps
    loss = build()(embeddings, cams, torch.zeros_like(labels), image_labels)
    assert loss == 0
    loss.backward()
    assert embeddings.grad.count_nonzero() == 0


def test_chunk_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match='chunk=0 must be at least 1'):
        build(chunk=0)


def test_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match='temperature=0 must be positive'):
        build(temperature=0)
