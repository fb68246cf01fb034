"""A few steps of the real thing: the shapes configs in small, through mmengine's Runner."""

import json
import math
import runpy
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

# Two batches of four in each epoch.
EPOCHS, STEPS = 2, 4
SIZE = (64, 64)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Folder of the generated images, drawn by the first data set that needs it."""
    return str(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture
def small_config(repository, data_root, tmp_path):
    """Read a shapes config and make images, network and training small."""

    def read(name, work_dir='run', seed=0):
        cfg = Config.fromfile(repository / 'configs' / name / 'shapes.py')
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.update(batch_size=4, num_workers=0, persistent_workers=False)
            loader.dataset.update(data_root=data_root, splits=dict(train=8, val=4), image_size=64)
            for step in loader.dataset.pipeline:
                step.update({key: SIZE for key in ('scale', 'crop_size') if key in step})
        cfg.model.data_preprocessor.size = SIZE
        cfg.model.backbone.base_channels = 8
        cfg.model.decode_head.in_channels = 32
        cfg.train_cfg = dict(by_epoch=True, max_epochs=EPOCHS, val_interval=EPOCHS)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=EPOCHS)
        cfg.randomness.seed = seed
        cfg.work_dir = str(tmp_path / work_dir)
        cfg.log_level = 'WARNING'
        return cfg

    return read


def train(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def scalars_of(runner, prefix):
    scalars = runner.message_hub.log_scalars.items()
    return {name: list(buffer.data[0]) for name, buffer in scalars if name.startswith(prefix)}


@pytest.mark.parametrize('name', ['cam', 'dscnet'])
def test_training_gives_finite_losses_and_a_metric(small_config, name):
    runner = train(small_config(name))
    losses = scalars_of(runner, 'train/decode.loss')
    names = {'cam': ['cls'], 'dscnet': ['cls', 'pgcl', 'sgcl', 'cls_refined']}[name]
    assert set(losses) == {f'train/decode.loss_{loss}' for loss in names}
    assert all(len(values) == STEPS for values in losses.values())
    assert all(math.isfinite(value) for values in losses.values() for value in values)
    if name == 'dscnet':
        for contrast in ('train/decode.loss_pgcl', 'train/decode.loss_sgcl'):
            # A warm-up of 15 % is the first of four steps.
            assert losses[contrast][0] == 0
            assert all(value > 0 for value in losses[contrast][1:])
        assert runner.model.decode_head.memory_valid[0]
    (best,) = scalars_of(runner, 'val/labels_given/best_mIoU').values()
    assert 0 <= best[0] <= 100


@pytest.mark.parametrize('name', ['cam', 'dscnet'])
def test_same_seed_gives_the_same_weights(small_config, name):
    first = train(small_config(name, 'first')).model.state_dict()
    second = train(small_config(name, 'second')).model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    third = train(small_config(name, 'third', seed=1)).model.state_dict()
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_checkpoint_tests_to_the_metric_of_its_training(
    small_config, repository, tmp_path, monkeypatch
):
    cfg = small_config('dscnet')
    cfg.test_dataloader = cfg.val_dataloader
    expected = scalars_of(train(cfg), 'val/labels_given/')
    cfg.dump(tmp_path / 'config.py')
    checkpoint = tmp_path / 'run' / f'epoch_{EPOCHS}.pth'
    arguments = [tmp_path / 'config.py', checkpoint, '--work-dir', tmp_path / 'test']
    monkeypatch.setattr(sys, 'argv', ['test.py', *map(str, arguments)])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setenv('LOCAL_RANK', '0')
    runpy.run_path(str(repository / 'tools' / 'test.py'), run_name='__main__')
    (results,) = (json.loads(path.read_text()) for path in (tmp_path / 'test').glob('*/*.json'))
    assert 'val/labels_given/best_mIoU' in expected
    for name, values in expected.items():
        assert results[name.removeprefix('val/')] == pytest.approx(values[-1], abs=0.01)


def test_a_resumed_training_goes_on_with_step_and_memory(small_config):
    runner = train(small_config('dscnet'))
    memory = runner.model.decode_head.memory
    cfg = small_config('dscnet')
    cfg.resume = True
    resumed = Runner.from_cfg(cfg)
    resumed.load_or_resume()
    assert (resumed.epoch, resumed.iter) == (EPOCHS, STEPS)
    assert torch.equal(resumed.model.decode_head.memory, memory)


def test_inference_of_mmseg_labels_an_image_of_any_size(small_config):
    model = init_model(small_config('dscnet'), device='cpu')
    result = inference_model(model, np.zeros((50, 70, 3), np.uint8))
    assert result.pred_sem_seg.data.shape == (1, 50, 70)
