"""Pixels read the class nodes of the groups that they resemble (Eq. 10)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.dual_stream import read_class_nodes, read_group_classes

HALVES = [torch.bfloat16, torch.float16]


def naive_read(
    embeddings: Tensor, groups: Tensor, nodes: Tensor, valid: Tensor, temperature: float
) -> Tensor:
    enriched = torch.zeros_like(embeddings)
    num_images, _, height, width = embeddings.shape
    for n in range(num_images):
        slots = valid[n].nonzero().flatten().tolist()
        for y in range(height):
            for x in range(width):
                weights = []
                for slot in slots:
                    cosine = F.cosine_similarity(embeddings[n, :, y, x], groups[n, slot], dim=0)
                    weights.append(math.exp(float(cosine) / temperature))
                for slot, weight in zip(slots, weights, strict=True):
                    enriched[n, :, y, x] += weight / sum(weights) * nodes[n, slot]
    return enriched


def make_stream() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three images; the second has the background only."""
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    return torch.randn(3, 5, 2, 4), torch.randn(3, 4, 5), torch.randn(3, 4, 5), valid


def test_enriched_pixel_by_hand():
    # Cosine 1 with group 0 and 0 with group 1; group 2, the most similar node, is absent.
    enriched = read_class_nodes(
        embeddings=torch.tensor([2.0, 0.0]).view(1, 2, 1, 1),
        groups=torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 0.0]]]),
        nodes=torch.tensor([[[1.0, 0.0], [0.0, 1.0], [50.0, 50.0]]]),
        valid=torch.tensor([[True, True, False]]),
        temperature=0.5,
    )
    near = math.exp(2)
    expected = torch.tensor([near, 1.0]) / (near + 1)
    torch.testing.assert_close(enriched, expected.view(1, 2, 1, 1))


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_enriched_pixels_equal_naive_loop(temperature: float):
    stream = make_stream()
    torch.testing.assert_close(
        read_class_nodes(*stream, temperature), naive_read(*stream, temperature)
    )


def test_enriched_pixels_equal_torch_attention():
    embeddings, groups, nodes, valid = make_stream()
    attended = F.scaled_dot_product_attention(
        F.normalize(embeddings.flatten(2).mT, dim=2),
        F.normalize(groups, dim=2),
        nodes,
        attn_mask=valid[:, None].expand(3, 8, 4),
        scale=1 / 0.2,
    )
    enriched = read_class_nodes(embeddings, groups, nodes, valid, 0.2)
    torch.testing.assert_close(enriched, attended.mT.reshape(3, 5, 2, 4))


def test_one_valid_group_makes_the_enriched_map_constant():
    embeddings, groups, nodes, _ = make_stream()
    valid = torch.tensor([[0, 0, 1, 0]] * 3).bool()
    enriched = read_class_nodes(embeddings, groups, nodes, valid, 0.1)
    torch.testing.assert_close(enriched, nodes[:, 2, :, None, None].expand(3, 5, 2, 4))


def test_enriched_pixel_is_a_mean_of_nodes():
    embeddings, groups, _, valid = make_stream()
    enriched = read_class_nodes(embeddings, groups, torch.ones(3, 4, 5), valid, 0.1)
    torch.testing.assert_close(enriched, torch.ones(3, 5, 2, 4))


def test_low_temperature_reads_the_most_similar_group():
    embeddings, groups, nodes, valid = make_stream()
    cosine = F.cosine_similarity(embeddings.flatten(2).mT[:, :, None], groups[:, None], dim=3)
    best = cosine.masked_fill(~valid[:, None], -2).argmax(2)
    expected = torch.stack([nodes[n, best[n]].T.view(5, 2, 4) for n in range(3)])
    enriched = read_class_nodes(embeddings, groups, nodes, valid, 1e-5)
    torch.testing.assert_close(enriched, expected)


def test_absent_groups_have_no_influence():
    embeddings, groups, nodes, valid = make_stream()
    groups.requires_grad_()
    nodes.requires_grad_()
    read_class_nodes(embeddings, groups, nodes, valid, 0.3).square().sum().backward()
    assert (groups.grad[~valid] == 0).all()
    assert (nodes.grad[~valid] == 0).all()
    assert (nodes.grad[valid] != 0).any(1).all()


