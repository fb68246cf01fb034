"""What refining CAMs changes: in the evidence, on the maps, and through the image-level labels.

Letters: N images, K foreground classes, C = K + 1 classes with background at index 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmdscnet.functional.cam import image_scores


class EvidenceParts(NamedTuple):
    """How two parts of one evidence vary, for each labelled class of each image.

    All of shape (L,), L the number of labels of the batch.

    Attributes:
        feature_std: Standard deviation of the feature part over the pixels of the image.
        enriched_std: That of the enriched part.
        feature_mean: Mean of the feature part over the pixels.
        enriched_mean: That of the enriched part: a bias of the class, which locates nothing.
    """

    feature_std: Tensor
    enriched_std: Tensor
    feature_mean: Tensor
    enriched_mean: Tensor


def measure_evidence_parts(
    feature_part: Tensor, enriched_part: Tensor, image_labels: Tensor
) -> EvidenceParts:
    """Tell how much of the refined evidence comes from the enriched pixels.

    Args:
        feature_part: What the refined classifier makes of the features, shape (N, K, h, w).
        enriched_part: What it makes of the enriched pixels, shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).

    Returns:
        The measures of each labelled class, in the order of images and classes.
    """
    parts = [take_labelled(part, image_labels) for part in (feature_part, enriched_part)]
    means = [part.mean(dim=1) for part in parts]
    stds = [
        (part - mean[:, None]).square().mean(dim=1).sqrt()
        for part, mean in zip(parts, means, strict=True)
    ]
    return EvidenceParts(*stds, *means)


def locate_evidence(
    cam_logits: Tensor, image_labels: Tensor, truth: Tensor, ignore_index: int
) -> Tensor:
    """Tell how well evidence says where the labelled classes are.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).
        truth: True class of each pixel, 0..K or ``ignore_index``, shape (N, h, w).
        ignore_index: Truth id of the pixels that are left out.

    Returns:
        Correlation of the evidence with the true mask of the class over the pixels of the image, in
        [-1, 1], for each labelled class, shape (L,); NaN where either is constant.
    """
    image, channel = (image_labels > 0).nonzero(as_tuple=True)
    masks = truth.flatten(1)[image]
    hits = (masks == channel[:, None] + 1).double()
    return correlate_masked(take_labelled(cam_logits, image_labels), hits, masks != ignore_index)


def take_labelled(cam_logits: Tensor, image_labels: Tensor) -> Tensor:
    """Take the maps of the labelled classes, as rows of pixels in float64, shape (L, h * w)."""
    return cam_logits[image_labels > 0].double().flatten(1)


def correlate_masked(values: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Correlate rows over the places of a mask.

    Args:
        values: Rows, float64, shape (L, V).
        others: Rows to correlate with, float64, shape (L, V).
        mask: Places that count, bool, shape (L, V).

    Returns:
        Pearson correlation in [-1, 1], shape (L,); NaN for a row that is constant where it counts.
    """
    count = mask.sum(dim=1, keepdim=True)
    centred = [
        torch.where(mask, row - (row * mask).sum(dim=1, keepdim=True) / count, 0)
        for row in (values, others)
    ]
    sizes = [row.square().sum(dim=1) for row in centred]
    # What centring leaves of equal values is rounding, not variance.
    rounding = [1e-24 * (row.square() * mask).sum(dim=1) for row in (values, others)]
    constant = (sizes[0] <= rounding[0]) | (sizes[1] <= rounding[1])
    correlation = (centred[0] * centred[1]).sum(dim=1) / (sizes[0] * sizes[1]).sqrt()
    return torch.where(constant, torch.nan, correlation)


def count_changes(
    plain_labels: Tensor,
    refined_labels: Tensor,
    truth: Tensor,
    num_classes: int,
    ignore_index: int,
) -> Tensor:
    """Count which pixels each class gains and loses from plain to refined labels.

    A pixel is gained by the class that it newly carries, rightly where that is its true class, and
    lost by the class that it no longer carries, rightly where that is not its true class.

    Args:
        plain_labels: Labels 0..K before, shape (N, H, W).
        refined_labels: Labels 0..K after, shape (N, H, W).
        truth: True class, 0..K or ``ignore_index``, shape (N, H, W).
        num_classes: Classes with background, C.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        Numbers of pixels, int64, shape (C, 4): gained rightly, gained wrongly, lost rightly, lost
        wrongly.

    Raises:
        ValueError: If the maps differ in shape.
    """
    if not plain_labels.shape == refined_labels.shape == truth.shape:
        raise ValueError(
            f'plain_labels has shape {tuple(plain_labels.shape)}, refined_labels '
            f'{tuple(refined_labels.shape)}, truth {tuple(truth.shape)}: resize the maps to one '
            'size'
        )
    changed = (plain_labels != refined_labels) & (truth != ignore_index)
    before, after, true = plain_labels[changed], refined_labels[changed], truth[changed]
    counted = [
        after[after == true],
        after[after != true],
        before[before != true],
        before[before == true],
    ]
    return torch.stack([ids.long().bincount(minlength=num_classes) for ids in counted], dim=1)


def paint_changes(plain_labels: Tensor, refined_labels: Tensor, truth: Tensor) -> Tensor:
    """Say of each pixel whether refining has mended or spoiled it.

    Args:
        plain_labels: Labels before, shape (..., H, W).
        refined_labels: Labels after, shape (..., H, W).
        truth: True class, 255 where unknown, shape (..., H, W).

    Returns:
        0 where nothing changed or the truth is unknown, 1 where right became of wrong, 2 where
        wrong became of right, 3 where one wrong class took the place of another; uint8, shape
        (..., H, W).
    """
    was_right, is_right = plain_labels == truth, refined_labels == truth
    kinds = torch.full_like(truth, 3, dtype=torch.uint8)
    kinds[is_right] = 1
    kinds[was_right] = 2
    kinds[(plain_labels == refined_labels) | (truth == 255)] = 0
    return kinds


def sum_scores(cam_logits: Tensor, present: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Sum image scores by whether a class is there and whether the graph was told so.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w).
        present: True image-level labels in {0, 1}, shape (N, K).
        told: Labels that the graph was given, in {0, 1}, shape (N, K).

    Returns:
        Sum of the image-level logits, float64, and number of classes, int64, both of shape (2, 2),
        indexed [present, told].
    """
    cells = (2 * (present > 0) + (told > 0)).flatten()
    scores = image_scores(cam_logits).double().flatten()
    sums = torch.zeros(4, dtype=torch.float64, device=scores.device).index_add_(0, cells, scores)
    return sums.view(2, 2), torch.bincount(cells, minlength=4).view(2, 2)
