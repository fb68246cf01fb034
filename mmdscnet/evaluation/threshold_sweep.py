"""Confusion of CAMs and truth at every background threshold, from one pass over the pixels.

A pixel is foreground at a threshold iff its winning cam lies strictly above it (the pseudo label
rule: background wins ties). So all that its predictions at *all* thresholds depend on is how many
thresholds lie strictly below its winning cam, and which class wins. Counting pixels by (number of
thresholds below, winning class, truth) and summing cumulatively gives every confusion exactly.

Letters: K foreground classes, of which an image has k, C = K + 1 classes with background at index
0, T thresholds.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

# Numbers in [0, 1] are ordered as their bits; those of half precision are few enough for a table.
BITS_OF_ONE = int(np.float16(1).view(np.uint16))
BITS_OF_MINUS_ZERO = int(np.float16(-0.0).view(np.uint16))


def sweep_thresholds(extra: float | None = None) -> Tensor:
    """Give the thresholds 0, 0.01, ..., 0.99, in ascending order.

    Args:
        extra: One more threshold, in [0, 1); no effect if it is one of the hundred.

    Returns:
        Thresholds in float32, the precision of the background score in a head, shape (100,), or
        (101,) if ``extra`` lies between two of them.
    """
    # The division in float64 makes each the float32 nearest to its decimal: what a literal gives.
    thresholds = (torch.arange(100, dtype=torch.float64) / 100).float()
    if extra is None:
        return thresholds
    return torch.cat([thresholds, torch.tensor([extra], dtype=torch.float32)]).unique(sorted=True)


def check_thresholds(values: Sequence[float] | Tensor) -> Tensor:
    """Check thresholds of the caller's own.

    Args:
        values: Ascending thresholds in [0, 1), shape (T,).

    Returns:
        The thresholds in float32, shape (T,).

    Raises:
        ValueError: If there is none, or they are not ascending (in float32) or not in [0, 1).
    """
    thresholds = torch.as_tensor(values, dtype=torch.float64).float()
    if thresholds.ndim != 1 or thresholds.numel() == 0:
        raise ValueError(
            f'thresholds has shape {tuple(thresholds.shape)}, not (T,): give at least one, as a '
            'list of numbers'
        )
    # Written so that NaN fails too.
    if not (thresholds[0] >= 0 and thresholds[-1] < 1 and (thresholds.diff() > 0).all()):
        raise ValueError(
            f'thresholds={thresholds.tolist()} are not ascending numbers in [0, 1), where cams '
            'live: sort them, and give each once'
        )
    return thresholds


def count_pixels(
    cams: Tensor, truth: Tensor, thresholds: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Count an image's pixels by (thresholds below the winning cam, winning class, truth).

    Args:
        cams: Class activation maps in [0, 1], compared in float32, shape (K, H, W). Of equal
            cams the first class wins, as in ``argmax``.
        truth: Class ids 0..K or ``ignore_index``, shape (H, W).
        thresholds: Ascending float32 thresholds, shape (T,).
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        The occupied cells, as indices into a flattened (T + 1, K, K + 1) histogram, and their
        numbers of pixels; both int64 on the CPU, shape (M,), M a few hundred for a photograph.
    """
    num_foreground = cams.shape[0]
    scores, winners = cams.float().max(dim=0)
    # right=False counts the thresholds strictly below the score: background wins ties.
    below = torch.searchsorted(thresholds.to(scores.device), scores.contiguous(), right=False)
    truth = truth.to(device=cams.device, dtype=torch.int64)
    cells = (below * num_foreground + winners) * (num_foreground + 1) + truth
    histogram = torch.bincount(cells[truth != ignore_index]).cpu()
    occupied = histogram.nonzero().squeeze(1)
    return occupied, histogram[occupied]


def count_thresholds_below(thresholds: Tensor) -> np.ndarray:
    """Tell for every number of half precision in [0, 1] how many thresholds lie strictly below it.

    Args:
        thresholds: Ascending float32 thresholds, shape (T,).

    Returns:
        Number of thresholds, indexed by the bits of the half as an integer, int32, shape
        (15361,).
    """
    halves = np.arange(BITS_OF_ONE + 1, dtype=np.uint16).view(np.float16)
    below = np.searchsorted(thresholds.numpy(), halves.astype(np.float32), side='left')
    return below.astype(np.int32)


