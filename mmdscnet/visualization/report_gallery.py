"""The gallery of a report: one image a line, worst first, pictures within the page."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmdscnet.pseudo_labels.palette_png import VOID_ID
from mmdscnet.visualization.grid_row import CAMGridRow, check_row
from mmdscnet.visualization.panels import HEADERS, Panel, draw_panels, heat_colours

SIDE = 220  # Longest side of a picture, in pixels.
QUALITY = 80  # Of JPEG.
CAM_HEADERS = ('CAM', 'refined CAM')


class GalleryItem(NamedTuple):
    """One image of the gallery.

    Attributes:
        row: Its maps.
        iou: Mean IoU over the classes of this image, in per cent; NaN where unknown.
    """

    row: CAMGridRow
    iou: float


class _Entry(NamedTuple):
    """What the page keeps of an item: strings, so that the maps can go."""

    iou: float
    ids: frozenset[int]  # Foreground classes in truth or label, for the choice of class.
    heading: str
    figures: list[str]
    filled: list[bool]  # Whether the image has the column's map.


def draw_gallery(
    items: Iterable[GalleryItem], colours: np.ndarray, classes: Sequence[str]
) -> list[str]:
    """Draw the items, worst first, those of unknown IoU last.

    Each item is encoded as it comes and not kept: an iterator needs the memory of two.

    Args:
        items: The items, in any order.
        colours: Colour of each id, uint8, shape (256, 3).
        classes: Names of the classes, background first.

    Returns:
        Pieces of HTML: legend, choice of class and order, items.

    Raises:
        ValueError: If a map does not fit its image or the classes, or an IoU is not in per cent.
    """
    entries = [_encode_item(item, colours, classes) for item in items]
    if not entries:
        return ['<p class="note">No image was given.</p>\n']
    entries.sort(key=lambda entry: (math.isnan(entry.iou), entry.iou))
    # A column that no image fills is left out.
    kept = [any(entry.filled[i] for entry in entries) for i in range(len(HEADERS))]
    return [
        _draw_legend(colours, classes),
        _draw_controls(entries, classes),
        '<div>\n',
        *(_draw_entry(rank, entry, kept) for rank, entry in enumerate(entries, start=1)),
        '</div>\n',
    ]


def _encode_item(item: GalleryItem, colours: np.ndarray, classes: Sequence[str]) -> _Entry:
    row = item.row
    check_row(row, len(classes))
    if not (math.isnan(item.iou) or 0 <= item.iou <= 100):
        raise ValueError(
            f'{row.title}: iou is {item.iou}; give per cent in [0, 100], or NaN where unknown'
        )
    panels = draw_panels(row, colours, classes, SIDE)
    labelled = _foreground(row.pseudo_label)
    true = None if row.truth is None else _foreground(row.truth)
    shape = row.image.shape[:2]
    return _Entry(
        iou=item.iou,
        ids=frozenset(labelled | (true or set())),
        heading=_draw_heading(item, labelled, true, classes),
        figures=[
            _draw_figure(panel, header, row.title, shape)
            for header, panel in zip(HEADERS, panels, strict=True)
        ],
        filled=[panel.picture is not None for panel in panels],
    )


def _foreground(label_map: np.ndarray) -> set[int]:
    return set(np.unique(label_map).tolist()) - {0, VOID_ID}


def _draw_heading(
    item: GalleryItem, labelled: set[int], true: set[int] | None, classes: Sequence[str]
) -> str:
    iou = 'IoU unknown' if math.isnan(item.iou) else f'IoU {item.iou:.1f} %'
    text = f'<b>{escape(item.row.title)}</b> {iou}'
    if true is not None:
        for word, ids in (('missed', true - labelled), ('not in truth', labelled - true)):
            if ids:
                names = ', '.join(classes[i] for i in sorted(ids))
                text += f' <span class="note">· {word}: {escape(names)}</span>'
    return text


def _draw_figure(panel: Panel, header: str, title: str, shape: tuple[int, ...]) -> str:
    if panel.picture is None:
        picture = f'<div class="blank" style="aspect-ratio:{shape[1]}/{shape[0]}">not given</div>'
        return f'<figure>{picture}<figcaption>{header}</figcaption></figure>'
    # The item's heading has the title already.
    caption = '' if header == 'image' else panel.caption
    joint = ' of ' if header in CAM_HEADERS else ': '
    text = header + joint + caption if caption else header
    width, height = panel.picture.size
    return (
        f'<figure><img src="{_encode_picture(panel.picture)}" width="{width}" height="{height}" '
        f'alt="{escape(f"{title}, {text}")}"><figcaption>{escape(text)}</figcaption></figure>'
    )


def _encode_picture(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format='JPEG', quality=QUALITY, optimize=True)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def _draw_entry(rank: int, entry: _Entry, kept: Sequence[bool]) -> str:
    figures = [figure for figure, keep in zip(entry.figures, kept, strict=True) if keep]
    iou = '' if math.isnan(entry.iou) else f'{entry.iou:.4f}'
    ids = ' '.join(map(str, sorted(entry.ids)))
    return (
        f'<article class="item" data-iou="{iou}" data-classes="{ids}">\n'
        f'<h3><span class="note">{rank}</span> {entry.heading}</h3>\n'
        f'<div class="panels">{"".join(figures)}</div>\n</article>\n'
    )


def _draw_legend(colours: np.ndarray, classes: Sequence[str]) -> str:
    stops = ', '.join(_css_colour(c) for c in heat_colours(np.linspace(0, 1, 9)))
    heat = f'<span class="heat" style="background:linear-gradient(90deg, {stops})"></span>'
    keys = [f'<li>{heat}CAM, 0 to 1</li>']
    # Background is the bare photo.
    names = {**{i: name for i, name in enumerate(classes) if i}, VOID_ID: 'void'}
    for class_id, name in names.items():
        colour = f'<span class="key" style="background:{_css_colour(colours[class_id])}"></span>'
        keys.append(f'<li>{colour}{escape(name)}</li>')
    return f'<ul class="keys">{"".join(keys)}</ul>\n'


def _css_colour(colour: np.ndarray) -> str:
    return '#' + ''.join(f'{round(float(c)):02x}' for c in colour)


def _draw_controls(entries: Sequence[_Entry], classes: Sequence[str]) -> str:
    ids = [i for entry in entries for i in entry.ids]
    options = ''.join(
        f'<option value="{i}">{escape(classes[i])} ({ids.count(i)})</option>'
        for i in sorted(set(ids))
    )
    return (
        '<div class="controls" id="controls" hidden>'
        '<label>Class in truth or label: <select autocomplete="off">'
        f'<option value="">all</option>{options}</select></label> '
        '<label>Order: <select autocomplete="off"><option value="worst">worst first</option>'
        '<option value="best">best first</option></select></label> '
        '<output class="note"></output></div>\n'
    )
