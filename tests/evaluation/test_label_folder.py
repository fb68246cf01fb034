import math

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image

from mmdscnet.evaluation.label_folder import (
    count_label_folder,
    count_labels,
    judge_label_folder,
    score_labels,
)

CLASSES = ('background', 'cat', 'dog', 'cow')
IDS = ['a', 'b', 'c', 'd', 'e']


@pytest.fixture
def write(tmp_path):
    """Write a label map or its truth; give the two folders of a call."""

    def write_map(folder, image_id, ids, palette=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        image = Image.fromarray(np.asarray(ids, dtype=np.uint8))
        if palette is not None:
            image.putpalette(palette)
        image.save(tmp_path / folder / f'{image_id}.png')

    return write_map


@pytest.fixture
def judge(tmp_path):
    def judge_folder(ids=IDS, classes=CLASSES, **kwargs):
        return judge_label_folder(tmp_path / 'labels', tmp_path / 'truth', ids, classes, **kwargs)

    return judge_folder


@pytest.fixture
def random_maps(write):
    """Five images of different sizes, grey and with palette; void in labels and truth."""
    rng = np.random.default_rng(0)
    maps = []
    for index, image_id in enumerate(IDS):
        size = (7 + index, 9)
        truth = rng.choice([0, 1, 2, 3, 255], size)
        labels = np.where(rng.random(size) < 0.5, truth, rng.choice([0, 1, 2, 3, 255], size))
        write('truth', image_id, truth, palette=[9] * 768 if index % 2 else None)
        write('labels', image_id, labels, palette=[9] * 768 if index % 3 else None)
        maps.append((labels, truth))
    return maps


def scores_of_mmseg(maps, num_classes):
    areas = [
        IoUMetric.intersect_and_union(torch.tensor(labels), torch.tensor(truth), num_classes, 255)
        for labels, truth in maps
    ]
    totals = [sum(parts) for parts in zip(*areas, strict=True)]
    return IoUMetric.total_area_to_metrics(*totals, metrics=['mIoU', 'mFscore'])


def test_scores_equal_those_of_mmseg(random_maps, judge):
    expected = scores_of_mmseg(random_maps, 4)
    scores = judge()
    np.testing.assert_allclose(scores.iou, 100 * expected['IoU'], rtol=1e-5)
    np.testing.assert_allclose(scores.precision, 100 * expected['Precision'], rtol=1e-5)
    np.testing.assert_allclose(scores.recall, 100 * expected['Recall'], rtol=1e-5)
    assert scores.mean_iou == pytest.approx(100 * expected['IoU'].mean(), rel=1e-5)
    assert scores.num_images == 5


@pytest.mark.usefixtures('random_maps')
def test_processes_change_nothing(judge):
    for alone, together in zip(judge(), judge(num_processes=2), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_values_by_hand(write, judge):
    write('truth', 'a', [[0, 0, 0, 0, 1, 1, 255]])
    write('labels', 'a', [[0, 0, 0, 1, 1, 0, 1]])
    scores = judge(['a'], CLASSES[:2])
    np.testing.assert_allclose(scores.iou, [60, 100 / 3])
    np.testing.assert_allclose(scores.precision, [75, 50])
    np.testing.assert_allclose(scores.recall, [75, 50])
    assert scores.mean_iou == pytest.approx((60 + 100 / 3) / 2)


@pytest.mark.usefixtures('random_maps')
@pytest.mark.parametrize('count_void', [True, False])
def test_shares_of_the_union_add_up(tmp_path, count_void):
    confusion = count_label_folder(tmp_path / 'labels', tmp_path / 'truth', IDS, CLASSES)
    scores = score_labels(confusion, 5, count_void)
    parts = scores.iou + scores.false_positive + scores.false_negative
    np.testing.assert_allclose(parts, 100, rtol=1e-14)
    means = scores.mean_iou + scores.mean_false_positive + scores.mean_false_negative
    assert means == pytest.approx(100, rel=1e-14)


def test_one_count_gives_both_scores(random_maps, tmp_path):
    confusion = count_label_folder(tmp_path / 'labels', tmp_path / 'truth', IDS, CLASSES)
    assert confusion.dtype == np.int64
    without = [(labels, np.where(labels == 255, 255, truth)) for labels, truth in random_maps]
    for count_void, maps in ((True, random_maps), (False, without)):
        expected = scores_of_mmseg(maps, 4)
        scores = score_labels(confusion, 5, count_void)
        for name in ('iou', 'precision', 'recall'):
            values = 100 * expected['IoU' if name == 'iou' else name.capitalize()]
            np.testing.assert_allclose(getattr(scores, name), values, rtol=1e-5)
            mean = getattr(scores, f'mean_{name}')
            assert mean == pytest.approx(float(values.mean()), rel=1e-5)
    labelled = sum(int(((labels != 255) & (truth != 255)).sum()) for labels, truth in random_maps)
    judged = sum(int((truth != 255).sum()) for _, truth in random_maps)
    assert scores.coverage == labelled / judged


def test_counts_equal_a_loop_over_the_pixels(random_maps):
    for labels, truth in random_maps:
        expected = np.zeros((4, 5), dtype=np.int64)
        for label, true in zip(labels.ravel(), truth.ravel(), strict=True):
            if true != 255:
                expected[true, 4 if label == 255 else label] += 1
        counts = count_labels(labels.astype(np.uint8), truth.astype(np.uint8), 4)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(('count_void', 'parts'), [(True, (40, 20, 40)), (False, (50, 25, 25))])
def test_shares_by_hand(count_void, parts):
    truth = np.array([[1, 1, 1, 1, 0, 0, 0, 255]], dtype=np.uint8)
    labels = np.array([[1, 1, 0, 255, 1, 0, 0, 1]], dtype=np.uint8)
    scores = score_labels(count_labels(labels, truth, 2), 1, count_void)
    found = (scores.iou[1], scores.false_positive[1], scores.false_negative[1])
    np.testing.assert_allclose(found, parts)
    assert scores.coverage == 6 / 7
    assert scores.precision[1] == pytest.approx(200 / 3)
    assert scores.recall[1] == pytest.approx(50 if count_void else 200 / 3)
    # Of the background two are right, one is missed and one too many.
    np.testing.assert_allclose(scores.mean_iou, (50 + parts[0]) / 2)
    np.testing.assert_allclose(scores.mean_false_positive, (25 + parts[1]) / 2)
    np.testing.assert_allclose(scores.mean_false_negative, (25 + parts[2]) / 2)


def test_labels_that_are_all_void_are_all_wrong_or_not_judged():
    confusion = count_labels(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)
    scores = score_labels(confusion, 1)
    assert (scores.mean_iou, scores.mean_false_negative, scores.coverage) == (0, 100, 0)
    scores = score_labels(confusion, 1, count_void=False)
    assert np.isnan(scores.iou).all()
    assert math.isnan(scores.mean_iou)
    assert scores.coverage == 0


def test_truth_that_is_all_ignored_has_no_scores():
    confusion = count_labels(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 2)
    assert not confusion.any()
    scores = score_labels(confusion, 1)
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.coverage)


def test_ignored_id_may_be_a_class_or_none_of_a_byte():
    labels, truth = np.array([[1, 255]], np.uint8), np.array([[1, 0]], np.uint8)
    assert count_labels(labels, truth, 2, ignore_index=0).tolist() == [[0, 0, 0], [0, 1, 0]]
    assert count_labels(labels, truth, 2, ignore_index=-1).tolist() == [[0, 0, 1], [0, 1, 0]]


def test_as_many_classes_as_a_byte_has_beside_void():
    ids = np.array([[254, 255]], np.uint8)
    counts = count_labels(ids, np.array([[254, 254]], np.uint8), 255)
    assert counts.shape == (255, 256)
    assert counts[254, 254] == counts[254, 255] == 1


@pytest.mark.parametrize('name', ['labels', 'truth'])
def test_arrays_are_of_bytes(name):
    maps = dict(labels=np.zeros((2, 2), np.uint8), truth=np.zeros((2, 2), np.uint8))
    with pytest.raises(TypeError, match=f'{name} is int64, not a numpy array of uint8'):
        count_labels(**(maps | {name: np.zeros((2, 2), np.int64)}), num_classes=2)
    with pytest.raises(TypeError, match=f'{name} is Tensor, not|{name} is torch.uint8, not'):
        count_labels(**(maps | {name: torch.zeros(2, 2, dtype=torch.uint8)}), num_classes=2)


def test_arrays_fit_each_other_and_the_classes():
    zeros, two = np.zeros((1, 2), np.uint8), np.full((1, 2), 2, np.uint8)
    with pytest.raises(ValueError, match=r'labels has \(1, 2\) pixels .*truth has \(2, 1\)'):
        count_labels(zeros, zeros.T, 2)
    with pytest.raises(ValueError, match=r'labels has the ids \[2\].* 2 classes nor 255'):
        count_labels(two, zeros, 2)
    with pytest.raises(ValueError, match=r'truth has the ids \[2\].* 2 classes nor 7'):
        count_labels(zeros, two, 2, ignore_index=7)
    with pytest.raises(ValueError, match=r'num_classes=256 is not in 1\.\.255'):
        count_labels(zeros, zeros, 256)


def test_confusion_has_a_column_for_void():
    with pytest.raises(ValueError, match=r'shape \(3, 3\), not \(C, C \+ 1\): give a last column'):
        score_labels(np.zeros((3, 3), np.int64), 1)


def test_void_labels_count_as_wrong(write, judge):
    write('truth', 'a', [[1, 1, 1, 1]])
    write('labels', 'a', [[1, 255, 255, 1]])
    scores = judge(['a'], CLASSES[:2])
    assert scores.iou[1] == scores.recall[1] == 50
    assert scores.precision[1] == 100


def test_pixels_are_summed_over_images_before_dividing(write, judge):
    for image_id, labels in (('a', [[1]]), ('b', [[0, 0, 0]])):
        write('truth', image_id, np.ones_like(labels))
        write('labels', image_id, labels)
    assert judge(['a', 'b'], CLASSES[:2]).iou[1] == 25


def test_undefined_classes_are_not_in_the_mean(write, judge):
    write('truth', 'a', [[1, 1]])
    write('labels', 'a', [[1, 2]])
    scores = judge(['a'])
    assert [math.isnan(value) for value in scores.iou] == [True, False, False, True]
    assert scores.iou[2] == 0
    assert scores.mean_iou == 25
    assert math.isnan(scores.recall[2])
    assert scores.precision[2] == 0


def test_ignored_id_is_a_choice(write, judge):
    write('truth', 'a', [[1, 3]])
    write('labels', 'a', [[1, 1]])
    assert judge(['a'], ignore_index=3).mean_iou == 100


@pytest.mark.usefixtures('random_maps')
def test_only_the_named_images_are_judged(judge):
    assert judge(['b']).num_images == 1
    assert judge(['b']).mean_iou != judge(['c']).mean_iou


@pytest.mark.usefixtures('random_maps')
def test_missing_label_map_says_that_the_export_goes_on(judge, tmp_path):
    (tmp_path / 'labels' / 'd.png').unlink()
    message = r'1 of 5 .*labels, the first is d\.png: run the export again, it goes on'
    with pytest.raises(FileNotFoundError, match=message):
        judge()


@pytest.mark.usefixtures('random_maps')
def test_missing_truth_says_where(judge, tmp_path):
    (tmp_path / 'truth' / 'd.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 5 .*truth, .* d\.png: check the folder'):
        judge()


def test_sizes_that_differ_are_named(write, judge):
    write('truth', 'a', [[1, 1]])
    write('labels', 'a', [[1], [1]])
    with pytest.raises(ValueError, match=r'labels.a\.png has \(2, 1\).*truth.a\.png has \(1, 2\)'):
        judge(['a'])


@pytest.mark.usefixtures('random_maps')
@pytest.mark.parametrize(('folder', 'wrong'), [('labels', 4), ('truth', 4), ('truth', 254)])
def test_ids_that_are_no_class_are_named(write, judge, folder, wrong):
    write(folder, 'a', np.full((7, 9), wrong))
    with pytest.raises(ValueError, match=rf'^a: .*{folder}.a\.png has the ids \[{wrong}\].* 4 cl'):
        judge()


@pytest.mark.usefixtures('random_maps')
def test_colours_are_no_labels(judge, tmp_path):
    Image.new('RGB', (9, 7)).save(tmp_path / 'labels' / 'a.png')
    with pytest.raises(ValueError, match=r"a\.png has mode 'RGB'"):
        judge()


def test_no_pixel_to_judge_is_an_error(write, judge):
    write('truth', 'a', [[255]])
    write('labels', 'a', [[1]])
    with pytest.raises(ValueError, match=r'no pixel to judge: .* 1 images in .*ignore_index=255'):
        judge(['a'])


@pytest.mark.parametrize('number', [0, 256])
def test_number_of_classes_is_checked(judge, number):
    with pytest.raises(ValueError, match=f'classes has {number} names: name 1 to 255'):
        judge(classes=['x'] * number)
