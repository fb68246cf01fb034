"""Image, CAM, refined CAM, groups, pseudo label and truth side by side, one image a row.

The path through this file is that of a picture: rows are checked, each becomes a row of panels at
the size of a cell, panels are pasted onto one sheet under a header, and the legend closes it.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.palette_png import fill_palette
from mmdscnet.visualization.grid_row import CAMGridRow, check_row
from mmdscnet.visualization.map_checks import check_palette
from mmdscnet.visualization.panels import HEADERS, Panel, draw_panels, heat_colours

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

CELL = 240  # Longest side of a panel, in pixels.
GAP = 8
LINE = 22  # Height of a line of text.
INK = (34, 34, 34)
PAPER = (255, 255, 255)
FAINT = (238, 238, 238)
GREY = (136, 136, 136)


def draw_cam_grid(
    path: str | os.PathLike[str],
    rows: Sequence[CAMGridRow],
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> None:
    """Draw rows of image, CAM, refined CAM, groups, pseudo label and truth as one PNG.

    CAMs are those of the class that covers most of the CAM, the same class in both columns, so that
    the two can be compared; the caption names it. A column that no row fills is left out.

    Args:
        path: PNG to write; missing parent folders are made.
        rows: Rows from top to bottom; their images may differ in size.
        palette: One (red, green, blue) in 0..255 a class.
        classes: Names of the classes, background first.

    Raises:
        ValueError: If there is no row, palette is not a list of colours or differs from classes
            in length, or a map does not fit its image, the classes or its range.
    """
    if not rows:
        raise ValueError('rows is empty: give at least one CAMGridRow')
    check_palette(palette, classes)
    for row in rows:
        check_row(row, len(classes))
    colours = fill_palette(palette)
    panels = [draw_panels(row, colours, classes, CELL) for row in rows]
    kept = [i for i in range(len(HEADERS)) if any(row[i].picture for row in panels)]
    sheet = paste_sheet([[row[i] for i in kept] for row in panels], [HEADERS[i] for i in kept])
    legend = _draw_legend(rows, colours, classes, sheet.width)
    page = Image.new('RGB', (sheet.width, sheet.height + legend.height), PAPER)
    page.paste(sheet, (0, 0))
    page.paste(legend, (0, sheet.height))
    with atomic_path(path) as temporary:
        page.save(temporary, format='PNG')


def paste_sheet(panels: Sequence[Sequence[Panel]], headers: Sequence[str]) -> Image.Image:
    """Paste rows of panels under a header.

    Args:
        panels: Rows from top to bottom, one panel a header; each row has a picture.
        headers: What the columns show.

    Returns:
        The sheet.
    """
    heights = [max(p.picture.height for p in row if p.picture) for row in panels]
    width = GAP + len(headers) * (CELL + GAP)
    sheet = Image.new('RGB', (width, LINE + GAP + sum(h + LINE + GAP for h in heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + column * (CELL + GAP) for column in range(len(headers))]
    for left, header in zip(lefts, headers, strict=True):
        draw.text((left + CELL / 2, GAP), header, INK, _font(15, bold=True), anchor='mt')
    top = LINE + GAP
    for row, height in zip(panels, heights, strict=True):
        for left, panel in zip(lefts, row, strict=True):
            caption = _shortened(panel.caption, CELL)
            draw.text((left + CELL / 2, top + LINE / 2), caption, INK, _font(12), anchor='mm')
            if panel.picture is None:
                box = (left, top + LINE, left + CELL - 1, top + LINE + height - 1)
                draw.rectangle(box, FAINT)
                centre = (left + CELL / 2, top + LINE + height / 2)
                draw.text(centre, 'not given', GREY, _font(12), anchor='mm')
            else:
                indent = (CELL - panel.picture.width) // 2
                sheet.paste(panel.picture, (left + indent, top + LINE))
        top += LINE + height + GAP
    return sheet


def _draw_legend(
    rows: Sequence[CAMGridRow], colours: np.ndarray, classes: Sequence[str], width: int
) -> Image.Image:
    label_maps = [m for row in rows for m in (row.groups, row.pseudo_label, row.truth)]
    ids = sorted({int(i) for m in label_maps if m is not None for i in np.unique(m)} - {0})
    names = [classes[i] if i < len(classes) else 'void' for i in ids]
    swatch = (LINE - 2, LINE - 8)
    marks = [Image.new('RGB', swatch, tuple(int(c) for c in colours[i])) for i in ids]
    # The heat scale is the first entry.
    heat = heat_colours(np.linspace(0, 1, CELL // 2)[None]).round().astype(np.uint8)
    marks.insert(0, Image.fromarray(heat).resize((CELL // 2, swatch[1])))
    names.insert(0, 'CAM, 0 to 1')
    return paste_legend(marks, names, width)


def paste_legend(marks: Sequence[Image.Image], names: Sequence[str], width: int) -> Image.Image:
    """Paste marks with their names, in as many lines as the width asks for.

    Args:
        marks: Pictures of the height of a line or less.
        names: What each means.
        width: Width of the result, in pixels.

    Returns:
        The legend.
    """
    places: list[tuple[int, int]] = []
    left, top = GAP, 0
    for mark, name in zip(marks, names, strict=True):
        space = mark.width + GAP + int(_font(13).getlength(name)) + 2 * GAP
        if left + space > width and left > GAP:
            left, top = GAP, top + LINE
        places.append((left, top))
        left += space
    legend = Image.new('RGB', (width, top + LINE + GAP), PAPER)
    draw = ImageDraw.Draw(legend)
    for mark, name, (x, y) in zip(marks, names, places, strict=True):
        legend.paste(mark, (x, y + 4))
        draw.rectangle((x, y + 4, x + mark.width - 1, y + 3 + mark.height), outline=GREY)
        draw.text((x + mark.width + GAP, y + LINE / 2), name, INK, _font(13), anchor='lm')
    return legend


def _shortened(caption: str, width: int) -> str:
    if _font(12).getlength(caption) <= width:
        return caption
    while caption and _font(12).getlength(caption + '…') > width:
        caption = caption[:-1]
    return caption + '…'


def _font(size: int, bold: bool = False) -> 'FreeTypeFont':
    # matplotlib brings a font with Greek, accents and all; Pillow's own knows ASCII only.
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(os.path.join(get_data_path(), 'fonts', 'ttf', name), size)
