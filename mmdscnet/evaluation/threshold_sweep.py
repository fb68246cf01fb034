"""Confusion of CAMs and truth at every background threshold, from one pass over the pixels.

A pixel is foreground at a threshold iff its winning cam lies strictly above it (the pseudo label
rule: background wins ties). So all that its predictions at *all* thresholds depend on is how many
thresholds lie strictly below its winning cam, and which class wins. Counting pixels by (number of
thresholds below, winning class, truth) and summing cumulatively gives every confusion exactly.

Letters: K foreground classes, C = K + 1 classes with background at index 0, T thresholds.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


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


def sum_confusions(
    counts: Iterable[tuple[Tensor, Tensor]], num_thresholds: int, num_classes: int
) -> Tensor:
    """Turn the counts of all images into the confusion matrix at every threshold.

    Args:
        counts: What :func:`count_pixels` gave for each image.
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
