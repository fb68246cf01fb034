"""One function over many images, in several processes and with a bounded amount of memory."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')

# Enough that one slow image does not leave the other processes idle, since results keep their
# order; few enough that items of 5 MB take 320 MB with 16 processes.
IN_FLIGHT_PER_PROCESS = 4


def map_over_images(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_processes: int,
    name_of: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Apply a function to every item and give the results in the order of the items.

    Items are drawn as they are needed, four a process ahead of the results. The processes start
    with the first item and end with the last result, with an exception, or when the iterator is
    closed; so use one call for a whole job.

    Note:
        A process imports the whole package, 3 to 4 seconds of a CPU. Where the system has a fork
        server (not on Windows) it does so once for all processes, which then start in
        milliseconds; else each process does it for itself. A script must guard its work by
        ``if __name__ == '__main__':``, as the processes import it too.

    Args:
        function: What to do with an item. With processes it must be a function of an importable
            module, or a ``functools.partial`` of one.
        items: What to work on, such as image ids; it travels to the process.
        num_processes: Number of processes; 0 or 1 to work in the calling one.
        name_of: Names an item in an error, for items that are more than a name.

    Returns:
        The results, one an item.

    Raises:
        TypeError: If ``num_processes`` is not an integer.
        ValueError: If ``num_processes`` is negative.

        An exception of ``function`` is raised where its result would have come, named after its
        item: as ``FileNotFoundError``, ``TypeError`` or ``ValueError`` if it is one, else as
        ``RuntimeError``.
    """
    if not isinstance(num_processes, int):
        raise TypeError(f'num_processes={num_processes!r} is not an integer: give a count')
    if num_processes < 0:
        raise ValueError(
            f'num_processes={num_processes} is negative: give 0 to work in this process, or the '
            'number of processor cores to use'
        )
    if num_processes < 2:
        return _map_here(function, items, name_of)
    return _map_in_processes(function, items, num_processes, name_of)


def _map_here(
    function: Callable[[Item], Result], items: Iterable[Item], name_of: Callable[[Item], str]
) -> Iterator[Result]:
    for item in items:
        try:
            result = function(item)
        except Exception as error:
            raise _name_error(error, name_of(item)) from error
        yield result


def _map_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_processes: int,
    name_of: Callable[[Item], str],
) -> Iterator[Result]:
    pool = ProcessPoolExecutor(num_processes, _worker_context(), _ignore_interrupts)
    in_flight: deque[tuple[str, Future[Result]]] = deque()
    try:
        for item in items:
            # The name alone is kept: the item's arrays are free once it is done.
            in_flight.append((name_of(item), pool.submit(function, item)))
            if len(in_flight) == IN_FLIGHT_PER_PROCESS * num_processes:
                yield _result_of(*in_flight.popleft())
        while in_flight:
            yield _result_of(*in_flight.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result_of(name: str, future: 'Future[Result]') -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f'a process died while {name} or an item after it was worked on, most often for want '
            'of memory: use fewer processes'
        ) from error
    except Exception as error:
        raise _name_error(error, name) from error


def _name_error(error: Exception, name: str) -> Exception:
    kinds = (FileNotFoundError, TypeError, ValueError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), None)
    if kind is None:
        return RuntimeError(f'{name}: {type(error).__name__}: {error}')
    return kind(f'{name}: {error}')


def _worker_context() -> BaseContext:
    # Not fork: torch's threads in the calling process would leave their locks taken in the copy.
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    return context


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which the terminal sends to every process, to the calling one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
