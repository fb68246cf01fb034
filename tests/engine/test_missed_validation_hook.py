"""Trainings that are cut off before or within a validation."""

import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS


class CutOffError(Exception):
    pass


@HOOKS.register_module(force=True)
class CutValidationHook(Hook):
    """End the training in its n-th validation, and count those that were completed."""

    def __init__(self, at=0):
        self.at = at
        self.begun, self.completed = 0, []

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.begun += 1
            if self.begun == self.at:
                raise CutOffError

    def after_val_epoch(self, runner, metrics=None):
        self.completed.append(runner.iter)


def train(cfg, at=0):
    hook = CutValidationHook(at)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook)
    if at:
        with pytest.raises(CutOffError):
            runner.train()
    else:
        runner.train()
    return hook.completed


@pytest.fixture
def config(resumable_config):
    def make(loop, **options):
        lengths = dict(epochs=3) if loop == 'epochs' else dict(iterations=9)
        cfg = resumable_config('run', **lengths, **options)
        cfg.train_cfg.val_interval = 1 if loop == 'epochs' else 3
        by_epoch = loop == 'epochs'
        cfg.default_hooks.checkpoint.update(by_epoch=by_epoch, interval=1 if by_epoch else 3)
        return cfg

    return make


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('at', [2, 3])
def test_missed_validation_is_made_up_for(config, loop, at):
    before = train(config(loop), at)
    after = train(config(loop, resume=True))
    assert before + after == [3, 6, 9]


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_validation_that_was_done_is_not_repeated(config, loop):
    options = {
        'default_hooks.checkpoint.save_best': 'labels_given/best_mIoU',
        'default_hooks.checkpoint.rule': 'greater',
    }
    assert train(config(loop, **options)) == [3, 6, 9]
    # The checkpoint was written once more, with the best metric.
    runner = Runner.from_cfg(config(loop, resume=True, **options))
    hook = CutValidationHook()
    runner.register_hook(hook)
    runner.train()
    best = runner.message_hub.get_info('best_score')
    assert hook.completed in ([], [9])
    assert best >= 0


def test_nothing_is_missed_where_none_is_due(config):
    cfg = config('epochs')
    cfg.train_cfg.val_interval = 2
    train(cfg, 1)
    again = config('epochs', resume=True)
    again.train_cfg.val_interval = 3
    assert train(again) == [9]


def test_weights_that_start_a_training_bring_no_validation(config, resumable_config, tmp_path):
    train(config('epochs'), 1)
    options = dict(load_from=str(tmp_path / 'run' / 'epoch_1.pth'))
    cfg = resumable_config('other', epochs=1, **options)
    assert train(cfg) == [3]
