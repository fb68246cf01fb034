import numpy as np
import pytest
from PIL import Image

from mmdscnet.pseudo_labels.palette_png import fill_palette
from mmdscnet.visualization.panels import (
    HEADERS,
    blend_heat,
    blend_labels,
    draw_panels,
    fit_photo,
    heat_colours,
    strongest_class,
)

VIOLET_PHOTO = (120, 60, 180)


@pytest.fixture
def colours(palette):
    return fill_palette(palette)


@pytest.fixture
def photo():
    return Image.new('RGB', (40, 30), VIOLET_PHOTO)


def test_panels_follow_the_headers(make_row, colours, classes):
    groups = np.full((30, 40), 2, np.uint8)
    panels = draw_panels(make_row(groups=groups), colours, classes, 80)
    captions = dict(zip(HEADERS, (panel.caption for panel in panels), strict=True))
    assert captions == {
        'image': 'cow.jpg',
        'CAM': 'cat',
        'refined CAM': 'cat',
        'groups': 'dog',
        'pseudo label': 'cat',
        'truth': 'cat',
    }
    assert {panel.picture.size for panel in panels} == {(80, 60)}


def test_map_that_is_not_given_has_no_picture(make_row, colours, classes):
    row = make_row(refined_cams=None, truth=None)
    panels = dict(zip(HEADERS, draw_panels(row, colours, classes, 80), strict=True))
    missing = [header for header, panel in panels.items() if panel.picture is None]
    assert missing == ['refined CAM', 'groups', 'truth']


def test_both_cams_are_of_the_class_that_covers_most_of_the_plain_one(make_row, colours, classes):
    refined = np.zeros((2, 30, 40))
    refined[1] = 1
    panels = draw_panels(make_row(refined_cams=refined), colours, classes, 80)
    assert [panel.caption for panel in panels[1:3]] == ['cat', 'cat']
    cold = draw_panels(make_row(refined_cams=refined * 0), colours, classes, 80)
    np.testing.assert_array_equal(panels[2].picture, cold[2].picture)


def test_refined_cam_chooses_where_the_plain_one_is_empty(make_row, colours, classes):
    refined = np.zeros((2, 30, 40))
    refined[1] = 1
    row = make_row(cams=np.zeros((2, 30, 40)), refined_cams=refined)
    panels = draw_panels(row, colours, classes, 80)
    assert [panel.caption for panel in panels[1:3]] == ['dog', 'dog']


def test_image_without_class_is_cold_and_background(make_row, colours, classes):
    empty = np.zeros((30, 40), dtype=np.int64)
    cold = np.zeros((2, 30, 40))
    row = make_row(cams=cold, refined_cams=cold, pseudo_label=empty, truth=empty)
    captions = [panel.caption for panel in draw_panels(row, colours, classes, 80)]
    assert captions[1:] == ['no class', 'no class', '', 'background', 'background']


@pytest.mark.parametrize(
    ('size', 'fitted'),
    [((30, 40), (80, 60)), ((400, 300), (60, 80)), ((1, 640), (80, 1)), ((64, 64), (80, 80))],
)
def test_photo_fits_its_longest_side(size, fitted):
    assert fit_photo(np.zeros((*size, 3), np.uint8), 80).size == fitted


def test_strongest_class_is_that_of_the_largest_sum():
    cams = np.zeros((3, 500, 500), dtype=np.float16)
    assert strongest_class(cams) is None
    cams[0, 0, 0] = 1
    cams[1] = 0.5
    # Both sums are beyond float16.
    cams[2] = 0.75
    assert strongest_class(cams) == 2


def test_heat_leaves_no_colour_of_the_photo(photo):
    grey = Image.fromarray(np.repeat(np.asarray(photo.convert('L'))[..., None], 3, axis=2))
    cam = np.random.default_rng(0).random((30, 40))
    np.testing.assert_array_equal(blend_heat(photo, cam), blend_heat(grey, cam))


def test_heat_by_hand(photo):
    luma = np.asarray(photo.convert('L'))[0, 0]
    hot = 0.25 * luma + 0.75 * heat_colours(np.ones(1))[0]
    cold = 0.55 * luma + 0.45 * heat_colours(np.zeros(1))[0]
    np.testing.assert_array_equal(np.asarray(blend_heat(photo, np.ones((3, 4))))[0, 0], hot.round())
    np.testing.assert_array_equal(
        np.asarray(blend_heat(photo, np.zeros((3, 4))))[0, 0], cold.round()
    )


def test_heat_beyond_its_range_is_clipped(photo):
    hot, too_hot = (blend_heat(photo, np.full((30, 40), value)) for value in (1, 1.0009))
    np.testing.assert_array_equal(hot, too_hot)


def test_labels_by_hand(photo, colours):
    label_map = np.zeros((30, 40), np.uint8)
    label_map[:, 20:] = 1
    blended = np.asarray(blend_labels(photo, label_map, colours))
    np.testing.assert_array_equal(blended[:, :20], np.asarray(photo)[:, :20])
    # Two pixels of outline, then the mixture.
    np.testing.assert_array_equal(blended[:, 20:22], np.broadcast_to(colours[1], (30, 2, 3)))
    mixed = (0.38 * np.array(VIOLET_PHOTO) + 0.62 * colours[1]).round()
    np.testing.assert_array_equal(blended[:, 22:], np.broadcast_to(mixed, (30, 18, 3)))


def test_void_has_its_own_colour(photo, colours):
    void = np.asarray(blend_labels(photo, np.full((30, 40), 255), colours)).astype(int)
    assert (void.sum(axis=2) > sum(VIOLET_PHOTO) + 50).all()
