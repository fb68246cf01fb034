"""One run as one HTML file: what it lost, how well it does and where, image by image.

The path through this file is that down the page: summary, facts, threshold curve, classes, losses
and, in a file of its own, the gallery.
"""

import math
import os
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.palette_png import fill_palette
from mmdscnet.visualization.line_chart import Line, draw_line_chart
from mmdscnet.visualization.map_checks import check_palette
from mmdscnet.visualization.report_gallery import GalleryItem, draw_gallery
from mmdscnet.visualization.report_page import Section, write_page
from mmdscnet.visualization.report_run import CheckedRun, ReportRun, check_runs

CURVE_SIZE = (480, 270)  # Of a drawing, in its own units.
LOSS_SIZE = (320, 180)
MAX_POINTS = 400  # Of a line of losses; more are averaged.
MINUS = '\N{MINUS SIGN}'
UNKNOWN = '\N{EN DASH}'


def write_report(
    path: str | os.PathLike[str],
    title: str,
    runs: Sequence[ReportRun],
    gallery: Iterable[GalleryItem],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    num_left_out: int = 0,
) -> None:
    """Write the report of a run as one HTML file that needs nothing else.

    Pictures and charts are within the file, which makes no request. Equal input gives equal bytes.
    A gallery takes some 70 kB an image.

    Args:
        path: File to write; missing parent folders are made.
        title: Title of the page.
        runs: The run that is reported and, if wanted, one that it is compared with.
        gallery: Images to look at, in any order; the page shows the worst first. Each is drawn as
            it comes, so that an iterator needs the memory of two.
        classes: Names of the classes, background first.
        palette: One (red, green, blue) in 0..255 a class.
        num_left_out: Number of judged images that ``gallery`` leaves out; the page tells it.

    Raises:
        ValueError: If there are not one or two runs of different names, a run's arrays do not fit
            each other, the classes or their range, ``palette`` does not fit ``classes``, an image's
            maps do not fit, or ``num_left_out`` is negative.
    """
    check_palette(palette, classes)
    colours = fill_palette(palette)
    checked = check_runs(runs, len(classes))
    if num_left_out < 0:
        raise ValueError(f'num_left_out is {num_left_out}; give a number of images, at least 0')
    sections = [
        Section('facts', 'Facts', [_draw_facts(checked)]),
        Section('threshold', 'Threshold', [_draw_curves(checked)]),
        Section('classes', 'Classes', [_draw_classes(checked, classes)]),
        Section('losses', 'Losses', [_draw_losses(checked)]),
        Section(
            'gallery',
            'Gallery',
            [_describe_gallery(num_left_out), *draw_gallery(gallery, colours, classes)],
        ),
    ]
    page = write_page(title, _draw_summary(checked), sections)
    with atomic_path(path) as temporary, temporary.open('wb') as file:
        # A file name need not be text: what of it cannot be encoded is spelled out.
        file.writelines(piece.encode(errors='backslashreplace') for piece in page)


def _draw_summary(runs: Sequence[CheckedRun]) -> str:
    cards = [
        f'<div class="card run{number}">{escape(run.name)}<b>{_number(_mean(run.iou), 2)}</b>'
        f'<span class="note">mIoU (%) at threshold {run.chosen_thr:.4g}</span></div>'
        for number, run in enumerate(runs)
    ]
    if len(runs) == 2:
        first, second = runs
        difference = _mean(first.iou) - _mean(second.iou)
        cards.append(
            f'<div class="card">{_difference_name(runs)}<b>{_difference(difference, 2)}</b>'
            f'<span class="note">points of mIoU</span></div>'
        )
    return (
        f'<div class="cards">{"".join(cards)}</div>\n'
        '<p class="note">Thresholds were chosen on another split than the one judged here.</p>\n'
    )


