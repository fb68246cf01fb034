"""What all tests share: one thread, one seed, no state of mmengine left over, the real data."""

import importlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


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


@pytest.fixture(scope='session')
def make_voc_folder() -> Callable[..., Path]:
    """Write a folder in VOC's layout: images of blurred blocks with masks and labels."""

    def make(
        folder: Path, images: dict[str, tuple[tuple[int, int], list[str]]], classes: list[str]
    ) -> Path:
        from mmdscnet.datasets import voc_palette, write_image_labels
        from mmdscnet.pseudo_labels import write_palette_png

        rng = np.random.default_rng(0)
        (folder / 'JPEGImages').mkdir(parents=True)
        for image_id, ((height, width), names) in images.items():
            blocks = rng.integers(0, 256, (1 + height // 8, 1 + width // 8, 3), dtype=np.uint8)
            image = Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)
            image.save(folder / 'JPEGImages' / f'{image_id}.jpg', quality=95)
            mask = np.zeros((height, width), dtype=np.uint8)
            for place, name in enumerate(names):
                mask[height // 4 :, place * width // len(names) :] = 1 + classes.index(name)
            mask[:2] = 255
            path = folder / 'SegmentationClass' / f'{image_id}.png'
            write_palette_png(path, mask, voc_palette(1 + len(classes)))
        labels = {image_id: names for image_id, (_, names) in images.items()}
        write_image_labels(folder / 'image_labels.json', labels, classes)
        splits = folder / 'ImageSets' / 'Segmentation'
        splits.mkdir(parents=True)
        (splits / 'val.txt').write_text(''.join(f'{image_id}\n' for image_id in images))
        return folder

    return make
