"""A line chart as SVG within a page: real text, and colours that the page's style decides.

The classes that the style colours: ``run0``, ``run1``, ... on lines and marks, ``grid`` and
``axis`` on rules; text takes the colour of the page.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEFT, RIGHT, TOP, BOTTOM = 54, 20, 8, 38  # Margins, in units of the drawing.
LINE = 18  # Height of a line of text, likewise.


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        run: Number of the run, which decides the colour.
        x: Ascending positions, shape (N,).
        y: Values; one that is not finite is a gap, shape (N,).
        best: Position of the dot on the line; None for no dot.
        chosen: Position of the hollow square on the line; None for no square.
    """

    run: int
    x: np.ndarray
    y: np.ndarray
    best: float | None = None
    chosen: float | None = None


class _Scale(NamedTuple):
    """From values to places: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def place(self, values: npt.ArrayLike) -> np.ndarray:
        share = (np.asarray(values, dtype=float) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def draw_line_chart(
    lines: Sequence[Line],
    label: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int],
    from_zero: bool = False,
) -> str:
    """Draw lines over a common axis.

    Args:
        lines: The lines, the last on top.
        label: What the chart shows, for readers who do not see it.
        x_label: Text under the axis of positions.
        y_label: Text above the axis of values.
        size: Width and height of the drawing; the page scales it.
        from_zero: Let the axis of values begin at zero.

    Returns:
        An ``<svg>`` element; its text is escaped.
    """
    width, height = size
    across = _Scale(*_span([line.x for line in lines]), LEFT, width - RIGHT)
    low, high = _span([line.y for line in lines])
    low, high = (0.0 if from_zero else low), high + 0.06 * (high - low)
    up = _Scale(low, high, height - BOTTOM, TOP + LINE if y_label else TOP)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">',
        *_draw_axes(across, up),
        f'<text x="{width - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>',
        f'<text x="4" y="12">{escape(y_label)}</text>',
        *(_draw_line(line, across, up) for line in lines),
        *(_draw_marks(line, across, up) for line in lines),
        '</svg>',
    ]
    if not any(np.isfinite(line.y).any() for line in lines):
        middle = f'x="{(LEFT + width - RIGHT) / 2}" y="{height / 2}"'
        parts.insert(-1, f'<text {middle} text-anchor="middle">no finite value</text>')
    return ''.join(parts)


def _span(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([np.asarray(array, dtype=float) for array in arrays])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _draw_axes(across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for tick in _ticks(up):
        y = float(up.place(tick))
        parts.append(f'<path class="grid" d="M{across.start} {y:.1f}H{across.end}"/>')
        parts.append(_draw_tick(tick, across.start - 9, y + 4, 'end'))
    for tick in _ticks(across):
        x = float(across.place(tick))
        parts.append(f'<path class="axis" d="M{x:.1f} {up.start}v4"/>')
        parts.append(_draw_tick(tick, x, up.start + 17, 'middle'))
    parts.append(f'<path class="axis" d="M{across.start} {up.start}H{across.end}"/>')
    return parts


def _ticks(scale: _Scale) -> np.ndarray:
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    ticks = np.asarray(locator.tick_values(scale.low, scale.high))
    # The locator rounds outwards; and what is left of zero is rounding.
    ticks = np.where(np.abs(ticks) < 1e-9 * (scale.high - scale.low), 0, ticks)
    return ticks[(ticks >= scale.low) & (ticks <= scale.high)]


def _draw_tick(tick: float, x: float, y: float, anchor: str) -> str:
    text = f'{tick:.6g}'.replace('e+0', 'e').replace('e-0', 'e-')
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _draw_line(line: Line, across: _Scale, up: _Scale) -> str:
    known = np.flatnonzero(np.isfinite(line.y))
    pieces = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    drawn = []
    for piece in pieces:
        xs, ys = across.place(line.x[piece]), up.place(line.y[piece])
        if len(piece) > 1:
            points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in zip(xs, ys, strict=True))
            drawn.append(f'<polyline class="line run{line.run}" points="{points}"/>')
        elif len(piece) == 1:
            dot = f'<circle class="dot run{line.run}" cx="{xs[0]:.1f}" cy="{ys[0]:.1f}" r="2"/>'
            drawn.append(dot)
    return ''.join(drawn)


def _draw_marks(line: Line, across: _Scale, up: _Scale) -> str:
    drawn = []
    if line.best is not None:
        x, y = across.place(line.best), up.place(np.interp(line.best, line.x, line.y))
        drawn.append(f'<circle class="dot run{line.run}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    if line.chosen is not None:
        x, y = across.place(line.chosen), up.place(np.interp(line.chosen, line.x, line.y))
        drawn.append(
            f'<rect class="square run{line.run}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" '
            'height="10"/>'
        )
    return ''.join(drawn)
