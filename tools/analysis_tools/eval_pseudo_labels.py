"""Judge pseudo labels against truth: label maps as they are, or CAMs at a background threshold.

    eval_pseudo_labels.py labels FOLDER --truth DIR [--split FILE]
    eval_pseudo_labels.py cams FOLDER --truth DIR --choose-on SPLIT --apply-to SPLIT

Label maps are judged twice, from one pass over the files: with void counted as wrong, and with it
left out. CAMs are swept over all thresholds on both splits; what counts is the mIoU on the second
at the threshold that is best on the first.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet  # noqa: F401
from mmdscnet.atomic_write import atomic_path
from mmdscnet.evaluation import (
    LabelScores,
    SweepScores,
    count_label_folder,
    score_labels,
    sweep_cam_folder,
)
from mmdscnet.launch import read_run_config
from mmdscnet.pseudo_labels import SETTINGS_FILE
from mmdscnet.pseudo_labels.store import MANIFEST_FILE
from mmdscnet.visualization import draw_threshold_curve

# After mmdscnet, which mends what mmseg imports.
from mmseg.registry import DATASETS  # isort: skip

COLUMNS = {
    'IoU': 'iou',
    'precision': 'precision',
    'recall': 'recall',
    'false positive': 'false_positive',
    'false negative': 'false_negative',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('folder', type=Path, help='what to judge, a file <id> an image')
    common.add_argument('--truth', type=Path, required=True, help='folder of the masks, <id>.png')
    source = common.add_mutually_exclusive_group()
    source.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='all classes, background first; default: those that the folder names in '
        f'{MANIFEST_FILE} or {SETTINGS_FILE}',
    )
    source.add_argument('--config', help='take the classes from test_dataloader of this config')
    common.add_argument('--ignore-index', type=int, default=255, help='truth id that never counts')
    common.add_argument(
        '--jobs',
        type=int,
        default=os.cpu_count(),
        help='processes; default: one a core. They take some seconds to start: 1 is faster for '
        'less than about a thousand images',
    )
    common.add_argument('--out', type=Path, help='write the scores to this JSON file as well')

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest='job', required=True)
    labels = jobs.add_parser('labels', parents=[common], help='judge label maps, <id>.png')
    labels.add_argument(
        '--split', type=Path, help='image ids, one a line; default: all label maps with a truth'
    )
    labels.set_defaults(run=judge_labels)
    cams = jobs.add_parser('cams', parents=[common], help='judge exported CAMs, <id>.npz')
    cams.add_argument(
        '--choose-on', type=Path, required=True, help='split that chooses the threshold'
    )
    cams.add_argument('--apply-to', type=Path, required=True, help='split that is judged with it')
    cams.add_argument('--curve', type=Path, help='draw mIoU over the threshold as this PNG')
    cams.set_defaults(run=judge_cams)
    return parser.parse_args()


def judge_labels(args: argparse.Namespace) -> dict[str, Any]:
    """Judge a folder of label maps, and print the tables.

    Args:
        args: The command line.

    Returns:
        What ``--out`` holds.
    """
    classes = read_classes(args)
    if args.split is None:
        image_ids, without_truth = find_judged(args.folder, args.truth)
        print(f'{without_truth} label maps have no truth in {args.truth} and are left out')
    else:
        image_ids, without_truth = read_split(args.split), 0
    confusion = count_label_folder(
        args.folder, args.truth, image_ids, classes, args.ignore_index, args.jobs
    )
    with_void = score_labels(confusion, len(image_ids))
    without_void = score_labels(confusion, len(image_ids), count_void=False)
    print(
        f'{args.folder}: {len(image_ids)} images, {100 * with_void.coverage:.2f} % of the judged '
        'pixels carry a label, the others are void\n\n'
        f'void counted as wrong (%):\n{draw_table(with_void, classes)}\n\n'
        f'void left out (%):\n{draw_table(without_void, classes)}'
    )
    return dict(
        folder=str(args.folder),
        truth=str(args.truth),
        split=args.split and str(args.split),
        num_images=len(image_ids),
        num_without_truth=without_truth,
        coverage=with_void.coverage,
        void_counted=list_scores(with_void, classes),
        void_left_out=list_scores(without_void, classes),
    )


def judge_cams(args: argparse.Namespace) -> dict[str, Any]:
    """Choose a threshold on one split and judge another with it; print and draw it.

    Args:
        args: The command line.

    Returns:
        What ``--out`` holds.

    Raises:
        ValueError: If both splits are of the same images.
    """
    classes = read_classes(args)
    ids = [read_split(path) for path in (args.choose_on, args.apply_to)]
    shared = len(set(ids[0]) & set(ids[1]))
    if set(ids[0]) == set(ids[1]):
        raise ValueError(
            f'--choose-on {args.choose_on} and --apply-to {args.apply_to} are the same images: a '
            'threshold flatters the images it was chosen on, give two splits'
        )
    if shared:
        print(f'{shared} of {len(ids[1])} judged images had a part in choosing the threshold')
    chosen_on, judged = (
        sweep_cam_folder(
            args.folder,
            args.truth,
            image_ids,
            len(classes),
            args.ignore_index,
            num_processes=args.jobs,
        )
        for image_ids in ids
    )
    names = name_splits(args.choose_on, args.apply_to)
    scores = judged.scores_at(chosen_on.best)
    print(f'{describe_choice(chosen_on, judged, names)}\n\n{draw_table(scores, classes)}')
    content = dict(
        folder=str(args.folder),
        truth=str(args.truth),
        num_shared_images=shared,
        bg_thr=threshold_of(chosen_on, chosen_on.best),
        thresholds=[threshold_of(judged, index) for index in range(len(judged.thresholds))],
        chosen_on=list_sweep(args.choose_on, chosen_on, chosen_on.best),
        judged=list_sweep(args.apply_to, judged, chosen_on.best)
        | list_scores(scores, classes)
        | dict(
            upper_bound_mIoU=float(judged.mean_iou[judged.best]),
            upper_bound_bg_thr=threshold_of(judged, judged.best),
        ),
    )
    if args.curve is not None:
        curves = dict(zip(names, (chosen_on.mean_iou, judged.mean_iou), strict=True))
        chosen = {names[1]: content['bg_thr']}
        draw_threshold_curve(args.curve, curves, content['thresholds'], chosen)
    return content


def read_classes(args: argparse.Namespace) -> list[str]:
    """Find out what the class ids mean.

    Args:
        args: The command line.

    Returns:
        Names of the classes, background first.

    Raises:
        ValueError: If nothing names them, or the folder names others than the command line.
    """
    known = read_folder_classes(args.folder)
    given = args.classes
    if args.config is not None:
        given = read_config_classes(args.config)
    if known is None and given is None:
        raise ValueError(
            f'{args.folder} does not say what its class ids mean (no classes in {MANIFEST_FILE} or '
            f'{SETTINGS_FILE}): give --classes, background first, or --config'
        )
    if known is not None and given is not None and known != given:
        raise ValueError(
            f'{args.folder} was written for the classes {known}, and the command line gives '
            f'{given}: an id would change its meaning. Leave --classes and --config out'
        )
    return given if known is None else known


def read_folder_classes(folder: Path) -> list[str] | None:
    """Read the classes from what an export or a store of pseudo labels wrote beside its files.

    Args:
        folder: Folder of the files.

    Returns:
        Names of the classes; None if nothing says.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file that says it is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'folder {folder} does not exist: give the folder to judge')
    for name in (MANIFEST_FILE, SETTINGS_FILE):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f'{path} is no JSON: {error}. Make the folder again') from error
        if isinstance(content, dict) and 'classes' in content:
            return list(content['classes'])
    return None


