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

    IoU and the shares of false positives and negatives are shares of a class's union, the pixels
    that carry its label or are truly of it; so they add up to 100, for a class and in the mean.

    Attributes:
        iou: IoU of each class, float64, shape (C,); NaN for a class that is neither in truth nor
            in the label maps.
        precision: Correct share of the pixels that carry the class's label, float64, shape (C,).
        recall: Correctly labelled share of the class's pixels, float64, shape (C,).
        false_positive: Share of the union that carries the class's label and is of another class,
            float64, shape (C,).
        false_negative: Share of the union that is of the class and does not carry its label,
            float64, shape (C,).
        mean_iou: Mean of ``iou`` without NaN, as mmseg's mIoU.
        mean_precision: Mean of ``precision`` without NaN.
        mean_recall: Mean of ``recall`` without NaN.
        mean_false_positive: Mean of ``false_positive`` without NaN.
        mean_false_negative: Mean of ``false_negative`` without NaN.
        coverage: Share of the pixels with a truth that carry a label other than void, in [0, 1]
            and of all of them, however void is counted.
        num_images: Number of images judged.
    """

    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray
    mean_iou: float
    mean_precision: float
    mean_recall: float
    mean_false_positive: float
    mean_false_negative: float
    coverage: float
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
    of its true class. Labels must not gain by leaving out what is difficult. For the scores of
    the labelled pixels alone as well, call :func:`count_label_folder` and :func:`score_labels`.

    Args:
        folder: As for :func:`count_label_folder`.
        truth_folder: As for :func:`count_label_folder`.
        image_ids: As for :func:`count_label_folder`.
        classes: As for :func:`count_label_folder`.
        ignore_index: As for :func:`count_label_folder`.
        num_processes: As for :func:`count_label_folder`.

    Returns:
        The scores.

    Raises:
        FileNotFoundError: As :func:`count_label_folder`.
        ValueError: As :func:`count_label_folder`.
    """
    confusion = count_label_folder(
        folder, truth_folder, image_ids, classes, ignore_index, num_processes
    )
    return score_labels(confusion, len(image_ids))


