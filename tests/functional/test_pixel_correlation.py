"""Pixels that look alike share their CAMs (SEAM's PCM)."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdscnet.functional import pixel_correlation
from mmdscnet.functional.pixel_correlation import correlate_pixels, keep_winning_cams

HALVES = [torch.bfloat16, torch.float16]
EPS = 1e-5


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [value.numel() for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.numbers = max([self.numbers, *made])
        return result


def naive_winners(cam_logits: Tensor) -> Tensor:
    num_images, num_classes, height, width = cam_logits.shape
    maps = torch.zeros(num_images, num_classes + 1, height, width)
    for n in range(num_images):
        peaks = [max(0.0, float(cam_logits[n, k].max())) + EPS for k in range(num_classes)]
        for y in range(height):
            for x in range(width):
                values = [
                    max(0.0, float(cam_logits[n, k, y, x])) / peaks[k] for k in range(num_classes)
                ]
                best = max(values)
                maps[n, 0, y, x] = 1 - best
                for k, value in enumerate(values):
                    maps[n, k + 1, y, x] = value if value == best else 0.0
    return maps


def dense_correlation(cams: Tensor, embeddings: Tensor) -> Tensor:
    """The formula with one V x V matrix, pixel pair by pixel pair."""
    result = torch.zeros_like(cams)
    for n in range(len(cams)):
        maps, vectors = cams[n].flatten(1), embeddings[n].flatten(1)
        pixels = maps.shape[1]
        affinity = torch.zeros(pixels, pixels, dtype=cams.dtype)
        for i in range(pixels):
            for j in range(pixels):
                one, other = vectors[:, i].tolist(), vectors[:, j].tolist()
                lengths = math.hypot(*one) * math.hypot(*other)
                dot = sum(a * b for a, b in zip(one, other, strict=True))
                affinity[i, j] = max(dot / lengths, 0.0)
        affinity = affinity / (affinity.sum(dim=0) + EPS)
        result[n] = (maps @ affinity).view_as(cams[n])
    return result


def permute_pixels(maps: Tensor, order: Tensor) -> Tensor:
    return maps.flatten(2)[..., order].view_as(maps)


# ------------------------------------------------------------------------------------ winning CAMs


def test_winning_cams_by_hand():
    cam_logits = torch.tensor([[[[4.0, 2.0, -3.0]], [[2.0, 10.0, -1.0]]]])
    expected = torch.tensor([[[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]])
    torch.testing.assert_close(keep_winning_cams(cam_logits), expected, rtol=0, atol=1e-5)


def test_winner_keeps_its_value():
    cam_logits = torch.tensor([[[[4.0, 2.0]], [[0.0, 0.0]]]])
    maps = keep_winning_cams(cam_logits)[0, :, 0, 1]
    torch.testing.assert_close(maps, torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=1e-5)


def test_winning_cams_equal_naive_loop():
    cam_logits = torch.randn(3, 4, 3, 5)
    torch.testing.assert_close(keep_winning_cams(cam_logits), naive_winners(cam_logits))


def test_winning_cams_lie_in_unit_interval_and_one_class_wins():
    maps = keep_winning_cams(torch.randn(2, 3, 4, 4))
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert ((maps[:, 1:] > 0).sum(dim=1) <= 1).all()
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 4, 4))


def test_winning_cams_of_equal_classes_all_stay():
    maps = keep_winning_cams(torch.full((1, 2, 1, 1), 3.0)).flatten()
    torch.testing.assert_close(maps, torch.tensor([0.0, 1.0, 1.0]), rtol=0, atol=1e-5)


def test_winning_cams_do_not_depend_on_the_scale_of_a_class():
    cam_logits, scales = torch.randn(2, 3, 4, 4), torch.tensor([1.0, 7, 30])[:, None, None]
    torch.testing.assert_close(
        keep_winning_cams(scales * cam_logits), keep_winning_cams(cam_logits), rtol=0, atol=1e-4
    )


def test_permuting_pixels_permutes_the_winning_cams():
    cam_logits, order = torch.randn(2, 3, 2, 4), torch.randperm(8)
    torch.testing.assert_close(
        keep_winning_cams(permute_pixels(cam_logits, order)),
        permute_pixels(keep_winning_cams(cam_logits), order),
    )


@pytest.mark.parametrize('value', [0.0, -2.0])
def test_without_evidence_all_is_background(value: float):
    maps = keep_winning_cams(torch.full((2, 3, 1, 4), value))
    assert torch.equal(maps[:, :1], torch.ones(2, 1, 1, 4))
    assert maps[:, 1:].count_nonzero() == 0


def test_no_gradient_flows_into_the_evidence():
    cam_logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    assert not keep_winning_cams(cam_logits).requires_grad


def test_evidence_is_left_as_it_was():
    cam_logits = torch.randn(1, 2, 3, 3)
    before = cam_logits.clone()
    keep_winning_cams(cam_logits)
    assert torch.equal(cam_logits, before)


# ------------------------------------------------------------------------------------- correlation


def test_unlike_pixels_keep_their_cams_and_like_ones_share_them():
    # The first and the last pixel look alike up to length, the middle one is at right angles.
    embeddings = torch.tensor([[1.0, 0.0, 5.0], [0.0, 2.0, 0.0]]).view(1, 2, 1, 3)
    cams = torch.tensor([[0.2, 0.7, 0.6], [1.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    expected = torch.tensor([[0.4, 0.7, 0.4], [0.5, 0.0, 0.5]]).view(1, 2, 1, 3)
    revised = correlate_pixels(cams, embeddings)
    torch.testing.assert_close(revised, expected, rtol=0, atol=2e-5)


def test_weights_are_cosines_by_hand():
    # 60 degrees apart: weights 1 and 1/2 before they are normalised.
    embeddings = torch.tensor([[1.0, 0.5], [0.0, math.sqrt(0.75)]]).view(1, 2, 1, 2)
    revised = correlate_pixels(torch.tensor([[[[0.0, 0.9]]]]), embeddings)
    torch.testing.assert_close(revised.flatten(), torch.tensor([0.3, 0.6]), rtol=0, atol=2e-5)


def test_opposite_pixels_have_no_part_in_each_other():
    embeddings = torch.tensor([[1.0, -1.0]]).view(1, 1, 1, 2)
    cams = torch.tensor([[[[0.3, 0.8]]]])
    torch.testing.assert_close(correlate_pixels(cams, embeddings), cams, rtol=0, atol=2e-5)


def test_correlation_equals_the_dense_formula():
    cams, embeddings = torch.rand(2, 3, 3, 4), torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(
        correlate_pixels(cams, embeddings),
        dense_correlation(cams, embeddings),
        rtol=0,
        atol=5e-5,
    )


@pytest.mark.parametrize('bound', [1, 24 * 5, 24 * 7, 24 * 12, 24 * 12 + 23, 10**6])
def test_blocks_change_neither_maps_nor_gradients(monkeypatch: pytest.MonkeyPatch, bound: int):
    cams = torch.rand(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 3, 4, dtype=torch.float64)

    def revise():
        revised = correlate_pixels(cams, embeddings)
        return revised, torch.autograd.grad((revised * weights).sum(), (cams, embeddings))

    expected = revise()
    monkeypatch.setattr(pixel_correlation, 'MAX_BLOCK', bound)
    torch.testing.assert_close(revise(), expected)


@pytest.mark.parametrize('bound', [2 * 144, 4000, 20000])
def test_no_tensor_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch, bound: int):
    monkeypatch.setattr(pixel_correlation, 'MAX_BLOCK', bound)
    cams, embeddings = torch.rand(2, 1, 12, 12), torch.randn(2, 1, 12, 12)
    with LargestTensor() as largest:
        correlate_pixels(cams, embeddings)
    columns = bound // (2 * 144)
    assert largest.numbers == columns * 2 * 144
    assert largest.numbers <= bound


def test_small_images_are_one_block():
    with LargestTensor() as largest:
        correlate_pixels(torch.rand(2, 3, 12, 12), torch.randn(2, 4, 12, 12))
    assert largest.numbers == 2 * 144**2


def test_correlation_gradcheck():
    cams = torch.rand(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(correlate_pixels, (cams, embeddings))


def test_equal_maps_stay_and_none_exceeds_its_range():
    embeddings = torch.randn(2, 5, 3, 4)
    revised = correlate_pixels(torch.ones(2, 1, 3, 4), embeddings)
    torch.testing.assert_close(revised, torch.ones(2, 1, 3, 4), rtol=0, atol=2e-5)
    cams = torch.rand(2, 3, 3, 4)
    revised = correlate_pixels(cams, embeddings)
    assert (revised.amin((2, 3)) >= cams.amin((2, 3)) - 1e-4).all()
    assert (revised.amax((2, 3)) <= cams.amax((2, 3))).all()


def test_correlation_does_not_depend_on_the_length_of_embeddings():
    cams, embeddings = torch.rand(2, 3, 3, 4), torch.randn(2, 5, 3, 4)
    lengths = torch.rand(2, 1, 3, 4) + 1
    torch.testing.assert_close(
        correlate_pixels(cams, lengths * embeddings),
        correlate_pixels(cams, embeddings),
        rtol=0,
        atol=1e-4,
    )


def test_permuting_pixels_permutes_the_revised_maps():
    cams, embeddings, order = torch.rand(2, 3, 3, 4), torch.randn(2, 5, 3, 4), torch.randperm(12)
    torch.testing.assert_close(
        correlate_pixels(permute_pixels(cams, order), permute_pixels(embeddings, order)),
        permute_pixels(correlate_pixels(cams, embeddings), order),
    )


def test_pixels_of_other_images_have_no_part():
    cams, embeddings = torch.rand(3, 2, 2, 3), torch.randn(3, 4, 2, 3)
    together = correlate_pixels(cams, embeddings)
    for n in range(3):
        alone = correlate_pixels(cams[n : n + 1], embeddings[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone)


def test_single_pixel_keeps_its_cams():
    cams = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1)
    revised = correlate_pixels(cams, torch.randn(1, 4, 1, 1))
    torch.testing.assert_close(revised, cams, rtol=0, atol=5e-5)


def test_pixels_without_embedding_are_finite():
    cams = torch.rand(1, 2, 2, 2, requires_grad=True)
    embeddings = torch.zeros(1, 3, 2, 2)
    embeddings[..., 0, 0] = 1.0
    embeddings.requires_grad_()
    revised = correlate_pixels(cams, embeddings)
    revised.sum().backward()
    assert revised.isfinite().all()
    assert cams.grad.isfinite().all()
    assert embeddings.grad.isfinite().all()
    assert revised.flatten(2)[..., 1:].count_nonzero() == 0


@pytest.mark.parametrize('dtype', HALVES)
def test_maps_are_float32_under_autocast(dtype: torch.dtype):
    cam_logits, embeddings = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(2, 5, 4, 4).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        winners = keep_winning_cams(cam_logits)
        revised = correlate_pixels(winners, embeddings)
    expected = keep_winning_cams(cam_logits.float())
    assert winners.dtype == revised.dtype == torch.float32
    torch.testing.assert_close(winners, expected, rtol=0, atol=0)
    reference = correlate_pixels(expected, embeddings.float())
    torch.testing.assert_close(revised, reference, rtol=0, atol=0)
