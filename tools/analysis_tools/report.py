"""Write the report of a training run: one HTML file to look at.

The background threshold is chosen on the images of val_dataloader and judged on those of
test_dataloader, in one view. The gallery shows the worst images. A second run may be laid beside.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config, DictAction

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import mmdscnet
from mmdscnet.apis import load_model
from mmdscnet.apis.run_report import (
    CountedImages,
    RunScores,
    build_judged_split,
    count_images,
    require_cam_model,
    score_run,
    show_images,
)
from mmdscnet.inference import check_model, list_image_ids
from mmdscnet.launch import join_ranks, read_run_config
from mmdscnet.pseudo_labels import hash_file
from mmdscnet.visualization import ReportRun, write_report

# After mmdscnet, which mends what mmseg imports.
from mmseg.datasets import BaseSegDataset  # isort: skip
from mmseg.models.segmentors import EncoderDecoder  # isort: skip

SPLITS = ('val', 'test')


class Run(NamedTuple):
    """A run that is read and not yet judged.

    Attributes:
        name: How the report calls it.
        config: File of its config.
        cfg: Its config.
        checkpoint: File of its weights.
        losses: As in ``ReportRun``.
        model: Its model.
        images: Images by split, ``val`` and ``test``.
    """

    name: str
    config: Path
    cfg: Config
    checkpoint: Path
    losses: dict[str, tuple[list[int], list[float]]]
    model: EncoderDecoder
    images: dict[str, BaseSegDataset]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', type=Path, help='work dir of tools/train.py')
    parser.add_argument('--against', type=Path, metavar='RUN', help='a run to compare with')
    parser.add_argument('--out', type=Path, help='default: report.html in the work dir')
    parser.add_argument('--checkpoint', type=Path, help='default: the newest of the run')
    parser.add_argument('--against-checkpoint', type=Path, help='the same of the other run')
    parser.add_argument('--images', type=int, default=60, help='in the gallery, the worst')
    parser.add_argument(
        '--labels',
        choices=['given', 'predicted'],
        default='given',
        help='given: image-level labels are told where the data set has them',
    )
    parser.add_argument('--names', nargs='+', help='of the runs; default: names of the folders')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.images < 0:
        parser.error(f'--images {args.images} must be at least 0')
    if args.against_checkpoint and not args.against:
        parser.error('--against-checkpoint needs --against')
    return args


def name_runs(folders: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """Name the runs.

    Args:
        folders: Their work dirs.
        names: Names of the caller's; None for those of the folders.

    Returns:
        A name a run.

    Raises:
        ValueError: If the names are not one a run, or equal.
    """
    chosen = list(names or [folder.resolve().name for folder in folders])
    if names is None and len(set(chosen)) < len(chosen):
        chosen = [str(folder) for folder in folders]
    if len(chosen) != len(folders) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f'the names {chosen} do not tell {len(folders)} runs apart: give --names, one a run'
        )
    return chosen


def find_config(folder: Path) -> Path:
    """Find the config that training wrote to its work dir.

    Args:
        folder: The work dir.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such folder, or no config in it.
        ValueError: If there are several.
    """
    found = sorted(folder.glob('*.py'))
    if not found:
        raise FileNotFoundError(
            f'{folder} has no config (*.py): give the work dir of a training by tools/train.py, '
            'which writes its config there'
        )
    if len(found) > 1:
        raise ValueError(
            f'{folder} has several configs, {[path.name for path in found]}: move all but that of '
            'the run to report to another folder'
        )
    return found[0]


def find_checkpoint(folder: Path) -> Path:
    """Find the newest checkpoint of a work dir.

    Args:
        folder: The work dir, which may have been moved since the training.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is none.
    """
    note = folder / 'last_checkpoint'
    if not note.is_file():
        raise FileNotFoundError(
            f'{folder} has no file last_checkpoint: train to the first checkpoint, or give '
            '--checkpoint (--against-checkpoint)'
        )
    noted = Path(note.read_text().strip())
    # The note names the folder of the training; a copy of the work dir has its own file.
    for path in (folder / noted.name, noted):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f'{note} names {noted}, which is neither there nor in {folder}: copy it there, or give '
        '--checkpoint (--against-checkpoint)'
    )


def read_losses(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the losses of a training, joined where it was resumed.

    Args:
        folder: The work dir.

    Returns:
        Steps, ascending, and values of each loss by its name; empty where nothing was logged.
    """
    rows: dict[int, dict[str, float]] = {}
    # The folders are named after the time of their start.
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        new = read_loss_rows(path)
        # What was trained after the checkpoint that was resumed does not belong to the run.
        rows = {step: row for step, row in rows.items() if step < min(new, default=step + 1)}
        rows.update(new)
    losses: dict[str, tuple[list[int], list[float]]] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            steps, values = losses.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return losses


def read_loss_rows(path: Path) -> dict[int, dict[str, float]]:
    """Read the losses of one log.

    Args:
        path: JSON lines.

    Returns:
        Losses by name, by step; of lines of one step the last.
    """
    rows = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # Cut off when the training was killed.
        losses = {name: row[name] for name in row if name.startswith('loss') or 'loss_' in name}
        if losses and 'step' in row:
            rows[row['step']] = losses
    return rows


