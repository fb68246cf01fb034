"""What a report tells of a run, and the checks before it does."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class ReportRun(NamedTuple):
    """What the report tells of one run.

    Attributes:
        name: Name of the run, as 'M4'.
        facts: What there is to know of it, as text by name: config, commit, seed, labels given or
            predicted, the split that chose the threshold.
        losses: Steps, not descending, and values of each loss by its name; a value that is not
            finite is drawn as a gap. May be empty.
        thresholds: Ascending background thresholds, shape (T,).
        mean_iou: Mean IoU at each threshold in per cent, shape (T,).
        chosen_thr: Threshold that another split has chosen, within ``thresholds``.
        iou: IoU of each class at ``chosen_thr`` in per cent, NaN for a class that does not occur,
            shape (C,).
        false_positive: Pixels that are wrongly this class, in per cent of the union of truth and
            label (``iou``, ``false_positive`` and ``false_negative`` sum to 100), shape (C,).
        false_negative: Pixels of this class that were missed, likewise.
    """

    name: str
    facts: Mapping[str, str]
    losses: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
    thresholds: npt.ArrayLike
    mean_iou: npt.ArrayLike
    chosen_thr: float
    iou: npt.ArrayLike
    false_positive: npt.ArrayLike | None = None
    false_negative: npt.ArrayLike | None = None


class CheckedRun(NamedTuple):
    """A run whose arrays fit each other and the classes.

    Attributes:
        name: As in :class:`ReportRun`, like ``facts``.
        losses: Steps and values of each loss, NaN for what was not finite, by its name.
        thresholds: Shape (T,), as ``mean_iou``.
        iou: Shape (C,).
        errors: ``false_positive`` and ``false_negative``, each of shape (C,); None where not given.
    """

    name: str
    facts: Mapping[str, str]
    losses: dict[str, tuple[np.ndarray, np.ndarray]]
    thresholds: np.ndarray
    mean_iou: np.ndarray
    chosen_thr: float
    iou: np.ndarray
    errors: tuple[np.ndarray, np.ndarray] | None


def check_runs(runs: Sequence[ReportRun], num_classes: int) -> list[CheckedRun]:
    """Refuse runs that cannot be reported.

    Args:
        runs: The run that is reported and, if wanted, one that it is compared with.
        num_classes: Number of classes, background included.

    Returns:
        The runs, in arrays.

    Raises:
        ValueError: If there are not one or two runs of different names, or a run's arrays do not
            fit each other, the classes or their range. Losses need not be finite.
    """
    if not 1 <= len(runs) <= 2:
        raise ValueError(
            f'runs has {len(runs)} runs: give the run to report, and at most one to compare with'
        )
    checked = [_check_run(run, num_classes) for run in runs]
    if len(checked) == 2 and checked[0].name == checked[1].name:
        raise ValueError(f'both runs are named {checked[0].name!r}; give each a name of its own')
    return checked


def _check_run(run: ReportRun, num_classes: int) -> CheckedRun:
    thresholds, mean_iou = np.asarray(run.thresholds, float), np.asarray(run.mean_iou, float)
    if thresholds.ndim != 1 or thresholds.size == 0 or not (np.diff(thresholds) > 0).all():
        raise ValueError(
            f'{run.name}: thresholds of shape {thresholds.shape} do not ascend; give a sorted list'
        )
    if mean_iou.shape != thresholds.shape:
        raise ValueError(
            f'{run.name}: mean_iou has shape {mean_iou.shape}, thresholds {thresholds.shape}; give '
            'one a threshold'
        )
    if not np.isfinite(mean_iou).all():
        raise ValueError(f'{run.name}: mean_iou has values that are not finite; judge it again')
    slack = 1e-6  # Thresholds are often float32, a chosen one is a literal.
    if not thresholds[0] - slack <= run.chosen_thr <= thresholds[-1] + slack:
        raise ValueError(
            f'{run.name}: chosen_thr {run.chosen_thr} is outside the thresholds '
            f'{thresholds[0]:.4g} to {thresholds[-1]:.4g}; sweep a range that holds it'
        )
    losses = {name: _check_loss(run.name, name, *loss) for name, loss in run.losses.items()}
    iou = _check_shares(run.iou, f'{run.name}: iou', num_classes)
    errors = _check_errors(run, iou)
    return CheckedRun(
        run.name, run.facts, losses, thresholds, mean_iou, float(run.chosen_thr), iou, errors
    )


def _check_loss(
    run: str, name: str, steps: npt.ArrayLike, values: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f'{run}: loss {name!r} has values of shape {y.shape} at steps of shape {x.shape}; give '
            'one value a step'
        )
    # Written so that NaN fails too.
    if not (np.isfinite(x).all() and (np.diff(x) >= 0).all()):
        raise ValueError(f'{run}: loss {name!r} has steps that descend or are not finite; sort it')
    return x, np.where(np.isfinite(y), y, np.nan)


def _check_shares(shares: npt.ArrayLike, name: str, num_classes: int) -> np.ndarray:
    values = np.asarray(shares, float)
    if values.shape != (num_classes,):
        raise ValueError(
            f'{name} has shape {values.shape} for {num_classes} classes; give one value a class, '
            'background included'
        )
    if ((values < 0) | (values > 100)).any() or np.isinf(values).any():
        raise ValueError(f'{name} has values outside [0, 100]: {values.tolist()}; give per cent')
    return values


def _check_errors(run: ReportRun, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    if run.false_positive is None and run.false_negative is None:
        return None
    if run.false_positive is None or run.false_negative is None:
        raise ValueError(f'{run.name}: give false_positive and false_negative, or neither')
    positive = _check_shares(run.false_positive, f'{run.name}: false_positive', iou.size)
    negative = _check_shares(run.false_negative, f'{run.name}: false_negative', iou.size)
    total = iou + positive + negative
    # Written so that NaN fails too, except for a class that does not occur.
    wrong = ~(np.abs(total - 100) <= 0.5) & ~np.isnan(iou)
    if wrong.any():
        raise ValueError(
            f'{run.name}: iou, false_positive and false_negative sum to {total[wrong].tolist()}, '
            'not 100; give all three in per cent of the union'
        )
    return positive, negative
