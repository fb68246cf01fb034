"""Complete a PASCAL VOC 2012 devkit for weak training, with the Semantic Boundaries Dataset (SBD).

Writes into the folder VOC2012:

- ImageSets/Segmentation/train_aug.txt: VOC's train and all images of SBD outside VOC's val, sorted;
- SegmentationClassAug/<id>.png: the mask of each, VOC's own where VOC has one, else SBD's;
- image_labels.json: the classes of the images of train_aug, train and val, from the objects of
  VOC's XML files, the difficult ones included.

Nothing that exists is overwritten: what is right is kept, anything else is an error. A run that was
interrupted goes on where it stopped. Without --sbd the list must be there already; then only
image_labels.json is written.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import loadmat

sys.path.append(str(Path(__file__).resolve().parents[2]))

from mmdscnet.atomic_write import atomic_path
from mmdscnet.datasets import VOC2012Dataset, read_image_labels, voc_palette, write_image_labels
from mmdscnet.datasets.file_checks import check_all, check_image_ids, check_mask, read_image_size
from mmdscnet.pseudo_labels import write_palette_png

DEVKIT_PLACES = ('.', 'VOC2012', 'VOCdevkit/VOC2012')
SPLITS = 'ImageSets/Segmentation'
DEVKIT_PARTS = (
    'JPEGImages',
    'Annotations',
    'SegmentationClass',
    f'{SPLITS}/train.txt',
    f'{SPLITS}/val.txt',
)
SBD_PLACES = ('.', 'dataset', 'benchmark_RELEASE/dataset')
SBD_PARTS = ('cls', 'train.txt', 'val.txt')
SPLIT_SIZES = {'train': 1464, 'val': 1449, 'train_aug': 10582}
CLASSES = VOC2012Dataset.METAINFO['classes'][1:]
MASK_IDS = {*range(21), 255}

GET_VOC = 'extract VOCtrainval_11-May-2012.tar again'
GET_SBD = (
    'the Semantic Boundaries Dataset (SBD), whose authors at Berkeley offer it as benchmark.tgz, '
    'or a folder of its masks as PNGs, such as the SegmentationClassAug in circulation'
)


class MaskTask(NamedTuple):
    """A mask to write or to compare.

    Attributes:
        source: VOC's PNG, or SBD's .mat or PNG.
        target: File of SegmentationClassAug.
        image: The image, whose size the mask must have.
        is_vocs: Whether the source is VOC's own, to be copied byte for byte.
    """

    source: Path
    target: Path
    image: Path
    is_vocs: bool


class MaskSource(NamedTuple):
    """Masks of SBD.

    Attributes:
        folder: Where they are.
        suffix: ``.mat`` or ``.png``.
        image_ids: Images that the lists of SBD, or else the folder, name.
    """

    folder: Path
    suffix: str
    image_ids: set[str]


class Plan(NamedTuple):
    """What the devkit holds and shall hold.

    Attributes:
        voc: Folder VOC2012.
        splits: Image ids of ``train``, ``val`` and ``train_aug``.
        tasks: The masks of ``train_aug``; none without SBD.
    """

    voc: Path
    splits: dict[str, set[str]]
    tasks: list[MaskTask]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('devkit', type=Path, help='VOCdevkit/VOC2012, VOCdevkit, or its parent')
    parser.add_argument(
        '--sbd',
        type=Path,
        help='benchmark_RELEASE, its folder dataset, or its parent; or a folder of PNG masks',
    )
    parser.add_argument(
        '--allow-counts',
        action='store_true',
        help='only warn of splits that have not the sizes of the full data, as subsets have not',
    )
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes for the masks')
    return parser.parse_args(argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """Find and check everything that is needed, and write nothing.

    Args:
        args: The command line.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: If anything is missing; the message lists all of it.
        ValueError: If a split has an unexpected size or train_aug.txt holds images of val.
    """
    voc = find_folder(args.devkit, DEVKIT_PLACES, DEVKIT_PARTS)
    missing = list_missing_parts(voc, DEVKIT_PARTS, GET_VOC)
    splits = {name: read_ids(voc / SPLITS / f'{name}.txt') for name in SPLIT_SIZES}
    sbd = None
    if args.sbd is not None:
        sbd, missing_in_sbd = find_sbd(args.sbd)
        missing += missing_in_sbd
        # Half of the lists would make another split, and misleading messages about it.
        known = splits['train'] and splits['val'] and not missing_in_sbd
        splits['train_aug'] = splits['train'] | (sbd.image_ids - splits['val']) if known else set()
        from_sbd = splits['train_aug'] - splits['train']
        missing += list_missing_files(sbd.folder, sbd.suffix, from_sbd, f'give all of {GET_SBD}')
    elif not splits['train_aug']:
        missing.append(f'{voc / SPLITS / "train_aug.txt"}, which --sbd makes: give it {GET_SBD}')
    missing += list_missing_in_devkit(voc, splits)
    wrong = list_wrong_splits(splits)
    refuse(missing, [] if args.allow_counts else wrong)
    for line in wrong:
        print(f'warning: {line}')
    if splits['train_aug'] & splits['val']:
        raise ValueError(
            f'{voc / SPLITS / "train_aug.txt"} holds {len(splits["train_aug"] & splits["val"])} '
            'images of val, which must not be trained on: move it away and give --sbd.'
        )
    return Plan(voc, splits, [] if sbd is None else plan_masks(voc, splits, sbd))


def find_folder(path: Path, places: Sequence[str], parts: Sequence[str]) -> Path:
    """Find the folder that has the most of some parts.

    Args:
        path: Where to look.
        places: Folders relative to ``path``; of equals the first is taken.
        parts: Files and folders to look for.

    Returns:
        The folder, which need not be complete.
    """
    return max(
        (path / place for place in places),
        key=lambda folder: sum((folder / part).exists() for part in parts),
    )


def find_sbd(path: Path) -> tuple[MaskSource, list[str]]:
    """Find SBD as its authors' archive has it, or as a folder of PNGs.

    Args:
        path: As on the command line.

    Returns:
        The masks, and a line for each thing that is missing.
    """
    folder = find_folder(path, SBD_PLACES, SBD_PARTS)
    missing = list_missing_parts(folder, SBD_PARTS, f'give --sbd {GET_SBD}')
    # Archives made on a Mac have hidden files of the same suffix beside the masks.
    image_ids = {png.stem for png in path.glob('[!.]*.png')}
    if image_ids and missing:
        return MaskSource(path, '.png', image_ids), []
    image_ids = read_ids(folder / 'train.txt') | read_ids(folder / 'val.txt')
    return MaskSource(folder / 'cls', '.mat', image_ids), missing


def read_ids(path: Path) -> set[str]:
    """Read a split; one that is not there, which is reported elsewhere, is empty."""
    if not path.is_file():
        return set()
    image_ids = {line.strip() for line in path.read_text(encoding='utf-8').splitlines()} - {''}
    check_image_ids(sorted(image_ids), path)
    return image_ids


def list_missing_parts(folder: Path, parts: Sequence[str], mend: str) -> list[str]:
    """Say which parts a folder lacks, in one line or none."""
    missing = [part for part in parts if not (folder / part).exists()]
    return [f'{", ".join(missing)} in {folder}: {mend}'] if missing else []


def list_missing_files(
    folder: Path, suffix: str, image_ids: Collection[str], mend: str
) -> list[str]:
    """Say how many files of a split a folder lacks, in one line or none.

    Args:
        folder: The folder; if it is missing, which is reported elsewhere, no line is returned.
        suffix: What follows an id in the name of its file.
        image_ids: Ids of the split.
        mend: What to do about it.

    Returns:
        At most one line.
    """
    if not folder.is_dir():
        return []
    present = set(os.listdir(folder))
    missing = sorted(i for i in image_ids if i + suffix not in present)
    if not missing:
        return []
    return [
        f'{len(missing)} of {len(image_ids)} {suffix} files in {folder}, the first is '
        f'{missing[0]}{suffix}: {mend}'
    ]


def list_missing_in_devkit(voc: Path, splits: dict[str, set[str]]) -> list[str]:
    """Say which images, XML files and masks of the splits the devkit lacks."""
    judged = splits['train'] | splits['val']
    everything = judged | splits['train_aug']
    return [
        *list_missing_files(voc / 'JPEGImages', '.jpg', everything, GET_VOC),
        *list_missing_files(voc / 'Annotations', '.xml', everything, GET_VOC),
        *list_missing_files(voc / 'SegmentationClass', '.png', judged, GET_VOC),
    ]


def list_wrong_splits(splits: dict[str, set[str]]) -> list[str]:
    """Say which splits, of those that are there, have not the size of the full data."""
    return [
        f'{name} has {len(splits[name])} images where the full data have {size}'
        for name, size in SPLIT_SIZES.items()
        if splits[name] and len(splits[name]) != size
    ]


def refuse(missing: Sequence[str], wrong: Sequence[str]) -> None:
    """Raise one error that names everything that is missing or of the wrong size."""
    if not missing and not wrong:
        return
    lines = [f'missing: {line}' for line in missing]
    lines += [f'{line}: complete it, or give --allow-counts for a subset' for line in wrong]
    text = '\n'.join(['the data are not complete, nothing was written', *lines])
    raise FileNotFoundError(text) if missing else ValueError(text)


def plan_masks(voc: Path, splits: dict[str, set[str]], sbd: MaskSource) -> list[MaskTask]:
    """Choose the source of each mask of train_aug."""
    tasks = []
    for image_id in sorted(splits['train_aug']):
        is_vocs = image_id in splits['train']
        source = voc / 'SegmentationClass' / f'{image_id}.png'
        if not is_vocs:
            source = sbd.folder / (image_id + sbd.suffix)
        target = voc / 'SegmentationClassAug' / f'{image_id}.png'
        image = voc / 'JPEGImages' / f'{image_id}.jpg'
        tasks.append(MaskTask(source, target, image, is_vocs))
    return tasks


def read_label_map(path: Path) -> np.ndarray:
    """Read the class ids of a mask.

    Args:
        path: Palette or grey PNG, or SBD's .mat, whose struct ``GTcls`` has a ``Segmentation``.

    Returns:
        Ids in 0..20, or 255 for void, uint8, shape (H, W).

    Raises:
        ValueError: If the file is damaged or holds anything else.
    """
    read = {'.mat': read_mat, '.png': read_png}[path.suffix]
    try:
        values = read(path)
    # A damaged .mat may raise anything at all.
    except Exception as error:
        raise ValueError(
            f'{path} is damaged or no label map: {error!r}. Take it from its archive again.'
        ) from error
    if values.ndim != 2 or not np.isin(values, list(MASK_IDS)).all():
        raise ValueError(
            f'{path} is no label map of VOC: it has the shape {values.shape} and values from '
            f'{values.min()} to {values.max()}, where ids are 0 to 20 and 255.'
        )
    return values.astype(np.uint8)


def read_mat(path: Path) -> np.ndarray:
    """Read the values of a .mat of SBD."""
    return loadmat(path, variable_names=['GTcls'])['GTcls']['Segmentation'][0, 0]


def read_png(path: Path) -> np.ndarray:
    """Read the values, not the colours, of a PNG."""
    with Image.open(path) as image:
        if image.mode not in ('L', 'P'):
            raise ValueError(f'its mode is {image.mode}, not that of an index image')
        return np.array(image)


def read_source(task: MaskTask) -> np.ndarray:
    """Read the mask that belongs to an image.

    Args:
        task: Which mask.

    Returns:
        Class ids, uint8, shape (H, W).

    Raises:
        ValueError: If mask or image are damaged, or the sizes differ.
    """
    label_map = read_label_map(task.source)
    size = read_image_size(task.image)
    if label_map.shape != size:
        raise ValueError(
            f'mask {task.source} is {label_map.shape[0]}x{label_map.shape[1]} pixels (height x '
            f'width) but its image {task.image} is {size[0]}x{size[1]}: take both from their '
            'archives again.'
        )
    return label_map


def write_mask(task: MaskTask) -> None:
    """Write a mask that is not there yet.

    Args:
        task: Which mask.

    Raises:
        ValueError: If mask or image are damaged, or the sizes differ.
    """
    label_map = read_source(task)
    if not task.is_vocs:
        write_palette_png(task.target, label_map, voc_palette(21))
        return
    with atomic_path(task.target) as temporary:
        shutil.copyfile(task.source, temporary)


def compare_mask(task: MaskTask) -> None:
    """Compare a mask that is there with its source, id by id; palettes may differ.

    Args:
        task: Which mask.

    Raises:
        ValueError: If mask, source or image are damaged, or anything differs.
    """
    label_map = read_source(task)
    try:
        same = np.array_equal(read_label_map(task.target), label_map)
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f'{task.target} exists and is not the mask of {task.source}; nothing is overwritten: '
            'move it away, and run again.'
        )


def find_fault(step: Callable[[MaskTask], None], task: MaskTask) -> str | None:
    """Run a step on one mask and return its error as text: exceptions would stop the others."""
    try:
        step(task)
    except ValueError as error:
        return str(error)
    return None


def run_on_masks(
    step: Callable[[MaskTask], None], tasks: Sequence[MaskTask], jobs: int, title: str
) -> None:
    """Run a step on many masks, in processes, and show how far it is.

    Args:
        step: What to do with a mask; raises ``ValueError`` for a bad one.
        tasks: The masks.
        jobs: Number of processes; 1 stays in this one.
        title: What the step is called in the progress line.

    Raises:
        ValueError: If any mask is bad, after the good ones are done.
    """
    if not tasks:
        return
    work = partial(find_fault, step)
    if jobs == 1:
        faults = collect_faults(map(work, tasks), len(tasks), title)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            faults = collect_faults(pool.map(work, tasks, chunksize=16), len(tasks), title)
    if faults:
        more = f' ({len(faults) - 1} more masks have a fault.)' if len(faults) > 1 else ''
        raise ValueError(faults[0] + more)


def collect_faults(results: Iterable[str | None], total: int, title: str) -> list[str]:
    """Gather the faults while one line counts the results."""
    faults = []
    for done, fault in enumerate(results, start=1):
        if fault:
            faults.append(fault)
        if done % 100 == 0 or done == total:
            print(f'\r{title} {done} of {total}', end='' if done < total else '\n', flush=True)
    return faults


def is_list_written(path: Path, image_ids: Collection[str]) -> bool:
    """Tell whether a split is there already.

    Args:
        path: The split file.
        image_ids: What it must hold, in sorted order.

    Returns:
        True if it is there and right, False if it is not there.

    Raises:
        ValueError: If it holds anything else.
    """
    if not path.exists():
        return False
    if path.read_text(encoding='utf-8').split() != sorted(image_ids):
        found = read_ids(path)
        raise ValueError(
            f'{path} exists and is another list: {len(found - set(image_ids))} of its images do '
            f'not belong there, {len(set(image_ids) - found)} are missing, or the order is not '
            'sorted. Nothing is overwritten: move it away, and run again.'
        )
    return True


def are_labels_written(path: Path, labels: dict[str, tuple[str, ...]]) -> bool:
    """Tell whether the labels are there already.

    Args:
        path: The JSON file.
        labels: What it must hold.

    Returns:
        True if it is there and right, False if it is not there.

    Raises:
        ValueError: If it holds anything else.
    """
    if not path.exists():
        return False
    try:
        same = read_image_labels(path, CLASSES) == labels
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f'{path} exists and holds other labels than the XML files. Nothing is overwritten: '
            'move it away, and run again.'
        )
    return True


def check_masks_without_source(voc: Path, image_ids: Collection[str]) -> str:
    """Check the masks that an earlier run wrote, where there are any.

    Args:
        voc: Folder VOC2012.
        image_ids: Images of train_aug.

    Returns:
        What to say of them in the summary.

    Raises:
        FileNotFoundError: If only some are there.
        ValueError: If one is unfit.
    """
    folder = voc / 'SegmentationClassAug'
    if not folder.is_dir():
        return 'not there; weak training needs none'
    refuse(list_missing_files(folder, '.png', image_ids, 'run again with --sbd'), [])

    def check(image_id: str) -> None:
        image = voc / 'JPEGImages' / f'{image_id}.jpg'
        check_mask(folder / f'{image_id}.png', image, read_image_size(image), MASK_IDS)

    check_all(check, sorted(image_ids))
    return f'{len(image_ids)} masks kept'


def convert_masks(tasks: Sequence[MaskTask], jobs: int) -> str:
    """Compare the masks that are there, then write the others.

    Args:
        tasks: All masks.
        jobs: Number of processes.

    Returns:
        What to say of them in the summary.

    Raises:
        ValueError: If a mask that is there differs, or a source is unfit.
    """
    there = [task for task in tasks if task.target.exists()]
    absent = [task for task in tasks if not task.target.exists()]
    run_on_masks(compare_mask, there, jobs, 'masks compared:')
    run_on_masks(write_mask, absent, jobs, 'masks written:')
    own = sum(task.is_vocs for task in tasks)
    return (
        f"{len(absent)} masks written, {len(there)} kept ({own} are VOC's own, "
        f"{len(tasks) - own} SBD's)"
    )


def complete_devkit(plan: Plan, jobs: int) -> None:
    """Write what is not there yet, the list last, and print a summary.

    Args:
        plan: The plan.
        jobs: Number of processes for the masks.

    Raises:
        FileNotFoundError: If masks of an interrupted run are missing and SBD is not given.
        ValueError: If a file that is there is not what would be written, or a source is unfit.
    """
    voc, splits, tasks = plan
    image_list, label_file = voc / SPLITS / 'train_aug.txt', voc / 'image_labels.json'
    labels = read_image_labels(voc / 'Annotations', CLASSES, sorted(set().union(*splits.values())))
    has_labels = are_labels_written(label_file, labels)
    # Without SBD the list is the user's, in whatever order.
    has_list = not tasks or is_list_written(image_list, splits['train_aug'])
    if tasks:
        masks = convert_masks(tasks, jobs)
    else:
        masks = check_masks_without_source(voc, splits['train_aug'])
    if not has_labels:
        write_image_labels(label_file, labels, CLASSES)
    if not has_list:
        with atomic_path(image_list) as temporary:
            temporary.write_text(''.join(f'{i}\n' for i in sorted(splits['train_aug'])))
    said = {True: 'kept', False: 'written'}
    mean = sum(map(len, labels.values())) / max(len(labels), 1)
    print(
        f'{voc}\n'
        f'  {SPLITS}/train_aug.txt: {len(splits["train_aug"])} images, {said[has_list]}\n'
        f'  SegmentationClassAug: {masks}\n'
        f'  image_labels.json: {len(labels)} images, {mean:.2f} classes an image, from the XML '
        f'objects, difficult ones included, {said[has_labels]}'
    )


def main() -> None:
    """Run the tool."""
    args = parse_args()
    complete_devkit(make_plan(args), args.jobs)


if __name__ == '__main__':
    main()
