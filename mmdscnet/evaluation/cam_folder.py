"""Judge exported CAMs at every background threshold."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdscnet.evaluation.label_folder import LabelScores, score_labels
from mmdscnet.evaluation.threshold_sweep import (
    check_thresholds,
    count_present_pixels,
    count_thresholds_below,
    list_cells,
    per_class_scores,
    sum_confusions,
    sweep_thresholds,
)
from mmdscnet.parallel import map_over_images
from mmdscnet.pseudo_labels import CAMs, find_label_maps, open_label_map, read_cams
from mmdscnet.pseudo_labels.palette_png import VOID_ID


class SweepScores(NamedTuple):
    """What the CAMs of a split are worth at every background threshold.

    To choose a threshold on one split and apply it to another, sweep both over the same
    thresholds, take ``best`` of the one and read the other at this index.

    Attributes:
        thresholds: Ascending background thresholds, float32, shape (T,).
        mean_iou: mIoU in per cent at each, float64, shape (T,). Classes that occur neither in
            truth nor in prediction do not count, as in mmseg.
        confusions: Numbers of pixels, int64, shape (T, C, C), indexed [threshold, truth,
            prediction].
        num_images: Number of images judged.
    """

    thresholds: Tensor
    mean_iou: Tensor
    confusions: Tensor
    num_images: int

    @property
    def best(self) -> int:
        """Index of the threshold with the highest mIoU, of equal ones the lowest."""
        return int(self.mean_iou.argmax())

    def scores_at(self, index: int) -> LabelScores:
        """Score every class at one threshold.

        Args:
            index: Index of the threshold.

        Returns:
            The scores of the label maps that this threshold makes.
        """
        # CAMs leave nothing void: its column is empty.
        confusion = np.pad(self.confusions[index].numpy(), ((0, 0), (0, 1)))
        return score_labels(confusion, self.num_images)


def sweep_cam_folder(
    folder: str | os.PathLike[str],
    truth_folder: str | os.PathLike[str],
    image_ids: Sequence[str],
    num_classes: int,
    ignore_index: int = 255,
    thresholds: Sequence[float] | Tensor | None = None,
    num_processes: int = 0,
) -> SweepScores:
    """Judge the CAMs of a split at all thresholds, in one pass over the files.

    Args:
        folder: Folder of an export of CAMs.
        truth_folder: Folder of the masks, ``<id>.png``.
        image_ids: Ids of the images of the split.
        num_classes: Classes with background.
        ignore_index: Truth id of the pixels that count nowhere.
        thresholds: Ascending thresholds in [0, 1), or None for 0, 0.01, ..., 0.99.
        num_processes: As for :func:`mmdscnet.parallel.map_over_images`; worth its start-up of a
            few seconds from some thousand images on.

    Returns:
        The scores, the same to the pixel as of a pass for each threshold.

    Raises:
        FileNotFoundError: If an image has no CAMs or no mask.
        ValueError: If CAMs and mask of an image are of different sizes or an id of them is no
            class, a file is damaged, or there is no pixel to judge; if ``num_classes`` is not in
            2..255 or ``thresholds`` not ascending in [0, 1).
    """
    if not 2 <= num_classes <= VOID_ID:
        raise ValueError(
            f'num_classes={num_classes} is not in 2..{VOID_ID}: count background and the '
            'foreground classes'
        )
    swept = sweep_thresholds() if thresholds is None else check_thresholds(thresholds)
    masks = find_label_maps(
        truth_folder, image_ids, 'check the folder, or take the images out of the split'
    )
    pairs = ((Path(folder, f'{mask.stem}.npz'), mask) for mask in masks)
    count = partial(
        count_cam_file,
        below=count_thresholds_below(swept),
        num_classes=num_classes,
        ignore_index=ignore_index,
    )
    counts = map_over_images(count, pairs, num_processes, _name_of_pair)
    tensors = ((torch.from_numpy(cells), torch.from_numpy(numbers)) for cells, numbers in counts)
    confusions = sum_confusions(tensors, len(swept), num_classes)
    if not confusions.any():
        raise ValueError(
            f'no pixel to judge: every pixel of the {len(masks)} images in {truth_folder} is '
            f'ignore_index={ignore_index}; check ignore_index and the folder'
        )
    mean_iou = 100 * per_class_scores(confusions)['IoU'].nanmean(dim=1)
    return SweepScores(swept, mean_iou, confusions, len(masks))


def count_cam_file(
    pair: tuple[Path, Path], below: np.ndarray, num_classes: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of an image at all thresholds.

    Args:
        pair: Files of the CAMs and of the mask.
        below: From :func:`~mmdscnet.evaluation.threshold_sweep.count_thresholds_below`.
        num_classes: Classes with background.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        As :func:`~mmdscnet.evaluation.threshold_sweep.list_cells`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, sizes differ, or an id is no class.
    """
    cam_path, mask_path = pair
    truth = np.asarray(open_label_map(mask_path))
    exported = _read_cams(cam_path, truth.shape, num_classes)
    try:
        histogram = count_present_pixels(exported.cams, truth, below)
    except ValueError as error:
        raise ValueError(f'{cam_path}: {error}') from error
    _check_truth(histogram, mask_path, num_classes, ignore_index)
    histogram[..., num_classes:] = 0
    if 0 <= ignore_index < num_classes:
        histogram[..., ignore_index] = 0
    return list_cells(histogram, exported.class_ids, num_classes)


def _check_truth(histogram: np.ndarray, path: Path, num_classes: int, ignore_index: int) -> None:
    found = np.flatnonzero(histogram.any(axis=(0, 1)))
    outside = found[(found >= num_classes) & (found != ignore_index)]
    if outside.size:
        raise ValueError(
            f'{path} has the ids {outside.tolist()}, which are neither one of the {num_classes} '
            f'classes nor {ignore_index}: give all classes, or correct the file'
        )


def _read_cams(path: Path, size: tuple[int, ...], num_classes: int) -> CAMs:
    exported = read_cams(path)
    if exported.cams.shape[1:] != size:
        raise ValueError(
            f'{path} has CAMs of {exported.cams.shape[1:]} pixels and its mask is {size}: export '
            'the CAMs of the images of these masks'
        )
    outside = sorted(set(exported.class_ids.tolist()) - set(range(1, num_classes)))
    if outside:
        raise ValueError(
            f'{path} has CAMs of the class ids {outside}, which are no foreground of '
            f'{num_classes} classes: give the classes with which they were exported'
        )
    # Ties go to the first class, whatever the order of the file.
    order = exported.class_ids.argsort()
    if (order[1:] < order[:-1]).any():
        return CAMs(exported.cams[order], exported.class_ids[order])
    return exported


def _name_of_pair(pair: tuple[Path, Path]) -> str:
    return pair[0].stem