def read_config_classes(config: str) -> list[str]:
    """Read the classes of the data set of ``test_dataloader``.

    Args:
        config: Path of the config.

    Returns:
        Names of the classes.

    Raises:
        ValueError: If neither the config nor the class of the data set names them.
    """
    dataset = read_run_config(config).get('test_dataloader', {}).get('dataset', {})
    classes = dataset.get('metainfo', {}).get('classes')
    if classes is None and 'type' in dataset:
        classes = getattr(DATASETS.get(dataset['type']), 'METAINFO', {}).get('classes')
    if classes is None:
        raise ValueError(
            f'{config} names no classes, neither in test_dataloader.dataset.metainfo nor by the '
            f'data set type {dataset.get("type")!r}: give --classes, background first'
        )
    return list(classes)


def read_split(path: Path) -> list[str]:
    """Read the ids of a split.

    Args:
        path: Text file, an id a line.

    Returns:
        The ids.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names no image.
    """
    if not path.is_file():
        raise FileNotFoundError(f'split {path} is not a file: give one with an image id a line')
    image_ids = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()]
    image_ids = [image_id for image_id in image_ids if image_id]
    if not image_ids:
        raise ValueError(f'split {path} is empty: write an image id a line')
    return image_ids


def find_judged(folder: Path, truth: Path) -> tuple[list[str], int]:
    """Find the label maps that have a truth.

    Args:
        folder: Folder of the label maps.
        truth: Folder of the masks.

    Returns:
        Their image ids, and the number of label maps without a truth.

    Raises:
        ValueError: If there is none.
    """
    found = sorted(path.stem for path in folder.glob('*.png'))
    judged = [image_id for image_id in found if (truth / f'{image_id}.png').is_file()]
    if not judged:
        raise ValueError(
            f'none of the {len(found)} label maps in {folder} has a truth of the same name in '
            f'{truth}: check both folders'
        )
    return judged, len(found) - len(judged)


