import argparse
import hashlib
import json
import runpy

import pytest
import torch
from mmengine.config import Config


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'toy.pth'
    torch.save({'layer.weight': torch.ones(1, 2), 'layer.bias': torch.zeros(1)}, path)
    return path


@pytest.fixture(scope='module')
def tool(repository):
    return argparse.Namespace(**runpy.run_path(str(repository / 'tools' / 'test.py')))


def test_results_are_written_to_the_work_dir(run_tool, toy_dir, checkpoint, tmp_path):
    run_tool('test.py', toy_dir / 'config.py', checkpoint, '--work-dir', tmp_path / 'run')
    results = next((tmp_path / 'run').glob('*/*.json'))
    assert json.loads(results.read_text())['toy/count'] == 4


def test_missing_checkpoint_error_names_it(run_tool, toy_dir):
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no\.pth' is not a file"):
        run_tool('test.py', toy_dir / 'config.py', 'no.pth')


def test_augmentation_without_its_config_is_refused(run_tool, toy_dir, checkpoint, tmp_path):
    with pytest.raises(ValueError, match='--tta needs tta_model and tta_pipeline'):
        run_tool('test.py', toy_dir / 'config.py', checkpoint, '--tta', '--work-dir', tmp_path)


def test_url_is_checked(run_tool, toy_dir, checkpoint, web, cache, tmp_path):
    content = checkpoint.read_bytes()
    name = f'toy-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    web.files[f'/{name}'] = content
    run_tool('test.py', toy_dir / 'config.py', f'{web.url}/{name}', '--work-dir', tmp_path / 'a')
    assert json.loads(next((tmp_path / 'a').glob('*/*.json')).read_text())['toy/count'] == 4
    web.files['/toy-00000000.pth'] = content
    with pytest.raises(ValueError, match=r'toy-00000000\.pth has the SHA-256'):
        run_tool(
            'test.py',
            toy_dir / 'config.py',
            f'{web.url}/toy-00000000.pth',
            '--work-dir',
            tmp_path / 'b',
        )


@pytest.mark.parametrize('evaluator', [dict(type='A'), [dict(type='A')]])
def test_prediction_writer_stands_beside_the_metrics(tool, evaluator):
    cfg = Config(dict(test_evaluator=evaluator))
    tool.add_prediction_writer(cfg, 'out')
    assert [metric.type for metric in cfg.test_evaluator] == ['A', 'IoUMetric']
    assert cfg.test_evaluator[1].output_dir == 'out'


@pytest.mark.parametrize(
    'config',
    [
        dict(),
        dict(
            default_hooks=dict(visualization=dict(type='SegVisualizationHook')),
            visualizer=dict(type='SegLocalVisualizer'),
        ),
    ],
    ids=['config-without-hook', 'config-with-hook'],
)
def test_painting_is_switched_on(tool, config):
    cfg = Config(config)
    tool.enable_painting(cfg, argparse.Namespace(show=False, wait_time=1, show_dir='painted'))
    assert cfg.default_hooks.visualization.type == 'SegVisualizationHook'
    assert cfg.default_hooks.visualization.draw
    assert cfg.visualizer.save_dir == 'painted'
    assert cfg.visualizer.type == 'SegLocalVisualizer'


@pytest.mark.slow
def test_dscnet_writes_and_paints_predictions(repository, run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = repository / 'configs' / 'dscnet' / 'shapes.py'
    few = [
        f'{name}_dataloader.dataset.splits.{split}=4'
        for name in ('train', 'val', 'test')
        for split in ('train', 'val')
    ]
    options = ('--cfg-options', *few, 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4')
    run_tool('train.py', config, '--work-dir', 'run', *options)
    folders = ('--out', 'predictions', '--show-dir', 'painted', '--work-dir', 'run')
    run_tool('test.py', config, 'run/epoch_1.pth', *folders, *options)
    predictions = len(list((tmp_path / 'predictions').glob('*.png')))
    assert predictions == 4
    assert len(list((tmp_path / 'painted').rglob('*.png'))) == predictions
