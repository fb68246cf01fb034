"""Pseudo labels: from CAMs to a label map with background and an ignore band (Eq. 2, 12)."""

import torch
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
    if fg_thr is not None and bg_alpha is None and fg_thr < bg_thr:
        raise ValueError(
            f'fg_thr={fg_thr} lies below bg_thr={bg_thr}, so the ignore band is empty: '
            'choose fg_thr >= bg_thr, or fg_thr=None for no band'
        )
    strongest, winner = cams.max(dim=1)
    is_foreground = strongest > background_score(cams, bg_thr, bg_alpha).squeeze(1)
    labels = torch.where(is_foreground, winner + 1, 0)
    if fg_thr is None:
        return labels
    return labels.masked_fill(is_foreground & (strongest < fg_thr), ignore_index)


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
