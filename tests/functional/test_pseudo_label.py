"""CAMs to label maps, and the labels' mean embeddings (Eq. 2, 9, 12)."""

import pytest
import torch
from torch import Tensor

from mmdscnet.functional.pseudo_label import average_labelled_pixels, make_pseudo_labels

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
