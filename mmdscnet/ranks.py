"""What the processes of one job settle among themselves, so that none fails or waits alone."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size

Result = TypeVar('Result')
SHOWN = 3


def on_first_rank(work: Callable[[], Result]) -> Result:
    """Let the first process do something that all need, such as making a folder.

    Args:
        work: What to do.

    Returns:
        Its result, on every rank.

    Raises:
        RuntimeError: On the other ranks, if ``work`` raised an exception on the first, where it
            passes through; so no rank waits for one that failed.
    """
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if get_rank() == 0:
        try:
            outcome = [work(), None]
        except Exception as error:
            failure = error
            outcome = [None, f'{type(error).__name__}: {error}']
    broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise RuntimeError(f'the first process failed: {outcome[1]}')
    return outcome[0]


def check_ranks_agree(what: str, parts: Mapping[str, str]) -> None:
    """Check that all processes were started alike.

    Args:
        what: What is compared, for the error.
        parts: Its parts by name.

    Raises:
        ValueError: On every rank, if the parts of any two ranks differ. It names the first few.
    """
    if get_world_size() == 1:
        return
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    if len(set(all_gather_object(digest))) == 1:
        return
    first, *others = all_gather_object(dict(parts))
    found = [text for rank, other in enumerate(others, 1) for text in _compare(first, other, rank)]
    more = f'; and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
    raise ValueError(
        f'the processes of this job do not have the same {what}: {"; ".join(found[:SHOWN])}{more}. '
        'Start all of them with the same command, code and files'
    )


def _compare(first: Mapping[str, str], other: Mapping[str, str], rank: int) -> Iterator[str]:
    for name in [*first, *(name for name in other if name not in first)]:
        ours, theirs = first.get(name, 'not there'), other.get(name, 'not there')
        if ours != theirs:
            yield f'{name} is {ours} on rank 0 and {theirs} on rank {rank}'