def count_present_pixels(cams: np.ndarray, truth: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Count an image's pixels as :func:`count_pixels` does, from the CAMs of its classes alone.

    The other classes need no map: with cams of 0 they win where every cam is 0, and there no
    threshold lies below.

    Args:
        cams: CAMs of the k present classes in ascending order of their ids, in [0, 1], float16,
            shape (k, H, W). Of equal cams the first wins. k may be 0: all is background.
        truth: Ids, uint8, shape (H, W).
        below: What :func:`count_thresholds_below` gave.

    Returns:
        Numbers of pixels by thresholds below the winning cam, winning class and truth, int64,
        shape (T + 1, max(k, 1), 256).

    Raises:
        ValueError: If a cam is outside [0, 1] or NaN.
    """
    num_levels, num_present = int(below[-1]) + 1, max(len(cams), 1)
    cells = np.zeros(truth.shape, dtype=np.int32)
    if len(cams):
        scores, winners = _find_winners(_bits_of(cams))
        # mode: all indices are in range, and to check them takes longer.
        cells = (below * (256 * num_present)).take(scores, mode='clip')
        cells += winners
    cells += truth
    histogram = np.bincount(cells.ravel(), minlength=num_levels * num_present * 256)
    return histogram.reshape(num_levels, num_present, 256)


def list_cells(
    histogram: np.ndarray, class_ids: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """List the occupied cells of :func:`count_present_pixels` as :func:`count_pixels` lists them.

    Args:
        histogram: Numbers of pixels, shape (T + 1, max(k, 1), 256), none beyond truth id K.
        class_ids: Ids of the k classes, in 1..K, shape (k,).
        num_classes: C.

    Returns:
        Indices into a flattened (T + 1, K, K + 1) histogram and numbers of pixels, both int64,
        shape (M,).
    """
    occupied = np.flatnonzero(histogram)
    level, rank, truth = np.unravel_index(occupied, histogram.shape)
    # Without a class all pixels are at level 0, background at every threshold whoever wins.
    winners = class_ids.astype(np.int64)[rank] - 1 if len(class_ids) else 0
    return (level * (num_classes - 1) + winners) * num_classes + truth, histogram.flat[occupied]


def _find_winners(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
    scores = bits[0]
    if len(bits) == 1:
        return scores, 0
    winners = np.zeros(scores.shape, dtype=np.uint16)
    for index, of_class in enumerate(bits[1:], start=1):
        np.putmask(winners, of_class > scores, 256 * index)
        scores = np.maximum(scores, of_class)
    return scores, winners


def _bits_of(cams: np.ndarray) -> np.ndarray:
    bits = cams.view(np.uint16)
    if bits.max() > BITS_OF_ONE:
        bits = np.where(bits == BITS_OF_MINUS_ZERO, np.uint16(0), bits)
        if bits.max() > BITS_OF_ONE:
            raise ValueError(
                f'cams run from {cams.min():.4g} to {cams.max():.4g}, not within [0, 1]: export '
                'them again (if NaN: training has diverged)'
            )
    return bits


def sum_confusions(
    counts: Iterable[tuple[Tensor, Tensor]], num_thresholds: int, num_classes: int
) -> Tensor:
    """Turn the counts of all images into the confusion matrix at every threshold.

    Args:
        counts: What :func:`count_pixels` or :func:`list_cells` gave for each image.
        num_thresholds: T of these counts.
        num_classes: C of these counts, background included.

    Returns:
        Numbers of pixels in int64, shape (T, C, C), indexed [threshold, truth, prediction].
    """
    shape = (num_thresholds + 1, num_classes - 1, num_classes)
    flat = torch.zeros(shape, dtype=torch.int64).flatten()
    for cells, numbers in counts:
        flat.index_add_(0, cells, numbers)
    up_to = flat.view(shape).cumsum(dim=0)
    # Foreground at threshold t iff more than t thresholds lie below: all but the cells up to t.
    foreground = up_to[-1] - up_to[:-1]
    background = up_to[:-1].sum(dim=1, keepdim=True)
    return torch.cat([background, foreground], dim=1).transpose(1, 2)


def per_class_scores(confusions: Tensor) -> dict[str, Tensor]:
    """Score every class by its confusions, as mmseg's ``IoUMetric`` does.

    Args:
        confusions: Numbers of pixels, shape (..., C, C), indexed [..., truth, prediction].

    Returns:
        ``IoU``, ``Precision`` and ``Recall``: fractions in float64, shape (..., C). NaN where there
        is nothing to divide by: the IoU of a class that occurs neither in truth nor in
        prediction, the precision of one never predicted, the recall of one absent from the truth.
    """
    hits = confusions.diagonal(dim1=-2, dim2=-1).double()
    in_truth = confusions.sum(dim=-1)
    predicted = confusions.sum(dim=-2)
    return {
        'IoU': hits / (in_truth + predicted - hits),
        'Precision': hits / predicted,
        'Recall': hits / in_truth,
    }
