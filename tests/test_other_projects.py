"""Other projects of MMSegmentation that inherit our configs, through mmseg's own tools as they are."""

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE, ConfigParsingError

CONFIG_DIR = Path(__file__).resolve().parents[1] / 'configs'
NAMES = sorted(
    path.relative_to(CONFIG_DIR).as_posix()
    for path in CONFIG_DIR.rglob('*.py')
    if '_base_' not in path.relative_to(CONFIG_DIR).parts
)
MMSEG_TOOLS = Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'tools'

# Two steps on images of 64 pixels, of the seven images that tests/conftest.py draws.
SMALL_RUN = """
loader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=3)
default_hooks = dict(
    logger=dict(interval=1, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=2))
log_processor = dict(by_epoch=False)
"""
OWN_DATA = """
own_data = dict(
    type='VOCLayoutDataset',
    data_root='data',
    ann_file='ImageSets/Segmentation/val.txt',
    image_labels='image_labels.json',
    metainfo=dict(classes=('background', 'cat', 'dog', 'cow')))
"""
VOC_PROJECT = f"""
_base_ = __import__('mmdscnet') and 'mmdscnet::dscnet/voc.py'
{SMALL_RUN}
{OWN_DATA}
crop_size = (64, 64)
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = crop_size
train_pipeline[4].crop_size = crop_size
train_dataloader = dict(
    batch_size=4, **loader, dataset=dict(**own_data, pipeline=train_pipeline))
val_dataloader = dict(**loader, dataset=own_data)
test_dataloader = dict(**loader, dataset=own_data)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=None),
    decode_head=dict(num_classes=4))
"""
# A narrow ResNet-18 in place of ResNet38d, for runs that are not about the network.
SMALL_NETWORK = """
model.update(
    backbone=dict(
        _delete_=True, type='ResNet', depth=18, base_channels=8, out_indices=(1, 2, 3),
        strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=dict(type='BN')),
    decode_head=dict(num_classes=4, in_channels=64),
    pcm=dict(in_channels=(16, 32), channels=(4, 8)))
"""
SHAPES_SIZES = dict(data_root='data/shapes', splits=dict(train=16, val=8), image_size=64)
SHAPES_PROJECT = f"""
_base_ = 'mmdscnet::dscnet/shapes.py'
{SMALL_RUN}
train_dataloader = dict(batch_size=8, **loader, dataset={SHAPES_SIZES})
val_dataloader = dict(**loader, dataset={SHAPES_SIZES})
test_dataloader = dict(**loader, dataset={SHAPES_SIZES})
"""


LOSSES = {f'decode.loss_{name}' for name in ('cls', 'cls_refined', 'pgcl', 'sgcl')}


def assert_trained(work_dir):
    """Two steps with every loss of DSCNet, then a validation."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [lines[0].keys() >= LOSSES, lines[1].keys() >= LOSSES] == [True, True]
    assert 0 <= lines[2]['labels_given/best_mIoU'] <= 100
    assert (work_dir / 'iter_2.pth').is_file()


def assert_tested(work_dir):
    """A test wrote its metrics."""
    # Beside the log, and not below vis_data as those of a training.
    (path,) = work_dir.glob('*/*.json')
    assert 0 <= json.loads(path.read_text())['labels_given/best_mIoU'] <= 100


@pytest.fixture
def project(tmp_path, voc_folder):
    """An empty project with a data set in VOC's layout."""
    (tmp_path / 'data').symlink_to(voc_folder)
    return tmp_path


@pytest.fixture
def mmseg_tool(project, monkeypatch, forget_instances):
    """Run a tool of mmseg in the project's folder, as if in a process of its own."""
    monkeypatch.chdir(project)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(sys, 'path', [*sys.path, str(project)])

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *args])
        forget_instances()
        runpy.run_path(str(MMSEG_TOOLS / name), run_name='__main__')

    return run


class TestInstalled:
    """In environments that have mmdscnet as users have it."""

    @pytest.fixture(scope='class')
    def from_wheel(self, make_environment, wheel_file):
        environment = make_environment()
        environment.see_the_stack()
        environment.install(wheel_file)
        return environment, environment.python.parents[1]

    @pytest.fixture(scope='class')
    def editable(self, make_environment, copy_sources):
        environment = make_environment()
        environment.see_the_stack()
        source = copy_sources()
        environment.install('--editable', source)
        return environment, source

    @pytest.fixture(scope='class')
    def on_pythonpath(self, make_environment, copy_sources):
        source = copy_sources()
        environment = make_environment(PYTHONPATH=str(source))
        environment.see_the_stack()
        return environment, source

    @pytest.fixture
    def install(self, request, project):
        """Environment of the given way, after a look at where its mmdscnet is."""

        def get(way):
            environment, home = request.getfixturevalue(way)
            find = "import importlib.util as u; print(u.find_spec('mmdscnet').origin)"
            origin = environment.run(environment.python, '-c', find, cwd=project)
            assert home in Path(origin).parents
            return environment

        return get

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ('way', 'network', 'config_of_test'),
        [
            ('from_wheel', '', 'config.py'),
            # What mmengine wrote down of the run: nothing in it imports mmdscnet but our line.
            ('editable', SMALL_NETWORK, 'work_dirs/config/config.py'),
            ('on_pythonpath', SMALL_NETWORK, 'config.py'),
        ],
    )
    def test_project_trains_and_tests(self, install, project, way, network, config_of_test):
        environment = install(way)
        (project / 'config.py').write_text(VOC_PROJECT + network)
        python, work_dir = environment.python, project / 'work_dirs' / 'config'
        environment.run(python, MMSEG_TOOLS / 'train.py', 'config.py', cwd=project)
        assert_trained(work_dir)
        checkpoint = work_dir / 'iter_2.pth'
        test = (python, MMSEG_TOOLS / 'test.py', config_of_test, checkpoint)
        environment.run(*test, cwd=project)
        assert_tested(work_dir)
        # ResNet38d has 400 MB.
        checkpoint.unlink()

    @pytest.mark.slow
    @pytest.mark.parametrize('launcher', ['our tool', 'a line before'])
    def test_short_form_trains_where_the_launcher_imports_us(self, install, project, launcher):
        environment = install('from_wheel')
        (project / 'config.py').write_text(SHAPES_PROJECT)
        os.unlink(project / 'data')
        python = environment.python
        if launcher == 'our tool':
            (package,) = python.parents[1].glob('lib/python*/site-packages/mmdscnet')
            command = [package / '.mim' / 'tools' / 'train.py']
        else:
            line = 'import mmdscnet, runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], {}, '
            command = ['-c', line + "'__main__')", MMSEG_TOOLS / 'train.py']
        environment.run(python, *command, 'config.py', '--work-dir', 'run', cwd=project)
        assert_trained(project / 'run')
