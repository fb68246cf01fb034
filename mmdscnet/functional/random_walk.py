"""AffinityNet's random walk: CAMs spread along the affinities of neighbouring pixels.

Source: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for
Weakly Supervised Semantic Segmentation", CVPR 2018 (AffinityNet), Sec. 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.pixel_affinity import look_at, pad_grid, pair_offsets
from mmdscnet.functional.precision import full_precision


def neighbour_table(
    size: tuple[int, int], radius: int, device: torch.device | None = None
) -> Tensor:
    """Number the pixels within the radius of each pixel of a grid.

    Args:
        size: Height and width of the grid.
        radius: Distance in grid pixels below which two pixels are neighbours.
        device: Where the table is made.

    Returns:
        For each pixel itself, its P neighbours at :func:`pair_offsets` and its P neighbours at the
        opposite offsets; -1 outside the grid; int64, shape (V, 2 P + 1).

    Raises:
        ValueError: If no pair of pixels is closer than ``radius``.

    Example:
        >>> neighbour_table((1, 3), radius=2)[:, [0, 1, 5]]
        tensor([[ 0,  1, -1],
                [ 1,  2,  0],
                [ 2, -1,  1]])
    """
    offsets = pair_offsets(radius)
    opposite = tuple((-dy, -dx) for dy, dx in offsets)
    pixels = torch.arange(size[0] * size[1], device=device).view(size)
    padded = pad_grid(pixels, radius, -1)
    columns = [look_at(padded, offset, radius) for offset in ((0, 0), *offsets, *opposite)]
    return torch.stack(columns, dim=-1).flatten(0, 1)


def transition_weights(affinities: Tensor, neighbours: Tensor, radius: int, power: float) -> Tensor:
    r"""Turn affinities into the columns of the transition matrix.

    .. math:: T_{ij} = \frac{A_{ij}}{\sum_i A_{ij}}, \quad
        A_{ij} = a_{ij}^\beta\ (|i - j| < r), \quad A_{jj} = 1

    AffinityNet, CVPR 2018, Sec. 3.3 (where the rows, not the columns, sum to 1; see
    :func:`random_walk`).

    Args:
        affinities: Affinities in [0, 1], shape (N, P, h, w).
        neighbours: Table of :func:`neighbour_table`, shape (V, 2 P + 1).
        radius: Distance in grid pixels below which two pixels are neighbours.
        power: Exponent :math:`\beta`.

    Returns:
        The entries of column j at the neighbours of pixel j, in the order of the table; in [0, 1],
        sum 1 over the last axis; shape (N, V, 2 P + 1).
    """
    powered = affinities**power
    padded = pad_grid(powered, radius, 0)
    backward = [
        look_at(padded[:, pair], (-dy, -dx), radius)
        for pair, (dy, dx) in enumerate(pair_offsets(radius))
    ]
    columns = [torch.ones_like(powered[:, :1]), powered, torch.stack(backward, dim=1)]
    weights = torch.cat(columns, dim=1).flatten(2).transpose(1, 2) * (neighbours >= 0)
    return weights / weights.sum(dim=2, keepdim=True)


@full_precision
def random_walk(
    scores: Tensor,
    affinities: Tensor,
    radius: int,
    power: float = 8.0,
    num_steps: int = 64,
) -> Tensor:
    r"""Replace the scores of each pixel by a mean over its neighbours, many times.

    .. math:: y = x\, T^t, \quad T_{ij} = \frac{A_{ij}}{\sum_i A_{ij}}, \quad
        A_{ij} = a_{ij}^\beta\ (|i - j| < r), \quad A_{jj} = 1

    with a row x a channel. AffinityNet, CVPR 2018, Sec. 3.3. Computed as t products with a sparse
    matrix: O(V P t) a channel, and nothing of size V x V is built.

    As A is symmetric, a step keeps the scores within their range, and keeps the sum of the scores
    weighted by the pixels' degrees :math:`\sum_i A_{ij}`.

    Note:
        The print's :math:`D^{-1} A` acts on a column vector: the same product. The released
        implementation squares a dense matrix :math:`\log_2 t` times.

    Args:
        scores: Scores of the classes at each pixel, shape (N, C, h, w).
        affinities: Affinities in [0, 1], from ``pair_affinities``; those of pairs that leave the
            grid are not read; shape (N, P, h, w).
        radius: Distance in grid pixels below which two pixels are neighbours.
        power: Exponent :math:`\beta`, positive: above 1 it weakens low affinities.
        num_steps: Steps t; 0 returns the scores.

    Returns:
        Scores after the walk, shape (N, C, h, w).

    Raises:
        ValueError: If the shape of ``affinities`` does not fit, ``power`` is not positive, or
            ``num_steps`` is no count.

    Example:
        >>> affinities = torch.zeros(1, 4, 1, 3)
        >>> affinities[0, 0, 0, 0] = 1  # pixels 0 and 1 belong together
        >>> random_walk(torch.tensor([[[[1.0, 0.0, 0.0]]]]), affinities, radius=2)
        tensor([[[[0.5000, 0.5000, 0.0000]]]])
    """
    check_walk(scores, affinities, radius, power, num_steps)
    images, _, height, width = scores.shape
    neighbours = neighbour_table((height, width), radius, scores.device)
    weights = transition_weights(affinities, neighbours, radius, power).flatten(0, 1)
    weights = weights.to(scores.dtype).contiguous()
    first_pixels = torch.arange(images, device=scores.device)[:, None, None] * len(neighbours)
    # int32 halves what a step reads besides the scores.
    indices = (neighbours.clamp_min(0) + first_pixels).flatten(0, 1).int()
    pixels = scores.flatten(2).transpose(1, 2).flatten(0, 1)
    for _ in range(num_steps):
        pixels = F.embedding_bag(indices, pixels, per_sample_weights=weights, mode='sum')
    return pixels.view(images, height, width, -1).permute(0, 3, 1, 2).contiguous()


def check_walk(
    scores: Tensor, affinities: Tensor, radius: int, power: float, num_steps: int
) -> None:
    """Check that the arguments of a walk fit each other.

    Args:
        scores: Scores of the classes at each pixel, shape (N, C, h, w).
        affinities: Affinities, shape (N, P, h, w).
        radius: Distance in grid pixels below which two pixels are neighbours.
        power: Exponent of the affinities.
        num_steps: Number of steps.

    Raises:
        ValueError: If they do not.
    """
    images, _, height, width = scores.shape
    expected = (images, len(pair_offsets(radius)), height, width)
    if affinities.shape != expected:
        raise ValueError(
            f'affinities have the shape {tuple(affinities.shape)}, the scores at radius={radius} '
            f'need {expected}: make them by pair_affinities at the same radius and grid'
        )
    if power <= 0:
        raise ValueError(f'power={power} must be positive: the paper uses 8')
    if not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f'num_steps={num_steps!r} must be an integer from 0 on: the paper uses 64')
