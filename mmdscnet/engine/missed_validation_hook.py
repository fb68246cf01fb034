"""A validation that a killed training did not come to is made up for."""

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from mmseg.registry import HOOKS

CHECKPOINT_KEY = 'validated'


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validate first when a training resumes from a checkpoint to which a validation belongs.

    mmengine saves before it validates. A training that is killed in between, or within the
    validation, would resume with the next step, or end at once: without a metric, without the best
    checkpoint, and with another learning rate where that follows a metric.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.validated = 0
        self.is_missing = False

    def before_val(self, runner: Runner) -> None:
        """Note the step to which the validation belongs.

        Args:
            runner: The runner.
        """
        self.validated = runner.iter

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep whether a validation may follow that has not been.

        Args:
            runner: The runner.
            checkpoint: What is saved.
        """
        meta = checkpoint['meta']
        # A loop that counts epochs validates when one is complete, and resumes before its end if
        # the checkpoint was written within.
        may_follow = is_counting_steps(runner) or meta['epoch'] > runner.epoch
        checkpoint[CHECKPOINT_KEY] = not may_follow or self.validated == meta['iter']

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Find out whether this step has been validated.

        Args:
            runner: The runner.
            checkpoint: What was loaded.
        """
        self.is_missing = bool(runner._resume) and not checkpoint.get(CHECKPOINT_KEY, True)

    def before_train(self, runner: Runner) -> None:
        """Validate, if that is due and was not done.

        Args:
            runner: The runner, when all other hooks are ready to train.
        """
        if self.is_missing and runner.val_loop is not None and is_validation_due(runner):
            runner.logger.info('validate what was not when the training was interrupted')
            runner.val_loop.run()


def is_validation_due(runner: Runner) -> bool:
    """Tell whether mmengine's loops validate after the steps that were taken.

    Args:
        runner: The runner, with a training loop of mmengine.

    Returns:
        Whether they do.
    """
    loop = runner.train_loop
    loop._decide_current_val_interval()
    steps = is_counting_steps(runner)
    done, last = (loop.iter, loop.max_iters) if steps else (loop.epoch, loop.max_epochs)
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)


def is_counting_steps(runner: Runner) -> bool:
    """Tell whether a training counts steps and not epochs.

    Args:
        runner: The runner.

    Returns:
        Whether it does.
    """
    return isinstance(runner.train_loop, IterBasedTrainLoop)