def test_permuting_pixels_images_and_groups_only_permutes_the_result():
    embeddings, groups, nodes, valid = make_stream()
    images, pixels, slots = torch.randperm(3), torch.randperm(8), torch.randperm(4)
    enriched = read_class_nodes(embeddings, groups, nodes, valid, 0.3)
    moved = read_class_nodes(
        embeddings[images].flatten(2)[..., pixels].view_as(embeddings),
        groups[images][:, slots],
        nodes[images][:, slots],
        valid[images][:, slots],
        0.3,
    )
    expected = enriched[images].flatten(2)[..., pixels].view_as(enriched)
    torch.testing.assert_close(moved, expected)


def test_lengths_of_pixels_and_groups_do_not_matter():
    embeddings, groups, nodes, valid = make_stream()
    torch.testing.assert_close(
        read_class_nodes(3 * embeddings, 0.2 * groups, nodes, valid, 0.3),
        read_class_nodes(embeddings, groups, nodes, valid, 0.3),
    )


def test_read_gradcheck():
    embeddings, groups, nodes, valid = make_stream()
    inputs = [tensor.double().requires_grad_() for tensor in (embeddings, groups, nodes)]
    assert torch.autograd.gradcheck(lambda z, p, s: read_class_nodes(z, p, s, valid, 0.5), inputs)


@pytest.mark.parametrize('temperature', [0.1, 1e-6])
def test_zero_vectors_give_finite_result_and_gradient(temperature: float):
    inputs = [torch.zeros(1, 3, 1, 1), torch.zeros(1, 2, 3), torch.randn(1, 2, 3)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    enriched = read_class_nodes(*inputs, torch.ones(1, 2).bool(), temperature)
    enriched.sum().backward()
    torch.testing.assert_close(enriched.flatten(), inputs[2][0].mean(0))
    assert all(torch.isfinite(tensor.grad).all() for tensor in inputs)


@pytest.mark.parametrize('dtype', HALVES)
def test_read_is_float32_under_autocast(dtype: torch.dtype):
    embeddings, groups, nodes, valid = make_stream()
    halves = [tensor.to(dtype) for tensor in (embeddings, groups, nodes)]
    with torch.autocast('cpu', dtype=dtype):
        enriched = read_class_nodes(*halves, valid, 0.05)
    expected = read_class_nodes(*(tensor.float() for tensor in halves), valid, 0.05)
    assert enriched.dtype == torch.float32
    torch.testing.assert_close(enriched, expected, rtol=0, atol=0)


def test_classes_are_read_of_the_groups_that_a_pixel_resembles():
    correlation = torch.tensor([0.2, 0.6, 0.9]).view(1, 3, 1, 1)
    maps = read_group_classes(correlation, torch.tensor([[True, True, False]]), temperature=0.1)
    share = math.exp(6) / (math.exp(6) + math.exp(2))
    torch.testing.assert_close(maps.flatten(), torch.tensor([share, 0.0]))


def test_classes_that_are_read_are_class_nodes_of_one_class_each():
    _, groups, _, valid = make_stream()
    embeddings = torch.randn(3, 5, 2, 4)
    pixels = F.normalize(embeddings, dim=1).flatten(2)
    cosine = (F.normalize(groups, dim=2) @ pixels).unflatten(2, (2, 4))
    one_class_each = torch.eye(4).expand(3, 4, 4)
    expected = read_class_nodes(embeddings, groups, one_class_each, valid, 0.3)[:, 1:]
    torch.testing.assert_close(read_group_classes(cosine, valid, 0.3), expected)


def test_classes_of_an_image_without_any_are_zero():
    maps = read_group_classes(torch.rand(1, 3, 2, 2), torch.tensor([[True, False, False]]), 0.1)
    assert maps.eq(0).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_classes_are_read_in_float32_under_autocast(dtype):
    correlation, valid = torch.rand(1, 3, 2, 2), torch.ones(1, 3, dtype=torch.bool)
    with torch.autocast('cpu', dtype=dtype):
        maps = read_group_classes(correlation.to(dtype), valid, 0.01)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, read_group_classes(correlation.to(dtype).float(), valid, 0.01))
