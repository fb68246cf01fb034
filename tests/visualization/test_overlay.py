import numpy as np
import pytest

from mmdscnet.visualization.overlay import draw_label_overlay, draw_overlay


@pytest.fixture
def image():
    return np.full((30, 40, 3), 128, dtype=np.uint8)


def test_overlay_is_hot_where_the_strongest_class_is(image):
    cams = np.zeros((2, 6, 8), dtype=np.float16)
    cams[0, 0, 0] = 1
    cams[1, 3:] = 1
    picture = draw_overlay(image, cams)
    assert picture.dtype == np.uint8
    assert picture.shape == image.shape
    assert picture[25].astype(int).sum() > picture[5].astype(int).sum()
    alone = draw_overlay(image, cams[1:])
    np.testing.assert_array_equal(picture, alone)


def test_overlay_without_class_is_cold_everywhere(image):
    picture = draw_overlay(image, np.zeros((2, 6, 8)))
    assert (picture == picture[0, 0]).all()


def test_labels_colour_their_class_only(image, palette):
    label_map = np.zeros((6, 8), dtype=np.int64)
    label_map[3:] = 2
    picture = draw_label_overlay(image, label_map, palette).astype(int)
    np.testing.assert_array_equal(picture[:15], image[:15])
    assert (picture[15:, :, 2] > picture[15:, :, 0] + 50).all()


def test_longest_side_is_that_asked_for(image, palette):
    assert draw_overlay(image, np.zeros((1, 3, 4)), longest=20).shape == (15, 20, 3)
    label_map = np.zeros((3, 4), np.uint8)
    assert draw_label_overlay(image, label_map, palette, longest=80).shape == (60, 80, 3)


def test_inputs_are_not_written_to_and_the_picture_can_be(image, palette):
    image.flags.writeable = False
    draw_overlay(image, np.zeros((1, 3, 4)))[:] = 0
    draw_label_overlay(image, np.zeros((3, 4), np.uint8), palette)[:] = 0
    assert (image == 128).all()


@pytest.mark.parametrize(
    ('cams', 'message'),
    [
        (np.zeros((3, 4)), r'cams has shape \(3, 4\); give \(K, h, w\)'),
        (np.zeros((0, 3, 4)), r'cams has shape \(0, 3, 4\)'),
        (np.full((1, 3, 4), 2.0), 'cams runs from 2 to 2'),
    ],
)
def test_cams_that_do_not_fit_are_named(image, cams, message):
    with pytest.raises(ValueError, match=message):
        draw_overlay(image, cams)


@pytest.mark.parametrize(
    ('label_map', 'message'),
    [
        (np.zeros((1, 3, 4), np.uint8), r'label_map has shape \(1, 3, 4\).*squeezed'),
        (np.zeros((0, 4), np.uint8), r'label_map has shape \(0, 4\)'),
        (np.full((3, 4), 3), r'label_map has ids \[3\] outside the 3 classes'),
    ],
)
def test_label_map_that_does_not_fit_is_named(image, palette, label_map, message):
    with pytest.raises(ValueError, match=message):
        draw_label_overlay(image, label_map, palette)


def test_photo_and_size_that_do_not_fit_are_named(image):
    with pytest.raises(ValueError, match='image is float64'):
        draw_overlay(image / 255, np.zeros((1, 3, 4)))
    with pytest.raises(ValueError, match='longest is 0'):
        draw_overlay(image, np.zeros((1, 3, 4)), longest=0)
