"""What refining has changed in a few images, side by side: one image a row of a PNG."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.palette_png import fill_palette
from mmdscnet.visualization.cam_grid import CELL, LINE, paste_legend, paste_sheet
from mmdscnet.visualization.map_checks import check_class_ids, check_palette, check_photo
from mmdscnet.visualization.panels import Panel, blend_labels, fit_photo

HEADERS = ('image', 'mask', 'groups', 'plain CAM label', 'refined CAM label', 'mended and spoiled')
CHANGES = ('mended', 'spoiled', 'wrong before and after')
CHANGE_COLOURS = ((0, 158, 115), (213, 94, 0), (86, 180, 233))  # Okabe and Ito's.


class ChangeRow(NamedTuple):
    """An image and its maps; the maps at any size, in the proportions of the image.

    Attributes:
        title: Caption of the image.
        image: RGB, uint8, shape (H, W, 3).
        truth: Class ids, 255 for void, shape (h, w).
        groups: Pixel groups as class ids, shape (h, w).
        plain: Labels of the plain CAMs, shape (h, w).
        refined: Labels of the refined CAMs, shape (h, w); None for a model without.
        changes: 0 for none, else 1 + index into ``CHANGES``, shape (h, w); None likewise.
        note: Caption of the changes.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    plain: np.ndarray
    refined: np.ndarray | None
    changes: np.ndarray | None
    note: str


def draw_change_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[ChangeRow],
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> None:
    """Draw image, mask, groups, both labels and what has changed, as one PNG.

    Args:
        path: PNG to write; missing parent folders are made.
        rows: Rows from top to bottom.
        palette: One (red, green, blue) in 0..255 a class.
        classes: Names of the classes, background first.

    Raises:
        ValueError: If there is no row, ``palette`` does not fit ``classes``, an image is not RGB
            uint8 or a map has an id without class.
    """
    if not rows:
        raise ValueError('rows is empty: give at least one ChangeRow')
    check_palette(palette, classes)
    colours = fill_palette(palette)
    panels = [_draw_row(row, colours, classes) for row in rows]
    kept = [i for i in range(len(HEADERS)) if any(row[i].picture for row in panels)]
    sheet = paste_sheet([[row[i] for i in kept] for row in panels], [HEADERS[i] for i in kept])
    legend = _draw_legend(colours, classes, sheet.width)
    page = Image.new('RGB', (sheet.width, sheet.height + legend.height), (255, 255, 255))
    page.paste(sheet, (0, 0))
    page.paste(legend, (0, sheet.height))
    with atomic_path(path) as temporary:
        page.save(temporary, format='PNG')


def _draw_row(row: ChangeRow, colours: np.ndarray, classes: Sequence[str]) -> list[Panel]:
    check_photo(row.image, f'{row.title}: image')
    photo = fit_photo(row.image, CELL)
    maps = {'truth': row.truth, 'groups': row.groups, 'plain': row.plain, 'refined': row.refined}
    panels = [Panel(row.title, photo)]
    for name, label_map in maps.items():
        if label_map is None:
            panels.append(Panel('', None))
            continue
        check_class_ids(label_map, f'{row.title}: {name}', len(classes))
        found = [classes[i] for i in np.unique(label_map) if 0 < i < len(classes)]
        caption = ', '.join(found) or classes[0]
        panels.append(Panel(caption, blend_labels(photo, label_map, colours)))
    if row.changes is None:
        return [*panels, Panel('', None)]
    grey = photo.convert('L').convert('RGB')
    painted = blend_labels(grey, row.changes, fill_palette([(0, 0, 0), *CHANGE_COLOURS]))
    return [*panels, Panel(row.note, painted)]


def _draw_legend(colours: np.ndarray, classes: Sequence[str], width: int) -> Image.Image:
    names = [*classes[1:], *CHANGES]
    marked = [*colours[1 : len(classes)].tolist(), *CHANGE_COLOURS]
    marks = [Image.new('RGB', (LINE - 2, LINE - 8), tuple(colour)) for colour in marked]
    return paste_legend(marks, names, width)
