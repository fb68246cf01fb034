"""The tables and figures of a study, from whatever of its runs is done."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

from mmdscnet.apis.study import Part, StudyRun
from mmdscnet.apis.study_run import RunFailure, RunResult, read_outcome
from mmdscnet.atomic_write import atomic_path
from mmdscnet.evaluation.seed_statistics import PairedDifference, pair_differences, spread
from mmdscnet.visualization import ArmInterval, draw_heat_map, draw_interval_chart

Outcomes = Mapping[str, RunResult | RunFailure | None]


class Measure(NamedTuple):
    """A number of a result that a part compares.

    Attributes:
        field: Its name in ``RunResult``.
        title: What it is, for headings.
        short: The same, for axes.
    """

    field: str
    title: str
    short: str


MEASURES = {
    'train': (
        Measure(
            'chosen_on', 'Images of val_dataloader, at the best threshold there', 'best threshold'
        ),
    ),
    'val': (
        Measure('labels_given', 'Images of test_dataloader, labels given', 'labels given'),
        Measure(
            'labels_predicted', 'Images of test_dataloader, labels predicted', 'labels predicted'
        ),
    ),
}


def run_folder(work_dir: Path, run: StudyRun) -> Path:
    """Name the folder of a run, which parts share where their configs are equal.

    Args:
        work_dir: Folder of the study.
        run: The run.

    Returns:
        The folder.
    """
    return work_dir / 'runs' / run.name


def weights_folder(work_dir: Path, run: StudyRun) -> Path | None:
    """Name the folder of the run whose weights a run judges.

    Args:
        work_dir: Folder of the study.
        run: The run.

    Returns:
        The folder; None of a run that trains its own weights.
    """
    return None if run.weights is None else work_dir / 'runs' / run.weights


def read_outcomes(
    parts: Iterable[Part], work_dir: Path
) -> dict[str, RunResult | RunFailure | None]:
    """Read what is done.

    Args:
        parts: Parts of the study.
        work_dir: Its folder.

    Returns:
        Outcome by name of the run.
    """
    runs = {run.name: run_folder(work_dir, run) for part in parts for run in part.runs}
    return {name: read_outcome(folder) for name, folder in runs.items()}


def write_study(parts: Sequence[Part], work_dir: Path, command: str) -> None:
    """Write ``tables.md``, ``results.csv`` and the figures.

    Args:
        parts: All parts of the study.
        work_dir: Its folder.
        command: The command line that made it, for the heading.
    """
    outcomes = read_outcomes(parts, work_dir)
    sections = [_describe_study(parts, outcomes, command)]
    for part in parts:
        figures = _draw_figures(part, outcomes, work_dir)
        sections.append(_describe_part(part, outcomes, figures))
    sections.append(_describe_origin(outcomes))
    with atomic_path(work_dir / 'tables.md') as temporary:
        temporary.write_text('\n\n'.join(sections) + '\n', encoding='utf-8')
    _write_csv(work_dir / 'results.csv', parts, outcomes)


def values_by_seed(part: Part, arm: str, field: str, outcomes: Outcomes) -> dict[int, float]:
    """Collect what an arm reached.

    Args:
        part: The part.
        arm: Name of the arm.
        field: Which number of ``RunResult``.
        outcomes: Outcome by name of the run.

    Returns:
        Value of each seed that is done.
    """
    results = {run.seed: outcomes[run.name] for run in part.runs if run.arm == arm}
    values = {
        seed: getattr(result, field)
        for seed, result in results.items()
        if isinstance(result, RunResult)
    }
    return {seed: value for seed, value in values.items() if value is not None}


def compare_arms(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> PairedDifference | None:
    """Compare an arm with the first, on the seeds that both have.

    Args:
        values: Value of each seed.
        reference: Those of the first arm.

    Returns:
        The difference; None if they share fewer than two seeds.
    """
    seeds = sorted(values.keys() & reference.keys())
    if len(seeds) < 2:
        return None
    return pair_differences([values[s] for s in seeds], [reference[s] for s in seeds])


def _describe_study(parts: Sequence[Part], outcomes: Outcomes, command: str) -> str:
    counts = Counter(type(outcome) for outcome in outcomes.values())
    now = datetime.now(timezone.utc).isoformat(timespec='minutes')
    return (
        f'# Study of {len(parts)} parts\n\n`{command}`\n\n'
        f'{counts[RunResult]} of {len(outcomes)} different runs are done, {counts[RunFailure]} '
        f'failed, {counts[type(None)]} are missing (written {now}). mIoU in per cent, mean ± '
        'sample standard deviation over the seeds; differences are paired by seed, with their 95 % '
        "confidence interval by Student's t."
    )


def _describe_part(part: Part, outcomes: Outcomes, figures: Mapping[str, list[str]]) -> str:
    options = ', '.join(f'`{key}={value}`' for key, value in part.options.items())
    lines = [
        f'## {part.name}: {part.title}',
        f'Base `{part.base}`, seeds {", ".join(map(str, part.seeds))}'
        + (f'; {options} for all arms.' if options else '.'),
    ]
    if not any(outcomes[run.name] for run in part.runs):
        return '\n\n'.join([*lines, 'No run yet.'])
    for measure in MEASURES[part.judge]:
        lines.append(f'### {measure.title}')
        lines.append(_draw_table(part, measure, outcomes))
        lines += [f'![{part.title}]({name})' for name in figures[measure.field]]
    lines += _describe_failures(part, outcomes)
    return '\n\n'.join(lines)


def _draw_table(part: Part, measure: Measure, outcomes: Outcomes) -> str:
    first = next(iter(part.arms))
    reference = values_by_seed(part, first, measure.field, outcomes)
    rows = [
        f'| arm | mIoU (%) | minus {first} [95 %] | runs | each seed | bg_thr | seconds training |',
        '|---|---|---|---|---|---|---|',
    ]
    for arm in part.arms:
        values = values_by_seed(part, arm, measure.field, outcomes)
        thresholds = values_by_seed(part, arm, 'bg_thr', outcomes)
        seconds = values_by_seed(part, arm, 'seconds_training', outcomes)
        cells = [
            arm,
            spread(list(values.values())) if values else '',
            '' if arm == first else _spell_difference(values, reference),
            _count_runs(part, arm, outcomes),
            _spell_seeds(part, values, '.2f'),
            _spell_seeds(part, thresholds, '.2f'),
            _spell_seeds(part, seconds, '.0f'),
        ]
        rows.append(f'| {" | ".join(cells)} |')
    return '\n'.join(rows)


def _spell_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    difference = compare_arms(values, reference)
    if difference is None:
        return ''
    return f'{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]'


def _spell_seeds(part: Part, values: Mapping[int, float], form: str) -> str:
    return ', '.join(f'{values[s]:{form}}' if s in values else '-' for s in part.seeds)


def _count_runs(part: Part, arm: str, outcomes: Outcomes) -> str:
    done = [outcomes[run.name] for run in part.runs if run.arm == arm]
    failed = sum(isinstance(outcome, RunFailure) for outcome in done)
    text = f'{sum(isinstance(outcome, RunResult) for outcome in done)}/{len(done)}'
    return f'{text}, {failed} failed' if failed else text


def _describe_failures(part: Part, outcomes: Outcomes) -> list[str]:
    failures = []
    for run in part.runs:
        outcome = outcomes[run.name]
        if isinstance(outcome, RunFailure):
            failures.append(f'Failed: {run.place} (runs/{run.name}):\n\n```\n{outcome.error}\n```')
    return failures


def _describe_origin(outcomes: Outcomes) -> str:
    results = [outcome for outcome in outcomes.values() if isinstance(outcome, RunResult)]
    origins: dict[tuple, list[str]] = {}
    for result in results:
        key = (result.mmdscnet, result.commit, result.torch, result.machine, result.threads)
        origins.setdefault(key, []).append(result.date)
    rows = [
        '| mmdscnet | commit | torch | machine | threads | runs | from | to |',
        '|---|---|---|---|---|---|---|---|',
    ]
    rows += [
        f'| {" | ".join(map(str, key))} | {len(dates)} | {min(dates)} | {max(dates)} |'
        for key, dates in origins.items()
    ]
    return '## What the runs were made by\n\n' + '\n'.join(rows)


def _write_csv(path: Path, parts: Sequence[Part], outcomes: Outcomes) -> None:
    header = ['part', 'arm', 'seed', 'judge', 'run', 'status', *RunResult._fields, 'error']
    with atomic_path(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for part in parts:
            for run in part.runs:
                outcome = outcomes[run.name]
                status = {RunResult: 'done', RunFailure: 'failed'}.get(type(outcome), 'missing')
                own = dict(part=part.name, arm=run.arm, seed=run.seed, judge=part.judge)
                own |= dict(run=run.name, status=status)
                writer.writerow((outcome._asdict() if outcome else {}) | own)


def _draw_figures(part: Part, outcomes: Outcomes, work_dir: Path) -> dict[str, list[str]]:
    drawn: dict[str, list[str]] = {}
    for measure in MEASURES[part.judge]:
        name = f'{part.name}_{measure.field}.png'
        path = work_dir / name
        is_drawn = (
            _draw_grid(part, measure, outcomes, path)
            if part.grid
            else _draw_intervals(part, measure, outcomes, path)
        )
        drawn[measure.field] = [name] if is_drawn else []
    return drawn


def _draw_intervals(part: Part, measure: Measure, outcomes: Outcomes, path: Path) -> bool:
    first = next(iter(part.arms))
    reference = values_by_seed(part, first, measure.field, outcomes)
    intervals = []
    for arm in list(part.arms)[1:]:
        values = values_by_seed(part, arm, measure.field, outcomes)
        difference = compare_arms(values, reference)
        if difference is not None:
            shared = sorted(values.keys() & reference.keys())
            each = [values[seed] - reference[seed] for seed in shared]
            intervals.append(ArmInterval(arm, *difference, each))
    if intervals:
        label = f'mIoU minus that of {first} (points), {measure.short}'
        draw_interval_chart(path, intervals, label, part.title)
    return bool(intervals)


def _draw_grid(part: Part, measure: Measure, outcomes: Outcomes, path: Path) -> bool:
    assert part.grid is not None
    x, y = part.grid
    runs = [values_by_seed(part, arm, measure.field, outcomes) for arm in part.arms]
    seeds = [list(values.values()) for values in runs]
    means = np.array([mean(values) if values else np.nan for values in seeds])
    deviations = np.array([stdev(values) if len(values) > 1 else np.nan for values in seeds])
    shape = len(y.values), len(x.values)
    if np.isnan(means).all():
        return False
    draw_heat_map(
        path,
        np.reshape(means, shape),
        (x.label, [str(value) for value in x.values]),
        (y.label, [str(value) for value in y.values]),
        f'mIoU (%), {measure.short}',
        part.title,
        np.reshape(deviations, shape),
    )
    return True
