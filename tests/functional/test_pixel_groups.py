"""Pixel context and pixel groups (Eq. 4, 5)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmdscnet.functional.pixel_groups import (
    assign_pixels,
    group_pixels,
    pixel_context,
    seed_weights,
    stack_levels,
    standardize_pixels,
)

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


def standardize(vectors: np.ndarray) -> np.ndarray:
    """Centre each row and scale it to length 1."""
    centred = vectors - vectors.mean(-1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=-1, keepdims=True).clip(1e-12)


def naive_group(
    pixels: np.ndarray, seeds: np.ndarray, slots: list[int], num_rounds: int, min_correlation: float
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Group the pixels (V, E) of one image; seeds (A, V) weigh the first centres."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def nearest(row: np.ndarray) -> int:
        return max(slots, key=lambda slot: float(row @ centres[slot]))

    rows = standardize(pixels)
    centres = {slot: unit((seeds[slot][:, None] * rows).sum(0)) for slot in slots}
    for _ in range(num_rounds):
        ids = np.array([nearest(row) for row in rows])
        for slot in slots:
            if (ids == slot).any():
                centres[slot] = unit(rows[ids == slot].mean(0))
    ids = np.array([nearest(row) for row in rows])
    means = {}
    for slot in slots:
        chosen = [
            pixel
            for pixel, row, own in zip(pixels, rows, ids, strict=True)
            if own == slot and row @ centres[slot] >= min_correlation
        ]
        weighted = (seeds[slot][:, None] * pixels).sum(0) / seeds[slot].sum()
        means[slot] = np.mean(chosen, axis=0) if chosen else weighted
    return ids, means


def make_clusters(noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two images of three clusters each: embeddings, cams, labels and the true slots.

    The CAM of a class covers only a third of its pixels, as CAMs do.
    """
    truth = torch.tensor([[0] * 12 + [1] * 6 + [3] * 6, [3] * 9 + [0] * 9 + [2] * 6])
    prototypes = torch.linalg.qr(torch.randn(8, 8))[0][:4]
    prototypes = 3 * torch.nn.functional.normalize(prototypes - prototypes.mean(1, keepdim=True))
    embeddings = (prototypes[truth] + noise * torch.randn(2, 24, 8)).mT.reshape(2, 8, 4, 6)
    covered = (torch.arange(24) % 3 == 0).expand(2, 24)
    cams = torch.stack([(truth == k) & covered for k in (1, 2, 3)], 1).float().view(2, 3, 4, 6)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    return embeddings, cams, labels, truth.view(2, 4, 6)


def make_random(channels: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    cams = torch.rand(3, 3, 4, 5) * labels[..., None, None]
    return torch.randn(3, channels, 4, 5), cams, labels


def permute_pixels(maps: Tensor, order: Tensor) -> Tensor:
    return maps.flatten(-2)[..., order].view_as(maps)


# Standardised pixels


def test_standardized_pixel_by_hand():
    rows = standardize_pixels(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(rows, torch.tensor([[[-1.0, 0.0, 1.0]]]) / 2**0.5)


def test_dot_product_of_standardized_pixels_is_numpys_correlation():
    embeddings = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    rows = standardize_pixels(embeddings)
    for image, image_rows in zip(embeddings, rows, strict=True):
        expected = np.corrcoef(image.flatten(1).T.numpy())
        np.testing.assert_allclose((image_rows @ image_rows.T).numpy(), expected, atol=1e-12)


def test_standardized_pixels_ignore_offset_and_scale():
    embeddings = torch.randn(1, 5, 2, 3)
    offset, scale = torch.randn(1, 1, 2, 3), torch.rand(1, 1, 2, 3) + 0.5
    torch.testing.assert_close(
        standardize_pixels(scale * embeddings + offset),
        standardize_pixels(embeddings),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('channels', [1, 3, 7, 100])
@pytest.mark.parametrize('value', [0.0, 0.1, -3.3, 1e3])
def test_pixel_of_equal_channels_is_zero_with_finite_gradient(channels: int, value: float):
    embeddings = torch.full((1, channels, 1, 2), value, requires_grad=True)
    rows = standardize_pixels(embeddings)
    rows.square().sum().backward()
    torch.testing.assert_close(rows, torch.zeros(1, 2, channels))
    assert torch.isfinite(embeddings.grad).all()


def test_standardized_pixels_gradcheck():
    embeddings = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize_pixels, (embeddings,))


# Pixel context (Eq. 4)


def test_context_by_hand():
    # Two pixels that agree and one that is their opposite: (1 + 1 - 1) / 3 and (-1 - 1 + 1) / 3.
    embeddings = torch.tensor([[1.0, -1.0], [2.0, -2.0], [-5.0, 5.0]]).T.view(1, 2, 1, 3)
    context = pixel_context(standardize_pixels(embeddings))
    torch.testing.assert_close(context, torch.tensor([[1.0, 1.0, -1.0]]) / 3)


def test_context_is_the_mean_of_numpys_correlations():
    embeddings = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    context = pixel_context(standardize_pixels(embeddings))
    for image, values in zip(embeddings, context, strict=True):
        expected = np.corrcoef(image.flatten(1).T.numpy()).mean(1)
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-12)


def test_context_of_a_single_pixel_is_one():
    context = pixel_context(standardize_pixels(torch.randn(2, 4, 1, 1)))
    torch.testing.assert_close(context, torch.ones(2, 1))


def test_context_lies_between_minus_one_and_one():
    context = pixel_context(standardize_pixels(torch.randn(2, 2, 5, 5)))
    assert context.abs().max() <= 1 + 1e-6


def test_permuting_pixels_permutes_the_context():
    embeddings, order = torch.randn(2, 4, 3, 4), torch.randperm(12)
    context = pixel_context(standardize_pixels(embeddings))
    moved = pixel_context(standardize_pixels(permute_pixels(embeddings, order)))
    torch.testing.assert_close(moved, context[:, order])


def test_context_gradcheck():
    rows = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_context, (rows,))


