"""Other projects of MMSegmentation that inherit our configs, through unmodified tools of mmseg."""

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
from mmengine.registry import Registry
from mmseg.registry import MODELS

from mmdscnet.models import DSCHead

CONFIG_DIR = Path(__file__).resolve().parents[1] / 'configs'
NAMES = sorted(
    path.relative_to(CONFIG_DIR).as_posix()
    for path in CONFIG_DIR.rglob('*.py')
    if '_base_' not in path.relative_to(CONFIG_DIR).parts and path.name != 'study.py'
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

CPU_RUNNER = """
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from mmdscnet.launch import prepare_cpu_launch


@RUNNERS.register_module()
class CPURunner(Runner):
    @classmethod
    def from_cfg(cls, cfg):
        prepare_cpu_launch(cfg)
        return super().from_cfg(cfg)
"""
USE_CPU_RUNNER = """
custom_imports = dict(imports=['mmdscnet', 'cpu_runner'])
runner_type = 'CPURunner'
"""

# voc.py learns from its pseudo labels, shapes.py by a second classifier.
OF_VOC = {f'decode.loss_{name}' for name in ('cls', 'pgcl', 'sgcl', 'pseudo')}
OF_SHAPES = {f'decode.loss_{name}' for name in ('cls', 'pgcl', 'sgcl', 'cls_refined')}


def assert_trained(work_dir, losses):
    """Two steps with every loss of DSCNet, then a validation."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [lines[0].keys() >= losses, lines[1].keys() >= losses] == [True, True]
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
        assert_trained(work_dir, OF_VOC)
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
        assert_trained(project / 'run', OF_SHAPES)

    @pytest.mark.slow
    @pytest.mark.skipif(torch.cuda.is_available(), reason='with CUDA mmengine needs no help')
    def test_mmsegs_launcher_trains_on_cpu_with_a_runner_that_starts_gloo(
        self, install, project, free_port
    ):
        environment = install('from_wheel')
        (project / 'data').unlink()
        (project / 'cpu_runner.py').write_text(CPU_RUNNER)
        text = SHAPES_PROJECT.replace('_base_ =', "_base_ = __import__('mmdscnet') and")
        (project / 'config.py').write_text(text + USE_CPU_RUNNER)
        launch = ('bash', MMSEG_TOOLS / 'dist_train.sh', 'config.py', 2, '--work-dir', 'run')
        # Not checked by its exit status: now and then gloo takes a process down after its work.
        output = environment.run(*launch, cwd=project, check=False, PORT=free_port)
        assert 'GPU number: 2' in output, output[-6000:]
        assert_trained(project / 'run', OF_SHAPES)


def strip_scope(value):
    """A config without what mmengine adds to dicts that come from a ``mmdscnet::`` base."""
    if isinstance(value, dict):
        return {key: strip_scope(part) for key, part in value.items() if key != '_scope_'}
    return [strip_scope(part) for part in value] if isinstance(value, (list, tuple)) else value


class TestInheritance:
    """What a ``mmdscnet::`` base gives, without a run."""

    @pytest.mark.parametrize('name', NAMES)
    def test_inherited_config_is_the_config(self, tmp_path, name):
        (tmp_path / 'config.py').write_text(f"_base_ = 'mmdscnet::{name}'\n")
        inherited = Config.fromfile(tmp_path / 'config.py')
        assert inherited.model._scope_ == 'mmdscnet'
        own = Config.fromfile(CONFIG_DIR / name)
        assert strip_scope(inherited._cfg_dict) == strip_scope(own._cfg_dict)

    def test_short_form_is_too_early_for_custom_imports(self, tmp_path, monkeypatch):
        """mmengine imports what ``custom_imports`` names when all bases are read."""
        monkeypatch.delitem(MODULE2PACKAGE, 'mmdscnet')
        text = "_base_ = 'mmdscnet::dscnet/voc.py'\ncustom_imports = dict(imports=['mmdscnet'])\n"
        (tmp_path / 'config.py').write_text(text)
        with pytest.raises(AssertionError, match='does not support to load mmdscnet config'):
            Config.fromfile(tmp_path / 'config.py')

    def test_new_style_refuses_a_base_of_the_old_style(self, tmp_path):
        """So our configs cannot be named in ``read_base``, wherever they lie."""
        (tmp_path / 'ours').symlink_to(CONFIG_DIR)
        text = 'with read_base():\n    from .ours.dscnet.shapes import *\n'
        (tmp_path / 'config.py').write_text(f'from mmengine.config import read_base\n{text}')
        with pytest.raises(ConfigParsingError, match='must match the current configuration file'):
            Config.fromfile(tmp_path / 'config.py')


MIXED_PROJECT = f"""
_base_ = __import__('mmdscnet') and [
    'mmseg::_base_/models/fcn_r50-d8.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmdscnet::_base_/datasets/shapes.py',
    'mmdscnet::_base_/default_runtime.py',
]
{SMALL_RUN}
train_dataloader = dict(batch_size=8, **loader, dataset={SHAPES_SIZES})
val_dataloader = dict(**loader, dataset={SHAPES_SIZES})
test_dataloader = dict(**loader, dataset={SHAPES_SIZES})
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(depth=18, base_channels=8, norm_cfg=dict(type='BN')),
    decode_head=dict(
        _delete_=True, type='DSCHead', in_channels=64, in_index=3, num_classes=6,
        pgcl=dict(type='PGCLLoss'), sgcl=dict(type='SGCLLoss')),
    auxiliary_head=None)
