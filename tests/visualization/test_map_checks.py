import numpy as np
import pytest

from mmdscnet.visualization.map_checks import (
    check_cam_range,
    check_class_ids,
    check_palette,
    check_photo,
)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_what_is_no_photo_is_refused(image):
    check_photo(np.zeros((4, 5, 3), np.uint8), 'image')
    with pytest.raises(ValueError, match=r'^image is .*give RGB uint8'):
        check_photo(image, 'image')


@pytest.mark.parametrize('value', [-0.1, 1.1, np.nan, np.inf])
def test_cam_outside_its_range_is_refused(value):
    cams = np.array([0, 0.5, 1])
    check_cam_range(cams, 'cams')
    check_cam_range(cams + 5e-4, 'cams')
    with pytest.raises(ValueError, match=r'^cams runs from .*normalise'):
        check_cam_range(np.append(cams, value), 'cams')


def test_ids_are_those_of_the_classes_and_void():
    check_class_ids(np.array([0, 1, 2, 255]), 'truth', 3)
    with pytest.raises(ValueError, match=r'^truth has ids \[-1, 3\] outside the 3 classes'):
        check_class_ids(np.array([-1, 0, 3]), 'truth', 3)


def test_palette_of_another_length_is_named(palette, classes):
    check_palette(palette, classes)
    with pytest.raises(ValueError, match='palette has 2 colours for 3 classes'):
        check_palette(palette[:2], classes)
