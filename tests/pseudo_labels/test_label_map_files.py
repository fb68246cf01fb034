import numpy as np
import pytest
from PIL import Image

from mmdscnet.pseudo_labels.label_map_files import find_label_maps, open_label_map
from mmdscnet.pseudo_labels.palette_png import write_palette_png

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


@pytest.fixture
def folder(tmp_path):
    for name in ('a', 'b'):
        write_palette_png(tmp_path / 'maps' / f'{name}.png', LABELS, PALETTE)
    return tmp_path / 'maps'


def test_maps_are_in_the_order_of_the_images(folder):
    assert find_label_maps(folder, ['b', 'a'], 'mend') == [folder / 'b.png', folder / 'a.png']


def test_missing_maps_are_counted_and_the_first_named(folder):
    with pytest.raises(FileNotFoundError, match=r'^2 of 3 images .*maps, .* is c\.png: do this$'):
        find_label_maps(folder, ['a', 'c', 'd'], 'do this')


def test_missing_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r'nowhere of label maps .* not exist: do this$'):
        find_label_maps(folder / 'nowhere', ['a'], 'do this')


@pytest.mark.parametrize(('ids', 'counts'), [([], '0 images by 0'), (['a', 'a'], '1 images by 2')])
def test_images_are_named_once(folder, ids, counts):
    with pytest.raises(ValueError, match=f'image_ids names {counts} ids'):
        find_label_maps(folder, ids, 'mend')


def test_ids_are_read_from_palette_and_grey_maps(folder):
    Image.fromarray(LABELS).save(folder / 'grey.png')
    for name, mode in (('a', 'P'), ('grey', 'L')):
        image = open_label_map(folder / f'{name}.png')
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), LABELS)


@pytest.mark.parametrize('keep', [0, 60, 700])
def test_truncated_map_is_named(folder, keep):
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 50), np.uint8)).save(
        folder / 'a.png'
    )
    (folder / 'a.png').write_bytes((folder / 'a.png').read_bytes()[:keep])
    with pytest.raises(ValueError, match=r'label map .*a\.png is truncated or no image'):
        open_label_map(folder / 'a.png')


@pytest.mark.parametrize('mode', ['RGB', '1', 'I;16'])
def test_map_of_another_mode_is_named(folder, mode):
    Image.new(mode, (4, 3)).save(folder / 'a.png')
    with pytest.raises(ValueError, match=rf"a\.png has mode '{mode}': give palette or grey"):
        open_label_map(folder / 'a.png')


def test_map_that_is_not_there_is_a_missing_file(folder):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.png'):
        open_label_map(folder / 'nowhere.png')