"""
NEW_STYLE_RUN = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=3)
log_processor = dict(by_epoch=False)
"""
NEW_STYLE_PROJECT = f"""
from mmengine.config import Config, read_base

from mmdscnet.models import DSCHead

with read_base():
    from .run import *

base = Config.fromfile(__import__('mmdscnet').__path__[0] + '/.mim/configs/dscnet/shapes.py')
globals().update({{key: base[key] for key in base if key not in globals()}})
del base

model.merge(dict(decode_head=dict(type=DSCHead, pgcl=dict(loss_weight=0.5))))
default_hooks.merge(dict(
    logger=dict(interval=1, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=2)))
loader = dict(num_workers=0, persistent_workers=False, dataset={SHAPES_SIZES})
train_dataloader.merge(dict(loader, batch_size=8))
val_dataloader.merge(loader)
test_dataloader.merge(loader)
"""
OWN_SCOPE_PROJECT = f"""
_base_ = __import__('mmdscnet') and 'mmdscnet::dscnet/shapes.py'
default_scope = 'own'
{SMALL_RUN}
train_dataloader = dict(batch_size=8, **loader, dataset={SHAPES_SIZES})
val_dataloader = dict(**loader, dataset={SHAPES_SIZES})
test_dataloader = dict(**loader, dataset={SHAPES_SIZES})
model = dict(decode_head=dict(type='OwnHead', _scope_='own'))
"""


class TestMixtures:
    """Projects that add something of their own, run by mmseg's tools in this process."""

    @pytest.fixture
    def train_and_test(self, project, mmseg_tool):
        (project / 'data').unlink()

        def run():
            mmseg_tool('train.py', 'config.py', '--work-dir', 'run')
            assert_trained(project / 'run', OF_SHAPES)
            mmseg_tool('test.py', 'config.py', 'run/iter_2.pth', '--work-dir', 'tested')
            assert_tested(project / 'tested')
            return Config.fromfile(project / 'run' / 'config.py')

        return run

    @pytest.fixture
    def own_head(self):
        """A head in the registry of a project that is a child of mmseg's."""
        models = Registry('model', parent=MODELS, scope='own')
        models.register_module(name='OwnHead', module=type('OwnHead', (DSCHead,), {}))
        yield
        MODELS.children.pop('own')

    def test_bases_of_mmseg_and_of_ours(self, project, train_and_test):
        (project / 'config.py').write_text(MIXED_PROJECT)
        cfg = train_and_test()
        assert [cfg.model._scope_, cfg.train_dataloader.dataset._scope_] == ['mmseg', 'mmdscnet']

    def test_new_style_config(self, project, train_and_test):
        (project / 'run.py').write_text(NEW_STYLE_RUN)
        (project / 'config.py').write_text(NEW_STYLE_PROJECT)
        cfg = train_and_test()
        assert cfg.model.decode_head.pgcl == dict(type='PGCLLoss', loss_weight=0.5)
        assert cfg.model.decode_head.type.endswith('.DSCHead')

    @pytest.mark.usefixtures('own_head')
    def test_project_with_a_scope_of_its_own(self, project, train_and_test):
        (project / 'config.py').write_text(OWN_SCOPE_PROJECT)
        train_and_test()

    @pytest.mark.usefixtures('own_head')
    @pytest.mark.parametrize('head', ["type='OwnHead'", "type='own.OwnHead'"])
    def test_class_of_a_scope_below_mmsegs_is_found_by_scope_only(self, project, head):
        """An inherited model is built in our scope, which knows no sister by its prefix."""
        text = OWN_SCOPE_PROJECT.replace("type='OwnHead', _scope_='own'", head)
        (project / 'config.py').write_text(text)
        with pytest.raises(KeyError, match='OwnHead is not in the'):
            MODELS.build(Config.fromfile(project / 'config.py').model)
