import os

import numpy as np
import pytest
from PIL import Image

from mmdscnet.pseudo_labels.palette_png import fill_palette, write_palette_png

PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_ids_survive_the_round_trip(tmp_path):
    label_map = np.array([[0, 1, 2], [255, 2, 0]], dtype=np.uint8)
    write_palette_png(tmp_path / 'sub' / 'a.png', label_map, PALETTE)
    read = np.array(Image.open(tmp_path / 'sub' / 'a.png'))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, label_map)
    assert os.listdir(tmp_path / 'sub') == ['a.png']


def test_colours_are_the_palette_and_void(tmp_path):
    write_palette_png(tmp_path / 'a.png', np.array([[1, 2, 255]], dtype=np.uint8), PALETTE)
    with Image.open(tmp_path / 'a.png') as image:
        assert image.mode == 'P'
        assert len(image.getpalette()) == 3 * 256
        colours = np.asarray(image.convert('RGB'))
    assert colours.tolist() == [[[128, 0, 0], [0, 128, 0], [224, 224, 192]]]


def test_palette_is_filled_with_black_and_void():
    filled = fill_palette(PALETTE)
    assert filled.dtype == np.uint8
    assert filled.tolist() == [*PALETTE, *[[0, 0, 0]] * 252, [224, 224, 192]]


def test_every_id_of_a_whole_palette_survives(tmp_path):
    palette = np.random.default_rng(0).integers(0, 256, (256, 3))
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_palette_png(tmp_path / 'a.png', label_map, palette)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'a.png')), label_map)
    with Image.open(tmp_path / 'a.png') as image:
        np.testing.assert_array_equal(np.asarray(image.convert('RGB')), palette[label_map])


def test_slices_and_transposes_are_written_as_seen(tmp_path):
    label_map = np.arange(12, dtype=np.uint8).reshape(3, 4).T[::2] % 3
    write_palette_png(tmp_path / 'a.png', label_map, PALETTE)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'a.png')), label_map)


def test_mmseg_mask_loading_sees_the_ids(tmp_path):
    mmcv = pytest.importorskip('mmcv')
    label_map = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    write_palette_png(tmp_path / 'a.png', label_map, PALETTE)
    loaded = mmcv.imread(str(tmp_path / 'a.png'), flag='unchanged', backend='pillow')
    np.testing.assert_array_equal(loaded, label_map)


@pytest.mark.parametrize('label_map', [np.zeros((2, 2), np.int64), [[0, 1]], np.zeros((2, 2))])
def test_other_types_than_uint8_are_named(tmp_path, label_map):
    with pytest.raises(TypeError, match=r'a\.png: label_map is .*uint8'):
        write_palette_png(tmp_path / 'a.png', label_map, PALETTE)


@pytest.mark.parametrize('shape', [(1, 2, 2), (4,), (0, 3)])
def test_other_shapes_than_an_image_are_named(tmp_path, shape):
    with pytest.raises(ValueError, match=r'a\.png: label_map has shape .*squeezed'):
        write_palette_png(tmp_path / 'a.png', np.zeros(shape, np.uint8), PALETTE)


def test_id_without_colour_is_named_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match=r'a\.png: ids \[3, 254\] have no colour.*of 3'):
        write_palette_png(tmp_path / 'a.png', np.array([[3, 254, 1]], np.uint8), PALETTE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('palette', [[], [[0, 0]], [[0, 0, 0]] * 257, [0, 0, 0]])
def test_palette_of_another_shape_is_named(tmp_path, palette):
    with pytest.raises(ValueError, match=r'palette has shape'):
        write_palette_png(tmp_path / 'a.png', np.zeros((2, 2), np.uint8), palette)


@pytest.mark.parametrize('palette', [[[0, 0, 256]], [[-1, 0, 0]], [[0.5, 0, 0]]])
def test_palette_values_outside_bytes_are_named(tmp_path, palette):
    with pytest.raises(ValueError, match=r'palette has values .* 0\.\.255'):
        write_palette_png(tmp_path / 'a.png', np.zeros((2, 2), np.uint8), palette)