def test_memory_is_linear_in_the_number_of_pixels():
    embeddings, cams = torch.randn(1, 4, 200, 200), torch.rand(1, 2, 200, 200)
    with LargestTensor() as largest:
        pixel_context(standardize_pixels(embeddings))
        group_pixels(embeddings, cams, torch.ones(1, 2))
    num_pixels, channels, slots = 200 * 200, 4, 3
    assert 0 < largest.numel <= num_pixels * channels * slots


# Seeds


def test_class_is_seeded_by_its_cam():
    cams = torch.rand(2, 3, 4, 5)
    weights = seed_weights(cams, standardize_pixels(torch.randn(2, 6, 4, 5)), eps=1e-3)
    torch.testing.assert_close(weights[:, 1:], cams.flatten(2) + 1e-3)


def test_background_is_seeded_where_no_cam_is():
    rows = standardize_pixels(torch.ones(1, 3, 1, 3) * torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    cams = torch.tensor([[[[0.0, 0.5, 1.0]], [[0.0, 0.1, 0.3]]]])
    background = seed_weights(cams, rows, eps=1e-5)[0, 0]
    assert background[0] > background[1] > background[2]
    torch.testing.assert_close(background[2], torch.tensor(1e-5))


def test_background_prefers_pixels_that_resemble_the_image():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).T.view(1, 2, 1, 4)
    background = seed_weights(torch.zeros(1, 1, 1, 4), standardize_pixels(embeddings))[0, 0]
    assert background[0] > background[3]


def test_seed_weights_stay_in_range():
    embeddings, cams, _ = make_random()
    weights = seed_weights(cams, standardize_pixels(embeddings), eps=1e-4)
    assert weights.shape == (3, 4, 20)
    assert weights.min() > 0
    assert weights.max() <= 1 + 1e-4 + 1e-6


# Assignment


def test_assignment_by_hand():
    rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    centres = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    member, correlation = assign_pixels(rows, centres, torch.tensor([[True, True, False]]))
    assert member[0].tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    torch.testing.assert_close(correlation[0, 0], torch.tensor([1.0, 0.0, 0.6]))
    torch.testing.assert_close(correlation[0, 1], torch.tensor([0.0, 1.0, 0.8]))