def read_run(
    folder: Path,
    name: str,
    checkpoint: Path | None,
    labels: str,
    options: Mapping[str, Any] | None,
) -> Run:
    """Read a run and check that it can be judged.

    Args:
        folder: Its work dir.
        name: How the report calls it.
        checkpoint: Its weights; None for the newest of the work dir.
        labels: ``given`` or ``predicted``.
        options: Keys of the config to overwrite.

    Returns:
        The run.

    Raises:
        FileNotFoundError: If its config or checkpoint is missing.
        ValueError: If it has several configs, no CAMs or no masks, or chooses the threshold on
            images that it is judged on.
    """
    config = find_config(folder)
    cfg = read_run_config(str(config), str(folder), options)
    checkpoint = checkpoint or find_checkpoint(folder)
    model = require_cam_model(load_model(cfg, str(checkpoint), join_ranks(cfg)))
    images = {split: build_judged_split(cfg, split, labels) for split in SPLITS}
    for dataset in images.values():
        check_model(model, dataset)
    val, test = (set(list_image_ids(images[split])) for split in SPLITS)
    if val & test:
        raise ValueError(
            f'{config}: {len(val & test)} images are in val_dataloader and in test_dataloader, '
            f'such as {min(val & test)!r}: choose the threshold on other images than those judged'
        )
    return Run(name, config, cfg, checkpoint, read_losses(folder), model, images)


def check_same_images(runs: Sequence[Run]) -> None:
    """Refuse to compare runs that are judged on different images or classes.

    Args:
        runs: One run or two.

    Raises:
        ValueError: If the judged images or the classes differ.
    """
    first, other = runs[0].images['test'], runs[-1].images['test']
    if tuple(first.metainfo['classes']) != tuple(other.metainfo['classes']):
        raise ValueError(
            f'the runs have different classes, {first.metainfo["classes"]} and '
            f'{other.metainfo["classes"]}: compare runs on one data set'
        )
    if list_image_ids(first) != list_image_ids(other):
        raise ValueError(
            f'the runs are judged on different images ({len(first)} and {len(other)}): point '
            'test_dataloader of both to one split, with --cfg-options'
        )


def judge_run(run: Run) -> tuple[ReportRun, RunScores]:
    """Judge a run.

    Args:
        run: The run.

    Returns:
        What the report tells of it, and its scores.
    """
    counted = {}
    for split, dataset in run.images.items():
        print(f'{run.name}: {len(dataset)} images of {split}_dataloader', file=sys.stderr)
        num_workers = run.cfg[f'{split}_dataloader'].get('num_workers', 0)
        counted[split] = count_images(run.model, dataset, num_workers)
    judged = score_run(counted['val'], counted['test'])
    report = ReportRun(
        name=run.name,
        facts=list_facts(run, counted),
        losses=run.losses,
        thresholds=judged.thresholds,
        mean_iou=judged.mean_iou,
        chosen_thr=judged.bg_thr,
        iou=judged.scores.iou,
        false_positive=judged.scores.false_positive,
        false_negative=judged.scores.false_negative,
    )
    return report, judged


def list_facts(run: Run, counted: Mapping[str, CountedImages]) -> dict[str, str]:
    """List what there is to know of a run.

    Args:
        run: The run.
        counted: Its images by split.

    Returns:
        Text by name.
    """
    labels = dict.fromkeys(counted[split].labels for split in SPLITS)
    seed = run.cfg.get('randomness', {}).get('seed')
    return {
        'config': str(run.config),
        'checkpoint': f'{run.checkpoint.name}, sha256 {hash_file(run.checkpoint)}',
        'seed': 'drawn by chance' if seed is None else str(seed),
        'threshold chosen on': describe_split(run, 'val'),
        'judged on': describe_split(run, 'test'),
        'image-level labels': ', then '.join(labels),
        'mmdscnet': f'{mmdscnet.__version__}, commit {read_commit()}',
        'date of the report': f'{datetime.now():%Y-%m-%d %H:%M}',
    }


def describe_split(run: Run, split: str) -> str:
    """Name a split and count its images."""
    dataset = run.images[split]
    listed = Path(getattr(dataset, 'ann_file', '') or '').stem
    return f'{len(dataset)} images of {split}_dataloader' + (f' ({listed})' if listed else '')


def read_commit() -> str:
    """Read the commit of the repository of this tool, 'unknown' outside one."""
    command = ['git', '-C', str(ROOT), 'rev-parse', '--short=12', 'HEAD']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def main() -> None:
    """Write the report."""
    args = parse_args()
    folders = [args.run, args.against] if args.against else [args.run]
    names = name_runs(folders, args.names)
    checkpoints = [args.checkpoint, args.against_checkpoint]
    runs = [
        read_run(folder, name, checkpoint, args.labels, args.cfg_options)
        for folder, name, checkpoint in zip(folders, names, checkpoints, strict=False)
    ]
    check_same_images(runs)
    judged = [judge_run(run) for run in runs]
    model, images, scores = runs[0].model, runs[0].images['test'], judged[0][1]
    # Sorting puts what is unknown (NaN) last.
    worst = np.argsort(scores.image_iou, kind='stable')[: args.images].tolist()
    print(f'{names[0]}: gallery of {len(worst)} images', file=sys.stderr)
    out = args.out or args.run / 'report.html'
    write_report(
        out,
        ' against '.join(names),
        [report for report, _ in judged],
        show_images(model, images, worst, scores),
        images.metainfo['classes'],
        images.metainfo['palette'],
        num_left_out=len(images) - len(worst),
    )
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