def _draw_facts(runs: Sequence[CheckedRun]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    if not names:
        return '<p class="note">None were given.</p>\n'
    head = ''.join(f'<th>{_key(number)}{escape(run.name)}</th>' for number, run in enumerate(runs))
    rows = [
        f'<tr><th>{escape(name)}</th>'
        + ''.join(f'<td>{escape(str(run.facts.get(name, UNKNOWN)))}</td>' for run in runs)
        + '</tr>\n'
        for name in names
    ]
    return (
        f'<div class="wide"><table class="facts">\n<thead><tr><th></th>{head}</tr></thead>\n'
        f'<tbody>{"".join(rows)}</tbody>\n</table></div>\n'
    )


def _draw_curves(runs: Sequence[CheckedRun]) -> str:
    best = [int(run.mean_iou.argmax()) for run in runs]
    lines = [
        Line(number, run.thresholds, run.mean_iou, run.thresholds[place], run.chosen_thr)
        for number, (run, place) in enumerate(zip(runs, best, strict=True))
    ]
    label = f'mIoU over the background threshold of {" and ".join(run.name for run in runs)}'
    # The second run first, so that the run reported lies on top.
    chart = draw_line_chart(
        lines[::-1], label, 'background threshold', 'mIoU (%)', CURVE_SIZE, from_zero=True
    )
    keys = []
    for number, (run, place) in enumerate(zip(runs, best, strict=True)):
        at_chosen = np.interp(run.chosen_thr, run.thresholds, run.mean_iou)
        keys.append(
            f'<li>{_key(number)}{escape(run.name)}: {at_chosen:.2f} at {run.chosen_thr:.4g}, '
            f'chosen (□); best {run.mean_iou[place]:.2f} at {run.thresholds[place]:.4g} (●)</li>'
        )
    return (
        f'<div class="curve">{chart}</div>\n<ul class="keys">{"".join(keys)}</ul>\n'
        '<p class="note">The square is the threshold that another split has chosen; the distance '
        'to the dot is the price of an honest choice.</p>\n'
    )


def _draw_classes(runs: Sequence[CheckedRun], classes: Sequence[str]) -> str:
    meaning = 'Full: IoU (%).'
    if any(run.errors for run in runs):
        meaning += (
            ' Hatched: false positives (FP), empty: false negatives (FN), in per cent of the union '
            'of truth and label.'
        )
    if len(runs) == 2:
        meaning += f' Right: {_difference_name(runs)}, points.'
    return (
        f'{_draw_keys(runs)}<p class="note">{meaning}</p>\n<div class="halves">\n'
        f'{_draw_bars(runs, classes)}{_draw_table(runs, classes)}</div>\n'
    )


def _draw_bars(runs: Sequence[CheckedRun], classes: Sequence[str]) -> str:
    rows = []
    for index, name in enumerate(classes):
        bars = ''.join(_draw_bar(number, run, index) for number, run in enumerate(runs))
        delta = _difference(runs[0].iou[index] - runs[1].iou[index]) if len(runs) == 2 else ''
        rows.append(f'<div>{escape(name)}</div><div>{bars}</div><div class="delta">{delta}</div>\n')
    return f'<div class="bars">\n{"".join(rows)}</div>\n'


def _draw_bar(number: int, run: CheckedRun, index: int) -> str:
    iou = run.iou[index]
    shares = [] if math.isnan(iou) else [iou]
    if shares and run.errors is not None:
        shares.append(run.errors[0][index])
    parts = ''.join(f'<i style="width:{share:.2f}%"></i>' for share in shares)
    return (
        f'<div class="bar run{number}"><div class="track">{parts}</div>'
        f'<span>{_number(iou)}</span></div>'
    )


def _draw_table(runs: Sequence[CheckedRun], classes: Sequence[str]) -> str:
    head, subhead = '<th class="name" rowspan="2">class</th>', ''
    for number, run in enumerate(runs):
        columns = ['IoU'] if run.errors is None else ['IoU', 'FP', 'FN']
        head += f'<th class="first" colspan="{len(columns)}">{_key(number)}{escape(run.name)}</th>'
        subhead += _cells(columns, 'th')
    if len(runs) == 2:
        head += f'<th class="first">{_difference_name(runs)}</th>'
        subhead += '<th class="first">IoU</th>'
    body = ''.join(
        f'<tr><th class="name">{escape(name)}</th>{_table_cells(runs, [index])}</tr>\n'
        for index, name in enumerate(classes)
    )
    foot = f'<tr><th class="name">mean</th>{_table_cells(runs, list(range(len(classes))))}</tr>'
    return (
        '<div class="wide"><table class="numbers">\n'
        f'<thead><tr>{head}</tr>\n<tr>{subhead}</tr></thead>\n'
        f'<tbody>{body}</tbody>\n<tfoot>{foot}</tfoot>\n</table></div>\n'
    )


def _table_cells(runs: Sequence[CheckedRun], indices: list[int]) -> str:
    cells = ''
    for run in runs:
        columns = [run.iou, *(run.errors or ())]
        cells += _cells([_number(_mean(column[indices]), 2) for column in columns], 'td')
    if len(runs) == 2:
        difference = _mean(runs[0].iou[indices]) - _mean(runs[1].iou[indices])
        cells += f'<td class="first">{_difference(difference, 2)}</td>'
    return cells


def _cells(texts: Sequence[str], tag: str) -> str:
    first, *others = texts
    return f'<{tag} class="first">{first}</{tag}>' + ''.join(f'<{tag}>{t}</{tag}>' for t in others)


def _draw_losses(runs: Sequence[CheckedRun]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.losses))
    if not names:
        return '<p class="note">No losses were given.</p>\n'
    charts = []
    for name in names:
        lines = [
            Line(number, *_average(*run.losses[name]))
            for number, run in enumerate(runs)
            if name in run.losses
        ]
        chart = draw_line_chart(lines[::-1], f'{name} over steps', 'step', '', LOSS_SIZE)
        charts.append(f'<div><h3>{escape(name)}</h3>{chart}</div>\n')
    return f'{_draw_keys(runs)}<div class="losses">\n{"".join(charts)}</div>\n'


def _average(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours until at most MAX_POINTS are left; what is not finite stays a gap."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MAX_POINTS, endpoint=False).astype(int)
    counts = np.diff([*edges, len(steps)])
    return np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges) / counts


def _describe_gallery(num_left_out: int) -> str:
    text = 'Sorted by the IoU of the image, worst first.'
    if num_left_out:
        text += f' {num_left_out} more judged images are not shown.'
    return (
        f'<p class="note">{text} CAMs are those of the class that covers most of the CAM, before '
        'any threshold.</p>\n'
    )


def _draw_keys(runs: Sequence[CheckedRun]) -> str:
    keys = ''.join(f'<li>{_key(n)}{escape(run.name)}</li>' for n, run in enumerate(runs))
    return f'<ul class="keys">{keys}</ul>\n'


def _key(number: int) -> str:
    return f'<span class="key run{number}"></span>'


def _difference_name(runs: Sequence[CheckedRun]) -> str:
    return f'{escape(runs[0].name)} {MINUS} {escape(runs[1].name)}'


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _number(value: float, digits: int = 1) -> str:
    return UNKNOWN if math.isnan(value) else f'{value:.{digits}f}'


def _difference(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return UNKNOWN
    rounded = round(value, digits)
    if rounded == 0:
        return f'{0:.{digits}f}'
    kind = 'better' if rounded > 0 else 'worse'
    sign = '+' if rounded > 0 else MINUS
    return f'<span class="{kind}">{sign}{abs(rounded):.{digits}f}</span>'
