"""Random numbers that depend on what they are for, and not on what was drawn before them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_draws(*key: int) -> None:
    """Let the next random numbers of Python, NumPy and torch be a function of a key.

    What depends on a key alone needs no state of a generator to be repeated: not after a training
    was killed, not by another number of processes.

    Args:
        key: Integers from 0 that say what is drawn: the seed of the run first, then a number of the
            kind of draw, then the place in the training.

    Example:
        >>> seed_draws(0, 1, 7)
        >>> first = random.random(), np.random.rand(), torch.rand(()).item()
        >>> seed_draws(0, 1, 7)
        >>> first == (random.random(), np.random.rand(), torch.rand(()).item())
        True
    """
    torch.manual_seed(seed_cpu_draws(*key))


def seed_cpu_draws(*key: int) -> int:
    """Do the same on the CPU alone, where images are read.

    ``torch.manual_seed`` goes round all kinds of devices, which takes a hundred times as long.

    Args:
        key: As for :func:`seed_draws`.

    Returns:
        The seed of torch.
    """
    # With its length, because a SeedSequence does not see zeros at the end.
    words = np.random.SeedSequence((len(key), *key)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(seed)
    return seed


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the random numbers of Python, NumPy and torch back to where they were before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
