import json
import os

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmdscnet.evaluation import CAMIoUMetric, judge_label_folder, sweep_cam_folder
from mmdscnet.evaluation.threshold_sweep import sweep_thresholds
from mmdscnet.pseudo_labels import write_cams

CLASSES = ('background', 'cat', 'dog', 'cow')
SIZES = {'a': (9, 7), 'b': (5, 8), 'c': (6, 6)}
PRESENT = {'a': [1], 'b': [3, 1], 'c': []}


def spread(cams, class_ids):
    """Give every class a map, the absent ones and background of zeros."""
    full = torch.zeros(len(CLASSES), *cams.shape[1:])
    for cam, class_id in zip(cams, class_ids, strict=True):
        full[class_id] = torch.from_numpy(cam).float()
    return full


def argmax_confusions(maps, thresholds):
    """Argmax over threshold and all cams, for each threshold on its own."""
    confusions = np.zeros((len(thresholds), 4, 4), dtype=np.int64)
    for cams, mask in maps.values():
        judged = mask != 255
        for confusion, threshold in zip(confusions, thresholds, strict=True):
            scores = cams.clone()
            scores[0] = threshold
            np.add.at(confusion, (mask[judged], scores.argmax(dim=0)[judged]), 1)
    return confusions


@pytest.fixture
def write(tmp_path):
    """Write the CAMs or the mask of an image."""

    def write_file(image_id, cams=None, class_ids=None, mask=None):
        if cams is not None:
            write_cams(tmp_path / 'cams' / f'{image_id}.npz', cams, np.asarray(class_ids))
        if mask is not None:
            (tmp_path / 'truth').mkdir(exist_ok=True)
            image = Image.fromarray(np.asarray(mask, dtype=np.uint8))
            image.save(tmp_path / 'truth' / f'{image_id}.png')

    return write_file


@pytest.fixture
def maps(write):
    """CAMs and masks of three images: one, two and no classes; void; all thresholds at once."""
    rng = np.random.default_rng(0)
    result = {}
    for image_id, size in SIZES.items():
        class_ids = PRESENT[image_id]
        cams = rng.random((len(class_ids), *size), dtype=np.float32)
        # Many values lie exactly on a threshold.
        cams = np.where(rng.random(cams.shape) < 0.5, cams.round(2), cams).astype(np.float16)
        mask = rng.choice([0, 1, 2, 3, 255], size)
        write(image_id, cams, class_ids, mask)
        result[image_id] = spread(cams, class_ids), torch.from_numpy(mask)
    return result


@pytest.fixture
def sweep(tmp_path):
    def sweep_folder(ids=tuple(SIZES), num_classes=4, **kwargs):
        return sweep_cam_folder(tmp_path / 'cams', tmp_path / 'truth', ids, num_classes, **kwargs)

    return sweep_folder


def test_curve_equals_that_of_the_metric(maps, sweep, tmp_path):
    metric = CAMIoUMetric(curve_path=str(tmp_path / 'curve.json'))
    metric.dataset_meta = dict(classes=CLASSES)
    for cams, mask in maps.values():
        sample = SegDataSample()
        sample.seg_logits = PixelData(data=cams)
        sample.gt_sem_seg = PixelData(data=mask[None])
        metric.process(None, [sample.to_dict()])
    metric.evaluate(len(maps))
    expected = json.loads((tmp_path / 'curve.json').read_text())['mIoU']
    np.testing.assert_allclose(sweep().mean_iou, expected, rtol=0, atol=1e-9)


def test_curve_equals_an_argmax_at_every_threshold(maps, sweep):
    result = sweep()
    assert torch.equal(result.thresholds, sweep_thresholds())
    assert result.mean_iou.shape == (100,)
    assert result.num_images == 3
    np.testing.assert_array_equal(result.confusions, argmax_confusions(maps, result.thresholds))
    for index in (0, 1, 37, 50, 99):
        of_class = []
        for k in range(4):
            confusion = result.confusions[index]
            union = confusion[k].sum() + confusion[:, k].sum() - confusion[k, k]
            of_class.append(float(confusion[k, k] / union) if union else np.nan)
        assert result.mean_iou[index] == pytest.approx(100 * np.nanmean(of_class))


