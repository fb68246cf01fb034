"""SEAM's comparison of two views of an image: the same maps whatever the scale.

Source: Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
Segmentation", CVPR 2020 (SEAM), and the details that only its released implementation tells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision


@full_precision
def view_distance(first: Tensor, second: Tensor) -> Tensor:
    """Compare the CAMs of two views: their mean absolute difference.

    SEAM, CVPR 2020, Eq. 2 (equivariant regularisation, ER).

    Args:
        first: CAMs in [0, 1], shape (N, K, h, w).
        second: CAMs of the other view at the same size, shape (N, K, h, w).

    Returns:
        The distance, a scalar.
    """
    return (first - second).abs().mean()


@full_precision
def cross_distance(cams: Tensor, revised: Tensor, share: float) -> Tensor:
    """Compare the revised maps of a view with the CAMs of the other, where they differ most.

    SEAM, CVPR 2020, Eq. 7 (equivariant cross regularisation, ECR), one of its two directions.

    Note:
        The paper averages over all pixels; here, as in the released implementation, it is the
        largest ``share`` of the differences of each image, and of the CAMs only the strongest
        class of a pixel is kept, with its value, under a background of 1 - max.

    Args:
        cams: CAMs of the other view in [0, 1], shape (N, K, h, w); no gradient flows into them.
        revised: Revised maps in [0, 1], background first, shape (N, K + 1, h, w).
        share: Share of the differences that count, in (0, 1].

    Returns:
        The distance, a scalar.
    """
    cams = cams.detach()
    strongest = cams.amax(dim=1, keepdim=True)
    target = torch.cat([1 - strongest, cams * (cams == strongest)], dim=1)
    difference = (target - revised).abs().flatten(1)
    count = max(1, int(difference.shape[1] * share))
    return difference.topk(count, dim=1, sorted=False).values.mean()


@full_precision
def pool_lowest(maps: Tensor, share: float) -> Tensor:
    """Average the strongest class of the pixels where it is lowest.

    As a loss it asks that a part of every image be covered by no class. Source: the released
    implementation of SEAM; the paper does not have it.

    Args:
        maps: Maps of the classes, zero for absent ones, shape (N, K, h, w).
        share: Share of the pixels that count, in (0, 1].

    Returns:
        The mean, a scalar of at least 0.
    """
    strongest = maps.amax(dim=1).flatten(1)
    count = max(1, int(strongest.shape[1] * share))
    return F.relu(strongest.topk(count, dim=1, largest=False, sorted=False).values).mean()