def name_splits(first: Path, second: Path) -> tuple[str, str]:
    """Name two splits so that they can be told apart.

    Args:
        first: File of the one.
        second: File of the other.

    Returns:
        Their names without folder and suffix, or their paths where these are the same.
    """
    if first.stem == second.stem:
        return str(first), str(second)
    return first.stem, second.stem


def threshold_of(sweep: SweepScores, index: int) -> float:
    """Give a threshold as the decimal it was written as.

    Args:
        sweep: Scores over the thresholds.
        index: Index of the threshold.

    Returns:
        The threshold, without the digits that float32 adds to it.
    """
    return round(float(sweep.thresholds[index]), 6)


def describe_choice(chosen_on: SweepScores, judged: SweepScores, names: tuple[str, str]) -> str:
    """Say what the chosen threshold is worth.

    Args:
        chosen_on: Scores of the split that chooses.
        judged: Scores of the split that is judged.
        names: Their names.

    Returns:
        Three lines.
    """
    chosen, best = chosen_on.best, judged.best
    return (
        f'bg_thr {threshold_of(chosen_on, chosen):.2f}, chosen on {names[0]} '
        f'({chosen_on.num_images} images): mIoU {chosen_on.mean_iou[chosen]:.2f} there\n'
        f'mIoU {judged.mean_iou[chosen]:.2f} on {names[1]} ({judged.num_images} images) at this '
        'threshold\n'
        f'upper bound, not a result: mIoU {judged.mean_iou[best]:.2f} on {names[1]} at '
        f'{threshold_of(judged, best):.2f}, which {names[1]} itself would choose'
    )


def draw_table(scores: LabelScores, classes: Sequence[str]) -> str:
    """Draw the scores of every class, and their means.

    Args:
        scores: The scores.
        classes: Names of the classes.

    Returns:
        The table; a dash is for what is undefined.
    """
    table = PrettyTable(['class', *COLUMNS], align='r')
    table.align['class'] = 'l'
    columns = [getattr(scores, field) for field in COLUMNS.values()]
    means = [getattr(scores, f'mean_{field}') for field in COLUMNS.values()]
    rows = [*zip(classes, *columns, strict=True), ('mean', *means)]
    for index, (name, *values) in enumerate(rows):
        cells = ['-' if math.isnan(value) else f'{value:.2f}' for value in values]
        table.add_row([name, *cells], divider=index == len(classes) - 1)
    return table.get_string()


def list_scores(scores: LabelScores, classes: Sequence[str]) -> dict[str, Any]:
    """Give scores as JSON has them.

    Args:
        scores: The scores.
        classes: Names of the classes.

    Returns:
        ``mean`` and ``per_class``, in per cent; None for what is undefined.
    """
    columns = {field: getattr(scores, field).tolist() for field in COLUMNS.values()}
    means = {field: getattr(scores, f'mean_{field}') for field in COLUMNS.values()}
    return dict(
        mean=_defined(means),
        per_class={
            name: _defined({field: values[index] for field, values in columns.items()})
            for index, name in enumerate(classes)
        },
    )


def list_sweep(split: Path, sweep: SweepScores, chosen: int) -> dict[str, Any]:
    """Give the curve of a split as JSON has it.

    Args:
        split: File of the split.
        sweep: Scores over the thresholds.
        chosen: Index of the chosen threshold.

    Returns:
        ``split``, ``num_images``, ``mIoU`` at the chosen threshold and ``curve``, in per cent.
    """
    return dict(
        split=str(split),
        num_images=sweep.num_images,
        mIoU=float(sweep.mean_iou[chosen]),
        curve=sweep.mean_iou.tolist(),
    )


def _defined(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def main() -> None:
    """Judge as the command line says."""
    args = parse_args()
    content = args.run(args)
    if args.out is not None:
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