@pytest.mark.parametrize('seed', range(5))
def test_exact_hits_and_ties_fall_as_in_argmax(write, sweep, seed):
    rng = np.random.default_rng(seed)
    thresholds = np.arange(16) / 16
    maps = {}
    for index, class_ids in enumerate(([], [2], [3, 1], [2, 3, 1])):
        size = (6, 5 + index)
        # Sixteenths are halves and thresholds alike, and few: two cams are often the same.
        cams = rng.integers(0, 17, (len(class_ids), *size)) / np.float16(16)
        # The neighbours of a threshold among the halves, and the smallest of all.
        moved = np.nextafter(cams, rng.choice([0, 1], cams.shape).astype(np.float16))
        cams = np.where(rng.random(cams.shape) < 0.4, moved, cams).astype(np.float16)
        mask = rng.choice([0, 1, 2, 3, 255], size)
        write(f'{index}', cams, class_ids, mask)
        maps[f'{index}'] = spread(cams, class_ids), torch.from_numpy(mask)
    result = sweep(list(maps), thresholds=thresholds)
    expected = argmax_confusions(maps, result.thresholds)
    assert result.confusions.dtype == torch.int64
    np.testing.assert_array_equal(result.confusions, expected)


def test_other_thresholds_are_a_choice(maps, sweep):
    few = sweep(thresholds=[0.05, 0.5, 0.99])
    assert few.thresholds.tolist() == [np.float32(0.05), 0.5, np.float32(0.99)]
    all_of_them = sweep()
    assert torch.equal(few.confusions, all_of_them.confusions[[5, 50, 99]])
    assert torch.equal(few.mean_iou, all_of_them.mean_iou[[5, 50, 99]])


def test_more_thresholds_than_a_byte_can_count(maps, sweep):
    thresholds = torch.arange(1000) / 1000
    result = sweep(thresholds=thresholds)
    np.testing.assert_array_equal(result.confusions, argmax_confusions(maps, thresholds))


