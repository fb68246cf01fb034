import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pickle
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import BaseDataElement
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmdscnet import stack


class TinyModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        loss = self.layer(inputs).square().mean()
        return dict(loss=loss) if mode == 'loss' else loss


def make_runner(work_dir, max_iters, resume=False):
    return Runner(
        model=TinyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(2))] * 4,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            batch_size=2,
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=2, by_epoch=False)),
        custom_hooks=[],
        resume=resume,
        log_level='ERROR',
    )


class RunsCode:
    """Pickles as a call, as a harmful checkpoint would."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hide_module(monkeypatch, hidden):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == hidden else find_spec(name)
    )


def run_python(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)


@pytest.mark.skipif(
    'mmsegmentation' not in importlib.metadata.packages_distributions()['mmseg'],
    reason="the forks' mmseg imports mmpretrain, and with it torchvision, by itself",
)
def test_import_leaves_slow_packages_alone():
    run = run_python(
        'import sys, mmdscnet\n'
        "print([name for name in ('mmpretrain', 'torchvision') if name in sys.modules])"
    )
    assert run.stdout == '[]\n', run.stderr


def test_missing_package_error_says_what_to_install(monkeypatch):
    hide_module(monkeypatch, 'mmseg')
    with pytest.raises(ImportError, match=r'needs mmseg, .*pip install -r requirements/lite.txt'):
        stack.require_openmmlab()


def test_prepare_twice_changes_nothing():
    before = dict(MODULE2PACKAGE), len(torch.serialization.get_safe_globals())
    stack.prepare()
    assert (dict(MODULE2PACKAGE), len(torch.serialization.get_safe_globals())) == before


class TestMmcvOps:
    @pytest.fixture
    def lite(self, monkeypatch):
        """The stand-in, also where mmcv is compiled."""
        monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            'find_spec',
            lambda name: None if name == 'mmcv._ext' else find_spec(name),
        )
        stack.install_mmcv_ops_stand_in()
        monkeypatch.undo()
        return sys.modules['mmcv._ext']

    def test_error_comes_with_the_call_and_names_op_and_mend(self, lite):
        op = lite.roi_align_forward
        with pytest.raises(NotImplementedError, match=r"'roi_align_forward' .*pip install"):
            op(torch.ones(1))

    def test_stand_in_is_an_ordinary_module(self, lite):
        """``inspect`` and ``find_spec`` look at these; a function there breaks them."""
        assert not hasattr(lite, '__path__')
        assert not hasattr(lite, '__file__')
        assert importlib.util.find_spec('mmcv._ext') is lite.__spec__

    def test_compiled_mmcv_is_left_alone(self, monkeypatch):
        compiled = ModuleType('mmcv._ext')
        monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
        stack.install_mmcv_ops_stand_in()
        assert sys.modules['mmcv._ext'] is compiled

    def test_compiled_mmcv_is_left_to_be_imported(self, monkeypatch):
        monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: SimpleNamespace(name=name))
        stack.install_mmcv_ops_stand_in()
        assert 'mmcv._ext' not in sys.modules

    def test_mmseg_and_its_apis_import_after_the_package(self):
        run = run_python('import mmdscnet, mmseg.models; from mmseg.apis import init_model')
        assert run.returncode == 0, run.stderr


class TestTorchvision:
    # What of torchvision's Python code fails at import when its operators are not there.
    PACKAGE = """
