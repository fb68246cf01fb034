import numpy as np
import pytest
import torch

from mmdscnet.evaluation.threshold_sweep import (
    check_thresholds,
    count_pixels,
    count_present_pixels,
    count_thresholds_below,
    list_cells,
    per_class_scores,
    sum_confusions,
    sweep_thresholds,
)


def brute_force(images, thresholds, num_classes, ignore_index=255):
    """Argmax over [threshold, cams] for each threshold on its own, pixels counted by numpy."""
    confusions = np.zeros((len(thresholds), num_classes, num_classes), dtype=np.int64)
    for cams, truth in images:
        judged = truth.numpy() != ignore_index
        for t, threshold in enumerate(thresholds):
            background = torch.full((1, *cams.shape[1:]), float(threshold))
            prediction = torch.cat([background, cams.float()]).argmax(dim=0).numpy()
            np.add.at(confusions[t], (truth.numpy()[judged], prediction[judged]), 1)
    return confusions


def swept(images, thresholds, num_classes):
    counts = [count_pixels(cams, truth, thresholds, 255) for cams, truth in images]
    return sum_confusions(counts, len(thresholds), num_classes)


def random_truth(num_classes, size, generator):
    truth = torch.randint(0, num_classes, size, generator=generator)
    truth[torch.rand(size, generator=generator) < 0.1] = 255
    return truth


def adversarial_cams(kind, generator):
    size = (3, 12, 17)
    thresholds = sweep_thresholds()
    on_threshold = thresholds[torch.randint(0, 100, size, generator=generator)]
    return {
        'random': torch.rand(size, generator=generator),
        'on_thresholds': on_threshold,
        'just_above': torch.nextafter(on_threshold, torch.ones(())),
        'just_below': torch.nextafter(on_threshold, -torch.ones(())),
        'all_zero': torch.zeros(size),
        'all_one': torch.ones(size),
        'ties_between_classes': on_threshold[:1].repeat(3, 1, 1),
        'slightly_outside': torch.rand(size, generator=generator) * 1.002 - 0.001,
        'bfloat16': torch.rand(size, generator=generator).bfloat16(),
        'float16': on_threshold.half(),
    }[kind]


@pytest.mark.parametrize(
    'kind',
    [
        'random',
        'on_thresholds',
        'just_above',
        'just_below',
        'all_zero',
        'all_one',
        'ties_between_classes',
        'slightly_outside',
        'bfloat16',
        'float16',
    ],
)
@pytest.mark.parametrize('extra', [None, 0.3, 0.305, 0.999])
def test_sweep_equals_argmax_at_each_threshold(kind, extra):
    generator = torch.Generator().manual_seed(0)
    thresholds = sweep_thresholds(extra)
    cams = adversarial_cams(kind, generator)
    images = [(cams, random_truth(4, cams.shape[1:], generator)) for _ in range(2)]
    confusions = swept(images, thresholds, num_classes=4)
    assert confusions.dtype == torch.int64
    np.testing.assert_array_equal(confusions.numpy(), brute_force(images, thresholds, 4))


def test_images_of_different_sizes_add_up():
    generator = torch.Generator().manual_seed(1)
    sizes = [(5, 7), (1, 1), (11, 3)]
    images = [
        (torch.rand((20, *size), generator=generator), random_truth(21, size, generator))
        for size in sizes
    ]
    thresholds = sweep_thresholds()
    confusions = swept(images, thresholds, 21).numpy()
    np.testing.assert_array_equal(confusions, brute_force(images, thresholds, 21))
    judged = sum(int((truth != 255).sum()) for _, truth in images)
    assert (confusions.sum(axis=(1, 2)) == judged).all()


def test_thresholds_are_those_of_decimal_literals():
    thresholds = sweep_thresholds()
    assert thresholds.dtype == torch.float32
    assert thresholds.tolist() == [np.float32(f'0.{i:02d}') for i in range(100)]


def test_extra_threshold_is_sorted_in_once():
    assert torch.equal(sweep_thresholds(0.29), sweep_thresholds())
    between = sweep_thresholds(0.295)
    assert len(between) == 101
    assert between[29] < between[30] < between[31]
    assert between[30] == np.float32(0.295)


