"""The same maps whatever the scale (SEAM's ER, ECR and minimum pooling)."""

import pytest
import torch
from torch import Tensor

from mmdscnet.functional.equivariance import cross_distance, pool_lowest, view_distance

HALVES = [torch.bfloat16, torch.float16]
SHARES = [0.2, 0.25, 0.5, 1.0]


def naive_view_distance(first: Tensor, second: Tensor) -> float:
    pairs = list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    return sum(abs(one - other) for one, other in pairs) / len(pairs)


def naive_cross_distance(cams: Tensor, revised: Tensor, share: float) -> float:
    num_images, num_classes, height, width = cams.shape
    means = []
    for n in range(num_images):
        differences = []
        for y in range(height):
            for x in range(width):
                values = cams[n, :, y, x].tolist()
                target = [1 - max(values)]
                target += [value if value == max(values) else 0.0 for value in values]
                differences += [
                    abs(one - other)
                    for one, other in zip(target, revised[n, :, y, x].tolist(), strict=True)
                ]
        assert len(differences) == (num_classes + 1) * height * width
        largest = sorted(differences, reverse=True)[: int(len(differences) * share)]
        means.append(sum(largest) / len(largest))
    return sum(means) / num_images


def naive_lowest(maps: Tensor, share: float) -> float:
    means = []
    for image in maps:
        strongest = sorted(max(pixel) for pixel in image.flatten(1).T.tolist())
        lowest = strongest[: int(len(strongest) * share)]
        means.append(sum(max(value, 0.0) for value in lowest) / len(lowest))
    return sum(means) / len(means)


def permute_pixels(maps: Tensor, order: Tensor) -> Tensor:
    return maps.flatten(2)[..., order].view_as(maps)


# --------------------------------------------------------------------------- views among themselves


def test_view_distance_by_hand():
    first, second = torch.tensor([0.0, 1.0, 0.5, 0.5]), torch.tensor([0.5, 0.0, 0.5, 0.7])
    distance = view_distance(first.view(1, 2, 1, 2), second.view(1, 2, 1, 2))
    assert distance.item() == pytest.approx(1.7 / 4)


def test_view_distance_equals_naive_loop():
    first, second = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    expected = naive_view_distance(first, second)
    assert view_distance(first, second).item() == pytest.approx(expected, rel=1e-5)


def test_view_distance_gradcheck():
    views = [torch.rand(2, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(view_distance, views)


def test_view_distance_knows_no_first_view():
    first, second = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    assert view_distance(first, second) == view_distance(second, first)


def test_equal_views_have_no_distance_and_no_gradient():
    cams = torch.rand(1, 2, 3, 3, requires_grad=True)
    distance = view_distance(cams, cams.detach())
    distance.backward()
    assert distance == 0
    assert cams.grad.count_nonzero() == 0


# ---------------------------------------------------------------------- revised maps and other view


def test_cross_distance_by_hand():
    # Targets: pixel 1 background .2, class .8, 0; pixel 2 background .9, 0, class .1.
    cams = torch.tensor([[[[0.8, 0.0]], [[0.6, 0.1]]]])
    revised = torch.tensor([[[[0.2, 0.4]], [[0.5, 0.0]], [[0.1, 0.1]]]])
    # Differences: 0, .5, .3, 0, .1, 0, of which 2 are a third.
    assert cross_distance(cams, revised, share=1 / 3).item() == pytest.approx((0.5 + 0.3) / 2)
    assert cross_distance(cams, revised, share=1.0).item() == pytest.approx(0.9 / 6)


def test_target_keeps_its_value_and_is_not_one_hot():
    cams = torch.tensor([0.3, 0.2]).view(1, 2, 1, 1)
    same = torch.tensor([0.7, 0.3, 0.0]).view(1, 3, 1, 1)
    assert cross_distance(cams, same, share=1.0).item() == pytest.approx(0, abs=1e-6)
    one_hot = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert cross_distance(cams, one_hot, share=1.0).item() == pytest.approx(1.4 / 3)


@pytest.mark.parametrize('share', SHARES)
def test_cross_distance_equals_naive_loop(share: float):
    cams, revised = torch.rand(3, 4, 3, 5), torch.rand(3, 5, 3, 5)
    cams[1, 2:] = 0
    expected = naive_cross_distance(cams, revised, share)
    assert cross_distance(cams, revised, share).item() == pytest.approx(expected, rel=1e-5)


def test_cross_distance_gradcheck():
    cams = torch.rand(2, 2, 2, 3, dtype=torch.float64)
    revised = torch.rand(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps: cross_distance(cams, maps, 0.4), (revised,))


def test_cross_distance_trains_the_revised_maps_only_and_where_they_differ_most():
    cams = torch.rand(2, 3, 4, 5, requires_grad=True)
    revised = torch.rand(2, 4, 4, 5, requires_grad=True)
    cross_distance(cams, revised, share=0.2).backward()
    assert cams.grad is None
    assert (revised.grad != 0).flatten(1).sum(dim=1).tolist() == [16, 16]
    torch.testing.assert_close(revised.grad.abs().max(), torch.tensor(1 / 32))


def test_cross_distance_leaves_the_cams_as_they_were():
    cams = torch.rand(1, 3, 2, 2)
    before = cams.clone()
    cross_distance(cams, torch.rand(1, 4, 2, 2), share=0.2)
    assert torch.equal(cams, before)


def test_larger_share_of_the_differences_is_a_smaller_distance():
    cams, revised = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4, 4)
    distances = [cross_distance(cams, revised, share).item() for share in SHARES]
    assert distances == sorted(distances, reverse=True)


# ---------------------------------------------------------------------------------- minimum pooling


def test_lowest_by_hand():
    maps = torch.tensor([[[[0.5, 0.1, 0.0, 0.9]], [[0.2, 0.3, 0.4, 0.0]]]])
    # The strongest: .5, .3, .4, .9.
    assert pool_lowest(maps, share=0.25).item() == pytest.approx(0.3)
    assert pool_lowest(maps, share=0.5).item() == pytest.approx(0.35)


@pytest.mark.parametrize('share', SHARES)
def test_lowest_equals_naive_loop(share: float):
    maps = torch.randn(3, 2, 4, 5)
    maps[0] -= 2
    expected = naive_lowest(maps, share)
    assert pool_lowest(maps, share).item() == pytest.approx(expected, rel=1e-5)


def test_lowest_gradcheck():
    maps = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: pool_lowest(m, 0.5), (maps,))


