"""The results of a grid of two settings as one figure."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmdscnet.atomic_write import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From blue to yellow with rising lightness: read by colour-blind readers, and in grey print.
RAMP = 'cividis'
CENTRE: dict[str, Any] = dict(ha='center', va='center')
CELL = 0.72  # Side of a cell, in inches.


def draw_heat_map(
    path: str | os.PathLike[str],
    values: npt.ArrayLike,
    x: tuple[str, Sequence[str]],
    y: tuple[str, Sequence[str]],
    value_label: str,
    title: str = '',
    deviations: npt.ArrayLike | None = None,
) -> None:
    """Draw a value a cell over two settings as a PNG, each cell with its number.

    The best cell is framed, the first of equal ones; a cell without value is hatched.

    Args:
        path: PNG to write; missing parent folders are made.
        values: Value of each cell, NaN where there is none, shape (Y, X); the first row is drawn
            lowest.
        x: Label of the horizontal axis and of each column, X of them.
        y: Label of the vertical axis and of each row, Y of them.
        value_label: What the values are, beside the ramp.
        title: Text above the figure.
        deviations: Standard deviations, drawn smaller below the values where they are not NaN,
            shape (Y, X).

    Raises:
        ValueError: If shapes do not fit, or no value is finite.
    """
    cells, spreads = _checked_cells(values, deviations, (len(y[1]), len(x[1])))
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib.figure import Figure

    rows, columns = cells.shape
    size = (max(columns * CELL + 2.2, 4.2), max(rows * CELL + 1.3, 3.0))
    figure = Figure(figsize=size, dpi=200, layout='constrained')
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(cells), cmap=RAMP, origin='lower', aspect='equal')
    axes.set_xticks(range(columns), x[1])
    axes.set_yticks(range(rows), y[1])
    axes.set(xlabel=x[0], ylabel=y[0])
    axes.set_title(title, fontsize=11, pad=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # White rules between the cells.
    axes.set_xticks([column + 0.5 for column in range(columns - 1)], minor=True)
    axes.set_yticks([row + 0.5 for row in range(rows - 1)], minor=True)
    axes.grid(which='minor', color='white', lw=1.5)
    axes.tick_params(which='minor', length=0)
    _draw_numbers(axes, cells, spreads)
    _frame_best(axes, cells)
    bar = figure.colorbar(image, ax=axes, label=value_label, shrink=0.9)
    bar.outline.set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png')


def _checked_cells(
    values: npt.ArrayLike, deviations: npt.ArrayLike | None, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    cells = np.asarray(values, dtype=float)
    spreads = np.full(shape, np.nan) if deviations is None else np.asarray(deviations, dtype=float)
    for name, array in (('values', cells), ('deviations', spreads)):
        if array.shape != shape:
            raise ValueError(
                f'{name} of shape {array.shape} do not fit {shape[0]} rows and {shape[1]} columns: '
                'give one a cell'
            )
    if not np.isfinite(cells).any():
        raise ValueError(
            'values has no finite value, so there is nothing to draw: give one or more'
        )
    return cells, spreads


def _draw_numbers(axes: 'Axes', cells: np.ndarray, spreads: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    low, high = np.nanmin(cells), np.nanmax(cells)
    for (row, column), value in np.ndenumerate(cells):
        if not np.isfinite(value):
            box = Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fc='white', ec='0.75', hatch='///', lw=0
            )
            axes.add_patch(box)
            continue
        # The upper half of the ramp is light.
        colour = 'black' if value >= (low + high) / 2 else 'white'
        has_spread = np.isfinite(spreads[row, column])
        lift = 0.08 if has_spread else 0
        axes.text(column, row + lift, f'{value:.2f}', fontsize=10, color=colour, **CENTRE)
        if has_spread:
            text = f'± {spreads[row, column]:.2f}'
            axes.text(column, row - 0.2, text, fontsize=7, color=colour, **CENTRE)


def _frame_best(axes: 'Axes', cells: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    row, column = np.unravel_index(np.nanargmax(cells), cells.shape)
    corner = column - 0.5, row - 0.5
    # Black in white, to be seen on every colour and beside the edge.
    for width, colour in ((4.5, 'white'), (2.2, 'black')):
        axes.add_patch(
            Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width, zorder=3, clip_on=False)
        )
