"""Class activation maps: from the classifier's output to maps in [0, 1] (Eq. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision


@full_precision
def image_scores(cam_logits: Tensor) -> Tensor:
    """Average the class evidence over the image.

    With a 1x1 classifier without bias this equals classifying the average-pooled features, so the
    maps are trained by image-level labels alone. DSCNet, arXiv:2405.04913, Eq. 1.

    Args:
        cam_logits: Class evidence of every pixel, unbounded, shape (N, K, h, w).

    Returns:
        Image-level logits, shape (N, K).
    """
    return cam_logits.mean(dim=(2, 3))


def predict_image_labels(scores: Tensor, score_thr: float) -> Tensor:
    """Choose the classes of an image from its scores.

    Args:
        scores: Image-level logits, shape (N, K).
        score_thr: Probability above which a class counts as present, in [0, 1].

    Returns:
        Image-level labels in {0, 1}, shape (N, K); at least the best class of each image is 1.
    """
    best = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    return ((scores.sigmoid() > score_thr) | best).to(scores.dtype)


@full_precision
def normalize_cams(cam_logits: Tensor, image_labels: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Turn class evidence into CAMs.

    .. math:: O^k_u = Y^k \frac{\max(l^k_u, 0)}{\max_v l^k_v}

    DSCNet, arXiv:2405.04913, Eq. 1, with the masking by image-level labels of CAM papers.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).
        eps: Smallest divisor: a class without any positive evidence gets an all-zero map.

    Returns:
        CAMs in [0, 1], zero for absent classes, shape (N, K, h, w).
    """
    evidence = F.relu(cam_logits)
    peak = evidence.amax(dim=(2, 3), keepdim=True).clamp_min(eps)
    return evidence / peak * image_labels[:, :, None, None].to(evidence.dtype)


@full_precision
def stretch_cams(cam_logits: Tensor, image_labels: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Turn class evidence into CAMs whose lowest value is 0, also where all of it is positive.

    .. math:: O^k_u = Y^k \frac{\max(l^k_u - m^k - \epsilon, 0)}{\max_v l^k_v - m^k + \epsilon}

    with :math:`l` the positive part of the evidence and :math:`m^k` its minimum over the image.
    Released implementation of SEAM (CVPR 2020), for evidence that is summed over scales and flips.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).
        eps: Keeps the map of a class with equal evidence everywhere at 0.

    Returns:
        CAMs in [0, 1], zero for absent classes, shape (N, K, h, w).
    """
    evidence = F.relu(cam_logits)
    low = evidence.amin(dim=(2, 3), keepdim=True)
    high = evidence.amax(dim=(2, 3), keepdim=True)
    cams = F.relu(evidence - low - eps) / (high - low + eps)
    return cams * image_labels[:, :, None, None].to(evidence.dtype)


@full_precision
def background_score(cams: Tensor, bg_thr: float, bg_alpha: float | None = None) -> Tensor:
    r"""Score the background from the CAMs.

    Either the constant ``bg_thr`` or :math:`(1 - \max_k O^k_u)^\alpha` (AffinityNet, CVPR 2018).

    Args:
        cams: CAMs in [0, 1], shape (N, K, h, w).
        bg_thr: Constant background score, in [0, 1); not used when ``bg_alpha`` is given.
        bg_alpha: Exponent of the power rule, positive; larger means less background.

    Returns:
        Background scores in [0, 1], shape (N, 1, h, w).
    """
    strongest = cams.amax(dim=1, keepdim=True)
    if bg_alpha is None:
        return torch.full_like(strongest, bg_thr)
    return (1 - strongest) ** bg_alpha
