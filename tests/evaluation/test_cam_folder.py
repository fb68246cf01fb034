import json
import os

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmdscnet.evaluation import CAMIoUMetric, sweep_cam_folder
from mmdscnet.pseudo_labels import write_cams

CLASSES = ('background', 'cat', 'dog', 'cow')
SIZES = {'a': (9, 7), 'b': (5, 8), 'c': (6, 6)}
PRESENT = {'a': [1], 'b': [3, 1], 'c': []}


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
        full = torch.zeros(len(CLASSES), *size)
        for cam, class_id in zip(cams, class_ids, strict=True):
            full[class_id] = torch.from_numpy(cam).float()
        result[image_id] = full, torch.from_numpy(mask)
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
    np.testing.assert_allclose(sweep(), expected, rtol=0, atol=1e-9)


def test_curve_equals_an_argmax_at_every_threshold(maps, sweep):
    curve = sweep()
    assert curve.shape == (100,)
    for index in (0, 1, 37, 50, 99):
        hits, union = torch.zeros(4), torch.zeros(4)
        for cams, mask in maps.values():
            scores = cams.clone()
            scores[0] = torch.tensor(index / 100)
            labels, judged = scores.argmax(dim=0), mask != 255
            for k in range(4):
                hits[k] += ((labels == k) & (mask == k) & judged).sum()
                union[k] += (((labels == k) | (mask == k)) & judged).sum()
        assert curve[index] == pytest.approx(100 * float((hits / union).nanmean()), abs=1e-4)


def test_values_by_hand(write, sweep):
    write('a', np.array([[[0.2, 0.605, 1.0, 0.0]]]), [2], [[0, 2, 2, 0]])
    curve = sweep(['a'])
    # At 0 a pixel of the background is foreground, at 0.7 one of the dog is background.
    assert curve[0] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert curve[50] == 100
    assert curve[70] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


def test_only_the_named_images_are_judged(maps, sweep):
    assert not torch.equal(sweep(['a']), sweep(['b']))


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
    assert sweep(['a'], ignore_index=3)[50] == 100


def test_no_pixel_to_judge_is_an_error(write, sweep):
    write('a', np.array([[[1.0]]]), [1], [[255]])
    with pytest.raises(ValueError, match=r'no pixel to judge: .* 1 images in .*ignore_index=255'):
        sweep(['a'])
    with pytest.raises(ValueError, match='image_ids names 0 images'):
        sweep([])