def test_processes_change_nothing(maps, sweep):
    for alone, together in zip(sweep(), sweep(num_processes=2), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_threshold_of_one_split_is_read_on_another(write, sweep):
    write('a', np.array([[[0.2, 0.605, 1.0, 0.0]]]), [2], [[0, 2, 2, 0]])
    write('b', np.array([[[0.3, 0.2, 0.9, 0.2]]]), [1], [[0, 1, 1, 1]])
    chosen, judged = sweep(['a']), sweep(['b'])
    # The first that leaves 0.2 (in half precision just below it) background.
    assert chosen.best == 20
    scores = judged.scores_at(chosen.best)
    assert scores.mean_iou == pytest.approx(float(judged.mean_iou[20]))
    # Of the union of the cat one pixel is right, one wrongly cat, and two are missed.
    np.testing.assert_allclose(scores.iou[1], 25)
    np.testing.assert_allclose(scores.false_positive[1], 25)
    np.testing.assert_allclose(scores.false_negative[1], 50)
    assert scores.coverage == 1
    assert scores.num_images == 1


@pytest.mark.usefixtures('maps')
def test_scores_at_a_threshold_are_those_of_its_label_maps(sweep, maps, tmp_path):
    result = sweep()
    (tmp_path / 'labels').mkdir()
    for image_id, (cams, _) in maps.items():
        scores = cams.clone()
        scores[0] = result.thresholds[37]
        labels = scores.argmax(dim=0).numpy().astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / 'labels' / f'{image_id}.png')
    judged = judge_label_folder(tmp_path / 'labels', tmp_path / 'truth', list(maps), CLASSES)
    for expected, found in zip(judged, result.scores_at(37), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_image_without_class_is_background_at_every_threshold(write, sweep):
    write('a', np.zeros((0, 1, 4)), [], [[0, 0, 2, 255]])
    confusions = sweep(['a']).confusions
    assert confusions[:, 0, 0].unique().tolist() == [2]
    assert confusions[:, 2, 0].unique().tolist() == [1]
    assert confusions.sum() == 100 * 3


def test_minus_zero_is_zero(write, sweep):
    write('a', np.array([[[-0.0, 0.5]], [[0.25, -0.0]]]), [1, 2], [[2, 1]])
    assert sweep(['a']).mean_iou[10] == 100


@pytest.mark.parametrize('value', [1.001, -0.001, np.nan, np.inf])
def test_cams_outside_their_range_are_named(maps, sweep, tmp_path, value):
    cams = np.full((1, 5, 8), value, dtype=np.float16)
    np.savez(tmp_path / 'cams' / 'b.npz', cams=cams, class_ids=np.array([1], dtype=np.uint8))
    with pytest.raises(ValueError, match=r'b\.npz: cams run from .*not within \[0, 1\]: export'):
        sweep()


@pytest.mark.parametrize(
    'thresholds', [[0.5, 0.5], [0.5, 0.2], [-0.1, 0.5], [0.5, 1.0], [float('nan')]]
)
@pytest.mark.usefixtures('maps')
def test_thresholds_that_do_not_ascend_within_their_range_are_refused(sweep, thresholds):
    with pytest.raises(ValueError, match=r'thresholds=\[.*are not ascending numbers in \[0, 1\)'):
        sweep(thresholds=thresholds)


@pytest.mark.parametrize('number', [1, 256])
@pytest.mark.usefixtures('maps')
def test_number_of_classes_is_checked(sweep, number):
    with pytest.raises(ValueError, match=rf'num_classes={number} is not in 2\.\.255'):
        sweep(num_classes=number)


def test_values_by_hand(write, sweep):
    write('a', np.array([[[0.2, 0.605, 1.0, 0.0]]]), [2], [[0, 2, 2, 0]])
    curve = sweep(['a']).mean_iou
    # At 0 a pixel of the background is foreground, at 0.7 one of the dog is background.
    assert curve[0] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert curve[50] == 100
    assert curve[70] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


def test_only_the_named_images_are_judged(maps, sweep):
    assert not torch.equal(sweep(['a']).mean_iou, sweep(['b']).mean_iou)


def test_image_without_cams_says_what_to_do(maps, sweep, tmp_path):
    os.unlink(tmp_path / 'cams' / 'b.npz')
    with pytest.raises(FileNotFoundError, match=r'b\.npz does not exist: export the CAMs first'):
        sweep()


def test_image_without_mask_says_what_to_do(maps, sweep, tmp_path):
    os.unlink(tmp_path / 'truth' / 'c.png')
    with pytest.raises(FileNotFoundError, match=r'1 of 3 .*truth.*c\.png: check the folder'):
        sweep()


def test_damaged_files_are_named(maps, sweep, tmp_path):
    path = tmp_path / 'truth' / 'a.png'
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r'a\.png is truncated'):
        sweep()


def test_colours_are_no_mask(maps, sweep, tmp_path):
    Image.new('RGB', (7, 9)).save(tmp_path / 'truth' / 'a.png')
    with pytest.raises(ValueError, match=r"a\.png has mode 'RGB'"):
        sweep()


def test_sizes_that_differ_are_named(maps, sweep, write):
    write('b', mask=np.zeros((8, 5)))
    with pytest.raises(ValueError, match=r'b\.npz has CAMs of \(5, 8\) .*its mask is \(8, 5\)'):
        sweep()


@pytest.mark.parametrize('wrong', [4, 254])
def test_mask_of_other_classes_is_refused(maps, sweep, write, wrong):
    write('b', mask=np.full((5, 8), wrong))
    with pytest.raises(ValueError, match=rf'b\.png has the ids \[{wrong}\].* 4 classes'):
        sweep()


def test_cams_of_other_classes_are_refused(maps, sweep, write):
    write('b', mask=np.zeros((5, 8)))
    with pytest.raises(ValueError, match=r'b\.npz has CAMs of the class ids \[3\].* 3 classes'):
        sweep(['b'], num_classes=3)


def test_ignored_id_is_a_choice(write, sweep):
    write('a', np.array([[[1.0, 1.0]]]), [1], [[1, 3]])
    assert sweep(['a'], ignore_index=3).mean_iou[50] == 100


def test_no_pixel_to_judge_is_an_error(write, sweep):
    write('a', np.array([[[1.0]]]), [1], [[255]])
    with pytest.raises(ValueError, match=r'no pixel to judge: .* 1 images in .*ignore_index=255'):
        sweep(['a'])
    with pytest.raises(ValueError, match='image_ids names 0 images'):
        sweep([])
