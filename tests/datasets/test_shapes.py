"""Tests of mmdscnet/datasets/shapes.py."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import DATASETS
from PIL import Image

from mmdscnet.datasets import shapes
from mmdscnet.datasets.shapes import CLASSES, ShapesDataset, draw_shapes_image, generate_shapes
from mmdscnet.datasets.voc import voc_palette

SPLITS = dict(train=6, val=3)
SETTINGS = dict(splits=SPLITS, image_size=64, seed=3)


def digests(root):
    files = sorted(path for path in Path(root).rglob('*') if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    generate_shapes(root, **SETTINGS)
    return root


@pytest.fixture
def placed_objects(monkeypatch):
    """The objects of the images drawn last, in painting order."""
    seen = []
    place = shapes._place_objects

    def record(*args):
        seen.append(place(*args))
        return seen[-1]

    monkeypatch.setattr(shapes, '_place_objects', record)
    return seen


def test_folder_has_the_layout_of_voc(root):
    names = {
        split: (root / f'ImageSets/Segmentation/{split}.txt').read_text().split()
        for split in SPLITS
    }
    assert {split: len(found) for split, found in names.items()} == SPLITS
    everyone = {name for found in names.values() for name in found}
    assert {path.stem for path in (root / 'JPEGImages').glob('*.jpg')} == everyone
    assert {path.stem for path in (root / 'SegmentationClass').glob('*.png')} == everyone
    assert set(json.loads((root / 'image_labels.json').read_text())['labels']) == everyone


def test_masks_are_palette_pngs_with_the_colours_of_voc(root):
    for path in (root / 'SegmentationClass').glob('*.png'):
        with Image.open(path) as mask:
            assert mask.mode == 'P'
            assert mask.size == (64, 64)
            assert mask.getpalette() == np.ravel(voc_palette(256)).tolist()


def test_labels_are_the_classes_that_the_mask_shows(root):
    contents = json.loads((root / 'image_labels.json').read_text())
    assert tuple(contents['classes']) == CLASSES
    for name, found in contents['labels'].items():
        with Image.open(root / f'SegmentationClass/{name}.png') as mask:
            ids, areas = np.unique(np.asarray(mask), return_counts=True)
        assert found == [CLASSES[k - 1] for k in ids if k > 0]
        assert (areas >= shapes.MIN_AREA * 64 * 64).all()


def test_jpeg_shows_what_was_drawn(root):
    image, _ = draw_shapes_image(3, 'val', 2, 64)
    with Image.open(root / 'JPEGImages/val_00002.jpg') as stored:
        difference = np.abs(np.asarray(stored).astype(int) - image)
    assert difference.mean() < 12


def test_bytes_are_the_same_in_processes_that_race_for_the_folder(root, tmp_path):
    program = (
        'import os, sys; from mmdscnet.datasets.shapes import generate_shapes; '
        f'child = os.fork(); generate_shapes(sys.argv[1], **{SETTINGS!r}); '
        'child and sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))'
    )
    command = [sys.executable, '-W', 'ignore', '-c', program, str(tmp_path / 'shapes')]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / 'shapes') == digests(root)
    assert os.listdir(tmp_path) == ['shapes']


def test_loser_of_the_race_discards_its_own_folder(monkeypatch, tmp_path):
    write = shapes._write_folder

    def write_slowly(folder, settings):
        write(folder, settings)
        write(tmp_path / 'shapes', settings)
        (tmp_path / 'shapes/winner').touch()

    monkeypatch.setattr(shapes, '_write_folder', write_slowly)
    generate_shapes(tmp_path / 'shapes', **SETTINGS)
    assert os.listdir(tmp_path) == ['shapes']
    assert (tmp_path / 'shapes/winner').exists()


def test_interrupted_generation_leaves_nothing(monkeypatch, tmp_path):
    draw = draw_shapes_image

    def stop_at_the_second(seed, split, index, image_size):
        if index == 1:
            raise KeyboardInterrupt
        return draw(seed, split, index, image_size)

    monkeypatch.setattr(shapes, 'draw_shapes_image', stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / 'shapes', **SETTINGS)
    assert os.listdir(tmp_path) == []


def test_folder_is_as_readable_as_any_other(root):
    (root.parent / 'ordinary').mkdir(exist_ok=True)
    assert root.stat().st_mode == (root.parent / 'ordinary').stat().st_mode


def test_second_use_draws_nothing(monkeypatch, root):
    monkeypatch.setattr(shapes, '_write_folder', lambda *_: pytest.fail('drawn again'))
    generate_shapes(root, **SETTINGS)
    reordered = dict(reversed(SPLITS.items()))
    generate_shapes(root, **{**SETTINGS, 'splits': reordered})


def test_empty_folder_is_filled(tmp_path):
    generate_shapes(tmp_path, splits=dict(train=1), image_size=32, seed=0)
    assert (tmp_path / 'shapes.json').is_file()


def test_image_depends_on_seed_split_and_index_only():
    image, seg_map = draw_shapes_image(0, 'train', 4, 64)
    draw_shapes_image(0, 'train', 5, 64)
    again, seg_map_again = draw_shapes_image(0, 'train', 4, 64)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(seg_map, seg_map_again)
    for other in [(1, 'train', 4), (0, 'val', 4), (0, 'train', 5)]:
        assert (draw_shapes_image(*other, 64)[0] != image).any()


def test_images_hold_one_to_three_classes_in_the_documented_shares(placed_objects):
    for index in range(300):
        draw_shapes_image(0, 'train', index, 48)
    counts = np.bincount([len(objects) for objects in placed_objects], minlength=4)
    assert counts[0] == 0
    assert len(counts) == 4
    np.testing.assert_allclose(counts[1:] / 300, shapes.NUM_OBJECTS_PROBABILITIES, atol=0.08)
    classes = [placed.class_index for objects in placed_objects for placed in objects]
    assert np.bincount(classes, minlength=5).min() > 0.7 * len(classes) / 5


def test_mark_is_a_small_part_of_its_object(placed_objects):
    for index in range(60):
        draw_shapes_image(0, 'train', index, 128)
    shares = [o.mark.sum() / o.body.sum() for objects in placed_objects for o in objects]
    assert min(shares) > 0.12
    assert max(shares) < 0.34
    assert 0.18 < np.mean(shares) < 0.28


def test_objects_occlude_each_other_but_stay_visible(placed_objects):
    visible = []
    for index in range(200):
        _, seg_map = draw_shapes_image(0, 'train', index, 64)
        for placed in placed_objects[-1]:
            shown = seg_map == placed.class_index + 1
            visible.append(shown.sum() / placed.body.sum())
            assert (shown & placed.mark).sum() >= shapes.MIN_VISIBLE_MARK * placed.mark.sum()
    assert min(visible) >= shapes.MIN_VISIBLE_BODY
    assert np.mean(np.asarray(visible) < 0.95) > 0.1


def test_crowded_object_is_neither_drawn_nor_labelled(monkeypatch):
    monkeypatch.setattr(shapes, 'NUM_OBJECTS_PROBABILITIES', (0, 0, 1))
    visibility = shapes._all_stay_visible
    monkeypatch.setattr(
        shapes, '_all_stay_visible', lambda objects: len(objects) < 2 and visibility(objects)
    )
    _, seg_map = draw_shapes_image(0, 'train', 0, 64)
    assert len(np.unique(seg_map)) == 2


def test_background_is_usually_the_own_one_of_the_first_class(monkeypatch):
    drawn = []
    recorders = tuple(
        lambda rng, size, kind=kind: drawn.append(kind) or np.zeros((size, size, 3))
        for kind in range(5)
    )
    monkeypatch.setattr(shapes, 'BACKGROUNDS', recorders)
    rng = np.random.default_rng(0)
    own = []
    for _ in range(400):
        drawn.clear()
        shapes._draw_scenery(rng, 2, 32)
        own.append(drawn[0] == 2)
        assert drawn[0] not in drawn[1:]
    assert np.mean(own) == pytest.approx(shapes.OWN_BACKGROUND_PROBABILITY, abs=0.07)


def test_drawing_750_images_takes_seconds():
    begin = time.process_time()
    for index in range(20):
        draw_shapes_image(0, 'train', index, 128)
    assert (time.process_time() - begin) / 20 * 750 < 60


def test_data_set_generates_itself_from_a_config(tmp_path):
    config = dict(
        type='ShapesDataset',
        data_root=str(tmp_path / 'new/shapes'),
        ann_file='ImageSets/Segmentation/val.txt',
        **SETTINGS,
    )
    dataset = DATASETS.build(config)
    assert len(dataset) == 3
    assert dataset.metainfo['classes'] == ('background', *CLASSES)
    assert dataset.metainfo['palette'] == voc_palette(6)
    labels = dataset.get_image_labels()
    for index in range(3):
        with Image.open(dataset[index]['seg_map_path']) as mask:
            ids = np.unique(np.asarray(mask))
        assert (np.flatnonzero(labels[index]) + 1).tolist() == ids[ids > 0].tolist()


def test_training_and_validation_share_a_folder(root):
    sets = [
        ShapesDataset(str(root), ann_file=f'ImageSets/Segmentation/{split}.txt', **SETTINGS)
        for split in SPLITS
    ]
    assert [len(dataset) for dataset in sets] == [6, 3]


@pytest.mark.parametrize(
    'change', [dict(seed=4), dict(image_size=96), dict(splits=dict(train=6, val=4))]
)
def test_shapes_of_other_settings_error_names_the_folder_and_the_mend(root, change):
    with pytest.raises(ValueError, match=f'{root} holds shapes of other settings.*delete'):
        generate_shapes(root, **{**SETTINGS, **change})


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').touch()
    with pytest.raises(FileExistsError, match=r'holds something other.*choose a data_root'):
        generate_shapes(tmp_path, **SETTINGS)
    assert os.listdir(tmp_path) == ['thesis.txt']


@pytest.mark.parametrize('splits', [{}, dict(train=0), dict(train=5, val=-1)])
def test_splits_error_names_the_value(tmp_path, splits):
    with pytest.raises(ValueError, match=r'splits must give each split .* got'):
        generate_shapes(tmp_path / 'shapes', splits=splits)


@pytest.mark.parametrize('image_size', [31, 0, 64.0, (64, 64)])
def test_image_size_error_names_the_value(tmp_path, image_size):
    with pytest.raises(ValueError, match=r'image_size must be .* at least 32, got'):
        generate_shapes(tmp_path / 'shapes', image_size=image_size)


@pytest.mark.parametrize('seed', [-1, None, 0.5])
def test_seed_error_names_the_value(tmp_path, seed):
    with pytest.raises(ValueError, match=f'seed must be .* got {seed!r}'):
        generate_shapes(tmp_path / 'shapes', seed=seed)
