"""Pixel context and pixel groups: the image as a few group embeddings (Eq. 4, 5)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision


class PixelGroups(NamedTuple):
    """A partition of the pixels of each image and one embedding a group.

    Attributes:
        group_ids: Slot of each pixel's group, int64, 0..K, shape (N, h, w).
        embeddings: Group embeddings, with gradient, shape (N, A, E).
        correlation: Correlation of each pixel with the centre of each group, in [-1, 1], shape
            (N, A, h, w).
        valid: Whether the image has this group: a class where it is labelled, background always
            (or only where nothing is labelled, without a background group); shape (N, A), bool.
    """

    group_ids: Tensor
    embeddings: Tensor
    correlation: Tensor
    valid: Tensor


@full_precision
def standardize_pixels(embeddings: Tensor) -> Tensor:
    """Centre each pixel over its channels and scale it to length 1.

    The dot product of two such rows is the Pearson correlation of the two pixels.

    Args:
        embeddings: Pixel embeddings, shape (N, E, h, w).

    Returns:
        Rows of length 1 (0 for a pixel whose channels are all equal), shape (N, V, E).
    """
    rows = embeddings.flatten(2).transpose(1, 2)
    centred = rows - rows.mean(dim=2, keepdim=True)
    # What centring leaves of equal channels is rounding, not a direction.
    rounding = 4 * torch.finfo(rows.dtype).eps * rows.norm(dim=2, keepdim=True)
    is_flat = centred.norm(dim=2, keepdim=True) <= rounding
    return F.normalize(centred.masked_fill(is_flat, 0), dim=2)


def stack_levels(levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Describe the pixels by several levels of a backbone, each with the same weight.

    Deep levels know the classes, shallow ones the borders of things.

    Args:
        levels: Feature maps, each of shape (N, D_i, h_i, w_i).
        size: Height and width of the result; larger maps are averaged, smaller ones interpolated.

    Returns:
        Standardised pixels, without gradient, shape (N, V, D_1 + D_2 + ...).
    """
    rows = [standardize_pixels(resize_level(level.detach().float(), size)) for level in levels]
    return torch.cat(rows, dim=2) / math.sqrt(len(rows))


