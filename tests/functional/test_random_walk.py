"""The random walk over a sparse neighbourhood (AffinityNet)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmdscnet.functional.pixel_affinity import pair_affinities, pair_offsets
from mmdscnet.functional.random_walk import neighbour_table, random_walk, transition_weights

HALVES = [torch.bfloat16, torch.float16]


class LargestTensor(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def make_affinity_matrix(affinities: Tensor, radius: int, power: float) -> Tensor:
    """Build the dense symmetric matrices A, shape (N, V, V), float64."""
    images, _, height, width = affinities.shape
    matrix = torch.eye(height * width, dtype=torch.float64).repeat(images, 1, 1)
    for channel, (dy, dx) in enumerate(pair_offsets(radius)):
        for y in range(height - dy):
            for x in range(max(0, -dx), width - max(0, dx)):
                first, second = y * width + x, (y + dy) * width + x + dx
                value = affinities[:, channel, y, x].double() ** power
                matrix[:, first, second] = matrix[:, second, first] = value
    return matrix


def dense_walk(
    scores: Tensor, affinities: Tensor, radius: int, power: float, num_steps: int
) -> Tensor:
    matrix = make_affinity_matrix(affinities, radius, power)
    transitions = matrix / matrix.sum(dim=1, keepdim=True)
    walked = scores.flatten(2).double() @ torch.matrix_power(transitions, num_steps)
    return walked.view(scores.shape)


def make_inputs(size: tuple[int, int], radius: int = 5) -> tuple[Tensor, Tensor]:
    """Scores (2, 3, h, w) and affinities that are strong in places and weak in others."""
    affinities = pair_affinities(0.2 * torch.randn(2, 4, *size), radius)
    return torch.rand(2, 3, *size), affinities


@pytest.mark.parametrize(
    ('size', 'radius'), [((12, 9), 5), ((20, 20), 5), ((2, 3), 5), ((1, 1), 3), ((7, 1), 2)]
)
@pytest.mark.parametrize(('power', 'num_steps'), [(8.0, 64), (1.0, 3), (2.5, 1)])
def test_walk_equals_the_power_of_the_dense_matrix(
    size: tuple[int, int], radius: int, power: float, num_steps: int
):
    scores, affinities = make_inputs(size, radius)
    walked = random_walk(scores, affinities, radius, power, num_steps)
    expected = dense_walk(scores, affinities, radius, power, num_steps)
    assert walked.dtype == torch.float32
    torch.testing.assert_close(walked.double(), expected, rtol=0, atol=5e-6)
    assert torch.equal(walked.argmax(dim=1), expected.argmax(dim=1))


def test_float64_walk_equals_the_dense_one_to_rounding():
    scores, affinities = (tensor.double() for tensor in make_inputs((6, 7)))
    walked = random_walk(scores, affinities, 5)
    torch.testing.assert_close(walked, dense_walk(scores, affinities, 5, 8, 64), atol=1e-12, rtol=0)


def test_walk_by_hand():
    # Degrees 1.5, 2 and 1.5; the middle pixel shares with both others.
    affinities = torch.zeros(1, 4, 1, 3)
    affinities[0, 0, 0, :2] = 0.5
    walked = random_walk(
        torch.tensor([[[[1.0, 0.0, 0.0]]]]), affinities, radius=2, power=1, num_steps=1
    )
    torch.testing.assert_close(walked, torch.tensor([[[[1 / 1.5, 0.5 / 2, 0.0]]]]))


def test_default_is_64_single_steps():
    scores, affinities = make_inputs((6, 5))
    stepped = scores
    for _ in range(64):
        stepped = random_walk(stepped, affinities, 5, num_steps=1)
    torch.testing.assert_close(random_walk(scores, affinities, 5), stepped)


def test_no_step_is_identity():
    scores, affinities = make_inputs((6, 5))
    assert torch.equal(random_walk(scores, affinities, 5, num_steps=0), scores)


def test_isolated_pixels_keep_their_scores():
    scores = torch.randn(2, 3, 6, 7)
    assert torch.equal(random_walk(scores, torch.zeros(2, 34, 6, 7), 5), scores)


def test_columns_are_stochastic_and_rows_need_not_be():
    affinities = make_inputs((6, 7))[1]
    neighbours = neighbour_table((6, 7), 5)
    weights = transition_weights(affinities, neighbours, 5, power=8.0)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 42))
    matrix = make_affinity_matrix(affinities, 5, 8)
    assert (matrix / matrix.sum(dim=1, keepdim=True)).sum(dim=2).sub(1).abs().max() > 0.1


def test_equal_scores_stay_and_others_stay_in_range():
    scores, affinities = make_inputs((8, 9))
    scores[:, 0] = 0.3
    walked = random_walk(scores, affinities, 5)
    torch.testing.assert_close(walked[:, 0], scores[:, 0])
    assert walked.min() >= scores.min() - 1e-6
    assert walked.max() <= scores.max() + 1e-6


def test_mass_weighted_by_degree_is_preserved():
    scores, affinities = make_inputs((8, 9))
    degrees = make_affinity_matrix(affinities, 5, 8).sum(dim=1).view(2, 1, 8, 9)
    walked = random_walk(scores, affinities, 5)
    mass, walked_mass = ((degrees * maps).sum(dim=(2, 3)) for maps in (scores, walked))
    torch.testing.assert_close(walked_mass, mass, rtol=1e-5, atol=0)
    assert (walked.sum(dim=(2, 3)) - scores.sum(dim=(2, 3))).abs().max() > 0.1


def test_uniform_affinities_blur_everything_to_the_mean_by_degree():
    scores = torch.rand(1, 2, 5, 6)
    affinities = pair_affinities(torch.zeros(1, 1, 5, 6), radius=5)
    degrees = make_affinity_matrix(affinities, 5, 8).sum(dim=1).view(1, 1, 5, 6)
    mean = (degrees * scores).sum(dim=(2, 3), keepdim=True) / degrees.sum()
    walked = random_walk(scores, affinities, 5)
    torch.testing.assert_close(walked, mean.float().expand_as(scores), rtol=0, atol=1e-5)


def test_nothing_crosses_a_border_without_affinity():
    regions = torch.zeros(1, 1, 6, 8)
    regions[..., 4:] = 200.0
    scores = (regions == 0).float()
    walked = random_walk(scores, pair_affinities(regions, 5), 5)
    torch.testing.assert_close(walked, scores)


def test_an_image_walks_alone_as_in_a_batch():
    scores, affinities = make_inputs((7, 6))
    together = random_walk(scores, affinities, 5)
    for n in range(2):
        alone = random_walk(scores[n : n + 1], affinities[n : n + 1], 5)
        torch.testing.assert_close(alone[0], together[n], rtol=0, atol=1e-6)


def test_a_class_walks_alone_as_among_others():
    scores, affinities = make_inputs((7, 6))
    alone = random_walk(scores[:, 1:2], affinities, 5)
    torch.testing.assert_close(alone, random_walk(scores, affinities, 5)[:, 1:2], rtol=0, atol=1e-6)


def test_pairs_that_leave_the_grid_are_not_read():
    scores, affinities = make_inputs((5, 6))
    filled = torch.where(affinities == 0, 0.9, affinities)
    assert not torch.equal(filled, affinities)
    assert torch.equal(random_walk(scores, filled, 5), random_walk(scores, affinities, 5))


def test_no_matrix_of_pixels_by_pixels_is_made():
    pixels = 60 * 80
    scores, affinities = torch.rand(1, 3, 60, 80), torch.rand(1, 34, 60, 80)
    with LargestTensor() as largest:
        random_walk(scores, affinities, 5, num_steps=2)
    assert 0 < largest.numel <= pixels * (2 * 34 + 1)


@pytest.mark.parametrize('dtype', HALVES)
def test_walk_is_float32_under_autocast(dtype: torch.dtype):
    scores, affinities = (tensor.to(dtype) for tensor in make_inputs((5, 6)))
    with torch.autocast('cpu', dtype=dtype):
        walked = random_walk(scores, affinities, 5)
    assert walked.dtype == torch.float32
    torch.testing.assert_close(walked, random_walk(scores.float(), affinities.float(), 5))


def test_table_numbers_the_neighbours():
    table = neighbour_table((4, 5), radius=3)
    offsets = [(0, 0), *pair_offsets(3), *((-dy, -dx) for dy, dx in pair_offsets(3))]
    for pixel, row in enumerate(table.tolist()):
        y, x = divmod(pixel, 5)
        for neighbour, (dy, dx) in zip(row, offsets, strict=True):
            inside = 0 <= y + dy < 4 and 0 <= x + dx < 5
            assert neighbour == ((y + dy) * 5 + x + dx if inside else -1)


@pytest.mark.parametrize(
    'shape', [(1, 34, 5, 6), (2, 33, 5, 6), (2, 34, 6, 5)], ids=['images', 'pairs', 'grid']
)
def test_affinities_of_another_shape_are_refused(shape: tuple[int, ...]):
    message = r'need \(2, 34, 5, 6\): make them by pair_affinities at the same radius'
    with pytest.raises(ValueError, match=message):
        random_walk(torch.rand(2, 3, 5, 6), torch.zeros(shape), 5)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(power=0), r'power=0 must be positive'),
        (dict(num_steps=-1), r'num_steps=-1 must be an integer from 0 on'),
        (dict(num_steps=6.0), r'num_steps=6\.0 must be an integer from 0 on'),
        (dict(radius=1), r'radius=1 leaves no pair'),
    ],
)
def test_setting_outside_its_range_is_refused(setting: dict[str, Any], message: str):
    scores, affinities = make_inputs((3, 3))
    with pytest.raises(ValueError, match=message):
        random_walk(scores, affinities, **dict(dict(radius=5), **setting))
