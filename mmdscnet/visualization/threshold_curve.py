"""The threshold sweep of several runs as one figure."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmdscnet.atomic_write import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by colour-blind readers too.
RUN_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


def draw_threshold_curve(
    path: str | os.PathLike[str],
    curves: Mapping[str, npt.ArrayLike],
    thresholds: npt.ArrayLike,
    chosen: Mapping[str, float] | None = None,
) -> None:
    """Draw mIoU over the background threshold, one line a run, as a PNG.

    A dot marks a run's best threshold; the legend names it and its mIoU. A hollow square marks the
    threshold that was chosen elsewhere: the distance to the dot is the price of an honest choice.

    Args:
        path: PNG to write; missing parent folders are made.
        curves: mIoU in per cent at each threshold by name of the run, each of shape (T,).
        thresholds: Ascending background thresholds, shape (T,).
        chosen: Threshold chosen elsewhere by name of the run, for any of the runs.

    Raises:
        ValueError: If there is no curve, one does not fit the thresholds or is not finite, or
            ``chosen`` names a run without curve.
    """
    positions, lines = _checked_curves(curves, thresholds, chosen or {})
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib.figure import Figure

    # Figure without pyplot: no global backend to set, no window, nothing to close.
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(lines.items()):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        _draw_run(axes, name, positions, values, (chosen or {}).get(name), colour)
    axes.set(xlabel='background threshold', ylabel='mIoU (%)')
    axes.set_xlim(positions[0], positions[-1])
    axes.set_ylim(bottom=0)
    axes.margins(y=0.08)
    axes.grid(color='0.9')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, loc='best')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png')


def _draw_run(
    axes: 'Axes',
    name: str,
    positions: np.ndarray,
    values: np.ndarray,
    chosen: float | None,
    colour: str,
) -> None:
    best = int(values.argmax())
    label = f'{name}: best {values[best]:.2f} at {positions[best]:.2f}'
    if chosen is not None:
        at_chosen = float(np.interp(chosen, positions, values))
        label += f', {at_chosen:.2f} at given {chosen:.2f}'
        axes.plot(chosen, at_chosen, 's', color=colour, mfc='white', ms=7, zorder=4)
    axes.plot(positions, values, color=colour, lw=1.8, label=label)
    axes.plot(positions[best], values[best], 'o', color=colour, ms=6, mec='white', zorder=5)


def _checked_curves(
    curves: Mapping[str, npt.ArrayLike], thresholds: npt.ArrayLike, chosen: Mapping[str, float]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    positions = np.asarray(thresholds, dtype=float)
    lines = {name: np.asarray(values, dtype=float) for name, values in curves.items()}
    if not lines:
        raise ValueError('curves is empty: give the curve of at least one run')
    for name, values in lines.items():
        if values.shape != positions.shape or values.ndim != 1 or values.size == 0:
            raise ValueError(
                f'curve {name!r} has shape {values.shape}, thresholds {positions.shape}; give one '
                'mIoU a threshold'
            )
        if not np.isfinite(values).all():
            raise ValueError(f'curve {name!r} has values that are not finite; evaluate it again')
    unknown: Sequence[str] = sorted(set(chosen) - set(lines))
    if unknown:
        raise ValueError(f'chosen names {unknown}, but the curves are those of {list(lines)}')
    return positions, lines
