import pytest
import torch
from mmseg.registry import MODELS


def build(**kwargs):
    return MODELS.build(dict(type='EquivariantCrossLoss', **kwargs))


@pytest.fixture
def maps():
    """CAMs of two views, then revised maps of the same two."""
    shapes = [(2, 3, 4, 5)] * 2 + [(2, 4, 4, 5)] * 2
    return [torch.rand(shape, requires_grad=True) for shape in shapes]


def naive_direction(cams, revised, share):
    means = []
    for image, own in zip(cams, revised, strict=True):
        strongest = image.amax(dim=0)
        target = torch.stack([1 - strongest, *(k * (k == strongest) for k in image)])
        differences = sorted((target - own).abs().flatten().tolist(), reverse=True)
        largest = differences[: int(len(differences) * share)]
        means.append(sum(largest) / len(largest))
    return sum(means) / len(means)


@pytest.mark.parametrize('share', [0.2, 0.5, 1.0])
def test_value_crosses_views_and_sums_both_directions(maps, share):
    first, second, first_revised, second_revised = [value.detach() for value in maps]
    expected = naive_direction(second, first_revised, share)
    expected += naive_direction(first, second_revised, share)
    loss = build(share=share)(*maps)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_share_is_that_of_seam_by_default(maps):
    assert torch.equal(build()(*maps), build(share=0.2)(*maps))


def test_weight_scales_the_loss(maps):
    torch.testing.assert_close(build(loss_weight=2.5)(*maps), 2.5 * build()(*maps))
    assert build(loss_weight=0.0)(*maps) == 0


def test_exchanging_the_views_changes_nothing(maps):
    first, second, first_revised, second_revised = maps
    exchanged = build()(second, first, second_revised, first_revised)
    torch.testing.assert_close(exchanged, build()(*maps))


def test_revised_maps_are_trained_and_cams_are_not(maps):
    build()(*maps).backward()
    assert [value.grad is None for value in maps] == [True, True, False, False]
    # A fifth of the 80 differences of each image.
    for value in maps[2:]:
        assert value.grad.flatten(1).count_nonzero(dim=1).tolist() == [16, 16]


@pytest.mark.parametrize('share', [0, -0.1, 1.01])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=rf'share={share} must lie in \(0, 1\]: SEAM uses 0\.2'):
        build(share=share)


def test_bfloat16_loss_is_close(maps):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = build()(*(value.bfloat16() for value in maps))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(build()(*maps).item(), rel=1e-2)


def test_loss_holds_nothing_to_save():
    assert not build().state_dict()
