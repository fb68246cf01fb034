"""Judging a folder of label maps: pseudo labels after a CRF, or the predictions of a model."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmdscnet.parallel import map_over_images
from mmdscnet.pseudo_labels.label_map_files import find_label_maps, open_label_map
from mmdscnet.pseudo_labels.palette_png import VOID_ID


class LabelScores(NamedTuple):
    """Scores of label maps, in per cent; NaN for what is undefined.

    Attributes:
        iou: IoU of each class, float64, shape (C,); NaN for a class that is neither in truth nor
            in the label maps.
        precision: Correct share of the pixels that carry the class's label, float64, shape (C,).
        recall: Correctly labelled share of the class's pixels, float64, shape (C,).
        mean_iou: Mean of ``iou`` without NaN, as mmseg's mIoU.
        num_images: Number of images judged.
    """

    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    mean_iou: float
    num_images: int


def judge_label_folder(
    folder: str | os.PathLike[str],
    truth_folder: str | os.PathLike[str],
    image_ids: Sequence[str],
    classes: Sequence[str],
    ignore_index: int = 255,
    num_processes: int = 0,
) -> LabelScores:
    """Compare a folder of label maps with the true ones, all pixels of all images together.

    A pixel that the label map leaves void (255) counts as wrong: it lowers the recall and the IoU
    of its true class. Labels must not gain by leaving out what is difficult.

    Args:
        folder: Folder of the label maps, ``<image id>.png`` with class ids.
        truth_folder: Folder of the true ones.
        image_ids: Images to judge.
        classes: Names of the C classes, background first.
        ignore_index: Truth id of the pixels that count nowhere.
        num_processes: As for :func:`mmdscnet.parallel.map_over_images`; worth its start-up of a
            few seconds from some thousand images on.

    Returns:
        The scores.

    Raises:
        FileNotFoundError: If a label map or its truth is missing.
        ValueError: If a file is no label map, sizes differ, or an id is no class; if no pixel is
            judged; or if ``image_ids`` is empty or ``classes`` not of 1 to 255.
    """
    if not 1 <= len(classes) <= VOID_ID:
        raise ValueError(
            f'classes has {len(classes)} names: name 1 to {VOID_ID} classes, background first'
        )
    maps = find_label_maps(folder, image_ids, 'run the export again, it goes on where it stopped')
    truths = find_label_maps(
        truth_folder, image_ids, 'check the folder, or take the images out of the split'
    )
    count = partial(count_label_map, num_classes=len(classes), ignore_index=ignore_index)
    pairs = zip(maps, truths, strict=True)
    confusion = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for counts in map_over_images(count, pairs, num_processes, _name_of_pair):
        confusion += counts
    if not confusion.any():
        raise ValueError(
            f'no pixel to judge: every pixel of the {len(image_ids)} images in {truth_folder} is '
            f'ignore_index={ignore_index}; check ignore_index and the folder'
        )
    return score_labels(confusion, len(image_ids))


def count_label_map(pair: tuple[Path, Path], num_classes: int, ignore_index: int) -> np.ndarray:
    """Count the pixels of an image by true class and label.

    Args:
        pair: Files of the label map and of its truth.
        num_classes: Number of classes, C.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        Pixels of each true class (rows) and label (columns, void last), int64, shape (C, C + 1).

    Raises:
        ValueError: If a file is no label map, sizes differ, or an id is no class.
    """
    label_path, truth_path = pair
    labels, truth = np.asarray(open_label_map(label_path)), np.asarray(open_label_map(truth_path))
    if labels.shape != truth.shape:
        raise ValueError(
            f'{label_path} has {labels.shape} pixels (height, width) but {truth_path} has '
            f'{truth.shape}: write the labels at the size of the image'
        )
    _check_ids(labels, label_path, num_classes, VOID_ID)
    _check_ids(truth, truth_path, num_classes, ignore_index)
    judged = truth != ignore_index
    # minimum: void, the only id beyond the classes, becomes the last column.
    columns = np.minimum(labels[judged], num_classes).astype(np.int64)
    cells = truth[judged].astype(np.int64) * (num_classes + 1) + columns
    histogram = np.bincount(cells, minlength=num_classes * (num_classes + 1))
    return histogram.reshape(num_classes, num_classes + 1)


def score_labels(confusion: np.ndarray, num_images: int) -> LabelScores:
    """Turn counted pixels into scores.

    Args:
        confusion: Sum of :func:`count_label_map` over the images, int64, shape (C, C + 1).
        num_images: Number of images.

    Returns:
        The scores.
    """
    correct = np.diagonal(confusion)
    labelled, true = confusion[:, :-1].sum(axis=0), confusion.sum(axis=1)
    with np.errstate(invalid='ignore'):
        iou = 100 * correct / (labelled + true - correct)
        precision, recall = 100 * correct / labelled, 100 * correct / true
    return LabelScores(iou, precision, recall, float(np.nanmean(iou)), num_images)


def _check_ids(ids: np.ndarray, path: Path, num_classes: int, void: int) -> None:
    found = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
    outside = found[(found >= num_classes) & (found != void)]
    if outside.size:
        raise ValueError(
            f'{path} has the ids {outside.tolist()}, which are neither one of the {num_classes} '
            f'classes nor {void}: give all classes, or correct the file'
        )


def _name_of_pair(pair: tuple[Path, Path]) -> str:
    return pair[0].stem
