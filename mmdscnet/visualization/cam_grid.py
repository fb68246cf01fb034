"""Image, CAM, refined CAM, pseudo label and truth side by side, one image a row.

The path through this file is that of a picture: rows are checked, each becomes a row of panels at
the size of a cell, panels are pasted onto one sheet under a header, and the legend closes it.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.palette_png import VOID_ID, fill_palette

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

CELL = 240  # Longest side of a panel, in pixels.
GAP = 8
LINE = 22  # Height of a line of text.
INK = (34, 34, 34)
PAPER = (255, 255, 255)
FAINT = (238, 238, 238)
GREY = (136, 136, 136)
HEADERS = ('image', 'CAM', 'refined CAM', 'pseudo label', 'truth')


class CAMGridRow(NamedTuple):
    """What one row of the grid shows; all maps of one image, at the image's size.

    Attributes:
        image: RGB, uint8, shape (H, W, 3).
        cams: Class activation maps in [0, 1], zero for absent classes, shape (K, H, W).
        refined_cams: CAMs of the enriched features, likewise; None for a model without.
        pseudo_label: Class ids, 255 for void, shape (H, W).
        truth: Class ids, 255 for void, shape (H, W); None where unknown.
        title: Caption of the row and its name in errors, as the image's file name.
    """

    image: np.ndarray
    cams: np.ndarray
    refined_cams: np.ndarray | None
    pseudo_label: np.ndarray
    truth: np.ndarray | None
    title: str


class _Panel(NamedTuple):
    caption: str
    picture: Image.Image | None


def draw_cam_grid(
    path: str | os.PathLike[str],
    rows: Sequence[CAMGridRow],
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> None:
    """Draw rows of image, CAM, refined CAM, pseudo label and truth as one PNG.

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
    if len(palette) != len(classes):
        raise ValueError(
            f'palette has {len(palette)} colours for {len(classes)} classes; give one colour a '
            'class, background included'
        )
    for row in rows:
        _check_row(row, len(classes))
    colours = fill_palette(palette)
    panels = [_row_panels(row, colours, classes) for row in rows]
    kept = [i for i in range(len(HEADERS)) if any(row[i].picture for row in panels)]
    sheet = _paste_sheet([[row[i] for i in kept] for row in panels], [HEADERS[i] for i in kept])
    legend = _draw_legend(rows, colours, classes, sheet.width)
    page = Image.new('RGB', (sheet.width, sheet.height + legend.height), PAPER)
    page.paste(sheet, (0, 0))
    page.paste(legend, (0, sheet.height))
    with atomic_path(path) as temporary:
        page.save(temporary, format='PNG')


def _check_row(row: CAMGridRow, num_classes: int) -> None:
    image = row.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f'{row.title}: image is {image.dtype} of shape {image.shape}; give RGB uint8 (H, W, 3)'
        )
    size = image.shape[:2]
    for name, cams in (('cams', row.cams), ('refined_cams', row.refined_cams)):
        if cams is None:
            continue
        if cams.shape != (num_classes - 1, *size):
            raise ValueError(
                f'{row.title}: {name} has shape {cams.shape}, not {(num_classes - 1, *size)}; '
                'give one map a foreground class, resized to the image'
            )
        # Written so that NaN fails too; the slack is for maps resized in low precision.
        if not (cams.min() >= -1e-3 and cams.max() <= 1 + 1e-3):
            raise ValueError(
                f'{row.title}: {name} runs from {cams.min():.4g} to {cams.max():.4g}, not within '
                '[0, 1]; normalise it first'
            )
    for name, labels in (('pseudo_label', row.pseudo_label), ('truth', row.truth)):
        if labels is None:
            continue
        if labels.shape != size:
            raise ValueError(
                f'{row.title}: {name} has shape {labels.shape}, the image {size}; resize it'
            )
        ids = np.unique(labels)
        outside = ids[((ids < 0) | (ids >= num_classes)) & (ids != VOID_ID)]
        if outside.size:
            raise ValueError(
                f'{row.title}: {name} has ids {outside.tolist()} outside the {num_classes} '
                'classes; give the classes it was made with'
            )


