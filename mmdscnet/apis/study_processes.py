"""The runs of a study in several processes, each of which imports the package once."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end

import torch

from mmdscnet.apis.study_run import RunFailure, RunResult, RunTask, run_once, write_failure

Outcome = RunResult | RunFailure


def run_tasks(tasks: Sequence[RunTask], num_processes: int) -> Iterator[tuple[RunTask, Outcome]]:
    """Do runs, and give each as it is done.

    A process that dies fails its run alone, and another takes its place. When the iterator is
    closed or interrupted the processes are ended, and so they are when this process is killed:
    what they were training goes on from its last checkpoint next time.

    Args:
        tasks: The runs, in the order in which they begin.
        num_processes: Number of processes, each of one thread of torch unless OMP_NUM_THREADS
            says otherwise; 0 to work in the calling one.

    Yields:
        The run and its outcome.

    Raises:
        ValueError: If ``num_processes`` is negative.
    """
    if num_processes < 0:
        raise ValueError(
            f'num_processes={num_processes} is negative: give 0 to work in this process, or the '
            'number of processor cores to use'
        )
    if num_processes == 0:
        for task in tasks:
            yield task, run_once(task)
        return
    yield from _run_in_processes(deque(tasks), min(num_processes, len(tasks)))


def _run_in_processes(
    waiting: deque[RunTask], num_processes: int
) -> Iterator[tuple[RunTask, Outcome]]:
    # A pool of one process each, so that a death is known to be that of one run.
    idle = [_start_process() for _ in range(num_processes)]
    busy: dict[Future[Outcome], tuple[ProcessPoolExecutor, RunTask]] = {}
    try:
        while waiting or busy:
            while idle and waiting:
                process, task = idle.pop(), waiting.popleft()
                busy[process.submit(run_once, task)] = process, task
            done, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in done:
                process, task = busy.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    outcome = write_failure(
                        task.folder, 'the process of the run died, most often for want of memory'
                    )
                    process = _start_process()
                idle.append(process)
                yield task, outcome
    finally:
        _end_processes(idle, [process for process, _ in busy.values()])


def _start_process() -> ProcessPoolExecutor:
    # Not fork: threads of torch, and CUDA, do not survive it.
    return ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _begin_process)


def _end_processes(idle: list[ProcessPoolExecutor], busy: list[ProcessPoolExecutor]) -> None:
    for process in idle:
        process.shutdown()
    if busy:
        for child in multiprocessing.active_children():
            child.terminate()
    for process in busy:
        process.shutdown()


def _begin_process() -> None:
    # The terminal sends Ctrl-C to every process; the calling one then ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)
