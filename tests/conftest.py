"""What all tests share: one thread, one seed, no state of mmengine left over, the real data."""

import importlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


def define_torchvision_schemas() -> None:
    """Let a CUDA build of torchvision be imported beside a CPU build of torch.

    mmengine's ``Runner`` imports torchvision where it finds it, only to log its version. A
    torchvision of another build fails because its compiled library, and with it the schemas of
    its operators, is not loaded. A machine of that kind can still run every test.
    """
    try:
        importlib.import_module('torchvision')
    except ModuleNotFoundError:
        return
    except RuntimeError:
        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        # A library takes its schemas along when it is collected.
        define_torchvision_schemas.library = library
        importlib.import_module('torchvision')


define_torchvision_schemas()

from mmengine.utils import ManagerMixin  # noqa: E402

import mmdscnet  # noqa: E402, F401  (mends the stack before any test imports mmseg)

# The tensors of the tests are too small to gain from threads, and sums keep their order.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forget_instances() -> Iterator[Callable[[], None]]:
    """Forget mmengine's global instances after a test, or within it when called.

    Two runners that are built within one second share a name, and by it their message hub; and
    the default scope of one test would decide what another test builds.
    """

    def forget() -> None:
        managers = [ManagerMixin]
        for manager in managers:
            manager._instance_dict.clear()
            managers += manager.__subclasses__()

    yield forget
    forget()


@pytest.fixture(scope='session')
def repository() -> Path:
    """Root of the clone."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def shared_dir(repository: Path) -> Path:
    """Folder with ``data/voc_animals`` and ``weights``; without it the test is skipped."""
    path = Path(os.environ.get('MMDSCNET_SHARED', repository.parent / 'shared'))
    if not (path / 'data' / 'voc_animals').is_dir():
        pytest.skip(f'no data/voc_animals in {path}: set MMDSCNET_SHARED to the folder that has it')
    return path
