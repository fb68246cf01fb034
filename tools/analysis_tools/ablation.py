"""Run a study: many configs over several seeds, judged by one protocol, as tables and figures.

The study file is a config of mmengine with `parts`, a dict by name. A part has

    title            its heading
    base             a config, seen from the folder of the study file
    seeds            two or more
    judge            'train': best mIoU on the images of val_dataloader, on which thresholds are
                     chosen; 'val': a threshold chosen there is judged on test_dataloader, with
                     labels given and with labels predicted
    arms             what each arm changes, by its name: a dict of dotted keys, whose values may be
                     dicts (with _delete_=True to replace what the base has), lists or None; `base`
                     gives an arm a base of its own, and `weights_of` names another arm whose
                     weights it judges in its own way, without a training. The first arm is what the
                     others are compared with, seed by seed.
    grid             in place of arms: dict(x=(label, key, values), y=(label, key, values))
    options          dotted keys that all arms change (optional)
    keep_checkpoints the last checkpoint of which runs stays: 'all', 'first_seed' or 'none'
                     (optional; 'first_seed' for judge='train', 'all' for judge='val')

Runs lie in DIR/runs, and equal configs are run once. A run that is done is not run again; one that
was interrupted goes on from its checkpoint, and one that failed is tried again. DIR/PART/ARM/seed_N
keeps the config, and another config is refused there. Configs name their data as seen from the
current folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet  # noqa: F401
from mmdscnet.apis.kept_config import keep_config
from mmdscnet.apis.study import Part, StudyRun, read_study, select_parts
from mmdscnet.apis.study_processes import run_tasks
from mmdscnet.apis.study_run import RunFailure, RunResult, RunTask, read_outcome
from mmdscnet.apis.study_tables import MEASURES, run_folder, weights_folder, write_study
from mmdscnet.provenance import describe_code


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='the study file')
    parser.add_argument('--work-dir', type=Path, required=True, metavar='DIR')
    parser.add_argument('--only', nargs='+', metavar='PART', help='run these parts only')
    parser.add_argument('--jobs', type=int, default=2, help='processes; 0 to work in this one')
    parser.add_argument(
        '--tables-only', action='store_true', help='run nothing, write tables of what is done'
    )
    return parser.parse_args()


def plan_tasks(parts: Sequence[Part], study: Sequence[Part], work_dir: Path) -> list[RunTask]:
    """List the runs that are still to be done.

    Args:
        parts: Parts to run.
        study: All parts of the study.
        work_dir: Folder of the study.

    Returns:
        Each different run once, in the order of the study; it is judged if one of the parts to
        run wants so, and keeps its checkpoint if any part does.
    """
    code = describe_code()
    kept = {run.name for part in study for run in part.runs if run.keeps_checkpoint}
    kept |= {run.weights for part in study for run in part.runs if run.weights}
    sharing: dict[str, list[tuple[Part, StudyRun]]] = {}
    for part in parts:
        for run in part.runs:
            sharing.setdefault(run.name, []).append((part, run))
    tasks = [
        RunTask(
            folder=run_folder(work_dir.resolve(), users[0][1]),
            cfg=users[0][1].cfg,
            text=users[0][1].text,
            is_judged=any(part.judge == 'val' for part, _ in users),
            keeps_checkpoint=name in kept,
            code=code,
            weights=weights_folder(work_dir.resolve(), users[0][1]),
        )
        for name, users in sharing.items()
    ]
    return [task for task in tasks if is_to_do(task)]


def order_by_weights(tasks: Sequence[RunTask]) -> list[list[RunTask]]:
    """Separate the runs that train from those that judge the weights of others, in this order."""
    waves = [[t for t in tasks if t.weights is None], [t for t in tasks if t.weights is not None]]
    return [wave for wave in waves if wave]


def is_to_do(task: RunTask) -> bool:
    """Tell whether a run lacks what is asked of it."""
    outcome = read_outcome(task.folder)
    if not isinstance(outcome, RunResult):
        return True
    return task.is_judged and outcome.labels_given is None


def run_study(
    parts: Sequence[Part], study: Sequence[Part], work_dir: Path, num_processes: int
) -> None:
    """Do all runs that are to be done, and tell of each.

    Args:
        parts: Parts to run.
        study: All parts of the study.
        work_dir: Folder of the study.
        num_processes: Number of processes; 0 to work in this one.
    """
    for part in parts:
        for run in part.runs:
            keep_config(work_dir / run.place / 'config.txt', run.text)
    tasks = plan_tasks(parts, study, work_dir)
    places = {
        run_folder(work_dir.resolve(), run): run.place
        for part in reversed(parts)
        for run in reversed(part.runs)
    }
    print(f'{len(places) - len(tasks)} runs are done, {len(tasks)} to do', flush=True)
    outcomes = (run for wave in order_by_weights(tasks) for run in run_tasks(wave, num_processes))
    for number, (task, outcome) in enumerate(outcomes, 1):
        print(f'[{number}/{len(tasks)}] {places[task.folder]}: {tell(task, outcome)}', flush=True)


def tell(task: RunTask, outcome: RunResult | RunFailure) -> str:
    """Describe the outcome of a run in a line."""
    if isinstance(outcome, RunFailure):
        return f'failed, {outcome.error.splitlines()[-1]} (see {task.folder / "failure.json"})'
    measures = MEASURES['val' if task.is_judged else 'train']
    scores = ', '.join(f'{m.short} {getattr(outcome, m.field):.2f}' for m in measures)
    return f'{scores} ({outcome.seconds_training:.0f} + {outcome.seconds_judging:.0f} s)'


def list_failures(parts: Sequence[Part], work_dir: Path) -> list[str]:
    """List the runs that failed, as places with the last line of the error."""
    failures = []
    for part in parts:
        for run in part.runs:
            outcome = read_outcome(run_folder(work_dir, run))
            if isinstance(outcome, RunFailure):
                failures.append(f'{run.place}: {outcome.error.splitlines()[-1]}')
    return failures


def main() -> None:
    """Run the study.

    Raises:
        ValueError: If another command is at work in the folder.
    """
    args = parse_args()
    parts = read_study(args.study)
    chosen = select_parts(parts, args.only)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if not args.tables_only:
        try:
            with FileLock(args.work_dir / '.lock', timeout=0):
                run_study(chosen, parts, args.work_dir, args.jobs)
        except Timeout as error:
            raise ValueError(
                f'{args.work_dir} is being worked in by another ablation.py: wait for its end, or '
                'give another --work-dir'
            ) from error
    command = f'python tools/analysis_tools/ablation.py {args.study} --work-dir {args.work_dir}'
    write_study(parts, args.work_dir, command)
    print(f'{args.work_dir / "tables.md"} is written')
    if failures := list_failures(chosen, args.work_dir):
        sys.exit('\n'.join([f'{len(failures)} runs failed:', *failures]))


if __name__ == '__main__':
    main()
