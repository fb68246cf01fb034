import pytest
import torch
from mmseg.registry import MODELS


def build(**kwargs):
    return MODELS.build(dict(type='MinPoolingLoss', **kwargs))


@pytest.fixture
def maps():
    return torch.rand(2, 3, 4, 5, requires_grad=True)


def naive_loss(maps, share):
    means = []
    for image in maps:
        strongest = sorted(image.amax(dim=0).flatten().tolist())
        lowest = strongest[: int(len(strongest) * share)]
        means.append(sum(max(value, 0) for value in lowest) / len(lowest))
    return sum(means) / len(means)


@pytest.mark.parametrize('share', [0.25, 0.5, 1.0])
def test_value_equals_naive_loop(maps, share):
    loss = build(share=share)(maps)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive_loss(maps.detach(), share), rel=1e-5)


def test_share_is_that_of_seam_by_default(maps):
    assert torch.equal(build()(maps), build(share=0.25)(maps))


def test_weight_scales_the_loss(maps):
    torch.testing.assert_close(build(loss_weight=2.5)(maps), 2.5 * build()(maps))
    assert build(loss_weight=0.0)(maps) == 0


def test_least_covered_pixels_are_trained_to_be_less_covered(maps):
    build()(maps).backward()
    assert maps.grad.flatten(1).count_nonzero(dim=1).tolist() == [5, 5]
    assert maps.grad.min() >= 0


def test_image_without_class_costs_nothing(maps):
    nothing = maps * torch.tensor([0.0, 0.0])[:, None, None, None]
    loss = build()(nothing)
    loss.backward()
    assert loss == 0
    assert maps.grad.count_nonzero() == 0


@pytest.mark.parametrize('share', [0, -0.1, 1.01])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=rf'share={share} must lie in \(0, 1\]: SEAM uses 0\.25'):
        build(share=share)


def test_bfloat16_loss_is_close(maps):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = build()(maps.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(build()(maps).item(), rel=1e-2)


def test_loss_holds_nothing_to_save():
    assert not build().state_dict()