def test_assignment_equals_naive_loop_and_never_chooses_an_absent_group():
    rows = standardize_pixels(torch.randn(3, 5, 4, 4))
    centres = torch.nn.functional.normalize(torch.randn(3, 4, 5), dim=-1)
    valid = torch.tensor([[True, True, False, True], [False, True, False, False], [True] * 4])
    member, correlation = assign_pixels(rows, centres, valid)
    for n in range(3):
        slots = valid[n].nonzero().flatten().tolist()
        for v in range(16):
            values = {slot: float(rows[n, v] @ centres[n, slot]) for slot in slots}
            best = max(slots, key=values.__getitem__)
            assert member[n, :, v].tolist() == [float(slot == best) for slot in range(4)]
            for slot in slots:
                assert float(correlation[n, slot, v]) == pytest.approx(values[slot], abs=1e-6)


# Groups (Eq. 5)


@pytest.mark.parametrize(('num_rounds', 'min_correlation'), [(1, 0.5), (3, 0.5), (3, -1), (2, 0.9)])
def test_groups_equal_naive_loop(num_rounds: int, min_correlation: float):
    embeddings, cams, labels = (tensor.double() for tensor in make_random())
    groups = group_pixels(embeddings, cams, labels, num_rounds, min_correlation)
    seeds = seed_weights(cams, standardize_pixels(embeddings))
    for n in range(3):
        slots = [0] + [k + 1 for k in range(3) if labels[n, k]]
        pixels = embeddings[n].flatten(1).T.numpy()
        ids, means = naive_group(pixels, seeds[n].numpy(), slots, num_rounds, min_correlation)
        np.testing.assert_array_equal(groups.group_ids[n].flatten().numpy(), ids)
        for slot in slots:
            np.testing.assert_allclose(groups.embeddings[n, slot].numpy(), means[slot], atol=1e-9)


def test_groups_recover_well_separated_clusters():
    embeddings, cams, labels, truth = make_clusters()
    groups = group_pixels(embeddings, cams, labels)
    torch.testing.assert_close(groups.group_ids, truth)
    for n in range(2):
        for slot in truth[n].unique().tolist():
            expected = embeddings[n][:, truth[n] == slot].mean(1)
            torch.testing.assert_close(groups.embeddings[n, slot], expected)


def test_groups_partition_the_pixels_among_present_classes():
    embeddings, cams, labels = make_random()
    groups = group_pixels(embeddings, cams, labels)
    assert groups.group_ids.shape == (3, 4, 5)
    assert groups.group_ids.dtype == torch.int64
    assert groups.valid.dtype == torch.bool
    assert groups.valid.tolist() == [[True, *row] for row in labels.bool().tolist()]
    assert groups.valid.gather(1, groups.group_ids.flatten(1)).all()


def test_image_without_class_is_all_background():
    embeddings, cams, labels = make_random()
    groups = group_pixels(embeddings, cams, labels, min_correlation=-1)
    assert (groups.group_ids[1] == 0).all()
    assert groups.valid[1].tolist() == [True, False, False, False]
    torch.testing.assert_close(groups.embeddings[1, 0], embeddings[1].flatten(1).mean(1))


def test_outlier_does_not_count_for_the_embedding_of_its_group():
    # The only group is that of the background; its last pixel is the opposite of the others.
    pixels = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 9.0]])
    embeddings = pixels.T.view(1, 2, 1, 4).clone().requires_grad_()
    groups = group_pixels(embeddings, torch.zeros(1, 1, 1, 4), torch.zeros(1, 1))
    assert (groups.group_ids == 0).all()
    torch.testing.assert_close(groups.embeddings[0, 0], torch.tensor([2.0, 0.0]))
    groups.embeddings[0, 0].sum().backward()
    torch.testing.assert_close(
        embeddings.grad, torch.tensor([1.0, 1.0, 1.0, 0.0]).div(3).expand(1, 2, 1, 4)
    )


def test_group_without_close_member_takes_the_mean_weighted_by_its_seeds():
    embeddings, cams, labels = make_random(channels=32)
    seeds = seed_weights(cams, standardize_pixels(embeddings))
    groups = group_pixels(embeddings, cams, labels, min_correlation=1.0)
    pixels = embeddings.flatten(2).mT
    expected = seeds @ pixels / seeds.sum(2, keepdim=True)
    torch.testing.assert_close(groups.embeddings[groups.valid], expected[groups.valid])


def test_gradient_reaches_a_group_only_from_its_members():
    embeddings, cams, labels, truth = make_clusters()
    embeddings.requires_grad_()
    groups = group_pixels(embeddings, cams, labels)
    groups.embeddings[0, 1].sum().backward()
    member = (truth[0] == 1).float()
    torch.testing.assert_close(embeddings.grad[0], (member / member.sum()).expand(8, 4, 6))
    assert (embeddings.grad[1] == 0).all()