def test_own_thresholds_become_float32():
    thresholds = check_thresholds([0, 0.1, 0.5])
    assert thresholds.dtype == torch.float32
    assert thresholds.tolist() == [0, np.float32(0.1), 0.5]
    assert torch.equal(check_thresholds(sweep_thresholds()), sweep_thresholds())
    assert torch.equal(check_thresholds(np.array([0.1, 0.2])), torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize('thresholds', [[], 0.5, [[0.5]]])
def test_thresholds_are_a_list(thresholds):
    with pytest.raises(ValueError, match=r'thresholds has shape .*, not \(T,\)'):
        check_thresholds(thresholds)


@pytest.mark.parametrize(
    'thresholds',
    [[0.5, 0.5], [0.5, 0.2], [-0.1, 0.5], [0.5, 1.0], [float('nan')], [0.5, 0.5 + 1e-9]],
)
def test_thresholds_ascend_within_their_range(thresholds):
    with pytest.raises(ValueError, match=r'are not ascending numbers in \[0, 1\).*sort them'):
        check_thresholds(thresholds)


@pytest.mark.parametrize('thresholds', [sweep_thresholds(), torch.tensor([0.25, 0.5])])
def test_every_half_knows_the_thresholds_strictly_below(thresholds):
    below = count_thresholds_below(thresholds)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[(halves >= 0) & (halves <= 1) & ~np.signbit(halves)]
    assert below.shape == halves.shape == (15361,)
    expected = (thresholds.numpy() < halves[:, None].astype(np.float32)).sum(axis=1)
    np.testing.assert_array_equal(below, expected)


@pytest.mark.parametrize('class_ids', [[1], [3], [1, 3], [1, 2, 3]])
def test_counts_of_present_classes_equal_those_of_all(class_ids):
    rng = np.random.default_rng(0)
    cams = (rng.integers(0, 101, (len(class_ids), 20, 30)) / 100).astype(np.float16)
    truth = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    thresholds = sweep_thresholds()
    histogram = count_present_pixels(cams, truth, count_thresholds_below(thresholds))
    assert histogram.shape == (101, len(class_ids), 256)
    counted = list_cells(histogram, np.array(class_ids, dtype=np.uint8), 4)
    dense = torch.zeros(3, 20, 30)
    dense[np.array(class_ids) - 1] = torch.from_numpy(cams).float()
    expected = count_pixels(dense, torch.from_numpy(truth), thresholds, 255)
    found, wanted = (
        sum_confusions([tuple(map(torch.as_tensor, counts))], 100, 4)
        for counts in (counted, expected)
    )
    assert torch.equal(found, wanted)


def test_counts_of_present_classes_by_hand():
    cams = np.array([[[0.0, 0.6, 0.3]], [[0.0, 0.6, 0.9]]], dtype=np.float16)
    below = count_thresholds_below(torch.tensor([0.0, 0.5]))
    histogram = count_present_pixels(cams, np.array([[0, 7, 255]], dtype=np.uint8), below)
    # (thresholds below, winner, truth): no threshold; a tie, which the first wins; the second.
    assert np.argwhere(histogram).tolist() == [[0, 0, 0], [2, 0, 7], [2, 1, 255]]


def test_counts_without_present_class_are_below_all_thresholds():
    below = count_thresholds_below(sweep_thresholds())
    cams, truth = np.zeros((0, 2, 2), dtype=np.float16), np.array([[0, 1], [1, 1]], dtype=np.uint8)
    histogram = count_present_pixels(cams, truth, below)
    assert histogram.shape == (101, 1, 256)
    assert histogram[0, 0, :2].tolist() == [1, 3]
    cells, numbers = list_cells(histogram, np.zeros(0, dtype=np.uint8), 4)
    assert cells.tolist() == [0, 1]
    assert numbers.tolist() == [1, 3]


@pytest.mark.parametrize('value', [1.001, -0.001, np.nan])
def test_present_cams_outside_their_range_are_refused(value):
    cams = np.full((1, 1, 1), value, dtype=np.float16)
    below = count_thresholds_below(sweep_thresholds())
    with pytest.raises(ValueError, match=r'cams run from .* not within \[0, 1\]: export them'):
        count_present_pixels(cams, np.zeros((1, 1), dtype=np.uint8), below)


def test_counts_are_sparse_int64():
    truth = torch.tensor([[0, 1], [1, 255]], dtype=torch.uint8)
    cams = torch.tensor([[[0.0, 0.995], [0.995, 0.5]]])
    cells, numbers = count_pixels(cams, truth, sweep_thresholds(), 255)
    # (thresholds below, winner, truth) = (0, 0, 0) once and (100, 0, 1) twice, of (101, 1, 2).
    assert cells.tolist() == [0, 201]
    assert numbers.tolist() == [1, 2]
    assert cells.dtype == numbers.dtype == torch.int64


def test_counts_go_beyond_int32():
    confusions = sum_confusions([(torch.tensor([1]), torch.tensor([2**40]))] * 2, 100, 2)
    # Cell 1 is (0, 0, 1): truth 1, background at every threshold.
    assert confusions[:, 1, 0].unique().tolist() == [2**41]
    assert confusions.sum() == 100 * 2**41


def test_image_that_is_all_ignored_has_no_counts():
    truth = torch.full((2, 2), 255, dtype=torch.uint8)
    cells, numbers = count_pixels(torch.rand(3, 2, 2), truth, sweep_thresholds(), 255)
    assert len(cells) == len(numbers) == 0


def test_scores_by_hand():
    # Rows truth, columns prediction; class 2 is predicted only, class 3 occurs nowhere.
    confusion = torch.tensor([[6, 2, 0, 0], [1, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = per_class_scores(confusion)
    nan = float('nan')
    expected = {
        'IoU': [6 / 9, 3 / 10, 0, nan],
        'Precision': [6 / 7, 3 / 5, 0, nan],
        'Recall': [6 / 8, 3 / 8, nan, nan],
    }
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=1e-12)
