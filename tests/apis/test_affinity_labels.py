import os
import sys

import numpy as np
import pytest
from PIL import Image

from mmdscnet.apis import make_affinity_labels
from mmdscnet.datasets import voc_palette
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.pseudo_labels import (
    DenseCRF,
    ExportFolder,
    label_for_affinity,
    read_cams,
    write_cams,
)

PALETTE = voc_palette(4)
CLASS_IDS = {'a': [1], 'b': [2, 3], 'c': [3], 'd': [], 'e': [1, 2]}
ALPHAS = (4.0, 24.0)


@pytest.fixture
def cams(voc_folder, tmp_path, random_cams):
    """Folder of exported CAMs of five of the images."""
    export = ExportFolder(tmp_path / 'cams', '.npz', dict(kind='test'))
    for seed, (image_id, class_ids) in enumerate(CLASS_IDS.items()):
        size = read_rgb(voc_folder / 'JPEGImages' / f'{image_id}.jpg').shape[:2]
        values = random_cams(size, len(class_ids), seed) ** 4
        write_cams(export.path(image_id), values, np.asarray(class_ids))
    return tmp_path / 'cams'


@pytest.fixture
def make(cams, voc_folder, tmp_path):
    def make_labels(images=voc_folder / 'JPEGImages', **kwargs):
        return make_affinity_labels(cams, images, tmp_path / 'labels', PALETTE, **kwargs)

    return make_labels


@pytest.fixture
def needs_crf():
    pytest.importorskip('pydensecrf')


def read_label(path):
    with Image.open(path) as image:
        assert image.mode == 'P'
        assert image.getpalette()[:12] == np.ravel(PALETTE).tolist()
        return np.array(image)


@pytest.mark.usefixtures('needs_crf')
def test_files_are_the_labels_of_each_image(make, cams, voc_folder, tmp_path):
    assert make() == len(CLASS_IDS)
    names = [f'{image_id}.png' for image_id in CLASS_IDS]
    assert sorted(os.listdir(tmp_path / 'labels')) == [*names, 'export.json']
    for image_id in CLASS_IDS:
        image = read_rgb(voc_folder / 'JPEGImages' / f'{image_id}.jpg')
        exported = read_cams(cams / f'{image_id}.npz')
        np.testing.assert_array_equal(
            read_label(tmp_path / 'labels' / f'{image_id}.png'),
            label_for_affinity(image, exported, ALPHAS, DenseCRF()),
        )


@pytest.mark.usefixtures('needs_crf')
def test_interrupted_run_goes_on(make, tmp_path, read_files):
    make()
    before = read_files(tmp_path / 'labels')
    for name in ('b.png', 'd.png'):
        (tmp_path / 'labels' / name).unlink()
    assert make() == 2
    after = read_files(tmp_path / 'labels')
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    kept = before.keys() - {'b.png', 'd.png'}
    assert all(after[name] == before[name] for name in kept)
    assert make() == 0


@pytest.mark.slow
@pytest.mark.usefixtures('needs_crf')
def test_processes_change_nothing(make, tmp_path, read_files):
    make()
    alone = {name: content for name, (content, _) in read_files(tmp_path / 'labels').items()}
    for path in (tmp_path / 'labels').glob('*.png'):
        path.unlink()
    assert make(num_processes=2) == len(CLASS_IDS)
    together = {name: content for name, (content, _) in read_files(tmp_path / 'labels').items()}
    assert together == alone


@pytest.mark.usefixtures('needs_crf')
def test_only_the_named_images_are_labelled(make, tmp_path):
    assert make(image_ids=['c', 'a']) == 2
    assert {path.stem for path in (tmp_path / 'labels').glob('*.png')} == {'a', 'c'}
    assert make() == 3


@pytest.mark.usefixtures('needs_crf')
def test_damaged_cams_are_named_and_labels_before_them_stay(make, cams, tmp_path):
    content = (cams / 'c.npz').read_bytes()
    (cams / 'c.npz').write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r'^c: .*c\.npz is truncated .*export the CAMs again'):
        make()
    assert {path.stem for path in (tmp_path / 'labels').glob('*.png')} == {'a', 'b'}
    (cams / 'c.npz').write_bytes(content)
    assert make() == 3


@pytest.mark.usefixtures('needs_crf')
def test_cams_of_other_images_are_named(make, cams):
    write_cams(cams / 'b.npz', np.zeros((1, 4, 4), np.float32), np.array([1]))
    with pytest.raises(ValueError, match=r'^b: the CAMs have the size \(4, 4\)'):
        make()


@pytest.mark.usefixtures('needs_crf')
def test_folder_without_cams_says_what_to_do(make, cams, tmp_path):
    for path in cams.glob('*.npz'):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r'cams holds no exported CAMs.*export_cams\.py'):
        make()
    assert not (tmp_path / 'labels').exists()


@pytest.mark.usefixtures('needs_crf')
def test_folder_that_is_no_export_says_what_to_do(make, cams):
    (cams / 'export.json').unlink()
    with pytest.raises(FileNotFoundError, match='holds no exported CAMs'):
        make()


@pytest.mark.usefixtures('needs_crf')
def test_images_without_cams_are_counted_before_the_first_label(make, tmp_path):
    message = r"2 of 3 images have no CAMs in .*cams, the first is 'x': run .* it goes on"
    with pytest.raises(FileNotFoundError, match=message):
        make(image_ids=['a', 'x', 'y'])
    assert not (tmp_path / 'labels').exists()


@pytest.mark.usefixtures('needs_crf')
def test_missing_images_are_counted_before_the_first_label(make, own_voc_folder, tmp_path):
    images = own_voc_folder / 'JPEGImages'
    (images / 'd.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 5 images are not in .*first is d\.jpg'):
        make(images)
    with pytest.raises(FileNotFoundError, match=r'5 of 5 images are not in .*nowhere'):
        make(tmp_path / 'nowhere')
    assert not (tmp_path / 'labels').exists()


def test_missing_crf_is_found_first(make, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    with pytest.raises(ImportError, match='pip install pydensecrf2'):
        make()
    assert not (tmp_path / 'labels').exists()


@pytest.mark.usefixtures('needs_crf')
@pytest.mark.parametrize('alphas', [(24.0, 4.0), (4.0, 4.0), (0.0, 4.0), (-1.0, 4.0)])
def test_exponents_must_be_positive_and_ascend(make, alphas, tmp_path):
    with pytest.raises(ValueError, match=r'alphas=\(.*must be positive, the lower first'):
        make(alphas=alphas)
    assert not (tmp_path / 'labels').exists()


@pytest.mark.usefixtures('needs_crf')
@pytest.mark.parametrize('change', [dict(alphas=(4.0, 8.0)), dict(crf=DenseCRF(num_steps=3))])
def test_labels_of_another_kind_are_not_mixed(make, change):
    make(image_ids=['a'])
    with pytest.raises(ValueError, match='an export with other settings'):
        make(**change)


@pytest.mark.usefixtures('needs_crf')
def test_labels_of_other_cams_are_not_mixed(make, cams):
    make(image_ids=['a'])
    (cams / 'export.json').write_text('{"kind": "new"}')
    with pytest.raises(ValueError, match=r'other settings \(cams: '):
        make()