@pytest.mark.parametrize('min_correlation', [0.5, 1.0])
def test_no_gradient_reaches_the_cams(min_correlation: float):
    embeddings, cams, labels = make_random()
    embeddings.requires_grad_()
    cams.requires_grad_()
    groups = group_pixels(embeddings, cams, labels, min_correlation=min_correlation)
    groups.embeddings.square().sum().backward()
    assert embeddings.grad.abs().sum() > 0
    assert cams.grad is None or (cams.grad == 0).all()


def test_groups_gradcheck():
    embeddings, cams, labels, _ = make_clusters()
    embeddings = embeddings.double().requires_grad_()
    valid = torch.cat([torch.ones(2, 1), labels], 1).bool()
    assert torch.autograd.gradcheck(
        lambda z: group_pixels(z, cams.double(), labels).embeddings[valid], (embeddings,)
    )


def test_permuting_pixels_permutes_the_group_ids_and_keeps_the_embeddings():
    embeddings, cams, labels = (tensor.double() for tensor in make_random())
    order = torch.randperm(20)
    groups = group_pixels(embeddings, cams, labels)
    moved = group_pixels(permute_pixels(embeddings, order), permute_pixels(cams, order), labels)
    torch.testing.assert_close(moved.group_ids, permute_pixels(groups.group_ids, order))
    torch.testing.assert_close(moved.embeddings, groups.embeddings)


def test_groups_of_an_image_do_not_depend_on_its_batch():
    embeddings, cams, labels = (tensor.double() for tensor in make_random())
    together = group_pixels(embeddings, cams, labels)
    for n in range(3):
        alone = group_pixels(embeddings[n : n + 1], cams[n : n + 1], labels[n : n + 1])
        torch.testing.assert_close(together.group_ids[n : n + 1], alone.group_ids)
        torch.testing.assert_close(together.embeddings[n : n + 1], alone.embeddings)


@pytest.mark.parametrize('labelled', [0.0, 1.0])
@pytest.mark.parametrize('size', [(1, 1), (2, 3)])
@pytest.mark.parametrize('constant', [False, True])
def test_all_zero_cams_give_finite_groups_and_gradients(
    labelled: float, size: tuple[int, int], constant: bool
):
    shape = (2, 3, *size)
    embeddings = (torch.full(shape, 0.1) if constant else torch.randn(shape)).requires_grad_()
    groups = group_pixels(embeddings, torch.zeros(2, 4, *size), torch.full((2, 4), labelled))
    groups.embeddings.square().sum().backward()
    assert torch.isfinite(groups.embeddings).all()
    assert torch.isfinite(embeddings.grad).all()
    assert groups.valid.gather(1, groups.group_ids.flatten(1)).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_groups_are_float32_under_autocast(dtype: torch.dtype):
    embeddings, cams, labels = make_random()
    embeddings, cams = embeddings.to(dtype), cams.to(dtype)
    rows = standardize_pixels(embeddings.float())
    expected = group_pixels(embeddings.float(), cams.float(), labels)
    with torch.autocast('cpu', dtype=dtype):
        actual_rows = standardize_pixels(embeddings)
        context = pixel_context(rows)
        actual = group_pixels(embeddings, cams, labels)
    assert {actual_rows.dtype, context.dtype, actual.embeddings.dtype} == {torch.float32}
    torch.testing.assert_close(actual_rows, rows, rtol=0, atol=0)
    torch.testing.assert_close(context, pixel_context(rows), rtol=0, atol=0)
    torch.testing.assert_close(actual.group_ids, expected.group_ids)
    torch.testing.assert_close(actual.embeddings, expected.embeddings, rtol=0, atol=0)


def test_groups_without_a_background_are_those_of_the_labels():
    embeddings, cams = torch.randn(2, 5, 4, 4), torch.rand(2, 3, 4, 4)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    groups = group_pixels(embeddings, cams * labels[:, :, None, None], labels, background=False)
    assert groups.valid.tolist() == [[False, True, False, True], [True, False, False, False]]
    assert set(groups.group_ids[0].unique().tolist()) <= {1, 3}
    assert groups.group_ids[1].eq(0).all()