def count_label_folder(
    folder: str | os.PathLike[str],
    truth_folder: str | os.PathLike[str],
    image_ids: Sequence[str],
    classes: Sequence[str],
    ignore_index: int = 255,
    num_processes: int = 0,
) -> np.ndarray:
    """Count the pixels of a folder of label maps by true class and label.

    Args:
        folder: Folder of the label maps, ``<image id>.png`` with class ids.
        truth_folder: Folder of the true ones.
        image_ids: Images to judge.
        classes: Names of the C classes, background first.
        ignore_index: Truth id of the pixels that count nowhere.
        num_processes: As for :func:`mmdscnet.parallel.map_over_images`; worth its start-up of a
            few seconds from some thousand images on.

    Returns:
        As :func:`count_labels`, the sum over the images.

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
    count = partial(count_label_file, num_classes=len(classes), ignore_index=ignore_index)
    pairs = zip(maps, truths, strict=True)
    confusion = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for counts in map_over_images(count, pairs, num_processes, _name_of_pair):
        confusion += counts
    if not confusion.any():
        raise ValueError(
            f'no pixel to judge: every pixel of the {len(image_ids)} images in {truth_folder} is '
            f'ignore_index={ignore_index}; check ignore_index and the folder'
        )
    return confusion


def count_label_file(pair: tuple[Path, Path], num_classes: int, ignore_index: int) -> np.ndarray:
    """Count the pixels of an image by true class and label.

    Args:
        pair: Files of the label map and of its truth.
        num_classes: Number of classes, C.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        As :func:`count_labels`.

    Raises:
        ValueError: If a file is no label map, sizes differ, or an id is no class.
    """
    labels, truth = (np.asarray(open_label_map(path)) for path in pair)
    return _count(labels, truth, num_classes, ignore_index, pair)


def count_labels(
    labels: np.ndarray, truth: np.ndarray, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """Count the pixels of a label map by true class and label.

    Args:
        labels: Class ids, 255 for void, uint8, shape (H, W).
        truth: Class ids or ``ignore_index``, uint8, shape (H, W).
        num_classes: Number of classes, C, at most 255.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        Pixels of each true class (rows) and label (columns, void last), int64, shape (C, C + 1).

    Raises:
        TypeError: If ``labels`` or ``truth`` is not an array of uint8.
        ValueError: If their shapes differ, an id is no class, or ``num_classes`` is not in 1..255.
    """
    for name, ids in (('labels', labels), ('truth', truth)):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.uint8:
            kind = getattr(ids, 'dtype', type(ids).__name__)
            raise TypeError(f'{name} is {kind}, not a numpy array of uint8: convert it')
    if not 1 <= num_classes <= VOID_ID:
        raise ValueError(
            f'num_classes={num_classes} is not in 1..{VOID_ID}: count the classes, background '
            'included'
        )
    return _count(labels, truth, num_classes, ignore_index, ('labels', 'truth'))


def score_labels(confusion: np.ndarray, num_images: int, count_void: bool = True) -> LabelScores:
    """Turn counted pixels into scores.

    Args:
        confusion: Sum of :func:`count_labels` over the images, int64, shape (C, C + 1).
        num_images: Number of images.
        count_void: Whether a pixel that the label map leaves void counts as wrong. If not it is
            left out of the judgement: the scores are those of the pixels that carry a label.

    Returns:
        The scores.

    Raises:
        ValueError: If ``confusion`` is not of shape (C, C + 1).
    """
    if confusion.ndim != 2 or confusion.shape[1] != confusion.shape[0] + 1:
        raise ValueError(
            f'confusion has shape {confusion.shape}, not (C, C + 1): give a last column for void, '
            'of zeros where there is none'
        )
    given = confusion[:, :-1]
    correct, labelled = np.diagonal(given), given.sum(axis=0)
    true = (confusion if count_void else given).sum(axis=1)
    union = labelled + true - correct
    with np.errstate(invalid='ignore'):
        iou = 100 * correct / union
        precision, recall = 100 * correct / labelled, 100 * correct / true
        false_positive = 100 * (labelled - correct) / union
        false_negative = 100 * (true - correct) / union
        coverage = float(given.sum() / confusion.sum())
    return LabelScores(
        iou=iou,
        precision=precision,
        recall=recall,
        false_positive=false_positive,
        false_negative=false_negative,
        mean_iou=_mean_of_defined(iou),
        mean_precision=_mean_of_defined(precision),
        mean_recall=_mean_of_defined(recall),
        mean_false_positive=_mean_of_defined(false_positive),
        mean_false_negative=_mean_of_defined(false_negative),
        coverage=coverage,
        num_images=num_images,
    )


def _count(
    labels: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    ignore_index: int,
    names: tuple[str | Path, str | Path],
) -> np.ndarray:
    if labels.shape != truth.shape:
        raise ValueError(
            f'{names[0]} has {labels.shape} pixels (height, width) but {names[1]} has '
            f'{truth.shape}: write the labels at the size of the image'
        )
    # Of all ids that a byte can have: this finds the wrong ones too, in the same pass.
    cells = truth.astype(np.uint16) << 8 | labels
    pixels = np.bincount(cells.ravel(), minlength=2**16).reshape(256, 256)
    _check_ids(pixels.sum(axis=0), names[0], num_classes, VOID_ID)
    _check_ids(pixels.sum(axis=1), names[1], num_classes, ignore_index)
    confusion = pixels[:num_classes, [*range(num_classes), VOID_ID]]
    if 0 <= ignore_index < num_classes:
        confusion[ignore_index] = 0
    return confusion


def _check_ids(numbers: np.ndarray, name: str | Path, num_classes: int, void: int) -> None:
    found = np.flatnonzero(numbers)
    outside = found[(found >= num_classes) & (found != void)]
    if outside.size:
        raise ValueError(
            f'{name} has the ids {outside.tolist()}, which are neither one of the {num_classes} '
            f'classes nor {void}: give all classes, or correct the file'
        )


def _mean_of_defined(values: np.ndarray) -> float:
    # numpy warns about the mean of nothing.
    return float('nan') if np.isnan(values).all() else float(np.nanmean(values))


def _name_of_pair(pair: tuple[Path, Path]) -> str:
    return pair[0].stem
