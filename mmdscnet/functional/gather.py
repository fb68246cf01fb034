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


def require_equal_sizes(images: int, device: torch.device) -> None:
    """Refuse a batch of which the ranks hold different numbers of images.

    The ranks tell each other their number, 8 bytes each. On a GPU nobody waits for the answer: an
    assertion on the device ends the job there, before the rows are exchanged.

    Args:
        images: Number of images of this rank.
        device: Where the images lie.

    Raises:
        ValueError: If the numbers differ, on a CPU.
    """
    own = torch.full((1,), images, dtype=torch.int64, device=device)
    pieces = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(pieces, own)
    check_sizes(torch.cat(pieces), images)


def check_sizes(sizes: Tensor, images: int) -> None:
    """Compare the numbers of images of all ranks.

    Args:
        sizes: Number of images of each rank, int64, shape (ranks,).
        images: Number of images of this rank.

    Raises:
        ValueError: If they differ, on a CPU; on a GPU the device asserts it when it gets there.
    """
    mend = (
        'the contrasts need the same number on every rank: take a sampler that rounds up, '
        "such as GroupSampler or sampler=dict(type='DefaultSampler', round_up=True)"
    )
    equal = (sizes == images).all()
    if sizes.device.type != 'cpu':
        torch._assert_async(equal, f'the ranks hold different numbers of images; {mend}')
    elif not equal:
        raise ValueError(f'the ranks hold {sizes.tolist()} images of one batch; {mend}')


def gather_images(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks, with gradient.

    The gradient that reaches a rank's rows is the *sum* over the ranks' losses;
    DistributedDataParallel then divides by their number, so parameters get the gradient of the mean
    of the ranks' losses. That is exactly the gradient of one process with the whole batch for a
    loss that every rank computes over the whole batch (the contrasts), and for a mean over the
    rank's own images (the classification). Every rank must run backward through the result.

    Args:
        tensor: One row an image, floating point, shape (N, ...). The same N on every rank, as all
            samplers give that round up (mmengine's by default, and ``GroupSampler``): with another
            a mean over the ranks would not be the mean over the images, nor would all ranks take
            the same number of steps.

    Returns:
        Rows of the global batch, shape (ranks * N, ...); ``tensor`` itself on a single rank.

    Raises:
        ValueError: If the ranks hold different numbers of images, on a CPU; with CUDA a device
            assertion fails instead, so that no step waits for the GPU.
    """
    if world_size() == 1:
        return tensor
    require_equal_sizes(len(tensor), tensor.device)
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
