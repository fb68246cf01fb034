"""Full precision for the maths of the method while the network around it runs under autocast."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec('P')
R = TypeVar('R')


def at_least_float32(value: object) -> object:
    """Promote a half-precision tensor to float32 and leave everything else alone."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function of tensors with autocast off and its half-precision arguments in float32.

    Normalisations, softmaxes and log-sum-exp lose the contrast between close similarities in
    bfloat16 (at a temperature of 0.1 a rounding step is 0.04 of a logit) and overflow in float16.

    Args:
        function: A function with at least one tensor among its direct arguments.

    Returns:
        The wrapped function. float32 and float64 arguments pass through unchanged.

    Example:
        >>> @full_precision
        ... def dtype_of(x):
        ...     return x.dtype
        >>> dtype_of(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(next(tensors).device.type, enabled=False):
            promoted = {key: at_least_float32(value) for key, value in kwargs.items()}
            return function(*map(at_least_float32, args), **promoted)  # type: ignore[arg-type]

    return wrapper
