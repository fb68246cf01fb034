import os

import numpy as np
import pytest
from PIL import Image

from mmdscnet.visualization.cam_grid import CELL, GAP, LINE, CAMGridRow, draw_cam_grid

CLASSES = ('background', 'cat', 'dog')
PALETTE = [[0, 0, 0], [200, 0, 0], [0, 0, 200]]
GREY_PHOTO = 128


def make_row(height=30, width=40, **changes):
    cams = np.zeros((2, height, width), dtype=np.float32)
    cams[0, : height // 2] = 1
    label_map = np.zeros((height, width), dtype=np.uint8)
    label_map[: height // 2] = 1
    row = CAMGridRow(
        image=np.full((height, width, 3), GREY_PHOTO, dtype=np.uint8),
        cams=cams,
        refined_cams=cams * 0.5,
        pseudo_label=label_map,
        truth=label_map[::-1],
        title='cow.jpg',
    )
    return row._replace(**changes)


def draw(tmp_path, *rows):
    draw_cam_grid(tmp_path / 'grid.png', rows, PALETTE, CLASSES)
    with Image.open(tmp_path / 'grid.png') as image:
        return np.asarray(image.convert('RGB')).astype(int)


def panel(grid, column, height):
    """Cut out a panel of the first row."""
    top, left = LINE + GAP + LINE, GAP + column * (CELL + GAP)
    return grid[top : top + height, left : left + CELL]


def test_panels_show_what_their_column_says(tmp_path):
    grid = draw(tmp_path, make_row())
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


def test_heat_is_that_of_the_class_that_covers_most(tmp_path):
    cams = np.zeros((2, 30, 40), dtype=np.float32)
    cams[0, 0, 0] = 1
    cams[1, 15:] = 0.9
    grid = draw(tmp_path, make_row(cams=cams, refined_cams=None))
    cam = panel(grid, 1, 180)
    assert cam[150].sum() > cam[30].sum()


def test_column_that_no_row_fills_is_left_out(tmp_path):
    bare = {'refined_cams': None, 'truth': None}
    assert draw(tmp_path, make_row(**bare)).shape[1] == GAP + 3 * (CELL + GAP)
    partly = draw(tmp_path, make_row(**bare), make_row(refined_cams=None))
    assert partly.shape[1] == GAP + 4 * (CELL + GAP)


def test_images_of_any_size_fit_their_cells(tmp_path):
    sizes = [(30, 40), (400, 300), (7, 500), (64, 1)]
    grid = draw(tmp_path, *(make_row(*size) for size in sizes))
    heights = sum(max(1, round(h * CELL / max(h, w))) + LINE + GAP for h, w in sizes)
    assert grid.shape[:2] == (LINE + GAP + heights + LINE + GAP, GAP + 5 * (CELL + GAP))


def test_image_without_class_is_drawn(tmp_path):
    nothing = np.zeros((2, 30, 40), dtype=np.float32)
    empty = np.zeros((30, 40), dtype=np.int64)
    row = make_row(cams=nothing, refined_cams=nothing, pseudo_label=empty, truth=empty)
    grid = draw(tmp_path, row)
    np.testing.assert_array_equal(panel(grid, 1, 180), panel(grid, 2, 180))


def test_only_the_grid_is_left_in_the_folder(tmp_path):
    draw(tmp_path, make_row())
    assert os.listdir(tmp_path) == ['grid.png']


def test_long_and_accented_titles_fit(tmp_path):
    draw(tmp_path, make_row(title='a'))
    with Image.open(tmp_path / 'grid.png') as short:
        size = short.size
    draw(tmp_path, make_row(title='étable_' * 30))
    with Image.open(tmp_path / 'grid.png') as long:
        assert long.size == size


def test_many_classes_wrap_the_legend(tmp_path):
    classes = ('background', *(f'a rather long class name {i}' for i in range(80)))
    label_map = (np.arange(30 * 40) % 81).reshape(30, 40)
    row = make_row(cams=np.zeros((80, 30, 40)), refined_cams=None, pseudo_label=label_map)
    row = row._replace(truth=None)
    draw_cam_grid(tmp_path / 'grid.png', [row], [[i, i, i] for i in range(81)], classes)
    with Image.open(tmp_path / 'grid.png') as image:
        assert image.height > 2 * CELL


def test_no_row_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='rows is empty'):
        draw_cam_grid(tmp_path / 'grid.png', [], PALETTE, CLASSES)


def test_palette_of_another_length_is_named(tmp_path):
    with pytest.raises(ValueError, match='palette has 2 colours for 3 classes'):
        draw_cam_grid(tmp_path / 'grid.png', [make_row()], PALETTE[:2], CLASSES)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'image': np.zeros((30, 40), np.uint8)}, r'cow\.jpg: image is uint8 .*RGB'),
        ({'image': np.zeros((30, 40, 3))}, r'cow\.jpg: image is float64'),
        ({'cams': np.zeros((3, 30, 40))}, r'cow\.jpg: cams has shape .* not \(2, 30, 40\)'),
        ({'refined_cams': np.zeros((2, 3, 4))}, r'cow\.jpg: refined_cams has shape'),
        ({'cams': np.full((2, 30, 40), 7.0)}, r'cow\.jpg: cams runs from 7 to 7.*normalise'),
        ({'cams': np.full((2, 30, 40), np.nan)}, r'cow\.jpg: cams runs from nan'),
        ({'truth': np.zeros((3, 4), np.uint8)}, r'cow\.jpg: truth has shape \(3, 4\)'),
        ({'pseudo_label': np.full((30, 40), 3)}, r'cow\.jpg: pseudo_label has ids \[3\]'),
        ({'truth': np.full((30, 40), -1)}, r'cow\.jpg: truth has ids \[-1\]'),
    ],
)
def test_map_that_does_not_fit_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        draw_cam_grid(tmp_path / 'grid.png', [make_row(**changes)], PALETTE, CLASSES)
    assert os.listdir(tmp_path) == []
