"""Differences with their confidence intervals as one figure."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmdscnet.atomic_write import atomic_path
from mmdscnet.visualization.threshold_curve import RUN_COLOURS

BESIDE: dict[str, Any] = dict(xycoords=('axes fraction', 'data'), annotation_clip=False)
ROW = 0.36  # Height of a row, in inches.


class ArmInterval(NamedTuple):
    """One row of the chart.

    Attributes:
        name: Text beside the row.
        mean: Mean difference.
        low: Lower end of its interval.
        high: Its upper end.
        each: The differences that it is the mean of.
    """

    name: str
    mean: float
    low: float
    high: float
    each: Sequence[float] = ()


def draw_interval_chart(
    path: str | os.PathLike[str], intervals: Sequence[ArmInterval], label: str, title: str = ''
) -> None:
    """Draw a dot with its interval a row over a line at zero, as a PNG.

    A filled dot has an interval that leaves zero out, a hollow one holds it. Small ticks are the
    differences one by one.

    Args:
        path: PNG to write; missing parent folders are made.
        intervals: The rows, from the top.
        label: Text under the axis.
        title: Text above the figure.

    Raises:
        ValueError: If there is no row, or one has numbers that are not finite or not in order.
    """
    _check_intervals(intervals)
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib.figure import Figure

    size = (7.2, max(1.5 + ROW * len(intervals), 2.2))
    figure = Figure(figsize=size, dpi=200, layout='constrained')
    axes = figure.add_subplot()
    colour = RUN_COLOURS[0]
    for row, arm in enumerate(intervals):
        holds_zero = arm.low <= 0 <= arm.high
        axes.plot([arm.low, arm.high], [row, row], color=colour, lw=1.8, solid_capstyle='butt')
        axes.plot([arm.low, arm.high], [row, row], '|', color=colour, ms=8, mew=1.8)
        axes.plot(arm.each, [row] * len(arm.each), '|', color='0.25', ms=13, mew=0.9, zorder=3)
        fill = 'white' if holds_zero else colour
        axes.plot(arm.mean, row, 'o', color=colour, mfc=fill, mew=1.8, ms=7, zorder=4)
        text = f'{arm.mean:+.2f}  [{arm.low:+.2f}, {arm.high:+.2f}]'.replace('-', '\N{MINUS SIGN}')
        axes.annotate(text, (1.02, row), va='center', fontsize=9, **BESIDE)
    axes.axvline(0, color='black', lw=1, zorder=0)
    axes.set_yticks(range(len(intervals)), [arm.name for arm in intervals])
    axes.set_ylim(len(intervals) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=11, loc='left', pad=10)
    axes.grid(axis='x', color='0.9')
    axes.set_axisbelow(True)
    axes.tick_params(axis='y', length=0)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png')


def _check_intervals(intervals: Sequence[ArmInterval]) -> None:
    if not intervals:
        raise ValueError('intervals is empty: give at least one row')
    for arm in intervals:
        numbers = (arm.low, arm.mean, arm.high, *arm.each)
        if not all(map(math.isfinite, numbers)) or not arm.low <= arm.mean <= arm.high:
            raise ValueError(
                f'{arm.name} runs from {arm.low} over {arm.mean} to {arm.high}: give finite '
                'numbers in this order'
            )
