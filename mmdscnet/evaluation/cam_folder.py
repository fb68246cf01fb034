"""Judge exported CAMs at every background threshold."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdscnet.evaluation.threshold_sweep import (
    count_pixels,
    per_class_scores,
    sum_confusions,
    sweep_thresholds,
)
from mmdscnet.pseudo_labels import find_label_maps, open_label_map, read_cams


def sweep_cam_folder(
    folder: str | os.PathLike[str],
    truth_folder: str | os.PathLike[str],
    image_ids: Sequence[str],
    num_classes: int,
    ignore_index: int = 255,
) -> Tensor:
    """Compute the mIoU of the CAMs of a split at the thresholds 0, 0.01, ..., 0.99.

    Args:
        folder: Folder of an export of CAMs.
        truth_folder: Folder of the masks, ``<id>.png``.
        image_ids: Ids of the images of the split.
        num_classes: Classes with background.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        mIoU in per cent, shape (100,). Classes that occur neither in truth nor in prediction do
        not count, as in mmseg.

    Raises:
        FileNotFoundError: If an image has no CAMs or no mask.
        ValueError: If CAMs and mask of an image are of different sizes or an id of them is no
            class, a file is damaged, or there is no pixel to judge.
    """
    masks = find_label_maps(
        truth_folder, image_ids, 'check the folder, or take the images out of the split'
    )
    thresholds = sweep_thresholds()

    def counts() -> Iterator[tuple[Tensor, Tensor]]:
        for mask in masks:
            truth = _read_truth(mask, num_classes, ignore_index)
            cams = _read_cams(Path(folder, f'{mask.stem}.npz'), truth, num_classes)
            yield count_pixels(cams, truth, thresholds, ignore_index)

    confusions = sum_confusions(counts(), len(thresholds), num_classes)
    if not confusions.any():
        raise ValueError(
            f'no pixel to judge: every pixel of the {len(masks)} images in {truth_folder} is '
            f'ignore_index={ignore_index}; check ignore_index and the folder'
        )
    return 100 * per_class_scores(confusions)['IoU'].nanmean(dim=1)


def _read_truth(path: Path, num_classes: int, ignore_index: int) -> Tensor:
    ids = np.array(open_label_map(path))
    outside = sorted(set(np.unique(ids).tolist()) - {*range(num_classes), ignore_index})
    if outside:
        raise ValueError(
            f'{path} has the ids {outside}, which are neither one of the {num_classes} classes '
            f'nor {ignore_index}: give all classes, or correct the file'
        )
    return torch.from_numpy(ids).long()


def _read_cams(path: Path, truth: Tensor, num_classes: int) -> Tensor:
    exported = read_cams(path)
    if exported.cams.shape[1:] != truth.shape:
        raise ValueError(
            f'{path} has CAMs of {exported.cams.shape[1:]} pixels and its mask is '
            f'{tuple(truth.shape)}: export the CAMs of the images of these masks'
        )
    outside = sorted(set(exported.class_ids.tolist()) - set(range(1, num_classes)))
    if outside:
        raise ValueError(
            f'{path} has CAMs of the class ids {outside}, which are no foreground of '
            f'{num_classes} classes: give the classes with which they were exported'
        )
    cams = torch.zeros(num_classes - 1, *truth.shape)
    cams[exported.class_ids.astype(np.int64) - 1] = torch.from_numpy(exported.cams).float()
    return cams
