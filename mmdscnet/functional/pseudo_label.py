"""Pseudo labels: from CAMs to a label map with background and an ignore band (Eq. 2, 12).

Also what CAMs learn from such a map: the pixel-wise term of Eq. 13.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.cam import background_score
from mmdscnet.functional.precision import full_precision


@full_precision
def make_pseudo_labels(
    cams: Tensor,
    bg_thr: float,
    bg_alpha: float | None = None,
    fg_thr: float | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Label every pixel with its strongest class, the background, or the ignore index.

    DSCNet, arXiv:2405.04913, Eq. 2 (from CAMs) and Eq. 12 (from refined CAMs).

    Note:
        The equations have no background, so every pixel would become some foreground class. Here
        the background competes with a score of its own and wins ties. With ``fg_thr`` the pixels
        between the background rule and a confident class are left out of training.

    Args:
        cams: CAMs in [0, 1], zero for absent classes, shape (N, K, h, w).
        bg_thr: Constant background score, in [0, 1).
        bg_alpha: Exponent of the power rule that replaces ``bg_thr``.
        fg_thr: Foreground pixels whose CAM is below this become ``ignore_index``.
        ignore_index: Label of ignored pixels.

    Returns:
        Labels, int64: 0 background, k the k-th class, or ``ignore_index``; shape (N, h, w).

    Raises:
        ValueError: If ``fg_thr`` lies below ``bg_thr`` and ``bg_alpha`` is not given.

    Example:
        >>> cams = torch.tensor([0.1, 0.4, 0.9]).view(1, 1, 1, 3)
        >>> make_pseudo_labels(cams, bg_thr=0.2, fg_thr=0.6)
        tensor([[[  0, 255,   1]]])
    """
    check_ignore_band(bg_thr, bg_alpha, fg_thr)
    scores = torch.cat([background_score(cams, bg_thr, bg_alpha), cams], dim=1)
    return decide_labels(scores, fg_thr, ignore_index)


def check_ignore_band(bg_thr: float, bg_alpha: float | None, fg_thr: float | None) -> None:
    """Refuse thresholds between which no CAM can lie.

    Args:
        bg_thr: Constant background score, in [0, 1).
        bg_alpha: Exponent of the power rule that replaces ``bg_thr``.
        fg_thr: Lowest CAM of a confident class; None for no band.

    Raises:
        ValueError: If ``fg_thr`` lies below ``bg_thr`` and ``bg_alpha`` is not given.
    """
    if fg_thr is not None and bg_alpha is None and fg_thr < bg_thr:
        raise ValueError(
            f'fg_thr={fg_thr} lies below bg_thr={bg_thr}, so the ignore band is empty: '
            'choose fg_thr >= bg_thr, or fg_thr=None for no band'
        )


@full_precision
def decide_labels(scores: Tensor, fg_thr: float | None = None, ignore_index: int = 255) -> Tensor:
    """Label every pixel with its best score; the background wins ties.

    Args:
        scores: Scores in [0, 1], background first, shape (N, C, h, w).
        fg_thr: Pixels that another class wins with a lower score become ``ignore_index``.
        ignore_index: Label of ignored pixels.

    Returns:
        Labels, int64: 0 background, k the k-th class, or ``ignore_index``; shape (N, h, w).
    """
    strongest, labels = scores.max(dim=1)
    if fg_thr is None:
        return labels
    return labels.masked_fill((labels > 0) & (strongest < fg_thr), ignore_index)


@full_precision
def average_labelled_pixels(
    embeddings: Tensor, pseudo_labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Average the embeddings of the pixels of each label: the keys of Eq. 9.

    Args:
        embeddings: Pixel embeddings, shape (N, E, h, w).
        pseudo_labels: Labels 0..K; all others are left out; shape (N, h, w).
        num_classes: Classes with background, A.

    Returns:
        Means, zero for labels that no pixel carries, shape (N, A, E), and whether any pixel
        carries the label, bool, shape (N, A).
    """
    slots = torch.arange(num_classes, device=embeddings.device)[None, :, None]
    members = (pseudo_labels.flatten(1).unsqueeze(1) == slots).to(embeddings.dtype)
    size = members.sum(dim=2, keepdim=True)
    means = (members / size.clamp_min(1)) @ embeddings.flatten(2).transpose(1, 2)
    return means, size.squeeze(2) > 0


@full_precision
def pixel_cross_entropy(
    cam_logits: Tensor,
    pseudo_labels: Tensor,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    r"""Compare the evidence of every pixel with its pseudo label.

    .. math::
        L = -\frac{1}{|U|} \sum_{u \in U} \log
            \frac{e^{l^{\hat y_u}_u}}{1 + \sum_k e^{l^k_u}}, \quad l^0_u = 0

    with :math:`U` the labelled pixels of the batch. DSCNet, arXiv:2405.04913, the pixel-wise term
    of Eq. 13.

    Note:
        The paper does not say how the background takes part. Here it has the evidence 0, the border
        above which Eq. 1 counts evidence as foreground: no classifier for it has to be learned.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w); resized bilinearly where the
            labels have another size.
        pseudo_labels: Labels 0..K or ``ignore_index``, int64, shape (N, H, W).
        ignore_index: Label of pixels that are left out.
        align_corners: How the evidence is resized, as in mmseg.

    Returns:
        Mean over the labelled pixels, a scalar; zero, and with zero gradient, where there are none.

    Example:
        >>> cam_logits = torch.zeros(1, 3, 2, 2)
        >>> pixel_cross_entropy(cam_logits, torch.tensor([[[0, 1], [3, 255]]])).exp()
        tensor(4.)
    """
    size = pseudo_labels.shape[1:]
    if cam_logits.shape[2:] != size:
        cam_logits = F.interpolate(cam_logits, size, mode='bilinear', align_corners=align_corners)
    with_background = F.pad(cam_logits, (0, 0, 0, 0, 1, 0))
    total = F.cross_entropy(
        with_background, pseudo_labels, ignore_index=ignore_index, reduction='sum'
    )
    return total / (pseudo_labels != ignore_index).sum().clamp_min(1)
