"""Affinities of neighbouring pixels, their labels and their loss (AffinityNet)."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmdscnet.functional.pixel_affinity import (
    PairLabels,
    affinity_loss,
    combine_affinity_labels,
    look_at,
    pad_grid,
    pair_affinities,
    pair_labels,
    pair_offsets,
)

HALVES = [torch.bfloat16, torch.float16]


def list_pairs(height: int, width: int, radius: int) -> list[tuple[int, int, int, int, int]]:
    """List channel, first pixel and second pixel of all pairs within a grid."""
    return [
        (channel, y, x, y + dy, x + dx)
        for channel, (dy, dx) in enumerate(pair_offsets(radius))
        for y in range(height)
        for x in range(width)
        if y + dy < height and 0 <= x + dx < width
    ]


def naive_loss(affinities: Tensor, labels: Tensor, radius: int) -> float:
    terms: dict[str, list[float]] = dict(background=[], foreground=[], different=[])
    for image, label_map in zip(affinities, labels.tolist(), strict=True):
        for channel, y, x, other_y, other_x in list_pairs(*labels.shape[1:], radius):
            affinity = float(image[channel, y, x])
            own, other = label_map[y][x], label_map[other_y][other_x]
            if 255 in (own, other):
                continue
            if own != other:
                terms['different'].append(-math.log(1 - affinity + 1e-5))
            else:
                terms['foreground' if own else 'background'].append(-math.log(affinity + 1e-5))
    weights = dict(background=0.25, foreground=0.25, different=0.5)
    return sum(weights[kind] * sum(row) / max(len(row), 1) for kind, row in terms.items())


def make_labels(*shape: int) -> Tensor:
    return torch.tensor([0, 1, 2, 255])[torch.randint(4, shape)]


# Offsets


def test_paper_has_34_pairs_a_pixel():
    assert len(pair_offsets(5)) == 34


@pytest.mark.parametrize('radius', [2, 3, 5, 6])
def test_offsets_and_their_opposites_fill_the_disc_once(radius: int):
    offsets = pair_offsets(radius)
    both = [*offsets, *((-dy, -dx) for dy, dx in offsets)]
    disc = {
        (dy, dx)
        for dy in range(-radius, radius + 1)
        for dx in range(-radius, radius + 1)
        if 0 < math.hypot(dy, dx) < radius
    }
    assert len(both) == len(set(both))
    assert set(both) == disc


@pytest.mark.parametrize('radius', [1, 0, -3])
def test_radius_without_pairs_is_refused(radius: int):
    with pytest.raises(ValueError, match=f'radius={radius} leaves no pair of pixels: use at least'):
        pair_offsets(radius)


@pytest.mark.parametrize('offset', [(0, 0), (1, -2), (-2, 1), (2, 2)])
def test_neighbour_is_read_where_there_is_one(offset: tuple[int, int]):
    maps = torch.arange(12).view(3, 4)
    seen = look_at(pad_grid(maps, 3, -1), offset, 3)
    for y in range(3):
        for x in range(4):
            other_y, other_x = y + offset[0], x + offset[1]
            inside = 0 <= other_y < 3 and 0 <= other_x < 4
            assert seen[y, x] == (maps[other_y, other_x] if inside else -1)


# Affinities


@pytest.mark.parametrize('size', [(6, 7), (1, 1), (2, 9), (1, 4)])
def test_affinities_equal_naive_loop(size: tuple[int, int]):
    embeddings = torch.randn(2, 3, *size)
    affinities = pair_affinities(embeddings, radius=4)
    expected = torch.zeros(2, len(pair_offsets(4)), *size)
    for channel, y, x, other_y, other_x in list_pairs(*size, 4):
        distance = (embeddings[:, :, y, x] - embeddings[:, :, other_y, other_x]).abs().mean(1)
        expected[:, channel, y, x] = (-distance).exp()
    assert affinities.dtype == torch.float32
    torch.testing.assert_close(affinities, expected)


def test_equal_pixels_have_affinity_one_within_the_grid():
    affinities = pair_affinities(torch.full((1, 4, 3, 3), 0.7), radius=2)
    assert affinities.unique().tolist() == [0, 1]
    # 4 offsets: 6 pairs along rows, 6 along columns, 4 on each diagonal.
    assert affinities.sum() == 6 + 6 + 4 + 4


def test_adding_a_constant_keeps_the_affinities():
    embeddings = torch.randn(1, 5, 4, 4, dtype=torch.float64)
    moved = pair_affinities(embeddings + 3, radius=3)
    torch.testing.assert_close(moved, pair_affinities(embeddings, radius=3))


def test_affinities_gradcheck():
    embeddings = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: pair_affinities(f, 3), (embeddings,))


def test_gradient_of_equal_pixels_is_finite():
    embeddings = torch.zeros(1, 2, 3, 3, requires_grad=True)
    pair_affinities(embeddings, radius=3).sum().backward()
    assert embeddings.grad.isfinite().all()


def test_training_does_not_keep_the_differences():
    embeddings = torch.randn(1, 64, 12, 12, requires_grad=True)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        affinities = pair_affinities(embeddings, radius=5)
    assert sum(kept.values()) <= 4 * embeddings.numel() + 2 * affinities.numel()
    affinities.sum().backward()
    assert embeddings.grad.abs().min() > 0


@pytest.mark.parametrize('dtype', HALVES)
def test_affinities_are_float32_under_autocast(dtype: torch.dtype):
    embeddings = torch.randn(1, 8, 4, 4).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        affinities = pair_affinities(embeddings, radius=3)
    assert affinities.dtype == torch.float32
    torch.testing.assert_close(affinities, pair_affinities(embeddings.float(), radius=3))


# Labels of pairs


def test_pair_labels_equal_naive_loop():
    labels = make_labels(2, 5, 6)
    kinds = pair_labels(labels, radius=3)
    expected = PairLabels(*(torch.zeros_like(kind) for kind in kinds))
    for n in range(2):
        for channel, y, x, other_y, other_x in list_pairs(5, 6, 3):
            own, other = labels[n, y, x], labels[n, other_y, other_x]
            if own == 255 or other == 255:
                continue
            kind = 2 if own != other else int(own > 0)
            expected[kind][n, channel, y, x] = True
    for kind, truth in zip(kinds, expected, strict=True):
        assert kind.dtype == torch.bool
        assert torch.equal(kind, truth)


def test_a_pair_is_of_one_kind_at_most():
    kinds = torch.stack(pair_labels(make_labels(2, 7, 7), radius=5))
    assert kinds.sum(dim=0).max() == 1


def test_other_ignore_index():
    labels = torch.tensor([[[0, -1, 255]]])
    kinds = pair_labels(labels, radius=3, ignore_index=-1)
    assert [kind.sum().item() for kind in kinds] == [0, 0, 1]


def test_byte_labels_are_as_good():
    labels = make_labels(1, 4, 4)
    for kind, expected in zip(pair_labels(labels.byte(), 3), pair_labels(labels, 3), strict=True):
        assert torch.equal(kind, expected)


def test_labels_that_are_no_ids_are_refused():
    with pytest.raises(TypeError, match=r'labels are torch\.float32 .* pass labels\.long'):
        pair_labels(torch.zeros(1, 3, 3), radius=2)


# Loss


def test_loss_equals_naive_loop():
    labels = make_labels(2, 5, 5)
    affinities = pair_affinities(torch.randn(2, 4, 5, 5), radius=3)
    loss = affinity_loss(affinities, pair_labels(labels, 3))
    assert loss.item() == pytest.approx(naive_loss(affinities, labels, 3), rel=1e-5)


def test_loss_by_hand():
    # One pair of each kind: affinities 0.5 (background), 0.25 (foreground), 0.8 (different).
    affinities = torch.tensor([0.5, 0.25, 0.8]).view(1, 1, 1, 3)
    chosen = torch.eye(3, dtype=torch.bool).view(3, 1, 1, 1, 3)
    loss = affinity_loss(affinities, PairLabels(*chosen), eps=0)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 4 + math.log(5) / 2, rel=1e-5)


@pytest.mark.parametrize('label', [0, 1, 255])
def test_kinds_without_pairs_add_nothing(label: int):
    embeddings = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.full((1, 4, 4), label)
    affinities = pair_affinities(embeddings, radius=2)
    loss = affinity_loss(affinities, pair_labels(labels, 2))
    assert loss.item() == pytest.approx(naive_loss(affinities.detach(), labels, 2), abs=1e-6)
    loss.backward()
    assert embeddings.grad.isfinite().all()
    assert (embeddings.grad.abs().sum() > 0) == (label != 255)


def test_loss_is_bounded_at_the_worst_affinities():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    kinds = pair_labels(labels, radius=2)
    wrong = kinds.different.float().requires_grad_()
    loss = affinity_loss(wrong, kinds)
    assert loss.item() == pytest.approx(-math.log(1e-5), rel=1e-2)
    loss.backward()
    assert wrong.grad.isfinite().all()


def test_loss_gradcheck():
    kinds = pair_labels(make_labels(1, 3, 4), radius=3)
    affinities = (
        0.1 + 0.8 * torch.rand(kinds.different.shape, dtype=torch.float64)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: affinity_loss(a, kinds), (affinities,))


# Labels from two strengths of the background


def test_only_agreement_is_a_label():
    low = torch.tensor([[0, 0, 1, 1, 1, 255, 255]])
    high = torch.tensor([[0, 1, 1, 2, 0, 255, 1]])
    expected = [[0, 255, 1, 255, 255, 255, 255]]
    assert combine_affinity_labels(low, high).tolist() == expected
    assert combine_affinity_labels(low[0], high[0]).tolist() == expected[0]
    assert combine_affinity_labels(high, low).tolist() == expected


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r'\(2, 3\), confident_background \(3, 2\): pass two maps'):
        combine_affinity_labels(torch.zeros(2, 3), torch.zeros(3, 2))
