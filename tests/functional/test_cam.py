"""From class evidence to CAMs (Eq. 1)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.cam import (
    background_score,
    image_scores,
    normalize_cams,
    predict_image_labels,
    stretch_cams,
)

HALVES = [torch.bfloat16, torch.float16]
EPS = 1e-5


def naive_scores(cam_logits: Tensor) -> Tensor:
    num_images, num_classes, height, width = cam_logits.shape
    scores = torch.zeros(num_images, num_classes)
    for n in range(num_images):
        for k in range(num_classes):
            total = 0.0
            for y in range(height):
                for x in range(width):
                    total += float(cam_logits[n, k, y, x])
            scores[n, k] = total / (height * width)
    return scores


def naive_cams(cam_logits: Tensor, image_labels: Tensor) -> Tensor:
    cams = torch.zeros_like(cam_logits)
    for n, labels in enumerate(image_labels.tolist()):
        for k, label in enumerate(labels):
            peak = max(float(cam_logits[n, k].max()), EPS)
            for y in range(cam_logits.shape[2]):
                for x in range(cam_logits.shape[3]):
                    cams[n, k, y, x] = label * max(float(cam_logits[n, k, y, x]), 0.0) / peak
    return cams


def naive_stretched(evidence: Tensor, image_labels: Tensor) -> Tensor:
    cams = torch.zeros_like(evidence)
    for n, labels in enumerate(image_labels.tolist()):
        for k, label in enumerate(labels):
            values = [max(value, 0.0) for value in evidence[n, k].flatten().tolist()]
            low, high = min(values), max(values)
            stretched = [max(value - low - EPS, 0.0) / (high - low + EPS) for value in values]
            cams[n, k] = label * torch.tensor(stretched).view_as(evidence[n, k])
    return cams


def permute_pixels(maps: Tensor, order: Tensor) -> Tensor:
    return maps.flatten(2)[..., order].view_as(maps)


def test_image_scores_by_hand():
    cam_logits = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-4.0, 0.0], [0.0, 0.0]]]])
    torch.testing.assert_close(image_scores(cam_logits), torch.tensor([[3.0, -1.0]]))


def test_image_scores_equal_naive_loop():
    cam_logits = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(image_scores(cam_logits), naive_scores(cam_logits))


def test_image_scores_equal_the_classifier_on_pooled_features():
    feats, weight = torch.randn(2, 6, 3, 4), torch.randn(5, 6)
    pooled = F.adaptive_avg_pool2d(feats, 1).flatten(1)
    scores = image_scores(F.conv2d(feats, weight[..., None, None]))
    torch.testing.assert_close(scores, F.linear(pooled, weight))


def test_image_scores_gradcheck():
    cam_logits = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(image_scores, (cam_logits,))


def test_image_scores_do_not_overflow_in_float16():
    scores = image_scores(torch.full((1, 1, 8, 8), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(scores, torch.full((1, 1), 60000.0, dtype=torch.float16).float())


def test_predicted_labels_by_hand():
    scores = torch.tensor([[2.0, -1.0, 0.1], [-3.0, -1.0, -2.0]])
    labels = predict_image_labels(scores, score_thr=0.5)
    assert labels.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_predicted_labels_equal_naive_loop():
    scores = torch.randn(8, 5) - 1
    labels = predict_image_labels(scores, score_thr=0.4)
    for row, expected in zip(labels.tolist(), scores.tolist(), strict=True):
        for label, score in zip(row, expected, strict=True):
            present = 1 / (1 + math.exp(-score)) > 0.4 or score == max(expected)
            assert label == int(present)


def test_probability_at_the_threshold_is_not_above_it():
    assert predict_image_labels(torch.tensor([[0.0, 1.0]]), score_thr=0.5).tolist() == [[0, 1]]


def test_threshold_of_zero_chooses_all_and_of_one_only_the_best():
    scores = torch.randn(3, 4)
    assert (predict_image_labels(scores, 0.0) == 1).all()
    best = predict_image_labels(scores, 1.0)
    assert (best.sum(1) == 1).all()
    torch.testing.assert_close(best.argmax(1), scores.argmax(1))


def test_cams_by_hand():
    cam_logits = torch.tensor([[[[4.0, -2.0, 1.0]], [[5.0, 1.0, 2.0]]]])
    cams = normalize_cams(cam_logits, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(cams, torch.tensor([[[[1.0, 0.0, 0.25]], [[0.0, 0.0, 0.0]]]]))


def test_cams_equal_naive_loop():
    cam_logits = torch.randn(3, 4, 3, 5)
    image_labels = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    cams = normalize_cams(cam_logits, image_labels)
    torch.testing.assert_close(cams, naive_cams(cam_logits, image_labels))


def test_cams_lie_in_unit_interval_and_reach_one():
    cam_logits = torch.randn(2, 3, 4, 4)
    cams = normalize_cams(cam_logits, torch.ones(2, 3))
    assert cams.min() >= 0
    torch.testing.assert_close(cams.amax((2, 3)), torch.ones(2, 3))


def test_cams_do_not_depend_on_the_scale_of_the_evidence():
    cam_logits, labels = torch.randn(2, 3, 4, 4), torch.ones(2, 3)
    torch.testing.assert_close(
        normalize_cams(7 * cam_logits, labels), normalize_cams(cam_logits, labels)
    )


def test_integer_labels_are_as_good_as_floating_point():
    cam_logits, labels = torch.randn(2, 3, 2, 2), torch.tensor([[1, 0, 1], [0, 1, 0]])
    torch.testing.assert_close(
        normalize_cams(cam_logits, labels), normalize_cams(cam_logits, labels.float())
    )


def test_cams_gradcheck():
    cam_logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 1], [1, 1, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: normalize_cams(logits, labels), (cam_logits,))


@pytest.mark.parametrize('value', [-1.0, 0.0])
def test_class_without_evidence_has_zero_map_and_zero_gradient(value: float):
    cam_logits = torch.full((1, 2, 2, 2), value, requires_grad=True)
    cams = normalize_cams(cam_logits, torch.ones(1, 2))
    assert (cams == 0).all()
    cams.sum().backward()
    assert torch.isfinite(cam_logits.grad).all()
    if value < 0:
        assert (cam_logits.grad == 0).all()


def test_image_without_class_has_zero_maps_and_zero_gradient():
    cam_logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    cams = normalize_cams(cam_logits, torch.zeros(1, 2))
    cams.sum().backward()
    assert (cams == 0).all()
    assert (cam_logits.grad == 0).all()


def test_single_pixel_with_evidence_is_one():
    assert normalize_cams(torch.full((1, 1, 1, 1), 0.3), torch.ones(1, 1)).item() == 1.0


def test_cams_of_an_image_do_not_depend_on_its_batch():
    cam_logits, labels = torch.randn(3, 2, 2, 3), torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    together = normalize_cams(cam_logits, labels)
    for n in range(3):
        alone = normalize_cams(cam_logits[n : n + 1], labels[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=0)


def test_permuting_pixels_permutes_the_maps():
    cam_logits, labels, order = torch.randn(2, 3, 2, 4), torch.ones(2, 3), torch.randperm(8)
    torch.testing.assert_close(
        normalize_cams(permute_pixels(cam_logits, order), labels),
        permute_pixels(normalize_cams(cam_logits, labels), order),
    )


def test_stretched_cams_by_hand():
    evidence = torch.tensor([[[[5.0, 1.0, 2.0]], [[-4.0, 2.0, 1.0]], [[3.0, 1.0, 2.0]]]])
    cams = stretch_cams(evidence, torch.tensor([[1.0, 1.0, 0.0]]))
    expected = torch.tensor([[[[1.0, 0.0, 0.25]], [[0.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]]])
    torch.testing.assert_close(cams, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('offset', [0.0, 2.0])
def test_stretched_cams_equal_naive_loop(offset: float):
    evidence = torch.randn(3, 4, 3, 5) + offset
    image_labels = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    torch.testing.assert_close(
        stretch_cams(evidence, image_labels), naive_stretched(evidence, image_labels)
    )


def test_stretched_cams_run_from_zero_to_one():
    cams = stretch_cams(torch.rand(2, 3, 4, 4) + 1, torch.ones(2, 3))
    assert torch.equal(cams.amin((2, 3)), torch.zeros(2, 3))
    assert cams.max() < 1
    torch.testing.assert_close(cams.amax((2, 3)), torch.ones(2, 3), rtol=0, atol=1e-4)


def test_stretched_cams_depend_on_neither_scale_nor_offset_of_positive_evidence():
    evidence, labels = torch.rand(2, 3, 4, 4), torch.ones(2, 3)
    expected = stretch_cams(evidence, labels)
    torch.testing.assert_close(stretch_cams(7 * evidence, labels), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(stretch_cams(evidence + 3, labels), expected, rtol=0, atol=1e-4)


def test_stretched_cams_are_the_plain_ones_where_some_pixel_has_no_evidence():
    cam_logits, labels = torch.randn(2, 3, 4, 4), torch.tensor([[1.0, 0, 1], [1, 1, 0]])
    torch.testing.assert_close(
        stretch_cams(cam_logits, labels), normalize_cams(cam_logits, labels), rtol=0, atol=1e-4
    )


def test_stretched_cams_gradcheck():
    cam_logits = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    cam_logits[:, 1] = cam_logits[:, 1].abs() + 1
    labels = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)
    cam_logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: stretch_cams(logits, labels), (cam_logits,))


@pytest.mark.parametrize('size', [(1, 1), (2, 3)])
@pytest.mark.parametrize('value', [-1.0, 0.0, 2.0])
def test_equal_evidence_everywhere_stretches_to_zero(size: tuple[int, int], value: float):
    cam_logits = torch.full((1, 2, *size), value, requires_grad=True)
    cams = stretch_cams(cam_logits, torch.ones(1, 2))
    assert cams.count_nonzero() == 0
    cams.sum().backward()
    assert cam_logits.grad.count_nonzero() == 0


def test_absent_classes_stretch_to_zero_and_get_no_gradient():
    cam_logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    cams = stretch_cams(cam_logits, torch.tensor([[1, 0, 0], [0, 0, 0]]))
    cams.sum().backward()
    assert cams[0, 1:].count_nonzero() == cams[1].count_nonzero() == 0
    assert cam_logits.grad.isfinite().all()
    assert cam_logits.grad[0, 1:].count_nonzero() == cam_logits.grad[1].count_nonzero() == 0


def test_stretched_cams_of_an_image_do_not_depend_on_its_batch():
    cam_logits, labels = torch.randn(3, 2, 2, 3), torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    together = stretch_cams(cam_logits, labels)
    alone = [stretch_cams(cam_logits[n : n + 1], labels[n : n + 1]) for n in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_permuting_pixels_permutes_the_stretched_maps():
    cam_logits, labels, order = torch.rand(2, 3, 2, 4), torch.ones(2, 3), torch.randperm(8)
    torch.testing.assert_close(
        stretch_cams(permute_pixels(cam_logits, order), labels),
        permute_pixels(stretch_cams(cam_logits, labels), order),
    )


def test_constant_background_score_by_hand():
    scores = background_score(torch.rand(2, 3, 2, 4), bg_thr=0.3)
    torch.testing.assert_close(scores, torch.full((2, 1, 2, 4), 0.3))


def test_power_background_score_by_hand():
    cams = torch.tensor([[[[0.5, 0.0, 1.0]], [[0.1, 0.0, 0.2]]]])
    scores = background_score(cams, bg_thr=0.9, bg_alpha=2.0)
    torch.testing.assert_close(scores, torch.tensor([[[[0.25, 1.0, 0.0]]]]))


def test_larger_exponent_means_less_background():
    cams = torch.rand(1, 2, 3, 3)
    few = background_score(cams, bg_thr=0.2, bg_alpha=8.0)
    many = background_score(cams, bg_thr=0.2, bg_alpha=2.0)
    assert (few <= many).all()
    assert (few >= 0).all()
    assert (many <= 1).all()


def test_power_background_score_gradcheck():
    cams = torch.rand(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: background_score(c, 0.2, 4.0), (cams,))


@pytest.mark.parametrize('dtype', HALVES)
def test_scores_and_cams_are_float32_under_autocast(dtype: torch.dtype):
    cam_logits, labels = torch.randn(2, 3, 4, 4).to(dtype), torch.ones(2, 3)
    cams = torch.rand(2, 3, 4, 4).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        results = (
            image_scores(cam_logits),
            normalize_cams(cam_logits, labels),
            stretch_cams(cam_logits, labels),
            background_score(cams, bg_thr=0.2, bg_alpha=4.0),
        )
    expected = (
        image_scores(cam_logits.float()),
        normalize_cams(cam_logits.float(), labels),
        stretch_cams(cam_logits.float(), labels),
        background_score(cams.float(), bg_thr=0.2, bg_alpha=4.0),
    )
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, reference, rtol=0, atol=0)
