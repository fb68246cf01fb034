"""AffinityNet: how likely two pixels close to each other are of one class.

Source: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for
Weakly Supervised Semantic Segmentation", CVPR 2018 (AffinityNet), and its released implementation.

A pair is a pixel i and its neighbour i + o at one of P offsets. Values of pairs are maps of shape
(N, P, h, w): channel p at pixel i is the pair (i, i + o_p).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision


class PairLabels(NamedTuple):
    """What is known about pairs of pixels; each pair is in one set at most.

    Attributes:
        background: Whether both pixels are background, bool, shape (N, P, h, w).
        foreground: Whether both are of the same foreground class, bool, shape (N, P, h, w).
        different: Whether their labels differ, bool, shape (N, P, h, w).
    """

    background: Tensor
    foreground: Tensor
    different: Tensor


def pair_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    r"""List the neighbours of a pixel that make every unordered pair within a disc once.

    .. math:: \{(y, x) : y^2 + x^2 < r^2\ \text{and}\ (y > 0\ \text{or}\ y = 0 < x)\}

    AffinityNet, CVPR 2018, Sec. 3.2.

    Args:
        radius: Distance in grid pixels below which two pixels are a pair, at least 2.

    Returns:
        Offsets (dy, dx); 34 for the paper's radius of 5.

    Raises:
        ValueError: If no pair of pixels is closer than ``radius``.

    Example:
        >>> pair_offsets(2)
        ((0, 1), (1, -1), (1, 0), (1, 1))
    """
    if radius < 2:
        raise ValueError(f'radius={radius} leaves no pair of pixels: use at least 2, the paper 5')
    return tuple(
        (dy, dx)
        for dy in range(radius)
        for dx in range(1 - radius, radius)
        if (dy > 0 or dx > 0) and dy * dy + dx * dx < radius * radius
    )


def pad_grid(maps: Tensor, radius: int, value: float) -> Tensor:
    """Surround maps by what the neighbours outside the grid count as.

    Args:
        maps: Maps, shape (..., h, w).
        radius: Distance in grid pixels below which two pixels are a pair.
        value: Value outside the grid.

    Returns:
        Maps, shape (..., h + 2 (radius - 1), w + 2 (radius - 1)).
    """
    return F.pad(maps, (radius - 1,) * 4, value=value)


def look_at(padded: Tensor, offset: tuple[int, int], radius: int) -> Tensor:
    """Read each pixel's neighbour.

    Args:
        padded: Maps from :func:`pad_grid`.
        offset: Where the neighbour is, (dy, dx), each below ``radius`` in size.
        radius: The radius by which the maps were padded.

    Returns:
        A view: at pixel i the value of pixel i + offset, shape (..., h, w).
    """
    top, left = (radius - 1 + step for step in offset)
    height, width = (size - 2 * (radius - 1) for size in padded.shape[-2:])
    return padded[..., top : top + height, left : left + width]


@full_precision
def pair_affinities(embeddings: Tensor, radius: int) -> Tensor:
    r"""Compare each pixel with its neighbours.

    .. math:: a_{ij} = \exp\Big(-\frac{1}{E} \sum_c |f_{ic} - f_{jc}|\Big)

    AffinityNet, CVPR 2018, Sec. 3.2. The backward pass computes the differences anew, so that
    memory holds those of one offset at a time and not of all (34 times the embeddings at radius 5).

    Note:
        The print has the sum over channels; the mean is that of the released implementation. That
        one leaves out the pairs whose first pixel is closer than ``radius`` to the left, right or
        bottom edge; here every pair within the grid counts.

    Args:
        embeddings: Pixel embeddings f, shape (N, E, h, w).
        radius: Distance in grid pixels below which two pixels are a pair.

    Returns:
        Affinities in [0, 1], 0 where the neighbour lies outside the grid, shape (N, P, h, w).

    Raises:
        ValueError: If no pair of pixels is closer than ``radius``.

    Example:
        >>> pair_affinities(torch.tensor([[[[0.0, 0.0, 1.0]]]]), radius=2)[0, 0]
        tensor([[1.0000, 0.3679, 0.0000]])
    """
    distances: Tensor = _PairDistances.apply(embeddings, radius)  # type: ignore[no-untyped-call]
    return torch.exp(-distances)


class _PairDistances(torch.autograd.Function):
    """Mean absolute difference of each pixel and its neighbours, infinite outside the grid.

    Autograd would keep all differences, and copy the whole gradient twice an offset to add a
    shifted slice to it.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, radius: int) -> Tensor:
        padded = pad_grid(embeddings, radius, float('inf'))
        ctx.save_for_backward(padded)
        ctx.radius = radius
        return torch.stack(
            [
                (embeddings - look_at(padded, offset, radius)).abs_().mean(dim=1)
                for offset in pair_offsets(radius)
            ],
            dim=1,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (padded,) = ctx.saved_tensors
        radius = ctx.radius
        embeddings = look_at(padded, (0, 0), radius)
        shares = grads[0].unsqueeze(2) / padded.shape[1]
        grad = torch.zeros_like(padded)
        for index, offset in enumerate(pair_offsets(radius)):
            # Outside the grid the sign is finite and the incoming gradient is 0.
            step = (embeddings - look_at(padded, offset, radius)).sign_().mul_(shares[:, index])
            look_at(grad, (0, 0), radius).add_(step)
            look_at(grad, offset, radius).sub_(step)
        return look_at(grad, (0, 0), radius).contiguous(), None


def pair_labels(labels: Tensor, radius: int, ignore_index: int = 255) -> PairLabels:
    """Say of each pair of pixels whether it is of one class.

    AffinityNet, CVPR 2018, Sec. 3.2.

    Args:
        labels: Class ids, 0 for background, integers, shape (N, h, w).
        radius: Distance in grid pixels below which two pixels are a pair.
        ignore_index: Label of pixels of which nothing is known.

    Returns:
        The three kinds of pairs. One with an ignored pixel, or one outside the grid, is in none.

    Raises:
        TypeError: If ``labels`` are not integers.
        ValueError: If no pair of pixels is closer than ``radius``.
    """
    if labels.is_floating_point():
        raise TypeError(f'labels are {labels.dtype} but must be class ids: pass labels.long()')
    offsets = pair_offsets(radius)
    padded = pad_grid(labels, radius, ignore_index)
    others = torch.stack([look_at(padded, offset, radius) for offset in offsets], dim=1)
    own = labels.unsqueeze(1)
    known = (own != ignore_index) & (others != ignore_index)
    same = known & (own == others)
    return PairLabels(same & (own == 0), same & (own != 0), known & ~same)


@full_precision
def affinity_loss(affinities: Tensor, labels: PairLabels, eps: float = 1e-5) -> Tensor:
    r"""Draw pixels of one class together and those of different classes apart.

    .. math:: L = \frac{L_{bg}}{4} + \frac{L_{fg}}{4} + \frac{L_-}{2}, \quad
        L_{bg}, L_{fg} = -\overline{\log(a + \epsilon)}, \quad
        L_- = -\overline{\log(1 - a + \epsilon)}

    each the mean over its pairs of the whole batch. AffinityNet, CVPR 2018, Sec. 3.2.

    Args:
        affinities: Affinities a in [0, 1], shape (N, P, h, w).
        labels: The kinds of the pairs, from :func:`pair_labels`.
        eps: Bounds the loss of a pair by -log(eps).

    Returns:
        The loss, a scalar. A kind without any pair adds exactly 0, attached to the graph.
    """
    attraction = -torch.log(affinities + eps)
    repulsion = -torch.log(1 - affinities + eps)
    return (
        mean_over_pairs(attraction, labels.background) / 4
        + mean_over_pairs(attraction, labels.foreground) / 4
        + mean_over_pairs(repulsion, labels.different) / 2
    )


def mean_over_pairs(values: Tensor, chosen: Tensor) -> Tensor:
    """Average values over the pairs of one kind.

    Args:
        values: Values of all pairs, finite, shape (N, P, h, w).
        chosen: Whether the pair is of this kind, bool, shape (N, P, h, w).

    Returns:
        The mean, a scalar; 0 if no pair is of this kind.
    """
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def combine_affinity_labels(
    confident_foreground: Tensor, confident_background: Tensor, ignore_index: int = 255
) -> Tensor:
    r"""Keep the labels that do not depend on how strong the background is.

    The maps are those of a CRF on CAMs with the background :math:`(1 - \max_k O^k)^\alpha`: at a
    low alpha the background is strong, so what is foreground there is surely so; at a high alpha
    it is weak, so what is background there is. AffinityNet, CVPR 2018, Sec. 3.2.

    Note:
        The released implementation settles two conflicts that are ignored here: foreground at the
        low and background at the high alpha becomes background, and of two foreground classes that
        of the low alpha is kept.

    Args:
        confident_foreground: Labels at the low alpha, integers, shape (N, h, w) or (h, w).
        confident_background: Labels at the high alpha, of the same shape.
        ignore_index: Label of the pixels on which the maps disagree.

    Returns:
        Labels, of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> low, high = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
        >>> combine_affinity_labels(low, high)
        tensor([  0, 255,   1, 255])
    """
    if confident_foreground.shape != confident_background.shape:
        raise ValueError(
            f'confident_foreground has the shape {tuple(confident_foreground.shape)}, '
            f'confident_background {tuple(confident_background.shape)}: pass two maps of one image'
        )
    agree = confident_foreground == confident_background
    return confident_foreground.masked_fill(~agree, ignore_index)
