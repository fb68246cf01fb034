"""Trainings that are cut off at any step and resumed, against ones that were not."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import DATA_SAMPLERS, HOOKS

from mmdscnet.engine import ExactResumeHook


class CutOffError(Exception):
    pass


@HOOKS.register_module(force=True)
class CutOffHook(Hook):
    """End the training after a number of steps, as a fault would."""

    priority = 'LOWEST'

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise CutOffError


def train(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def cut_off(cfg, after):
    """Train up to a step, and have a checkpoint of that step only."""
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='CutOffHook', after=after)]
    cfg.default_hooks.checkpoint.interval = after
    with pytest.raises(CutOffError):
        train(cfg)


def last_checkpoint(work_dir):
    return torch.load(Path(work_dir, 'last_checkpoint').read_text(), weights_only=True)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def assert_same_training(one, other):
    one, other = last_checkpoint(one), last_checkpoint(other)
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_same(one[key], other[key])
    assert one['meta']['iter'] == other['meta']['iter']


LOOPS = dict(
    epochs={},
    iterations=dict(iterations=9),
    endless=dict(iterations=9, sampler=dict(type='InfiniteSampler', shuffle=True)),
    shuffled=dict(sampler=dict(type='DefaultSampler', shuffle=True)),
)


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('after', [3, 5])
def test_training_cut_off_anywhere_ends_with_the_same_weights(resumable_config, loop, after):
    train(whole := resumable_config('whole', **LOOPS[loop]))
    cut_off(resumable_config('cut', **LOOPS[loop]), after)
    train(resumed := resumable_config('cut', resume=True, **LOOPS[loop]))
    assert_same_training(whole.work_dir, resumed.work_dir)


def test_training_cut_off_twice_ends_with_the_same_weights(resumable_config):
    train(whole := resumable_config('whole'))
    cut_off(resumable_config('cut'), 2)
    cut_off(resumable_config('cut', resume=True), 4)
    train(resumed := resumable_config('cut', resume=True))
    assert_same_training(whole.work_dir, resumed.work_dir)


def test_without_the_hook_the_weights_differ(resumable_config):
    """The comparison above would see a resume that is not exact."""
    train(whole := resumable_config('whole', exact=False))
    cut_off(resumable_config('cut', exact=False), 3)
    train(resumed := resumable_config('cut', resume=True, exact=False))
    with pytest.raises(AssertionError):
        assert_same_training(whole.work_dir, resumed.work_dir)


@pytest.mark.parametrize('loop', ['epochs', 'endless'])
def test_number_of_worker_processes_changes_nothing(resumable_config, loop):
    train(none := resumable_config('none', **LOOPS[loop]))
    for workers, persistent in ((1, True), (2, False)):
        options = {
            'train_dataloader.num_workers': workers,
            'train_dataloader.persistent_workers': persistent,
        }
        train(some := resumable_config(f'{workers}', **LOOPS[loop], **options))
        assert_same_training(none.work_dir, some.work_dir)


def test_augmentation_differs_between_epochs_and_images(resumable_config):
    runner = Runner.from_cfg(resumable_config(epochs=2))
    seen = []

    def look(module, args, kwargs):
        if kwargs['mode'] == 'loss':
            seen.extend(kwargs['inputs'])

    runner.model.register_forward_pre_hook(look, with_kwargs=True)
    runner.train()
    assert len(seen) == 24
    images = {image.numpy().tobytes() for image in seen}
    assert len(images) == 24


def test_seed_that_was_drawn_is_that_of_the_resumed_training(resumable_config):
    options = {'randomness.seed': None}
    cut_off(resumable_config('cut', **options), 4)
    seed = last_checkpoint(resumable_config('cut').work_dir)['meta']['seed']
    train(resumed := resumable_config('cut', resume=True, **options))
    train(whole := resumable_config('whole', **{'randomness.seed': seed}))
    assert_same_training(whole.work_dir, resumed.work_dir)


def test_training_that_was_longer_than_planned_resumes_with_a_warning(resumable_config, caplog):
    train(resumable_config('run', epochs=1))
    runner = train(resumable_config('run', epochs=2, resume=True, log_level='INFO'))
    assert runner.iter == 6
    log = next(Path(runner.work_dir).rglob(f'{runner.timestamp}.log')).read_text()
    assert 'train_cfg.max_epochs was 1 and is 2' in log


@pytest.mark.parametrize(
    ('options', 'change'),
    [
        ({'model.decode_head.embed_channels': 16}, 'model.decode_head.embed_channels was 8 and'),
        ({'optim_wrapper.optimizer.lr': 0.5}, 'optim_wrapper.optimizer.lr was'),
        ({'randomness.seed': 5}, 'randomness.seed was 0 and is 5'),
        (
            {'train_dataloader.sampler.group_size': 4},
            'train_dataloader.sampler.group_size was 2 and',
        ),
    ],
)
def test_other_config_is_refused(resumable_config, options, change):
    cut_off(resumable_config('run'), 2)
    with pytest.raises(ValueError, match=rf'another config: {re.escape(change)}.*strict=False'):
        train(resumable_config('run', resume=True, **options))


def test_other_config_is_a_warning_when_not_strict(resumable_config):
    cut_off(resumable_config('run'), 2)
    options = {'optim_wrapper.optimizer.lr': 0.5, 'default_hooks.resume.strict': False}
    runner = train(resumable_config('run', resume=True, **options))
    log = next(Path(runner.work_dir).rglob(f'{runner.timestamp}.log')).read_text()
    assert 'resumed with another config' in log
    assert runner.iter == 9


def test_other_images_are_a_warning(resumable_config):
    cut_off(resumable_config('run'), 3)
    options = {'train_dataloader.dataset.indices': 10, 'default_hooks.resume.strict': False}
    runner = train(resumable_config('run', resume=True, **options))
    log = next(Path(runner.work_dir).rglob(f'{runner.timestamp}.log')).read_text()
    assert 'not those that the checkpoint was trained on' in log


def test_another_batch_size_says_what_changes(resumable_config):
    cut_off(resumable_config('run'), 2)
    options = {'train_dataloader.batch_size': 2}
    runner = train(resumable_config('run', resume=True, **options))
    log = next(Path(runner.work_dir).rglob(f'{runner.timestamp}.log')).read_text()
    assert '1 processes with 4 images each, and goes on with 1 of 2' in log
    assert 'learning rate is not scaled' in log


def test_checkpoint_of_another_tool_is_a_warning(resumable_config):
    cut_off(resumable_config('run', exact=False), 2)
    runner = train(resumable_config('run', resume=True))
    log = next(Path(runner.work_dir).rglob(f'{runner.timestamp}.log')).read_text()
    assert 'written without ExactResumeHook' in log


def test_weights_of_another_config_may_start_a_training(resumable_config):
    cut_off(resumable_config('run'), 2)
    path = str(Path(resumable_config('run').work_dir, 'iter_2.pth'))
    options = {'optim_wrapper.optimizer.lr': 0.5, 'load_from': path}
    assert train(resumable_config('other', **options)).iter == 9


@pytest.mark.parametrize(('interval', 'warns'), [(2, False), (3, True)])
def test_checkpoint_between_steps_of_the_optimizer_is_reported(resumable_config, interval, warns):
    options = {
        'optim_wrapper.accumulative_counts': 2,
        'default_hooks.checkpoint.interval': interval,
    }
    runner = train(resumable_config('run', epochs=1, **options))
    log = next(Path(runner.work_dir).rglob(f'{runner.timestamp}.log')).read_text()
    assert ('gradients gathered so far are not in it' in log) is warns


def test_accumulation_resumes_exactly_between_its_cycles(resumable_config):
    options = {'optim_wrapper.accumulative_counts': 2}
    train(whole := resumable_config('whole', epochs=4, **options))
    cut_off(resumable_config('cut', epochs=4, **options), 8)
    train(resumed := resumable_config('cut', epochs=4, resume=True, **options))
    assert_same_training(whole.work_dir, resumed.work_dir)


def test_hook_goes_first():
    assert ExactResumeHook().priority == 'VERY_HIGH'


def images_of(cfg):
    """Train, and note the images of each step."""
    seen = []

    @HOOKS.register_module(name='NoteHook', force=True)
    class NoteHook(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            names = [Path(sample.img_path).stem for sample in data_batch['data_samples']]
            seen.append(sorted(names))

    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='NoteHook')]
    with suppress(CutOffError):
        train(cfg)
    return seen


def cutting(cfg, after):
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='CutOffHook', after=after)]
    cfg.default_hooks.checkpoint.interval = after
    return cfg


@pytest.mark.parametrize('loop', ['shuffled', 'endless'])
def test_place_is_kept_after_another_batch_size(resumable_config, loop):
    """A resume with the batch size of the checkpoint is exact, whatever was before it."""
    halved = {'train_dataloader.batch_size': 2, **LOOPS[loop]}
    if 'iterations' in halved:
        halved['iterations'] = 18
    images_of(cutting(resumable_config('cut', **LOOPS[loop]), 3))
    shutil.copytree(resumable_config('cut').work_dir, resumable_config('whole').work_dir)
    whole = images_of(resumable_config('whole', resume=True, **halved))
    first = images_of(cutting(resumable_config('cut', resume=True, **halved), 7))
    rest = images_of(resumable_config('cut', resume=True, **halved))
    assert first + rest == whole
    assert len(first) == 4


def test_epoch_begins_anew_with_another_global_batch(resumable_config):
    options = LOOPS['shuffled']
    whole = images_of(resumable_config('whole', **options))
    images_of(cutting(resumable_config('cut', **options), 2))
    halved = {'train_dataloader.batch_size': 2, 'resume': True, **options}
    again = images_of(resumable_config('cut', **halved))
    assert sorted(again[0] + again[1]) == whole[0]


@pytest.mark.parametrize('kind', ['InfiniteSampler', 'OwnInfiniteSampler'])
def test_endless_sampler_that_workers_have_begun_to_read_begins_anew(resumable_config, kind):
    DATA_SAMPLERS.register_module(
        name='OwnInfiniteSampler', module=type('Own', (InfiniteSampler,), {}), force=True
    )
    sampler = dict(type=kind, shuffle=True)
    options = {'train_dataloader.num_workers': 1}
    seen = images_of(resumable_config('run', iterations=3, sampler=sampler, **options))
    assert seen == images_of(resumable_config('other', iterations=3, sampler=sampler))


def test_too_few_images_for_a_batch_are_refused(resumable_config):
    options = {'train_dataloader.batch_size': 50, 'train_dataloader.drop_last': True}
    with pytest.raises(ValueError, match=r'batch_size=50 is more than the 12 images of a process'):
        train(resumable_config('run', iterations=3, **options))