def resize_level(level: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a feature map to a size, shape (N, D, h, w) to (N, D, *size)."""
    if tuple(level.shape[2:]) == tuple(size):
        return level
    mode = 'area' if level.shape[2] > size[0] else 'bilinear'
    resized: Tensor = F.interpolate(level, size, mode=mode)
    return resized


@full_precision
def pixel_context(rows: Tensor) -> Tensor:
    r"""Measure how much each pixel resembles the rest of its image.

    .. math:: C_u = \frac{1}{V} \sum_v \rho(u, v) = r_u \cdot \frac{1}{V} \sum_v r_v

    with :math:`\rho` the Pearson correlation over channels. DSCNet, arXiv:2405.04913, Eq. 4, in
    O(V E): the V x V matrix of correlations is never built.

    Note:
        The print sums over the index that it also leaves free, and does not divide by V.

    Args:
        rows: Standardised pixels, from :func:`standardize_pixels`, shape (N, V, E).

    Returns:
        Mean correlation in [-1, 1], shape (N, V).
    """
    return (rows * rows.mean(dim=1, keepdim=True)).sum(dim=2)


@full_precision
def seed_weights(cams: Tensor, rows: Tensor, eps: float = 1e-5) -> Tensor:
    """Weigh the pixels from which each group's centre starts.

    A class starts from its CAM; the background from what no CAM covers, the more so the more the
    pixel resembles the rest of the image (Eq. 4).

    Args:
        cams: CAMs in [0, 1], shape (N, K, h, w).
        rows: Standardised pixels, shape (N, V, E).
        eps: Added everywhere, so that a class without evidence starts from the image's mean.

    Returns:
        Weights in (0, 1 + eps], shape (N, A, V).
    """
    foreground = cams.flatten(2)
    uncovered = 1 - foreground.amax(dim=1)
    background = uncovered * (1 + pixel_context(rows)) / 2
    return torch.cat([background.unsqueeze(1), foreground], dim=1).clamp_min(0) + eps


@full_precision
def group_pixels(
    embeddings: Tensor,
    cams: Tensor,
    image_labels: Tensor,
    num_rounds: int = 3,
    min_correlation: float = 0.5,
    keep_outliers: bool = False,
    background: bool = True,
    min_cam: float = 0.0,
    rows: Tensor | None = None,
) -> PixelGroups:
    r"""Partition the pixels of each image into the background and one group a present class.

    K-means under the correlation distance: a fixed number of Lloyd rounds on detached embeddings,
    from centres seeded by the CAMs, so that group k is class k and nothing is random. A group's
    embedding is the mean of its members whose correlation with the centre is high enough:

    .. math:: P^a = \frac{1}{|\Omega_a|} \sum_{u \in \Omega_a} z_u, \quad
        \Omega_a = \{u : g(u) = a,\ \rho(z_u, c_a) \ge 0.5\}

    DSCNet, arXiv:2405.04913, Eq. 5. Cost O(V A E) an image.

    Note:
        The print makes ``|Y|`` clusters: an image of one class (59 % of VOC) would then have one
        group, and Eq. 10 would be constant; here the background is one more. The print's
        threshold has the opposite sign, which would average the outliers.

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        cams: CAMs in [0, 1], shape (N, K, h, w); no gradient flows into them.
        image_labels: Image-level labels in {0, 1}, shape (N, K).
        num_rounds: Lloyd rounds; 0 keeps the seeded centres.
        min_correlation: Least correlation of a member with its centre, in [-1, 1]. A group in
            which no pixel reaches it takes the mean weighted by its seeds instead.
        keep_outliers: Average the members *below* ``min_correlation`` instead, as printed.
        background: Whether the background is a group of its own; without, it is one only in images
            without any class.
        min_cam: CAMs below this do not seed a class, in [0, 1].
        rows: Standardised pixels by which to group, such as those of :func:`stack_levels`, shape
            (N, V, D); None for those of the embeddings.

    Returns:
        The groups of each image.
    """
    present = image_labels > 0
    has_background = torch.ones_like(present[:, :1]) if background else ~present.any(1, True)
    valid = torch.cat([has_background, present], dim=1)
    with torch.no_grad():
        rows = standardize_pixels(embeddings) if rows is None else rows
        seeds = seed_weights(cams * (cams >= min_cam), rows)
        centres = F.normalize(seeds @ rows, dim=2)
        for _ in range(num_rounds):
            members, _ = assign_pixels(rows, centres, valid)
            moved = F.normalize(members @ rows, dim=2)
            centres = torch.where(members.any(dim=2, keepdim=True), moved, centres)
        members, correlation = assign_pixels(rows, centres, valid)
        core = members * ((correlation >= min_correlation) ^ keep_outliers)
        weights = torch.where(core.any(dim=2, keepdim=True), core, seeds)
        weights = weights / weights.sum(dim=2, keepdim=True)
    means = weights @ embeddings.flatten(2).transpose(1, 2)
    size = tuple(embeddings.shape[2:])
    group_ids = members.max(dim=1).indices.unflatten(1, size)
    return PixelGroups(group_ids, means, correlation.unflatten(2, size), valid)


def assign_pixels(rows: Tensor, centres: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Give each pixel to the valid centre with which it correlates best.

    Args:
        rows: Standardised pixels, shape (N, V, E).
        centres: Centres of length 1, shape (N, A, E).
        valid: Whether the image has this group, at least one an image, shape (N, A), bool.

    Returns:
        Membership in {0, 1} and correlation in [-1, 1], both of shape (N, A, V).
    """
    correlation = centres @ rows.transpose(1, 2)
    # On a CPU this takes a fifth of the time of argmax.
    best = correlation.masked_fill(~valid.unsqueeze(2), -2).max(dim=1, keepdim=True).indices
    return torch.zeros_like(correlation).scatter_(1, best, 1), correlation