import torch
__version__ = '0.0'
torch.library.register_fake('torchvision::nms')(lambda dets, scores, threshold: dets)
torch.library.register_fake('torchvision::qnms')(lambda dets, scores, threshold: dets)
"""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """A torchvision whose operators cannot be loaded, before any installed one."""
        folder = tmp_path / 'torchvision'
        folder.mkdir()
        (folder / '__init__.py').write_text(self.PACKAGE)
        suffix = importlib.machinery.EXTENSION_SUFFIXES[-1]
        (folder / f'_C{suffix}').write_bytes(b'not a library')
        path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
        monkeypatch.setenv('PYTHONPATH', path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
        # Of the process that runs the tests nothing may be changed, and it may have operators.
        monkeypatch.setattr(torch.ops, 'torchvision', SimpleNamespace(), raising=False)
        monkeypatch.setattr(torch.library, 'Library', self.Recorder)
        monkeypatch.setattr(stack, '_kept_libraries', [])
        return folder

    class Recorder(list):
        """Stands for torch's Library, and keeps what is defined."""

        def __init__(self, name, kind):
            super().__init__([f'{name} {kind}'])

        def define(self, schema):
            self.append(schema.split('(')[0])

        def impl(self, name, function, key):
            assert name == self[-1]

    def test_unfit_one_is_unimportable_by_itself(self, package):
        run = run_python('import torchvision')
        assert 'operator torchvision::nms does not exist' in run.stderr

    def test_unfit_one_is_imported_and_logged_and_its_operator_raises_with_the_mend(self, package):
        run = run_python(
            'import mmdscnet, torch\n'
            'from mmengine.utils.dl_utils import collect_env\n'
            "print(collect_env()['TorchVision'])\n"
            'mmdscnet.stack.prepare()\n'
            'torch.ops.torchvision.nms(torch.ones(1, 4), torch.ones(1), 0.5)'
        )
        # The forks' mmseg prints a line of its own before.
        assert run.stdout.splitlines()[-1] == '0.0', run.stderr
        error = run.stderr.splitlines()[-1]
        assert error.startswith('NotImplementedError: the operators of the installed torchvision')
        assert 'pip install --force-reinstall --no-deps torchvision --index-url' in error

    @pytest.mark.parametrize('has_library', [True, False])
    def test_operators_are_defined_where_they_cannot_be_loaded(self, package, has_library):
        if not has_library:
            next(package.glob('_C*')).unlink()
        stack.define_torchvision_operators()
        assert stack._kept_libraries == [['torchvision DEF', 'nms', 'qnms']]

    def test_defined_operators_are_left_alone(self, package, monkeypatch):
        monkeypatch.setattr(torch.ops, 'torchvision', SimpleNamespace(nms=None))
        stack.define_torchvision_operators()
        assert stack._kept_libraries == []

    def test_fitting_one_is_left_alone(self, package, monkeypatch):
        loaded = []
        monkeypatch.setattr(torch.ops, 'load_library', loaded.append)
        stack.define_torchvision_operators()
        assert loaded == [str(next(package.glob('_C*')))]
        assert stack._kept_libraries == []

    def test_without_one_nothing_happens(self, package, monkeypatch):
        hide_module(monkeypatch, 'torchvision')
        stack.define_torchvision_operators()
        assert stack._kept_libraries == []


class TestCheckpoints:
    def test_training_checkpoint_loads_with_weights_only(self, tmp_path):
        make_runner(tmp_path, max_iters=2).train()
        checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=True)
        losses = checkpoint['message_hub']['log_scalars']['train/loss']
        assert isinstance(losses, HistoryBuffer)
        assert losses.statistics('mean') == pytest.approx(losses.data[0].mean())
        assert checkpoint['optimizer']['state']

    def test_training_resumes_with_its_history(self, tmp_path):
        make_runner(tmp_path, max_iters=2).train()
        MessageHub._instance_dict.clear()
        runner = make_runner(tmp_path, max_iters=4, resume=True)
        runner.train()
        assert runner.iter == 4
        assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 4

    @pytest.mark.parametrize('dtype', ['float64', 'float32', 'float16', 'int64', 'uint8', 'bool'])
    def test_numpy_values_load_with_weights_only(self, tmp_path, dtype):
        array = np.array([0, 1, 2]).astype(dtype)
        torch.save(dict(array=array, scalar=array[1]), tmp_path / 'numpy.pth')
        loaded = torch.load(tmp_path / 'numpy.pth', weights_only=True)
        np.testing.assert_array_equal(loaded['array'], array)
        assert loaded['array'].dtype == loaded['scalar'].dtype == dtype
        assert loaded['scalar'] == array[1]

    def test_what_others_admit_for_a_while_stays_admitted(self, tmp_path):
        """As the forks' mmengine does around each load."""
        torch.save(dict(array=np.ones(2)), tmp_path / 'numpy.pth')
        with torch.serialization.safe_globals([np.ndarray, np.dtype, HistoryBuffer]):
            pass
        assert torch.load(tmp_path / 'numpy.pth', weights_only=True)['array'].sum() == 2

    def test_names_of_numpy_1_and_2_are_both_admitted(self):
        names = {
            entry[1] for entry in torch.serialization.get_safe_globals() if isinstance(entry, tuple)
        }
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            assert {f'{module}._reconstruct', f'{module}.scalar'} <= names

    @pytest.mark.parametrize(
        'harm',
        [
            RunsCode(os.system, 'true'),
            RunsCode(eval, '1'),
            RunsCode(getattr, np.ndarray, 'tofile'),
            RunsCode(getattr, HistoryBuffer, '__init__'),
            RunsCode(getattr, HistoryBuffer([1], [1]), 'mean'),
            np.array([object()], dtype=object),
        ],
        ids=['system', 'eval', 'getattr-array', 'getattr-init', 'getattr-instance', 'object-array'],
    )
    def test_harmful_pickle_is_refused(self, tmp_path, harm):
        torch.save(dict(state_dict={}, meta=harm), tmp_path / 'harm.pth')
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'harm.pth', weights_only=True)

    def test_refused_attribute_is_named(self):
        with pytest.raises(
            pickle.UnpicklingError, match="attribute 'register_statistics' .*HistoryBuffer"
        ):
            stack.get_history_method(HistoryBuffer, 'register_statistics')


