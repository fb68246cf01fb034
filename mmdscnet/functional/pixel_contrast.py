"""The peers of the group contrast: pixels against pixels (Eq. 3), pixels against prototypes."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdscnet.functional.cam import background_score
from mmdscnet.functional.precision import full_precision


@full_precision
def pixel_contrast(
    embeddings: Tensor,
    pseudo_labels: Tensor,
    temperature: float,
    chunk: int | None = 512,
    ignore_index: int = 255,
) -> Tensor:
    r"""Contrast every pixel of a class with all pixels of the batch, pair by pair.

    .. math:: L_u = -\frac{1}{|P(u)|} \sum_{p \in P(u)} \log
        \frac{e^{s_{up}/\tau}}{e^{s_{up}/\tau} + \sum_{n \in N(u)} e^{s_{un}/\tau}}

    with :math:`s` the cosine similarity, :math:`P(u)` the pixels of u's class in the other images
    and :math:`N(u)` the pixels of another class or of the background in all images; the mean over
    the anchors of an image, then over the images that have one. DSCNet, arXiv:2405.04913, Eq. 3;
    what :func:`~mmdscnet.functional.contrast.masked_info_nce` computes for the same pairs.

    The cost is that of all pairs of an anchor and a pixel, O(N^2 V^2 E). Sorted by class, the
    pixels of a class meet their positives in one block of columns and their negatives in the
    others: no mask of all pairs is needed, and a pair costs either an exponential or a softplus.
    The gradient is computed with the value, chunk by chunk; no matrix of pairs is kept for later.

    Note:
        As in Eq. 6, the positives are in other images, the pixels of the anchor's class in its own
        image are neither positive nor negative, and the background is only ever a negative. The
        print does not say which pixels Eq. 3 compares.

    Note:
        The number of pixels of each class is read back, for which a GPU is waited for once a step.

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        pseudo_labels: Labels 0..K or ``ignore_index``, int64, shape (N, h, w).
        temperature: Divisor of the cosine similarity, positive.
        chunk: Number of anchors that are compared at once; None for a whole class, which needs a
            matrix of its pixels and all pixels.
        ignore_index: Label of pixels that take no part.

    Returns:
        The loss, a scalar; exactly 0, attached to the graph, when no class is in two images.

    Raises:
        ValueError: If ``temperature`` or ``chunk`` is not positive, or the labels do not have the
            size of the embeddings.

    Example:
        >>> embeddings = torch.tensor([[[[1.0, -1.0]]], [[[1.0, -1.0]]]])
        >>> pixel_contrast(embeddings, torch.tensor([[[1, 0]], [[1, 0]]]), temperature=2.0)
        tensor(0.5514)
    """
    check_pixels(embeddings, pseudo_labels, temperature)
    if chunk is not None and chunk < 1:
        raise ValueError(f'chunk={chunk} must be at least 1, or None for whole classes')
    images = torch.arange(len(embeddings), device=embeddings.device)[:, None, None]
    images = images.expand_as(pseudo_labels).flatten()
    order = pseudo_labels.flatten().argsort(stable=True)
    order = order[pseudo_labels.flatten()[order] != ignore_index]
    sorted_pixels = sort_by_class(pseudo_labels.flatten()[order], images[order], len(embeddings))
    # The root of the temperature in both factors divides their product.
    rows = unit_pixels(embeddings)[order] / temperature**0.5
    return _ContrastBlocks.apply(rows, *sorted_pixels, chunk)  # type: ignore[no-any-return,no-untyped-call]


class SortedPixels(NamedTuple):
    """Pixels in the order of their class.

    Attributes:
        images: Image of each pixel, int64, shape (M,).
        weights: Share of an anchor-positive pair in the loss, by the anchor, shape (M,).
        blocks: First pixel of each class, and the one behind its last, where the class has anchors.
    """

    images: Tensor
    weights: Tensor
    blocks: list[tuple[int, int]]


def sort_by_class(labels: Tensor, images: Tensor, num_images: int) -> SortedPixels:
    """Find the blocks of the classes that are anchors and what each of their pairs weighs.

    A class that is in two images is an anchor wherever it is: a pixel has a positive if its class
    has one.

    Args:
        labels: Classes in ascending order, 0 is the background, int64, shape (M,).
        images: Image of each pixel, int64, shape (M,).
        num_images: Number of images, N.

    Returns:
        The pixels.
    """
    present, classes, sizes = labels.unique_consecutive(return_inverse=True, return_counts=True)
    counts = torch.zeros(num_images, len(present), device=labels.device)
    counts.index_put_((images, classes), torch.ones_like(images, dtype=counts.dtype), True)
    is_anchor = ((counts > 0).sum(dim=0) > 1) & (present > 0)
    positives = counts.sum(dim=0) - counts
    anchors = (counts * is_anchor).sum(dim=1, keepdim=True)
    num_images_with_anchor = (anchors > 0).sum()
    pairs = positives * anchors * num_images_with_anchor
    weights = is_anchor / pairs.clamp_min(1)
    ends = sizes.cumsum(0)
    blocks = torch.stack([ends - sizes, ends, is_anchor.to(ends.dtype)], dim=1).tolist()
    return SortedPixels(
        images, weights[images, classes], [(start, end) for start, end, anchor in blocks if anchor]
    )


class _ContrastBlocks(torch.autograd.Function):
    """Sum the pairs of sorted pixels, with the gradient in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        images: Tensor,
        weights: Tensor,
        blocks: list[tuple[int, int]],
        chunk: int | None,
    ) -> Tensor:
        loss, gradient = rows.new_zeros(()), torch.zeros_like(rows)
        weights = weights.to(rows.dtype)
        for start, end in blocks:
            step = chunk or end - start
            for first in range(start, end, step):
                anchors = slice(first, min(first + step, end))
                logits = rows[anchors] @ rows.T
                is_positive = images[anchors, None] != images[start:end]
                loss += contrast_block(logits, (start, end), is_positive, weights[anchors])
                gradient[anchors].addmm_(logits, rows)
                gradient.addmm_(logits.T, rows[anchors])
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None, None, None


