"""Guards that make MMSegmentation's stack work where it would not by itself.

Stock MMSegmentation was released for older versions of torch, mmcv and pip. Each guard mends one
thing that fails today, and does nothing on a stack that does not need it. ``import mmdscnet``
calls :func:`prepare` before it imports anything of ``mmseg``.

setuptools needs no guard here: ``requirements/lite.txt`` keeps one that still has the
``pkg_resources`` that mmengine imports.
"""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.checkpoint import checkpoint

_REQUIRED = ('mmengine', 'mmcv', 'mmseg')
_HISTORY_METHODS = ('min', 'max', 'mean', 'current')
# The operators that torchvision's Python code looks up when it is imported.
_TORCHVISION_OPERATORS = ('nms', 'qnms')
# torch forgets the schemas of a library that nobody keeps.
_kept_libraries: list[torch.library.Library] = []


def prepare() -> None:
    """Run every guard that importing the package needs. Calling it again changes nothing.

    Raises:
        ImportError: If mmengine, mmcv or mmseg is not installed.
    """
    require_openmmlab()
    install_mmcv_ops_stand_in()
    define_torchvision_operators()
    allow_checkpoint_globals()
    register_package_names()
    checkpoint_without_reentrance()
    name_arguments_of_sharded_state()


def require_openmmlab() -> None:
    """Check that the packages are there which ``setup.py`` must not name.

    The stock distributions and the maintained forks install the same import names and overwrite
    each other's files, so pip cannot be told to bring either.

    Raises:
        ImportError: If mmengine, mmcv or mmseg is not installed.
    """
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'mmdscnet needs {", ".join(missing)}, which pip does not bring by itself: '
            'run `pip install -r requirements/lite.txt` in a clone of mmdscnet, or see its README'
        )


class _MissingOps(ModuleType):
    """A module whose every public attribute is a function that raises when it is called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing_op(*args: object, **kwargs: object) -> NoReturn:
            raise NotImplementedError(
                f'mmcv op {name!r} needs the compiled mmcv, and only its pure Python part is '
                'installed: run `pip uninstall mmcv-lite` and then, in a clone of mmdscnet, '
                '`pip install --no-build-isolation -r requirements/mminstall.txt`'
            )

        return missing_op


def install_mmcv_ops_stand_in() -> None:
    """Let ``mmseg.models`` be imported without mmcv's compiled operators.

    mmseg imports every model, and some of them look up operators of ``mmcv._ext`` on import. The
    stand-in postpones the error to the call of an operator. With a compiled mmcv nothing happens.
    """
    if 'mmcv._ext' in sys.modules or importlib.util.find_spec('mmcv._ext') is not None:
        return
    module = _MissingOps('mmcv._ext')
    # find_spec raises for a loaded module without a spec, and mmcv.utils.check_ops_exist reads a
    # spec without a loader as "no operators", which is the truth.
    module.__spec__ = ModuleSpec('mmcv._ext', loader=None)
    sys.modules['mmcv._ext'] = module


def define_torchvision_operators() -> None:
    """Let a torchvision be imported whose operators were compiled for another torch.

    A CPU build of torch beside PyPI's torchvision, which is built for CUDA, is the usual case. Then
    ``import torchvision`` fails, and with it mmengine's ``Runner``, which logs the version. The
    operators are defined without a computation, so that the error comes with the call of one. With
    a torchvision that fits nothing happens. torchvision itself is not imported.
    """
    spec = importlib.util.find_spec('torchvision')
    folders = spec.submodule_search_locations if spec is not None else None
    # Two definitions of an operator are an error: somebody may have been here before.
    if not folders or hasattr(torch.ops.torchvision, 'nms') or _load_operators(folders[0]):
        return
    library = torch.library.Library('torchvision', 'DEF')
    for name in _TORCHVISION_OPERATORS:
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.impl(name, _missing_torchvision_operator, 'CompositeExplicitAutograd')
    _kept_libraries.append(library)


def _load_operators(folder: str) -> bool:
    """Load the compiled part of torchvision, as torchvision will, if it is there and fits."""
    compiled = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec('_C')
    if compiled is None or compiled.origin is None:
        return False
    try:
        torch.ops.load_library(compiled.origin)
    except OSError:
        return False
    return True


def _missing_torchvision_operator(*args: object, **kwargs: object) -> NoReturn:
    raise NotImplementedError(
        f'the operators of the installed torchvision were not compiled for torch '
        f'{torch.__version__}: install the torchvision that fits from the index that torch came '
        'from, such as `pip install --force-reinstall --no-deps torchvision --index-url '
        'https://download.pytorch.org/whl/cpu`'
    )


def get_history_method(owner: object, name: str) -> Any:
    """Stand for ``getattr`` in a checkpoint, for the methods of mmengine's log history only.

    Args:
        owner: The object of which the checkpoint asks an attribute.
        name: The attribute.

    Returns:
        The method of ``HistoryBuffer``.

    Raises:
        UnpicklingError: If anything else is asked for, as a harmful checkpoint would.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise UnpicklingError(
            f'the checkpoint asks for attribute {name!r} of {owner!r}, which no checkpoint of '
            'mmengine needs: load it only if you trust its author, with '
            '`torch.load(..., weights_only=False)`, and save its state_dict again'
        )
    return getattr(HistoryBuffer, name)


