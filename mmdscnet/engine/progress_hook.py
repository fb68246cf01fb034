"""A line of progress on the terminal instead of a log."""

import sys
import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show the share done, the loss and the time left, on one line that is written over.

    Where standard error is no terminal, ten lines a training instead. After a resume the share done
    is that of the whole training, and the time left comes from the steps since.

    Args:
        name: Put in front of the line.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.start = 0.0
        self.first_step = 0

    def before_train(self, runner: Runner) -> None:
        """Start the clock.

        Args:
            runner: The runner, at its first step or, resumed, at a later one.
        """
        self.start = time.monotonic()
        self.first_step = runner.iter

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Show where the training stands.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: The losses.
        """
        done, total = runner.iter + 1, runner.max_iters
        terminal = sys.stderr.isatty()
        if not terminal and done % max(total // 10, 1):
            return
        left = (time.monotonic() - self.start) / (done - self.first_step) * (total - done)
        loss = outputs['loss'].item() if outputs else float('nan')
        bar = '#' * (20 * done // total)
        line = f'{self.name} [{bar:<20}] {done}/{total} steps, loss {loss:.3f}, {left:.0f} s left'
        end = '\r' if terminal and done < total else '\n'
        print(f'{line:<79}', end=end, file=sys.stderr, flush=True)