def contrast_block(
    logits: Tensor, block: tuple[int, int], is_positive: Tensor, weights: Tensor
) -> Tensor:
    """Sum the pairs of anchors of one class; the logits become the gradient of the sum by them.

    Args:
        logits: Similarity of anchors and pixels over the temperature, shape (B, M); overwritten.
        block: First pixel of the anchors' class, and the one behind its last.
        is_positive: Which pixels of the block are positives, bool, shape (B, end - start).
        weights: Share of each anchor's pairs, shape (B,).

    Returns:
        Weighted sum over the pairs of anchor and positive, a scalar.
    """
    start, end = block
    own, before, behind = logits[:, start:end], logits[:, :start], logits[:, end:]
    # Without negatives the lowest number: no pair has a loss then.
    none = logits.new_full((len(logits), 1), torch.finfo(logits.dtype).min / 4)
    negatives = torch.cat([log_sum(x) for x in (before, behind) if x.shape[1]] or [none], dim=1)
    negatives = log_sum(negatives)
    gaps = negatives - own
    loss = F.softplus(gaps).mul_(is_positive).sum(dim=1) @ weights
    pull = gaps.sigmoid_().mul_(is_positive).mul_(weights.unsqueeze(1))
    push = pull.sum(dim=1, keepdim=True).log() - negatives
    own.copy_(pull).neg_()
    for columns in (before, behind):
        columns.add_(push).exp_()
    return loss


def log_sum(logits: Tensor) -> Tensor:
    """Sum exponentials along the rows, as logarithm, shape (B, M) to (B, 1)."""
    return logits.logsumexp(dim=1, keepdim=True)


