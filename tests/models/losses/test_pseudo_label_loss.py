import pytest
import torch
from mmseg.registry import MODELS

from mmdscnet.functional.pseudo_label import pixel_cross_entropy


def build(**kwargs):
    return MODELS.build(dict(type='PseudoLabelLoss', **kwargs))


@pytest.fixture
def cam_logits():
    return torch.randn(2, 3, 4, 5, requires_grad=True)


@pytest.fixture
def pseudo_labels():
    labels = torch.randint(0, 4, (2, 8, 9))
    labels[:, :2] = 255
    return labels


@pytest.mark.parametrize('align_corners', [True, False])
def test_value_is_the_cross_entropy_of_the_pixels(cam_logits, pseudo_labels, align_corners):
    loss = build()(cam_logits, pseudo_labels, align_corners)
    expected = pixel_cross_entropy(cam_logits, pseudo_labels, align_corners=align_corners)
    assert loss.shape == ()
    assert torch.equal(loss, expected)


def test_weight_scales_the_loss(cam_logits, pseudo_labels):
    once = build()(cam_logits, pseudo_labels)
    torch.testing.assert_close(build(loss_weight=2.5)(cam_logits, pseudo_labels), 2.5 * once)
    assert build(loss_weight=0.0)(cam_logits, pseudo_labels) == 0


def test_evidence_moves_towards_the_labels(cam_logits, pseudo_labels):
    loss = build()(cam_logits, pseudo_labels)
    (gradient,) = torch.autograd.grad(loss, cam_logits)
    assert build()(cam_logits - 0.1 * gradient, pseudo_labels) < loss


def test_nothing_labelled_is_an_attached_zero(cam_logits, pseudo_labels):
    loss = build()(cam_logits, torch.full_like(pseudo_labels, 255))
    assert loss == 0
    loss.backward()
    assert cam_logits.grad.count_nonzero() == 0


def test_bfloat16_loss_is_close(cam_logits, pseudo_labels):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = build()(cam_logits.bfloat16(), pseudo_labels)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(build()(cam_logits, pseudo_labels).item(), rel=1e-2)


def test_loss_holds_nothing_to_save():
    assert not build().state_dict()
