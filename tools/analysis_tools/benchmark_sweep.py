"""Time the sweep of all thresholds in one pass against one pass over the files a threshold.

Both judge the same folder of CAMs and masks with the same readers, in turns within one process, so
that a machine that slows down slows both down; and both must count the same pixels. The passes are
those of the field's scripts: threshold and present CAMs stacked, argmax, confusion by bincount.
CAMs and masks are random, at the sizes and number of classes of VOC.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from mmdscnet.datasets import VOC2012Dataset
from mmdscnet.evaluation import sweep_cam_folder
from mmdscnet.pseudo_labels import open_label_map, read_cams, write_cams, write_palette_png

SIZES = ((375, 500), (500, 375), (333, 500))
PALETTE = VOC2012Dataset.METAINFO['palette']
NUM_CLASSES = len(PALETTE)
IGNORE_INDEX = 255
# Share of the images with so many classes: 1.5 in the mean, as in VOC's train_aug.
CLASSES_AN_IMAGE = {1: 0.6, 2: 0.3, 3: 0.1}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=30)
    parser.add_argument('--thresholds', type=int, default=60)
    parser.add_argument('--repeats', type=int, default=3, help='timed rounds')
    return parser.parse_args()


def write_folder(folder: Path, num_images: int, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Write random CAMs and masks that have something in common.

    Args:
        folder: Where to write ``cams`` and ``truth``.
        num_images: Number of images.
        sizes: Heights and widths, in turn.

    Returns:
        Ids of the images.
    """
    rng = np.random.default_rng(0)
    image_ids = [f'{index:06d}' for index in range(num_images)]
    for index, image_id in enumerate(image_ids):
        number = rng.choice(list(CLASSES_AN_IMAGE), p=list(CLASSES_AN_IMAGE.values()))
        class_ids = 1 + rng.choice(NUM_CLASSES - 1, number, replace=False)
        cams, truth = make_maps(class_ids, sizes[index % len(sizes)], rng)
        write_cams(folder / f'cams/{image_id}.npz', cams, class_ids)
        write_palette_png(folder / f'truth/{image_id}.png', truth, PALETTE)
    return image_ids


