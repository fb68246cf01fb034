"""InfoNCE between the classes of many images: one formula for both contrasts (Eq. 3, 6, 7, 9)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision


@full_precision
def masked_info_nce(
    similarity: Tensor,
    positive_mask: Tensor,
    negative_mask: Tensor,
    temperature: float,
    positive_in_denominator: bool = True,
) -> Tensor:
    r"""InfoNCE over pairs that two masks choose, mean per image, then over images.

    .. math:: L_a = -\frac{1}{|P(a)|} \sum_{p \in P(a)} \log
        \frac{e^{s_{ap}/\tau}}{e^{s_{ap}/\tau} + \sum_{n \in N(a)} e^{s_{an}/\tau}}

    for the anchors :math:`a` that have a positive; the others, and images without any anchor, do
    not count. DSCNet, arXiv:2405.04913, Eq. 3, 6 and 7.

    Note:
        The print leaves the positive out of the denominator, which makes the loss unbounded below,
        and divides inside the cosine by the temperature, where it has no effect.

    Args:
        similarity: Cosine similarity of anchors and candidates, in [-1, 1], shape (N, A, B).
        positive_mask: Pairs to pull together, bool, shape (N, A, B).
        negative_mask: Pairs to push apart, bool, shape (N, A, B).
        temperature: Divisor of the similarity.
        positive_in_denominator: False for the denominator as printed, of negatives alone.

    Returns:
        The loss, a scalar; exactly 0, attached to the graph, when no anchor has a positive.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Example:
        >>> similarity = torch.tensor([[[1.0, -1.0]]])
        >>> positive = torch.tensor([[[True, False]]])
        >>> masked_info_nce(similarity, positive, ~positive, temperature=1.0)
        tensor(0.1269)
    """
    if temperature <= 0:
        raise ValueError(f'temperature={temperature} must be positive: the paper uses 0.1 to 0.5')
    logits = similarity / temperature
    # A finite filler: log-sum-exp of nothing but -inf has no gradient.
    filler = torch.finfo(logits.dtype).min / 4
    negatives = logits.masked_fill(~negative_mask, filler).logsumexp(dim=2, keepdim=True)
    margin = negatives - logits
    if positive_in_denominator:
        pairs = F.softplus(margin) * positive_mask
    else:
        # Without any negative the print's denominator is empty; such a pair has nothing to say.
        has_negative = negative_mask.any(dim=2, keepdim=True)
        pairs = margin.masked_fill(~(positive_mask & has_negative), 0)
    positives = positive_mask.sum(dim=2)
    anchors = pairs.sum(dim=2) / positives.clamp_min(1)
    is_anchor = positives > 0
    images = anchors.sum(dim=1) / is_anchor.sum(dim=1).clamp_min(1)
    return images.sum() / is_anchor.any(dim=1).sum().clamp_min(1)


@full_precision
def slot_similarity(anchors: Tensor, keys: Tensor) -> Tensor:
    """Compare every slot of the images with every slot of the key images.

    Args:
        anchors: One vector a slot, shape (N, A, E).
        keys: One vector a slot, shape (M, A, E).

    Returns:
        Cosine similarity in [-1, 1], 0 for a zero vector, shape (N, A, M, A).
    """
    # The default eps would blow the gradient of a zero vector up to 1e12.
    unit_anchors, unit_keys = (F.normalize(x, dim=2, eps=1e-6) for x in (anchors, keys))
    return torch.einsum('iae,jbe->iajb', unit_anchors, unit_keys)


@full_precision
def class_contrast(
    anchors: Tensor,
    anchor_valid: Tensor,
    keys: Tensor,
    key_valid: Tensor,
    temperature: float,
    own_image_is_positive: bool,
    positive_in_denominator: bool = True,
    min_correlation: float | None = None,
    background_is_anchor: bool = False,
) -> Tensor:
    """Contrast the class slots of the images with the class slots of the key images.

    The key of the same class is a positive, a key of any other class a negative. The background
    (slot 0) is only ever a negative: unlike a class, it is not the same thing in two images.

    Args:
        anchors: One vector a class slot, shape (N, A, E).
        anchor_valid: Whether the image has the class, bool, shape (N, A).
        keys: One vector a class slot, shape (M, A, E); key image i < N is image i itself.
        key_valid: Whether the key exists, bool, shape (M, A).
        temperature: Divisor of the cosine similarity, positive.
        own_image_is_positive: Whether the key of the anchor's own image is a positive (it must
            not be when anchors and keys are the same vectors).
        positive_in_denominator: As for :func:`masked_info_nce`.
        min_correlation: Keys of the class that resemble the anchor less than this are no positives,
            a cosine in [-1, 1]; None asks for the class alone.
        background_is_anchor: Whether the backgrounds of two images attract each other, as if the
            background were a class.

    Returns:
        The loss of :func:`masked_info_nce`, a scalar.

    Raises:
        ValueError: If ``temperature`` is not positive.
    """
    images, slots, _ = anchors.shape
    similarity = slot_similarity(anchors, keys)
    device = anchors.device
    same_class = torch.eye(slots, dtype=torch.bool, device=device)[None, :, None, :]
    same_image = torch.eye(images, len(keys), dtype=torch.bool, device=device)[:, None, :, None]
    is_class = torch.arange(slots, device=device) > 0
    exists = (anchor_valid & (is_class | background_is_anchor))[:, :, None, None]
    exists = exists & key_valid[None, None]
    positive = exists & same_class
    if not own_image_is_positive:
        positive = positive & ~same_image
    if min_correlation is not None:
        positive = positive & (similarity.detach() >= min_correlation)
    negative = exists & ~same_class
    return masked_info_nce(
        similarity.flatten(2),
        positive.flatten(2),
        negative.flatten(2),
        temperature,
        positive_in_denominator,
    )
