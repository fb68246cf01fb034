"""The global batch: all-gather over the ranks, with gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Concatenate over ranks; the gradient of a rank's rows is summed over the ranks' losses."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, tensor)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # A copy: autograd may share the incoming gradient with other tensors.
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def world_size() -> int:
    """Count the ranks of the job: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_images(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks, with gradient.

    The gradient that reaches a rank's rows is the *sum* over the ranks' losses;
    DistributedDataParallel then divides by their number, so parameters get the gradient of the mean
    of the ranks' losses. That is exactly the gradient of one process with the whole batch for a
    loss that every rank computes over the whole batch (the contrasts), and for a mean over the
    rank's own images (the classification). Every rank must run backward through the result.

    Args:
        tensor: One row an image, floating point, shape (N, ...). The same N on every rank, as all
            samplers give that round up (mmengine's, and ``GroupSampler``): slots are padded to
            the fixed number of classes instead, so no sizes have to be exchanged.

    Returns:
        Rows of the global batch, shape (ranks * N, ...); ``tensor`` itself on a single rank.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _AllGather.apply(tensor.contiguous())  # type: ignore[no-untyped-call]
    return gathered


def own_images(gathered: Tensor) -> Tensor:
    """Cut this rank's rows out of what :func:`gather_images` returned.

    Args:
        gathered: Rows of the global batch, shape (ranks * N, ...).

    Returns:
        The rows of this rank, shape (N, ...).
    """
    if world_size() == 1:
        return gathered
    return gathered.chunk(world_size())[dist.get_rank()]