def _row_panels(row: CAMGridRow, colours: np.ndarray, classes: Sequence[str]) -> list[_Panel]:
    photo = Image.fromarray(row.image)
    scale = CELL / max(photo.size)
    photo = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    shown = _shown_class(row)
    caption = 'no class' if shown is None else classes[shown + 1]
    return [
        _Panel(row.title, photo),
        _Panel(caption, _blend_heat(photo, row.cams, shown)),
        _heat_panel(photo, row.refined_cams, shown, caption),
        _label_panel(photo, row.pseudo_label, colours, classes),
        _label_panel(photo, row.truth, colours, classes),
    ]


def _shown_class(row: CAMGridRow) -> int | None:
    # The sum, not the maximum: that is 1 for every present class.
    strength = row.cams.sum(axis=(1, 2))
    return int(strength.argmax()) if strength.max() > 0 else None


def _heat_panel(
    photo: Image.Image, cams: np.ndarray | None, shown: int | None, caption: str
) -> _Panel:
    return _Panel('', None) if cams is None else _Panel(caption, _blend_heat(photo, cams, shown))


def _blend_heat(photo: Image.Image, cams: np.ndarray, shown: int | None) -> Image.Image:
    cam = np.zeros(cams.shape[1:]) if shown is None else cams[shown].clip(0, 1)
    fitted = Image.fromarray(cam.astype(np.float32)).resize(photo.size, Image.Resampling.BILINEAR)
    strength = np.asarray(fitted)[..., None]
    # A grey photo keeps its colours from being read as heat.
    grey = np.asarray(photo.convert('L'), dtype=np.float32)[..., None]
    opacity = 0.45 + 0.3 * strength
    blended = (1 - opacity) * grey + opacity * _heat_colours(strength[..., 0])
    return Image.fromarray(blended.round().astype(np.uint8))


def _heat_colours(strength: np.ndarray) -> np.ndarray:
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib import colormaps

    return 255 * colormaps['inferno'](strength)[..., :3]


def _label_panel(
    photo: Image.Image, labels: np.ndarray | None, colours: np.ndarray, classes: Sequence[str]
) -> _Panel:
    if labels is None:
        return _Panel('', None)
    fitted = Image.fromarray(labels.astype(np.uint8)).resize(photo.size, Image.Resampling.NEAREST)
    ids = np.asarray(fitted)
    opacity = np.where(ids > 0, 0.62, 0.0)[..., None]
    opacity[_outline(ids)] = 1.0
    blended = (1 - opacity) * np.asarray(photo, dtype=np.float32) + opacity * colours[ids]
    names = [classes[i] for i in np.unique(labels) if 0 < i < len(classes)]
    return _Panel(', '.join(names) or classes[0], Image.fromarray(blended.round().astype(np.uint8)))


def _outline(ids: np.ndarray) -> np.ndarray:
    """Find the pixels of a class that touch another id, two pixels deep."""
    edge = np.zeros(ids.shape, dtype=bool)
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            size = ids.shape[axis]
            neighbour = (np.arange(size) + shift).clip(0, size - 1)
            edge |= ids != ids.take(neighbour, axis=axis)
    return edge & (ids > 0)


def _paste_sheet(panels: list[list[_Panel]], headers: list[str]) -> Image.Image:
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
    labels = [m for row in rows for m in (row.pseudo_label, row.truth) if m is not None]
    ids = sorted({int(i) for m in labels for i in np.unique(m)} - {0})
    names = [classes[i] if i < len(classes) else 'void' for i in ids]
    swatch = (LINE - 2, LINE - 8)
    marks = [Image.new('RGB', swatch, tuple(int(c) for c in colours[i])) for i in ids]
    # The heat scale is the first entry.
    heat = _heat_colours(np.linspace(0, 1, CELL // 2)[None]).round().astype(np.uint8)
    marks.insert(0, Image.fromarray(heat).resize((CELL // 2, swatch[1])))
    names.insert(0, 'CAM, 0 to 1')
    return _paste_legend(marks, names, width)


def _paste_legend(marks: list[Image.Image], names: list[str], width: int) -> Image.Image:
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
