"""SEAM's pixel correlation: every pixel takes over the CAMs of the pixels that look like it.

Source: Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
Segmentation", CVPR 2020 (SEAM), Sec. 3.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision

# Bounds the block of affinities in memory: 2**26 float32 are 256 MiB.
MAX_BLOCK = 2**26


@full_precision
def keep_winning_cams(cam_logits: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Normalise class evidence and leave each pixel its strongest class and the background.

    .. math:: O^k = \frac{\max(l^k, 0)}{\max_v \max(l^k_v, 0) + \epsilon}, \quad
        O^0 = 1 - \max_k O^k

    The foreground maps that are not the largest at a pixel are 0 there. Image-level labels play no
    part. SEAM, CVPR 2020, Sec. 3.4 (what goes into the PCM).

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w); no gradient flows into it.
        eps: Added to the divisor.

    Returns:
        Maps in [0, 1], background first, shape (N, K + 1, h, w).
    """
    evidence = F.relu(cam_logits.detach())
    cams = evidence / (evidence.amax(dim=(2, 3), keepdim=True) + eps)
    strongest = cams.amax(dim=1, keepdim=True)
    return torch.cat([1 - strongest, cams * (cams == strongest)], dim=1)


@full_precision
def correlate_pixels(cams: Tensor, embeddings: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Average the CAMs over all pixels of the image, weighted by how alike two pixels are.

    .. math:: y_j = \sum_i \frac{A_{ij}}{\sum_i A_{ij} + \epsilon}\, O_i, \quad
        A_{ij} = \max\Big(\frac{f_i \cdot f_j}{|f_i| |f_j|}, 0\Big)

    SEAM, CVPR 2020, Sec. 3.4. The rectification keeps the sum from being factored, so the cost is
    O(V^2 E); but no output pixel needs another, and the V x V matrix is made in blocks of columns
    of at most ``MAX_BLOCK`` numbers (two blocks for SEAM's 8 images of 448 pixels).

    Args:
        cams: Maps of all pixels, shape (N, C, h, w).
        embeddings: What decides which pixels are alike, shape (N, E, h, w).
        eps: Added to the divisors.

    Returns:
        Revised maps, shape (N, C, h, w).
    """
    images, _, height, width = cams.shape
    values = cams.flatten(2)
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    pixels = (embeddings / (lengths + eps)).flatten(2)
    columns = max(1, MAX_BLOCK // (images * height * width))
    blocks = []
    for block in pixels.split(columns, dim=2):
        affinity = F.relu(pixels.transpose(1, 2) @ block)
        blocks.append(values @ affinity / (affinity.sum(dim=1, keepdim=True) + eps))
    return torch.cat(blocks, dim=2).view_as(cams)