def test_weak_cams_seed_no_group():
    rows = torch.randn(1, 4, 1, 6)
    cams = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.6, 1.0]).view(1, 1, 1, 6)
    labels = torch.ones(1, 1)
    kept = group_pixels(rows, cams, labels, num_rounds=0, min_cam=0.3)
    cleared = group_pixels(rows, cams * (cams >= 0.3), labels, num_rounds=0)
    assert torch.equal(kept.embeddings, cleared.embeddings)
    assert not torch.equal(
        kept.embeddings, group_pixels(rows, cams, labels, num_rounds=0, min_cam=0.9).embeddings
    )


def test_core_and_outliers_together_are_all_members():
    embeddings, cams, labels = torch.randn(1, 6, 5, 5), torch.rand(1, 1, 5, 5), torch.ones(1, 1)

    def group(**options):
        return group_pixels(embeddings, cams, labels, num_rounds=20, **options)

    core = group(min_correlation=0.6)
    outliers = group(min_correlation=0.6, keep_outliers=True)
    everyone = group(min_correlation=-1.0)
    assert torch.equal(core.group_ids, outliers.group_ids)
    # After twenty rounds the centres are those of the members.
    rows = standardize_pixels(embeddings)
    members = torch.stack([core.group_ids.flatten(1) == slot for slot in range(2)], dim=1)
    centres = torch.nn.functional.normalize(members.float() @ rows, dim=2)
    near = members & (centres @ rows.transpose(1, 2) >= 0.6)
    share = (near.sum(dim=2) / members.sum(dim=2)).unsqueeze(2)
    assert (share > 0).all()
    assert (share < 1).all()
    mixed = share * core.embeddings + (1 - share) * outliers.embeddings
    torch.testing.assert_close(mixed, everyone.embeddings)


def test_levels_are_standardised_at_one_size_and_weigh_the_same():
    shallow, deep = 100 * torch.rand(2, 3, 4, 8), torch.rand(2, 5, 1, 2)
    rows = stack_levels([shallow, deep], (2, 4))
    averaged = shallow.unflatten(3, (4, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5))
    grown = torch.nn.functional.interpolate(deep, (2, 4), mode='bilinear', align_corners=False)
    expected = [standardize_pixels(level) / 2**0.5 for level in (averaged, grown)]
    torch.testing.assert_close(rows, torch.cat(expected, dim=2))
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(2, 8))
    # What they correlate by is the mean of what the levels correlate by.
    correlation = rows @ rows.transpose(1, 2)
    each = [2 * row @ row.transpose(1, 2) for row in expected]
    torch.testing.assert_close(correlation, (each[0] + each[1]) / 2)


def test_levels_get_no_gradient():
    level = torch.rand(1, 3, 2, 2, requires_grad=True)
    assert not stack_levels([level], (2, 2)).requires_grad


def test_levels_are_float32_under_autocast():
    level = torch.randn(1, 3, 4, 4).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rows = stack_levels([level], (2, 2))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, stack_levels([level.float()], (2, 2)))


def test_pixels_are_grouped_by_the_rows_that_are_given():
    embeddings, cams, labels = torch.randn(1, 4, 3, 3), torch.rand(1, 2, 3, 3), torch.ones(1, 2)
    rows = standardize_pixels(torch.randn(1, 6, 3, 3))
    groups = group_pixels(embeddings, cams, labels, rows=rows)
    others = group_pixels(rows.transpose(1, 2).unflatten(2, (3, 3)), cams, labels)
    assert torch.equal(groups.group_ids, others.group_ids)
    torch.testing.assert_close(groups.correlation, others.correlation)
    # Their embeddings are still means of the embeddings.
    assert groups.embeddings.shape == (1, 3, 4)


def test_pixels_belong_to_the_group_with_which_they_correlate_best():
    embeddings, cams = torch.randn(2, 4, 3, 5), torch.rand(2, 3, 3, 5)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    groups = group_pixels(embeddings, cams * labels[:, :, None, None], labels)
    assert groups.correlation.shape == (2, 4, 3, 5)
    assert groups.correlation.abs().max() <= 1 + 1e-5
    present = groups.correlation.masked_fill(~groups.valid[:, :, None, None], -2)
    assert torch.equal(present.argmax(dim=1), groups.group_ids)
