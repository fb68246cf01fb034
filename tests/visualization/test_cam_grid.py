import os

import numpy as np
import pytest
from PIL import Image

from mmdscnet.visualization.cam_grid import CELL, GAP, LINE, draw_cam_grid

GREY_PHOTO = 128


@pytest.fixture
def draw(tmp_path, palette, classes):
    def draw_rows(*rows):
        draw_cam_grid(tmp_path / 'grid.png', rows, palette, classes)
        with Image.open(tmp_path / 'grid.png') as image:
            return np.asarray(image.convert('RGB')).astype(int)

    return draw_rows


def panel(grid, column, height):
    """Cut out a panel of the first row."""
    top, left = LINE + GAP + LINE, GAP + column * (CELL + GAP)
    return grid[top : top + height, left : left + CELL]


def test_panels_show_what_their_column_says(draw, make_row):
    grid = draw(make_row())
    assert grid.shape[1] == GAP + 5 * (CELL + GAP)
    height = CELL * 30 // 40
    image, cam, refined, pseudo, truth = (panel(grid, i, height) for i in range(5))
    upper, lower = height // 4, 3 * height // 4
    assert (image == GREY_PHOTO).all()
    # The map is hot above and cold below; the halved one lies between.
    assert cam[upper].sum() > refined[upper].sum() > cam[lower].sum()
    np.testing.assert_array_equal(cam[lower], refined[lower])
    # The class is red over its area, the background is the bare photo.
    assert (pseudo[upper, :, 0] > pseudo[upper, :, 2] + 50).all()
    assert (pseudo[lower] == GREY_PHOTO).all()
    np.testing.assert_array_equal(truth, pseudo[::-1])


def test_heat_is_that_of_the_class_that_covers_most(draw, make_row):
    cams = np.zeros((2, 30, 40), dtype=np.float32)
    cams[0, 0, 0] = 1
    cams[1, 15:] = 0.9
    grid = draw(make_row(cams=cams, refined_cams=None))
    cam = panel(grid, 1, 180)
    assert cam[150].sum() > cam[30].sum()


def test_column_that_no_row_fills_is_left_out(draw, make_row):
    bare = {'refined_cams': None, 'truth': None}
    assert draw(make_row(**bare)).shape[1] == GAP + 3 * (CELL + GAP)
    partly = draw(make_row(**bare), make_row(refined_cams=None))
    assert partly.shape[1] == GAP + 4 * (CELL + GAP)


def test_groups_lie_between_refined_cam_and_pseudo_label(draw, make_row):
    groups = np.full((30, 40), 2, dtype=np.uint8)
    grid = draw(make_row(groups=groups))
    assert grid.shape[1] == GAP + 6 * (CELL + GAP)
    drawn, pseudo = panel(grid, 3, 180), panel(grid, 4, 180)
    assert (drawn[..., 2] > drawn[..., 0] + 50).all()
    np.testing.assert_array_equal(pseudo, panel(draw(make_row()), 3, 180))


def test_images_of_any_size_fit_their_cells(draw, make_row):
    sizes = [(30, 40), (400, 300), (7, 500), (64, 1)]
    grid = draw(*(make_row(*size) for size in sizes))
    heights = sum(max(1, round(h * CELL / max(h, w))) + LINE + GAP for h, w in sizes)
    assert grid.shape[:2] == (LINE + GAP + heights + LINE + GAP, GAP + 5 * (CELL + GAP))


def test_image_without_class_is_drawn(draw, make_row):
    nothing = np.zeros((2, 30, 40), dtype=np.float32)
    empty = np.zeros((30, 40), dtype=np.int64)
    row = make_row(cams=nothing, refined_cams=nothing, pseudo_label=empty, truth=empty)
    grid = draw(row)
    np.testing.assert_array_equal(panel(grid, 1, 180), panel(grid, 2, 180))


def test_only_the_grid_is_left_in_the_folder(tmp_path, draw, make_row):
    draw(make_row())
    assert os.listdir(tmp_path) == ['grid.png']


def test_long_and_accented_titles_fit(tmp_path, draw, make_row):
    draw(make_row(title='a'))
    with Image.open(tmp_path / 'grid.png') as short:
        size = short.size
    draw(make_row(title='étable_' * 30))
    with Image.open(tmp_path / 'grid.png') as long:
        assert long.size == size


def test_many_classes_wrap_the_legend(tmp_path, make_row):
    classes = ('background', *(f'a rather long class name {i}' for i in range(80)))
    label_map = (np.arange(30 * 40) % 81).reshape(30, 40)
    row = make_row(cams=np.zeros((80, 30, 40)), refined_cams=None, pseudo_label=label_map)
    row = row._replace(truth=None)
    draw_cam_grid(tmp_path / 'grid.png', [row], [[i, i, i] for i in range(81)], classes)
    with Image.open(tmp_path / 'grid.png') as image:
        assert image.height > 2 * CELL


def test_no_row_is_an_error(draw):
    with pytest.raises(ValueError, match='rows is empty'):
        draw()


def test_palette_of_another_length_is_named(tmp_path, make_row, palette, classes):
    with pytest.raises(ValueError, match='palette has 2 colours for 3 classes'):
        draw_cam_grid(tmp_path / 'grid.png', [make_row()], palette[:2], classes)


def test_map_that_does_not_fit_is_named(tmp_path, draw, make_row):
    with pytest.raises(ValueError, match=r'cow\.jpg: truth has shape \(3, 4\)'):
        draw(make_row(), make_row(truth=np.zeros((3, 4), np.uint8)))
    assert os.listdir(tmp_path) == []
