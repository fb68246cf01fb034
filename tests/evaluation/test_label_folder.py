import math

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image

from mmdscnet.evaluation.label_folder import judge_label_folder

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
