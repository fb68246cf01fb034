"""A small training whose labels are refreshed by the hook."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import HOOKS, MODELS
from PIL import Image

from mmdscnet.engine import PseudoLabelHook
from mmdscnet.provenance import hash_weights
from mmdscnet.pseudo_labels import PseudoLabelStore, read_version

SIZE = (64, 64)
EPOCHS = 3


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture
def build_config(repository, data_root, tmp_path, forget_instances):
    """Make the config of a small DSCNet with the hook; the same data in every training."""

    def build(hook=None, epochs=EPOCHS, work_dir='run', resume=False, visualizer=None, **dataset):
        forget_instances()
        cfg = Config.fromfile(repository / 'configs' / 'dscnet' / 'shapes.py')
        hook = dict(type='PseudoLabelHook', **(hook or {}))
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.update(batch_size=4, num_workers=0, persistent_workers=False)
            loader.dataset.update(data_root=data_root, splits=dict(train=8, val=4), image_size=64)
            for step in loader.dataset.pipeline:
                step.update({key: SIZE for key in ('scale', 'crop_size') if key in step})
        cfg.train_dataloader.dataset.update(dataset)
        if hook.get('target') == 'stored':
            cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='LoadStoredLabels'))
        cfg.model.data_preprocessor.size = SIZE
        cfg.model.backbone.base_channels = 8
        cfg.model.decode_head.in_channels = 32
        cfg.model.decode_head.pseudo_label = dict(type='PseudoLabelLoss')
        cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=100)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
        cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
        hook.setdefault('throughput', dict(num_workers=0))
        cfg.custom_hooks = [*cfg.custom_hooks, hook]
        cfg.work_dir = str(tmp_path / work_dir)
        cfg.visualizer.update(visualizer or {})
        cfg.log_level = 'WARNING'
        cfg.resume = resume
        return cfg

    return build


@pytest.fixture
def build_runner(build_config):
    return lambda *args, **kwargs: Runner.from_cfg(build_config(*args, **kwargs))


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, PseudoLabelHook))


def store_of(runner):
    return PseudoLabelStore(Path(runner.work_dir, 'pseudo_labels'))


def losses_of(runner):
    return list(runner.message_hub.get_scalar('train/decode.loss_pseudo').data[0])


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_loss_starts_with_the_first_labelling_and_the_end_is_labelled(build_runner, target):
    runner = build_runner(dict(target=target, begin=1, interval=1))
    runner.train()
    store = store_of(runner)
    assert store.numbers() == [1, 2, 3]
    assert store.current().number == 3
    assert len(store.current().manifest['files']) == 8
    # Two steps an epoch.
    losses = losses_of(runner)
    assert losses[:2] == [0, 0]
    assert all(loss > 0 for loss in losses[2:])


@pytest.mark.parametrize(
    ('begin', 'interval', 'epochs', 'steps'),
    [(2, 2, 5, [2, 4, 5]), (1, 3, 4, [1, 4]), (5, 1, 2, [2])],
)
def test_labels_come_on_schedule_and_at_the_end(build_runner, begin, interval, epochs, steps):
    runner = build_runner(dict(begin=begin, interval=interval), epochs=epochs)
    runner.train()
    store = store_of(runner)
    folders = [store.version_folder(number) for number in store.numbers()]
    assert [read_version(folder).manifest['settings']['step'] for folder in folders] == steps


def count_iterations(cfg, max_iters=4):
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=100)
    cfg.default_hooks.checkpoint.by_epoch = False
    cfg.param_scheduler = []
    return cfg


def test_iterations_can_be_counted_instead(build_config):
    hook = dict(begin=3, interval=2, by_epoch=False, target='stored')
    runner = Runner.from_cfg(count_iterations(build_config(hook)))
    runner.train()
    folders = [store_of(runner).version_folder(number) for number in (1, 2)]
    assert [read_version(folder).manifest['settings']['step'] for folder in folders] == [3, 4]


def test_processes_of_an_iteration_loop_must_know_the_store(build_config):
    hook = dict(begin=1, by_epoch=False, target='stored')
    cfg = count_iterations(build_config(hook))
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match=r'set LoadStoredLabels\(folder=.*num_workers=0'):
        Runner.from_cfg(cfg).train()
    reader = next(
        step for step in cfg.train_dataloader.dataset.pipeline if step['type'] == 'LoadStoredLabels'
    )
    reader['folder'] = str(Path(cfg.work_dir, 'pseudo_labels'))
    cfg.experiment_name = 'again'
    runner = Runner.from_cfg(count_iterations(cfg, 8))
    runner.train()
    # What was read ahead is still void.
    assert losses_of(runner)[-1] > 0


def test_reader_of_another_store_is_refused(build_config):
    cfg = build_config(dict(target='stored'))
    cfg.train_dataloader.dataset.pipeline[1]['folder'] = 'elsewhere'
    with pytest.raises(ValueError, match=r"folder='elsewhere'\) reads another store"):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_schedule_must_fit_the_loop(build_config, by_epoch):
    cfg = build_config(dict(by_epoch=by_epoch))
    cfg = count_iterations(cfg) if by_epoch else cfg
    with pytest.raises(ValueError, match=f'by_epoch={by_epoch}.* does not fit .*TrainLoop'):
        Runner.from_cfg(cfg).train()


def test_store_of_other_classes_is_found_before_the_training(build_runner):
    runner = build_runner(epochs=1)
    store_of(runner).begin({}, ('background', 'other'), [[0, 0, 0], [1, 1, 1]]).publish([])
    with pytest.raises(ValueError, match='was written for the classes'):
        runner.train()
    assert runner.iter == 0


def test_damaged_mask_is_a_warning(build_runner, data_root, tmp_path, monkeypatch):
    runner = build_runner(epochs=1)
    warnings = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    before = hook_of(runner).before_train

    def use_damaged_masks(runner):
        before(runner)
        folder = tmp_path / 'masks'
        shutil.copytree(hook_of(runner).masks, folder)
        next(folder.glob('train*.png')).write_bytes(b'no image')
        hook_of(runner).masks = str(folder)

    monkeypatch.setattr(hook_of(runner), 'before_train', use_damaged_masks)
    runner.train()
    assert store_of(runner).current().number == 1
    assert any('are not judged' in str(text) for text in warnings)


def test_labels_are_those_of_the_model(build_runner):
    runner = build_runner(dict(target='online'), epochs=1)
    runner.train()
    version = store_of(runner).current()
    model = runner.model.eval()
    for item in hook_of(runner).images:
        (sample,) = model.test_step(pseudo_collate([item]))
        label_map = np.asarray(Image.open(version.folder / f'{Path(sample.img_path).stem}.png'))
        np.testing.assert_array_equal(label_map, sample.pred_sem_seg.data[0].numpy())


def test_training_goes_on_as_if_nothing_had_happened(build_runner):
    """The loss has no weight, so that labelling is the only difference."""
    weights = []
    for name, begin in (('often', 1), ('at_the_end', 100)):
        runner = build_runner(dict(begin=begin), work_dir=name, epochs=2)
        runner.model.decode_head.pseudo_label_loss.loss_weight = 0.0
        runner.train()
        weights.append(runner.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_log_has_coverage_shares_and_miou(build_runner):
    runner = build_runner(dict(labeler=dict(bg_thr=0.2, fg_thr=0.6)), epochs=1)
    runner.train()
    (path,) = Path(runner.work_dir).glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = next(line for line in lines if 'pseudo_labels/coverage' in line)
    version = store_of(runner).current()
    assert line['pseudo_labels/coverage'] == pytest.approx(100 * version.coverage)
    assert 0 < version.coverage < 1
    shares = [value for key, value in line.items() if key.startswith('pseudo_labels/share_')]
    assert sum(shares) == pytest.approx(100)
    assert 0 <= line['pseudo_labels/mIoU'] <= 100
    assert len(list(Path(runner.work_dir).glob('*/vis_data/vis_image/cam_*.png'))) == 4


def test_tensorboard_shows_scalars_and_cams(build_runner):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type='TensorboardVisBackend')]
    runner = build_runner(epochs=1, visualizer=dict(vis_backends=backends))
    runner.train()
    (path,) = Path(runner.work_dir).rglob('events.out.tfevents.*')
    runner.visualizer.close()
    events = EventAccumulator(str(path))
    events.Reload()
    assert {'loss', 'pseudo_labels/coverage', 'pseudo_labels/mIoU'} <= set(events.Tags()['scalars'])
    assert len([tag for tag in events.Tags()['images'] if tag.startswith('cam_')]) == 4


@pytest.mark.slow
def test_two_processes_write_one_version_together(build_config, repository, tmp_path, free_port):
    cfg = build_config(dict(target='stored'), epochs=1)
    cfg.train_dataloader.batch_size = 2
    cfg.dump(tmp_path / 'config.py')
    subprocess.run(
        ['bash', repository / 'tools' / 'dist_train.sh', tmp_path / 'config.py', '2'],
        env=os.environ | dict(PYTHON=sys.executable, PORT=free_port),
        check=True,
        timeout=240,
    )
    store = PseudoLabelStore(tmp_path / 'run' / 'pseudo_labels')
    assert store.numbers() == [1]
    store.current().verify()
    assert len(store.current().manifest['files']) == 8
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)
    # What labelled is what was saved, on every rank.
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model.load_state_dict(checkpoint['state_dict'])
    assert store.current().manifest['settings']['weights'] == hash_weights(model)


def test_nothing_is_judged_without_masks(build_runner, data_root):
    build_runner()
    runner = build_runner(epochs=1, data_prefix=dict(img_path='JPEGImages'))
    runner.train()
    (path,) = Path(runner.work_dir).glob('*/vis_data/scalars.json')
    assert 'pseudo_labels/coverage' in path.read_text()
    assert 'pseudo_labels/mIoU' not in path.read_text()


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_resumed_training_takes_up_the_version_of_its_checkpoint(build_runner, target):
    first = build_runner(dict(target=target), epochs=2)
    first.train()
    # As if it had been killed after the first epoch: that checkpoint is the newest.
    folder = Path(first.work_dir)
    (folder / 'epoch_2.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    resumed = build_runner(dict(target=target), epochs=2, resume=True)
    hook, used = hook_of(resumed), []
    use = hook._use_version
    hook._use_version = lambda: (use(), used.append(hook.version['number']))
    resumed.train()
    assert used[0] == 1
    # The loss is on from the first step.
    assert all(loss > 0 for loss in losses_of(resumed)[-2:])
    assert store_of(resumed).current().number == used[-1] > 1
    store_of(resumed).current().verify()


def test_weights_of_another_training_bring_no_version_along(build_runner):
    build_runner(dict(target='stored'), epochs=1, work_dir='other').train()
    runner = build_runner(dict(target='stored'), epochs=1)
    runner._load_from = str(Path(runner.work_dir).with_name('other') / 'epoch_1.pth')
    runner.train()
    assert losses_of(runner) == [0, 0]


def test_lost_version_is_an_error_on_resume(build_runner):
    runner = build_runner(dict(target='stored'), epochs=1)
    runner.train()
    shutil.rmtree(store_of(runner).version_folder(1))
    resumed = build_runner(dict(target='stored'), epochs=2, resume=True)
    with pytest.raises(FileNotFoundError, match=r'v0001 has no manifest\.json'):
        resumed.train()


def test_changed_version_is_an_error_on_resume(build_runner):
    runner = build_runner(dict(target='stored'), epochs=1)
    runner.train()
    folder = store_of(runner).version_folder(1)
    os.remove(next(folder.glob('*.png')))
    resumed = build_runner(dict(target='stored'), epochs=2, resume=True)
    with pytest.raises(ValueError, match='are missing'):
        resumed.train()


def test_stored_target_needs_a_reader(build_runner):
    runner = build_runner(dict(target='online'))
    hook_of(runner).target = 'stored'
    with pytest.raises(ValueError, match='finds no LoadStoredLabels'):
        runner.train()


def test_online_target_refuses_a_reader(build_runner):
    runner = build_runner(dict(target='stored'))
    hook_of(runner).target = 'online'
    with pytest.raises(ValueError, match=r'finds a LoadStoredLabels .*take it out'):
        runner.train()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(interval=0), 'interval=0 and begin=1 must be at least 1'),
        (dict(begin=0), 'interval=1 and begin=0'),
        (dict(target='new'), "target='new' is none of"),
        (dict(throughput=dict(batch_size=0)), 'batch_size=0'),
        (dict(labeler=dict(bg_thr=2)), 'bg_thr=2'),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HOOKS.build(dict(type='PseudoLabelHook', **settings))