def allow_checkpoint_globals() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine writes into a checkpoint.

    Since torch 2.6 only tensors and plain Python types load by default. A training checkpoint
    also holds numpy numbers and mmengine's log history, which pickles its methods through
    ``getattr``. Exactly these are admitted.
    """
    from mmengine.logging import HistoryBuffer

    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    numeric_codes = np.typecodes['All'].translate({ord(code): None for code in 'OSUVMm'})
    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype]
    allowed += sorted({type(np.dtype(code)) for code in '?' + numeric_codes}, key=str)
    # numpy 2 renamed numpy.core to numpy._core; checkpoints of both are around.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(reconstruct, f'{module}._reconstruct'), (scalar, f'{module}.scalar')]
    allowed.append((get_history_method, 'builtins.getattr'))
    # Under their names, because the forks' mmengine takes back after a load what it admitted for
    # it, and the bare classes are among that.
    torch.serialization.add_safe_globals(
        [
            entry if isinstance(entry, tuple) else (entry, f'{entry.__module__}.{entry.__name__}')
            for entry in allowed
        ]
    )


def register_package_names() -> None:
    """Tell mmengine where the configs of this package and of the installed forks are.

    ``_base_ = 'mmseg::...'`` looks for the distribution that a table names. Our own entry is a
    dotted module, because its folder is found in a wheel, in an editable install and on
    ``PYTHONPATH`` alike. The entries of forks, whose distributions carry another name, are set to
    what is installed.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE['mmdscnet'] = 'mmdscnet.version'
    distributions = importlib.metadata.packages_distributions()
    for module in MODULE2PACKAGE.keys() & distributions.keys() - {'mmdscnet'}:
        if MODULE2PACKAGE[module] not in distributions[module]:
            MODULE2PACKAGE[module] = distributions[module][0]


def checkpoint_without_reentrance() -> None:
    """Let ``activation_checkpointing`` of a config train all that it covers.

    mmengine leaves the kind of checkpoint to torch, which still takes the reentrant one. That gives
    no gradient to a module whose inputs need none, and says nothing: the backbone, whose inputs are
    images, would not be trained. Nor does DistributedDataParallel allow it in a module that a step
    uses twice, as SEAM does with the layers of its backbone.
    """
    from mmengine.runner import activation_checkpointing

    activation_checkpointing.checkpoint = functools.partial(checkpoint, use_reentrant=False)


def name_arguments_of_sharded_state() -> None:
    """Let a training with ``FSDPStrategy`` resume.

    mmengine passes the state of the optimizer, the model and the optimizer in the order of torch
    2.0, which torch 2.1 changed. Their names are the same in all versions.
    """
    from mmengine._strategy import FSDPStrategy

    def load_optim_state_dict(self: Any, state_dict: dict) -> None:
        """Load the state of the whole optimizer, or of this rank's shard."""
        own = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(own)

    FSDPStrategy.load_optim_state_dict = load_optim_state_dict


def let_compile_skip_numpy() -> None:
    """Let ``torch.compile`` go round numpy arrays instead of making tensors of them.

    For a config with ``compile``, before the ``Runner`` trains. The image-level label is an array
    among the metas of a sample, which mmengine copies within the compiled step, and Dynamo fails
    at the copy of an array that it traces. No guard that the import runs: it would import Dynamo,
    which takes longer than all the rest.
    """
    import torch._dynamo

    torch._dynamo.config.trace_numpy = False