class TestPackageNames:
    def test_own_name_is_a_module_of_the_package(self):
        spec = importlib.util.find_spec(MODULE2PACKAGE['mmdscnet'])
        assert spec.origin == importlib.util.find_spec('mmdscnet.version').origin

    def test_fork_is_found_under_its_own_name(self, monkeypatch):
        monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
        monkeypatch.setattr(
            importlib.metadata,
            'packages_distributions',
            lambda: {'mmseg': ['onedl-mmsegmentation'], 'torch': ['torch']},
        )
        stack.register_package_names()
        assert MODULE2PACKAGE['mmseg'] == 'onedl-mmsegmentation'
        assert 'torch' not in MODULE2PACKAGE

    def test_stock_name_stays_where_it_is_installed(self, monkeypatch):
        monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
        monkeypatch.setattr(
            importlib.metadata,
            'packages_distributions',
            lambda: {'mmseg': ['another', 'mmsegmentation']},
        )
        stack.register_package_names()
        assert MODULE2PACKAGE['mmseg'] == 'mmsegmentation'


class TestActivationCheckpointing:
    def test_module_whose_inputs_need_no_gradient_is_trained(self):
        model = nn.ModuleDict(dict(backbone=nn.Linear(3, 3), head=nn.Linear(3, 1)))
        inputs = torch.randn(4, 3)

        def train():
            model.zero_grad()
            model.head(model.backbone(inputs).square()).sum().backward()
            return [parameter.grad for parameter in model.parameters()]

        expected = train()
        turn_on_activation_checkpointing(model, 'backbone')
        torch.testing.assert_close(train(), expected, rtol=0, atol=0)


class TestShardedState:
    def test_arguments_reach_torch_by_their_names(self, monkeypatch):
        def load(model, optim, optim_state_dict):
            return dict(model=model, optim=optim, state=optim_state_dict)

        monkeypatch.setattr(FullyShardedDataParallel, 'optim_state_dict_to_load', load)
        loaded = {}
        wrapper = SimpleNamespace(optimizer='optimizer', load_state_dict=loaded.update)
        strategy = SimpleNamespace(model='model', optim_wrapper=wrapper)
        FSDPStrategy.load_optim_state_dict(strategy, 'state')
        assert loaded == dict(model='model', optim='optimizer', state='state')


class TestCompile:
    @pytest.fixture
    def compiled(self):
        """Compiled function that copies a sample, as data preprocessors do."""
        # Whatever another test has compiled or set, this starts anew.
        torch._dynamo.reset()

        @torch.compile(backend='eager')
        def copy_sample(inputs, sample):
            return inputs + len(sample.new().label)

        with torch._dynamo.config.patch(trace_numpy=True):
            yield copy_sample
        torch._dynamo.reset()

    @pytest.fixture
    def sample(self):
        return BaseDataElement(metainfo=dict(label=np.ones(3, dtype=np.float32)))

    def test_arrays_among_the_metas_are_copied_as_they_are(self, compiled, sample):
        stack.let_compile_skip_numpy()
        assert compiled(torch.zeros(1), sample) == 3

    def test_otherwise_the_copy_fails(self, compiled, sample):
        with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match='__deepcopy__'):
            compiled(torch.zeros(1), sample)
