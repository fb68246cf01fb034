"""A training that is killed and resumed ends with the weights of one that was not."""

from typing import Any

from mmengine.dist import broadcast_object_list, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from mmseg.registry import HOOKS

from mmdscnet.datasets.image_descriptions import hash_images
from mmdscnet.datasets.numbered_batches import (
    EPOCH_DRAWS,
    STEP_DRAWS,
    EndlessBatches,
    number_batches,
)
from mmdscnet.engine.resume_check import (
    compare_batches,
    compare_runs,
    describe_run,
    global_batch,
    shorten,
)
from mmdscnet.random_draws import seed_draws

CHECKPOINT_KEY = 'run'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Make every random number a function of seed and step, and go on with the next batch.

    A checkpoint of mmengine holds weights, optimizer, schedule and counters, but neither the state
    of the random generators nor the place in the data. This hook makes both needless: before each
    step the generators are seeded by the seed of the run, the step and the rank, and the random
    numbers of an image by its place among the images of all ranks (see
    :mod:`mmdscnet.datasets.numbered_batches`). So a resumed training takes the steps that the
    killed one would have taken, also from within an epoch, and with other numbers of worker
    processes. It works in any config of mmseg, with mmengine's loops and samplers.

    A checkpoint also remembers the config. To resume with another model, data, optimizer or seed
    is an error; other images, another schedule or number of processes is a warning that says what
    changes.

    Note:
        Bit-identical weights also need operators that are deterministic: those on CPU are, for a
        fixed number of threads; on CUDA set ``randomness=dict(deterministic=True)``, and some
        backward passes have no deterministic form there. Of batch norm, a checkpoint holds the
        statistics of the first rank, which are then those of all.

    Note:
        With ``accumulative_counts`` a checkpoint between two steps of the optimizer lacks the
        gradients that were gathered so far. Such an interval is reported at the start.

    Note:
        After a resume within an epoch the log counts the steps of that epoch from 1 again.
        mmengine's ``EarlyStoppingHook`` keeps nothing in a checkpoint and starts its count anew.

    Args:
        strict: Whether to refuse to resume with another model, data, optimizer or seed; else this
            is a warning too.
    """

    priority = 'VERY_HIGH'

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.seed = 0
        self.images = ''
        self.saved: dict[str, Any] | None = None
        # The step with the first batch of the epoch, or of a loop that counts steps.
        self.epoch, self.first_step = 0, 0

    def before_train(self, runner: Runner) -> None:
        """Number the batches, and find the first that was not seen.

        Args:
            runner: The runner, at its first step or, resumed, at a later one.
        """
        loop = runner.train_loop
        # With diff_rank_seed each rank has its own, and all must share the images.
        seeds = [runner.seed]
        broadcast_object_list(seeds)
        self.seed = seeds[0]
        loop.dataloader = number_batches(loop.dataloader, self.seed)
        self.images = hash_images(loop.dataloader.dataset)
        if self.saved is not None and self.saved['images'] != self.images:
            runner.logger.warning(
                'the training images, their order or labels are not those that the checkpoint was '
                'trained on: what was seen of them is not what is left out now'
            )
        seen = self._count_seen(runner)
        self.epoch, self.first_step = runner.epoch, runner.iter - seen
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = EndlessBatches(loop.dataloader, seen, loop.iter)
        else:
            loop.dataloader.batch_sampler.start = seen
        self._check_accumulation(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what is drawn between steps.

        Args:
            runner: The runner.
        """
        if runner.epoch != self.epoch:
            self.epoch, self.first_step = runner.epoch, runner.iter
        seed_draws(self.seed, EPOCH_DRAWS, runner.epoch, runner.rank)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the step draws.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
        """
        seed_draws(self.seed, STEP_DRAWS, runner.iter, runner.rank)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the run.

        Args:
            runner: The runner.
            checkpoint: What is saved.
        """
        meta, counts_steps = checkpoint['meta'], isinstance(runner.train_loop, IterBasedTrainLoop)
        is_within = counts_steps or meta['epoch'] == self.epoch
        seen = meta['iter'] - self.first_step if is_within else 0
        run = describe_run(runner.cfg, get_world_size())
        checkpoint[CHECKPOINT_KEY] = dict(run, images=self.images, seen=seen)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the run which resumes is the one that was interrupted.

        Args:
            runner: The runner.
            checkpoint: What was loaded.

        Raises:
            ValueError: If the config is that of another training.
        """
        if not runner._resume:
            return
        saved, now = checkpoint.get(CHECKPOINT_KEY), describe_run(runner.cfg, get_world_size())
        self.saved = saved
        if saved is None:
            runner.logger.warning(
                'the checkpoint was written without ExactResumeHook: what it was trained with is '
                'not known, and the steps before it drew other random numbers'
            )
            return
        decisive, steering = compare_runs(saved, now)
        if decisive and self.strict:
            raise ValueError(
                'the checkpoint belongs to a training with another config: '
                f'{shorten(decisive)}. Resume with the config that it was trained with (every run '
                'keeps its own in <work dir>/<time>/vis_data/config.py); start a training from its '
                "weights by load_from='...' and without resume; or set "
                'default_hooks.resume.strict=False to go on all the same'
            )
        if decisive or steering:
            runner.logger.warning(
                'resumed with another config, so the training is not the one that would have '
                f'gone on: {shorten(decisive + steering)}. Optimizer and schedule go on from the '
                'checkpoint, so another learning rate has no effect: for that start a training '
                "from the weights, by load_from='...' and without resume"
            )
        other_batches = compare_batches(saved, now)
        if other_batches:
            runner.logger.warning(other_batches)

    def _count_seen(self, runner: Runner) -> int:
        """Count the batches that were seen, of this epoch or by a loop that counts steps."""
        counts_steps = isinstance(runner.train_loop, IterBasedTrainLoop)
        if self.saved is None:
            # At the start, or after a checkpoint without this hook.
            whole = 0 if counts_steps else runner.epoch * len(runner.train_dataloader)
            return max(runner.iter - whole, 0)
        before = global_batch(self.saved)
        after = global_batch(describe_run(runner.cfg, get_world_size()))
        if before == after:
            return self.saved['seen']
        return self.saved['seen'] * before // after if counts_steps else 0

    def _check_accumulation(self, runner: Runner) -> None:
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        for hook in runner.hooks:
            if not isinstance(hook, CheckpointHook) or hook.interval < 1:
                continue
            steps = hook.interval * (len(runner.train_dataloader) if hook.by_epoch else 1)
            if steps % counts:
                runner.logger.warning(
                    f'a checkpoint every {steps} iterations falls between two steps of the '
                    f'optimizer, which come every {counts} (accumulative_counts): the gradients '
                    'gathered so far are not in it, and a training that resumes from it is not '
                    'exact. Choose an interval of the checkpoints that is a multiple'
                )