def test_lowest_is_trained_where_it_is_low_and_in_the_strongest_class():
    maps = torch.rand(2, 3, 4, 4, requires_grad=True)
    pool_lowest(maps, share=0.25).backward()
    assert (maps.grad > 0).flatten(1).sum(dim=1).tolist() == [4, 4]
    trained = (maps.grad > 0).any(dim=1)
    strongest = maps.detach().amax(dim=1)
    for image, chosen in zip(strongest, trained, strict=True):
        assert image[chosen].max() < image[~chosen].min()
    assert torch.equal((maps.grad > 0).any(dim=1), (maps.grad > 0).sum(dim=1) == 1)


def test_uncovered_quarter_costs_nothing():
    maps = torch.ones(1, 2, 4, 4)
    maps[..., 0, :] = 0
    assert pool_lowest(maps, share=0.25) == 0
    assert pool_lowest(maps, share=0.5) == 0.5


# ---------------------------------------------------------------------------------------- all three


def distances_of(cams: Tensor, revised: Tensor) -> list[Tensor]:
    return [
        view_distance(cams, revised[:, 1:]),
        cross_distance(cams, revised, share=0.2),
        pool_lowest(revised[:, 1:], share=0.25),
    ]


def test_order_of_pixels_and_images_is_of_no_matter():
    cams, revised, order = torch.rand(3, 2, 4, 5), torch.rand(3, 3, 4, 5), torch.randperm(20)
    expected = distances_of(cams, revised)
    permuted = distances_of(permute_pixels(cams, order), permute_pixels(revised, order))
    torch.testing.assert_close(permuted, expected)
    torch.testing.assert_close(distances_of(cams[[2, 0, 1]], revised[[2, 0, 1]]), expected)


def test_every_image_counts_the_same():
    cams, revised = torch.rand(3, 2, 4, 5), torch.rand(3, 3, 4, 5)
    alone = [distances_of(cams[n : n + 1], revised[n : n + 1]) for n in range(3)]
    means = [torch.stack(values).mean() for values in zip(*alone, strict=True)]
    torch.testing.assert_close(distances_of(cams, revised), means)


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (3, 3)])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_degenerate_maps_are_finite(size: tuple[int, int], value: float):
    cams = torch.full((2, 1, *size), value)
    revised = torch.zeros(2, 2, *size, requires_grad=True)
    distances = distances_of(cams, revised)
    assert all(distance.isfinite() for distance in distances)
    sum(distances).backward()
    assert revised.grad.isfinite().all()


def test_share_of_a_single_pixel_is_that_pixel():
    assert pool_lowest(torch.full((1, 2, 1, 1), 0.3), share=0.25).item() == pytest.approx(0.3)
    cams, revised = torch.full((1, 1, 1, 1), 0.25), torch.tensor([0.0, 0.75]).view(1, 2, 1, 1)
    # One of two differences, .75 and .5.
    assert cross_distance(cams, revised, share=0.2).item() == pytest.approx(0.75)


@pytest.mark.parametrize('dtype', HALVES)
def test_distances_are_float32_under_autocast(dtype: torch.dtype):
    cams, revised = torch.rand(2, 2, 4, 5).to(dtype), torch.rand(2, 3, 4, 5).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        distances = distances_of(cams, revised)
    assert all(distance.dtype == torch.float32 for distance in distances)
    expected = distances_of(cams.float(), revised.float())
    torch.testing.assert_close(distances, expected, rtol=0, atol=0)
