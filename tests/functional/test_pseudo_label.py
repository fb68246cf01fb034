"""CAMs to label maps, and the labels' mean embeddings (Eq. 2, 9, 12)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdscnet.functional.cam import background_score
from mmdscnet.functional.pseudo_label import (
    average_labelled_pixels,
    check_ignore_band,
    decide_labels,
    make_pseudo_labels,
    pixel_cross_entropy,
)

HALVES = [torch.bfloat16, torch.float16]


def naive_labels(
    cams: Tensor, bg_thr: float, bg_alpha: float | None = None, fg_thr: float | None = None
) -> Tensor:
    num_images, num_classes, height, width = cams.shape
    labels = torch.zeros(num_images, height, width, dtype=torch.int64)
    for n in range(num_images):
        for y in range(height):
            for x in range(width):
                scores = [float(cams[n, k, y, x]) for k in range(num_classes)]
                best = max(scores)
                background = bg_thr if bg_alpha is None else (1 - best) ** bg_alpha
                if best > background:
                    labels[n, y, x] = scores.index(best) + 1
                    if fg_thr is not None and best < fg_thr:
                        labels[n, y, x] = 255
    return labels


def naive_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    num_images, channels, height, width = embeddings.shape
    means = torch.zeros(num_images, num_classes, channels)
    present = torch.zeros(num_images, num_classes, dtype=torch.bool)
    for n in range(num_images):
        for label in range(num_classes):
            pixels = [
                embeddings[n, :, y, x]
                for y in range(height)
                for x in range(width)
                if int(labels[n, y, x]) == label
            ]
            if pixels:
                means[n, label] = sum(pixels) / len(pixels)
                present[n, label] = True
    return means, present


def naive_cross_entropy(cam_logits: Tensor, labels: Tensor) -> float:
    terms = []
    for image, own in zip(cam_logits, labels, strict=True):
        for y in range(own.shape[0]):
            for x in range(own.shape[1]):
                evidence = [0.0, *image[:, y, x].tolist()]
                label = int(own[y, x])
                if label != 255:
                    total = sum(math.exp(value) for value in evidence)
                    terms.append(math.log(total) - evidence[label])
    return sum(terms) / len(terms)


def random_labels(*shape: int, num_classes: int = 4) -> Tensor:
    labels = torch.randint(0, num_classes + 1, shape)
    return labels.masked_fill(labels == num_classes, 255)


def test_labels_by_hand():
    cams = torch.tensor([[[[0.1, 0.5, 0.9, 0.0]], [[0.2, 0.6, 0.3, 0.0]]]])
    labels = make_pseudo_labels(cams, bg_thr=0.3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [[[0, 2, 1, 0]]]


@pytest.mark.parametrize(
    'rule',
    [
        {'bg_thr': 0.0},
        {'bg_thr': 0.6},
        {'bg_thr': 0.5, 'fg_thr': 0.8},
        {'bg_thr': 0.2, 'bg_alpha': 2.0},
        {'bg_thr': 0.2, 'bg_alpha': 0.5, 'fg_thr': 0.7},
    ],
    ids=str,
)
def test_labels_equal_naive_loop(rule: dict[str, float]):
    cams = torch.rand(2, 3, 4, 5) * (torch.rand(2, 3, 1, 1) > 0.3)
    torch.testing.assert_close(make_pseudo_labels(cams, **rule), naive_labels(cams, **rule))


def test_background_wins_ties():
    cams = torch.tensor([0.25, 0.5, 0.75]).view(1, 1, 1, 3)
    assert make_pseudo_labels(cams, bg_thr=0.5).tolist() == [[[0, 0, 1]]]
    half = torch.full((1, 1, 1, 1), 0.5)
    assert make_pseudo_labels(half, bg_thr=0.1, bg_alpha=1.0).item() == 0


def test_all_zero_cams_are_background():
    cams = torch.zeros(1, 3, 2, 2)
    assert (make_pseudo_labels(cams, bg_thr=0.0) == 0).all()
    assert (make_pseudo_labels(cams, bg_thr=0.2, bg_alpha=4.0, fg_thr=0.5) == 0).all()


def test_cam_at_the_foreground_threshold_is_kept():
    cams = torch.tensor([0.25, 0.5, 0.75]).view(1, 1, 1, 3)
    labels = make_pseudo_labels(cams, bg_thr=0.125, fg_thr=0.5)
    assert labels.tolist() == [[[255, 1, 1]]]


def test_equal_thresholds_ignore_nothing():
    cams = torch.rand(1, 2, 4, 4)
    torch.testing.assert_close(
        make_pseudo_labels(cams, bg_thr=0.5, fg_thr=0.5), make_pseudo_labels(cams, bg_thr=0.5)
    )


def test_ignore_index_is_the_callers():
    cams = torch.full((1, 1, 1, 1), 0.4)
    assert make_pseudo_labels(cams, bg_thr=0.2, fg_thr=0.6, ignore_index=-1).item() == -1


def test_foreground_threshold_below_the_background_is_refused():
    with pytest.raises(ValueError, match=r'fg_thr.*0\.1') as caught:
        make_pseudo_labels(torch.zeros(1, 1, 1, 1), bg_thr=0.3, fg_thr=0.1)
    assert 'bg_thr' in str(caught.value)
    assert '0.3' in str(caught.value)


def test_power_rule_allows_any_foreground_threshold():
    check_ignore_band(0.3, 2.0, 0.1)
    check_ignore_band(0.3, None, 0.3)
    check_ignore_band(0.3, None, None)


def test_decision_by_hand():
    # Background, two classes; ties go to the background, then to the first class.
    scores = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.5, 0.4, 0.3, 0.3], [0.1, 0.5, 0.9, 0.3]])
    labels = decide_labels(scores.view(1, 3, 1, 4))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [[[0, 0, 2, 1]]]


def test_band_of_a_decision_spares_background_and_the_threshold_itself():
    scores = torch.tensor([[0.1, 0.1, 0.1, 0.4], [0.25, 0.5, 0.75, 0.0]]).view(1, 2, 1, 4)
    assert decide_labels(scores, fg_thr=0.5).tolist() == [[[255, 1, 1, 0]]]
    assert decide_labels(scores, fg_thr=0.5, ignore_index=-1).tolist() == [[[-1, 1, 1, 0]]]


@pytest.mark.parametrize('bg_alpha', [None, 2.0])
@pytest.mark.parametrize('fg_thr', [None, 0.6])
def test_decision_is_that_of_pseudo_labels(bg_alpha: float | None, fg_thr: float | None):
    cams = torch.rand(2, 3, 4, 5)
    scores = torch.cat([background_score(cams, 0.3, bg_alpha), cams], dim=1)
    expected = make_pseudo_labels(cams, 0.3, bg_alpha, fg_thr)
    assert torch.equal(decide_labels(scores, fg_thr), expected)


@pytest.mark.parametrize('dtype', HALVES)
def test_decision_is_that_of_float32_under_autocast(dtype: torch.dtype):
    scores = torch.rand(1, 4, 16, 16).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        labels = decide_labels(scores, fg_thr=0.6)
    assert torch.equal(labels, decide_labels(scores.float(), fg_thr=0.6))


def test_permuting_images_and_pixels_permutes_the_labels():
    cams, images, pixels = torch.rand(3, 2, 2, 4), torch.randperm(3), torch.randperm(8)
    labels = make_pseudo_labels(cams, bg_thr=0.4, fg_thr=0.6)
    moved = cams[images].flatten(2)[..., pixels].view_as(cams)
    torch.testing.assert_close(
        make_pseudo_labels(moved, bg_thr=0.4, fg_thr=0.6),
        labels[images].flatten(1)[:, pixels].view_as(labels),
    )


@pytest.mark.parametrize('dtype', HALVES)
def test_labels_are_those_of_float32_under_autocast(dtype: torch.dtype):
    cams = torch.rand(1, 3, 16, 16).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        labels = make_pseudo_labels(cams, bg_thr=0.3, bg_alpha=2.5, fg_thr=0.6)
    torch.testing.assert_close(labels, naive_labels(cams.float(), 0.3, bg_alpha=2.5, fg_thr=0.6))


def test_means_by_hand():
    embeddings = torch.tensor([[[[1.0, 3.0, 7.0, 9.0]]]])
    means, present = average_labelled_pixels(embeddings, torch.tensor([[[1, 1, 255, 0]]]), 3)
    assert means.tolist() == [[[9.0], [2.0], [0.0]]]
    assert present.tolist() == [[True, True, False]]


def test_means_equal_naive_loop():
    embeddings, labels = torch.randn(2, 4, 3, 5), torch.randint(0, 5, (2, 3, 5))
    labels[labels == 4] = 255
    means, present = average_labelled_pixels(embeddings, labels, 6)
    expected_means, expected_present = naive_means(embeddings, labels, 6)
    torch.testing.assert_close(means, expected_means)
    torch.testing.assert_close(present, expected_present)


@pytest.mark.parametrize('label', [255, -1, 3])
def test_pixels_with_other_labels_are_left_out(label: int):
    embeddings = torch.randn(1, 2, 2, 2, requires_grad=True)
    means, present = average_labelled_pixels(embeddings, torch.full((1, 2, 2), label), 3)
    assert (means == 0).all()
    assert not present.any()
    means.sum().backward()
    assert (embeddings.grad == 0).all()


def test_gradient_reaches_only_labelled_pixels():
    embeddings = torch.randn(1, 2, 1, 4, requires_grad=True)
    means, _ = average_labelled_pixels(embeddings, torch.tensor([[[0, 255, 1, 1]]]), 2)
    means.sum().backward()
    torch.testing.assert_close(
        embeddings.grad, torch.tensor([1.0, 0.0, 0.5, 0.5]).expand(1, 2, 1, 4)
    )


def test_means_gradcheck():
    embeddings = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 1], [1, 255]], [[2, 2], [2, 0]]])
    assert torch.autograd.gradcheck(
        lambda z: average_labelled_pixels(z, labels, 3)[0], (embeddings,)
    )


def test_means_do_not_depend_on_the_order_of_pixels_and_follow_that_of_images():
    embeddings, labels = torch.randn(3, 2, 2, 4), torch.randint(0, 3, (3, 2, 4))
    images, pixels = torch.randperm(3), torch.randperm(8)
    means, present = average_labelled_pixels(embeddings, labels, 3)
    moved_means, moved_present = average_labelled_pixels(
        embeddings[images].flatten(2)[..., pixels].view_as(embeddings),
        labels[images].flatten(1)[:, pixels].view_as(labels),
        3,
    )
    torch.testing.assert_close(moved_means, means[images])
    torch.testing.assert_close(moved_present, present[images])


def test_single_pixel_is_its_own_mean():
    embeddings = torch.randn(1, 3, 1, 1)
    means, _ = average_labelled_pixels(embeddings, torch.ones(1, 1, 1, dtype=torch.int64), 2)
    torch.testing.assert_close(means[0, 1], embeddings.flatten())


@pytest.mark.parametrize('dtype', HALVES)
def test_means_are_float32_under_autocast(dtype: torch.dtype):
    embeddings, labels = torch.randn(2, 4, 8, 8).to(dtype), torch.randint(0, 3, (2, 8, 8))
    with torch.autocast('cpu', dtype=dtype):
        means, _ = average_labelled_pixels(embeddings, labels, 3)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, naive_means(embeddings.float(), labels, 3)[0])


def test_means_do_not_overflow_in_float16():
    embeddings = torch.full((1, 1, 4, 4), 60000.0, dtype=torch.float16)
    means, _ = average_labelled_pixels(embeddings, torch.zeros(1, 4, 4, dtype=torch.int64), 1)
    torch.testing.assert_close(means, embeddings[:, :, 0, :1].float())


def test_cross_entropy_by_hand():
    # Evidence log 2 of one class beside the background: probabilities 2/3 and 1/3.
    cam_logits = torch.full((1, 1, 1, 3), math.log(2))
    loss = pixel_cross_entropy(cam_logits, torch.tensor([[[1, 0, 255]]]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx((math.log(1.5) + math.log(3)) / 2)


def test_cross_entropy_equals_naive_loop():
    cam_logits, labels = torch.randn(2, 3, 4, 5), random_labels(2, 4, 5)
    loss = pixel_cross_entropy(cam_logits, labels)
    assert loss.item() == pytest.approx(naive_cross_entropy(cam_logits, labels), rel=1e-5)


@pytest.mark.parametrize('ignore_index', [255, -1, 2])
def test_cross_entropy_equals_that_of_torch(ignore_index: int):
    cam_logits = torch.randn(2, 3, 4, 5)
    labels = random_labels(2, 4, 5)
    labels = labels.masked_fill(labels == 255, ignore_index)
    with_background = torch.cat([torch.zeros(2, 1, 4, 5), cam_logits], dim=1)
    expected = F.cross_entropy(with_background, labels, ignore_index=ignore_index)
    torch.testing.assert_close(pixel_cross_entropy(cam_logits, labels, ignore_index), expected)


@pytest.mark.parametrize('align_corners', [True, False])
def test_evidence_is_resized_to_larger_labels(align_corners: bool):
    cam_logits, labels = torch.randn(2, 3, 4, 5), random_labels(2, 16, 13)
    resized = F.interpolate(cam_logits, (16, 13), mode='bilinear', align_corners=align_corners)
    loss = pixel_cross_entropy(cam_logits, labels, align_corners=align_corners)
    torch.testing.assert_close(loss, pixel_cross_entropy(resized, labels))


def test_every_labelled_pixel_of_the_batch_counts_alike():
    cam_logits, labels = torch.randn(2, 3, 4, 5), random_labels(2, 4, 5)
    labels[0].masked_fill_(torch.rand(4, 5) < 0.7, 255)
    counts = (labels != 255).sum(dim=(1, 2))
    alone = torch.stack(
        [pixel_cross_entropy(cam_logits[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    )
    loss = pixel_cross_entropy(cam_logits, labels)
    torch.testing.assert_close(loss, (alone * counts).sum() / counts.sum())


def test_cross_entropy_gradcheck():
    cam_logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    same, larger = random_labels(2, 2, 3), random_labels(2, 5, 4)
    assert torch.autograd.gradcheck(lambda x: pixel_cross_entropy(x, same), (cam_logits,))
    assert torch.autograd.gradcheck(lambda x: pixel_cross_entropy(x, larger), (cam_logits,))


def test_gradient_raises_the_labelled_class_and_lowers_the_others():
    cam_logits = torch.randn(1, 3, 1, 3, requires_grad=True)
    pixel_cross_entropy(cam_logits, torch.tensor([[[2, 0, 255]]])).backward()
    signs = cam_logits.grad[0, :, 0].sign().T.tolist()
    assert signs == [[1, -1, 1], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize('size', [(3, 3), (7, 5)])
def test_nothing_labelled_is_an_attached_zero(size: tuple[int, int]):
    cam_logits = (100 * torch.randn(2, 3, 3, 3)).requires_grad_()
    loss = pixel_cross_entropy(cam_logits, torch.full((2, *size), 255))
    assert loss == 0
    loss.backward()
    assert cam_logits.grad.count_nonzero() == 0


def test_one_pixel_has_a_cross_entropy():
    loss = pixel_cross_entropy(torch.zeros(1, 3, 1, 1), torch.tensor([[[3]]]))
    assert loss.item() == pytest.approx(math.log(4))


def test_extreme_evidence_is_finite():
    cam_logits = torch.tensor([1e4, -1e4]).view(1, 1, 1, 2).requires_grad_()
    loss = pixel_cross_entropy(cam_logits, torch.tensor([[[0, 1]]]))
    loss.backward()
    assert loss == 1e4
    assert cam_logits.grad.isfinite().all()


def test_cross_entropy_does_not_depend_on_the_order_of_images_and_pixels():
    cam_logits, labels = torch.randn(3, 2, 2, 4), random_labels(3, 2, 4, num_classes=3)
    images, pixels = torch.randperm(3), torch.randperm(8)
    moved = cam_logits[images].flatten(2)[..., pixels].view_as(cam_logits)
    moved_labels = labels[images].flatten(1)[:, pixels].view_as(labels)
    torch.testing.assert_close(
        pixel_cross_entropy(moved, moved_labels), pixel_cross_entropy(cam_logits, labels)
    )


def test_exchanging_classes_and_their_labels_changes_nothing():
    cam_logits, labels = torch.randn(2, 3, 4, 5), random_labels(2, 4, 5)
    order = torch.tensor([2, 0, 1])
    renamed = torch.full((256,), 255)
    renamed[0], renamed[1 + order] = 0, torch.arange(1, 4)
    torch.testing.assert_close(
        pixel_cross_entropy(cam_logits[:, order], renamed[labels]),
        pixel_cross_entropy(cam_logits, labels),
    )


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('size', [(8, 8), (16, 16)])
def test_cross_entropy_is_float32_under_autocast(dtype: torch.dtype, size: tuple[int, int]):
    cam_logits, labels = (4 * torch.randn(2, 3, 8, 8)).to(dtype), random_labels(2, *size)
    with torch.autocast('cpu', dtype=dtype):
        loss = pixel_cross_entropy(cam_logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, pixel_cross_entropy(cam_logits.float(), labels))


def test_cross_entropy_reads_no_value_back():
    """Tensors without values refuse to be read, for which a GPU would have to be waited for."""
    with FakeTensorMode():
        cam_logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        pixel_cross_entropy(cam_logits, torch.randint(0, 4, (2, 8, 9))).backward()