def make_maps(
    class_ids: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make smooth CAMs, and a mask of objects with void borders where they are strong.

    Args:
        class_ids: Ids of the k present classes.
        size: Height and width.
        rng: Source of the numbers.

    Returns:
        CAMs in [0, 1], float32, shape (k, H, W), and ids, uint8, shape (H, W).
    """
    coarse = torch.from_numpy(rng.random((2, len(class_ids), 12, 16), dtype=np.float32))
    smooth = F.interpolate(coarse, size, mode='bicubic').clamp(min=0)
    evidence, other = smooth / smooth.amax(dim=(2, 3), keepdim=True)
    strength, winners = (0.7 * evidence + 0.3 * other).numpy().max(axis=0), evidence.argmax(dim=0)
    truth = np.where(strength > 0.65, class_ids[winners.numpy()], 0).astype(np.uint8)
    truth[np.abs(strength - 0.65) < 0.02] = IGNORE_INDEX
    return evidence.numpy(), truth


def sweep_in_one_pass(folder: Path, image_ids: Sequence[str], thresholds: np.ndarray) -> np.ndarray:
    """Count the pixels as the package does.

    Args:
        folder: As :func:`write_folder` wrote it.
        image_ids: Ids of the images.
        thresholds: Ascending thresholds, shape (T,).

    Returns:
        Numbers of pixels, int64, shape (T, C, C), indexed [threshold, truth, prediction].
    """
    sweep = sweep_cam_folder(
        folder / 'cams', folder / 'truth', image_ids, NUM_CLASSES, IGNORE_INDEX, thresholds
    )
    return sweep.confusions.numpy()


def sweep_in_many_passes(
    folder: Path, image_ids: Sequence[str], thresholds: np.ndarray
) -> np.ndarray:
    """Count the pixels in a pass over all files for each threshold.

    Args:
        folder: As :func:`write_folder` wrote it.
        image_ids: Ids of the images.
        thresholds: Thresholds, shape (T,).

    Returns:
        As :func:`sweep_in_one_pass`.
    """
    confusions = np.zeros((len(thresholds), NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
    for confusion, threshold in zip(confusions, thresholds, strict=True):
        for image_id in image_ids:
            labels = label_pixels(folder / f'cams/{image_id}.npz', threshold)
            truth = np.asarray(open_label_map(folder / f'truth/{image_id}.png'))
            judged = truth != IGNORE_INDEX
            cells = NUM_CLASSES * truth[judged].astype(np.int64) + labels[judged]
            counts = np.bincount(cells, minlength=NUM_CLASSES**2)
            confusion += counts.reshape(NUM_CLASSES, NUM_CLASSES)
    return confusions


def label_pixels(path: Path, threshold: float) -> np.ndarray:
    """Turn the CAMs of a file into a label map.

    Args:
        path: File of the CAMs.
        threshold: Background threshold.

    Returns:
        Class ids, uint8, shape (H, W).
    """
    exported = read_cams(path)
    order = exported.class_ids.argsort()
    num_present, height, width = exported.cams.shape
    scores = np.empty((num_present + 1, height, width), dtype=np.float32)
    scores[0] = threshold
    # By torch, which converts halves several times as fast as numpy.
    scores[1:] = torch.from_numpy(exported.cams[order]).float().numpy()
    ids = np.concatenate([[0], exported.class_ids[order]]).astype(np.uint8)
    return ids[scores.argmax(axis=0)]


def time_in_turns(calls: Sequence[Callable[[], np.ndarray]], repeats: int) -> np.ndarray:
    """Time calls in turns.

    Args:
        calls: What to time; each has run once, so that files are in memory.
        repeats: Number of timed rounds.

    Returns:
        Seconds, shape (rounds, calls).
    """
    seconds = np.zeros((repeats, len(calls)))
    for row in seconds:
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            row[index] = time.perf_counter() - start
    return seconds


def check_equal(first: np.ndarray, second: np.ndarray) -> None:
    """Refuse to compare the times of ways that do not do the same.

    Args:
        first: Confusions of the one, shape (T, C, C).
        second: Confusions of the other, shape (T, C, C).

    Raises:
        ValueError: If they differ.
    """
    if not np.array_equal(first, second):
        differing = np.flatnonzero((first != second).any(axis=(1, 2)))
        pixels = np.abs(first - second).sum(axis=(1, 2)).max() // 2
        raise ValueError(
            f'the two sweeps differ at {len(differing)} of {len(first)} thresholds, first at index '
            f'{differing[0]}, by up to {pixels} pixels: one of them is wrong, mend it before you '
            'time it'
        )


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    torch.set_num_threads(1)
    # Multiples of 1/60 among others, and those of 1/4 are halves: pixels lie exactly on them.
    thresholds = (np.arange(args.thresholds) / args.thresholds).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        image_ids = write_folder(Path(name), args.images, SIZES)
        ways = [
            partial(way, Path(name), image_ids, thresholds)
            for way in (sweep_in_one_pass, sweep_in_many_passes)
        ]
        check_equal(*(way() for way in ways))
        seconds = time_in_turns(ways, args.repeats)
    print(
        f'{args.images} images, {args.thresholds} thresholds, {args.repeats} rounds in turns, '
        f'medians; one process, one thread; {platform.machine()}, Python '
        f'{platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}'
    )
    report(seconds, args.images)


def report(seconds: np.ndarray, num_images: int) -> None:
    """Print the times and their ratio.

    Args:
        seconds: Of one pass and of a pass a threshold, shape (rounds, 2).
        num_images: Number of images.
    """
    one, many = np.median(seconds, axis=0)
    ratios = seconds[:, 1] / seconds[:, 0]
    print('| sweep | s | ms an image |')
    print('|---|---|---|')
    print(f'| one pass for all thresholds | {one:.4f} | {1000 * one / num_images:.2f} |')
    print(f'| one pass a threshold | {many:.4f} | {1000 * many / num_images:.2f} |')
    print(
        f'ratio {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f}), '
        'confusions bit-identical'
    )


if __name__ == '__main__':
    main()