@full_precision
def pixel_prototype_contrast(
    embeddings: Tensor,
    cams: Tensor,
    pseudo_labels: Tensor,
    image_labels: Tensor,
    temperature: float,
    ignore_index: int = 255,
) -> Tensor:
    r"""Contrast every labelled pixel with one prototype a class of the batch.

    .. math:: L = -\frac{1}{|U|} \sum_{u \in U} \log
        \frac{e^{\cos(z_u, p_{y_u})/\tau}}{\sum_c e^{\cos(z_u, p_c)/\tau}}

    with :math:`U` the labelled pixels of the batch, those of the background included, and
    :math:`c` the classes that have a prototype. Pixel-to-prototype contrast (PPC, CVPR 2022) of
    one view with itself. Cost O(N V A E).

    Note:
        Left out: the two terms across views, and within the view the semi-hard prototypes (ranks 4
        to 13: few data sets here have so many classes in a batch) and semi-hard pixels. Prototypes
        of absent classes, which the released implementation keeps as negatives, are no candidates;
        its background prototype takes pixels of a constant score, here those that no CAM covers.

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        cams: CAMs in [0, 1], zero for absent classes, shape (N, K, h, w); no gradient flows into
            them.
        pseudo_labels: Labels 0..K or ``ignore_index``, int64, shape (N, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).
        temperature: Divisor of the cosine similarity, positive.
        ignore_index: Label of pixels that take no part.

    Returns:
        The loss, a scalar; exactly 0, attached to the graph, when no labelled pixel has a
        prototype or there is one prototype only.

    Raises:
        ValueError: If ``temperature`` is not positive, or the maps differ in size.
    """
    check_pixels(embeddings, pseudo_labels, temperature)
    if cams.shape[2:] != embeddings.shape[2:]:
        raise ValueError(
            f'cams of size {tuple(cams.shape[2:])} for embeddings of size '
            f'{tuple(embeddings.shape[2:])}: resize the CAMs first'
        )
    prototypes, exists = make_prototypes(embeddings, cams, image_labels)
    logits = unit_pixels(embeddings) @ prototypes.T / temperature
    logits = logits.masked_fill(~exists, torch.finfo(logits.dtype).min / 4)
    labels = pseudo_labels.flatten()
    counts = (labels != ignore_index) & exists[labels.clamp_max(cams.shape[1])]
    labels = labels.masked_fill(~counts, ignore_index)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction='sum')
    return total / counts.sum().clamp_min(1)


@torch.no_grad()
def make_prototypes(
    embeddings: Tensor, cams: Tensor, image_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Average the pixels of the batch at which each class is the surest, weighted by its CAM.

    The surest are as many as an eighth of an image; the background's score is 1 where no class has
    any CAM. As in PPC no gradient flows into the prototypes.

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        cams: CAMs in [0, 1], shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).

    Returns:
        Prototypes of length 1, background first, shape (A, E), and whether any pixel has a score
        for the class, bool, shape (A,).
    """
    cams = cams * image_labels[:, :, None, None].to(cams.dtype)
    scores = torch.cat([background_score(cams, bg_thr=0.0, bg_alpha=1.0), cams], dim=1)
    scores = scores.clamp_min(0).transpose(0, 1).flatten(1)
    best, pixels = scores.topk(max(embeddings[0, 0].numel() // 8, 1), dim=1)
    rows = embeddings.transpose(0, 1).flatten(1).T
    weighted_sum = torch.einsum('ap,ape->ae', best.to(rows.dtype), rows[pixels])
    return F.normalize(weighted_sum, dim=1), best[:, 0] > 0


def check_pixels(embeddings: Tensor, pseudo_labels: Tensor, temperature: float) -> None:
    """Refuse what cannot be contrasted.

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        pseudo_labels: Labels, shape (N, h, w).
        temperature: Divisor of the cosine similarity.

    Raises:
        ValueError: If ``temperature`` is not positive, or the labels do not have the size of the
            embeddings.
    """
    if temperature <= 0:
        raise ValueError(f'temperature={temperature} must be positive: the default is 0.1')
    size = (len(embeddings), *embeddings.shape[2:])
    if pseudo_labels.shape != size:
        raise ValueError(
            f'pseudo_labels of shape {tuple(pseudo_labels.shape)} for embeddings of shape '
            f'{tuple(embeddings.shape)}: give labels of shape {size}'
        )


def unit_pixels(embeddings: Tensor) -> Tensor:
    """Scale the pixels of all images to length 1, shape (N, E, h, w) to (N * V, E)."""
    # The default eps would blow the gradient of a zero vector up to 1e12.
    return F.normalize(embeddings.transpose(0, 1).flatten(1).T, dim=1, eps=1e-6)
