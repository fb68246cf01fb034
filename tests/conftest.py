"""What all tests share: one thread, one seed, no state of mmengine left over, the real data.

And for the tests of inference and exports a small folder in VOC's layout and small networks, and
for the tests of what users install a wheel and environments.
"""

import copy
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.utils import ManagerMixin
from PIL import Image

import mmdscnet  # noqa: F401  (mends the stack before any test imports mmseg)
from mmdscnet.models.segmentors import CAMTTAModel

from mmseg.registry import DATASETS, MODELS  # isort: skip

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


@pytest.fixture
def free_port() -> str:
    """A port that nothing listens on, for the processes of a launcher to meet."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


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


class Web:
    """A web server on this machine.

    Attributes:
        files: Content by path, such as ``/a.pth``.
        asked: Headers of the requests, in their order.
        faults: What is done in place of an answer, one a request: functions of the handler and
            the content.
        sends_parts: Whether it knows Range.
        version: ETag of all files.
        ended: Set when the test is over, so that no fault waits longer.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[dict[str, str]] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler, bytes], None]] = []
        self.sends_parts = True
        self.version = '"1"'
        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), self._make_handler())
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(
        self,
        handler: BaseHTTPRequestHandler,
        content: bytes,
        most: int | None = None,
        more: int = 0,
    ) -> None:
        """Send a file, or the part that is asked for: ``most`` bytes, promising ``more``."""
        part = re.match(r'bytes=(\d+)-$', handler.headers.get('Range', ''))
        same = handler.headers.get('If-Range', self.version) == self.version
        start = int(part[1]) if part and same and self.sends_parts else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            last, size = len(content) - 1, len(content)
            handler.send_header('Content-Range', f'bytes {start}-{last}/{size}')
        handler.send_header('Content-Length', str(len(content) - start + more))
        handler.send_header('ETag', self.version)
        handler.end_headers()
        handler.wfile.write(content[start:][:most])

    def _make_handler(web) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(dict(self.headers))
                content = web.files.get(self.path)
                if content is None:
                    self.send_error(404)
                elif web.faults:
                    web.faults.pop(0)(self, content)
                else:
                    web.answer(self, content)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def web(monkeypatch) -> Iterator[Web]:
    """A web server, and no patience on our side."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr('mmdscnet.download.BACKOFF', 0)
    monkeypatch.setattr('mmdscnet.download.TIMEOUT', 5)
    server = Web()
    yield server
    server.close()


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """The cache of checkpoints, which is not there yet; no zoo is set."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    monkeypatch.delenv('MMDSCNET_ZOO', raising=False)
    return tmp_path / 'torch_home' / 'hub' / 'checkpoints'


BUILT_FROM = (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'model-index.yml',
    'pyproject.toml',
    'setup.py',
)
BUILT_FOLDERS = ('configs', 'mmdscnet', 'requirements', 'tools')


@pytest.fixture(scope='session')
def copy_sources(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Copy what a wheel is built from, because building leaves folders beside it."""

    def copy_to_temporary_folder() -> Path:
        source = tmp_path_factory.mktemp('source')
        for name in BUILT_FROM:
            shutil.copy(repository / name, source)
        ignored = shutil.ignore_patterns('__pycache__')
        for name in BUILT_FOLDERS:
            shutil.copytree(repository / name, source / name, symlinks=True, ignore=ignored)
        return source

    return copy_to_temporary_folder


@pytest.fixture(scope='session')
def build_wheel() -> Callable[[Path], Path]:
    """Build the wheel of a copy of the sources."""

    def build(source: Path) -> Path:
        options = ['-qq', '--no-deps', '--no-build-isolation']
        command = [sys.executable, '-m', 'pip', 'wheel', *options, '-w', source / 'dist', source]
        subprocess.run(command, check=True)
        return next((source / 'dist').glob('*.whl'))

    return build


@pytest.fixture(scope='session')
def wheel_file(copy_sources: Callable[[], Path], build_wheel: Callable[[Path], Path]) -> Path:
    """The wheel of this clone."""
    return build_wheel(copy_sources())


class Environment(NamedTuple):
    """A virtual environment, and what processes in it find besides."""

    python: Path
    variables: dict[str, str]

    def run(self, *command: object, cwd: Path, check: bool = True, **variables: str) -> str:
        """Run a command that finds this environment first, and return what it printed."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout[-6000:]
        return done.stdout

    def install(self, *args: object) -> None:
        """Install with the pip that runs the tests."""
        pip = [sys.executable, '-m', 'pip', '--python', self.python]
        options = ['-qq', '--no-deps', '--no-build-isolation', '--ignore-installed']
        self.run(*pip, 'install', *options, *args, cwd=self.python.parent)

    def see_the_stack(self) -> None:
        """Let imports find the packages of the environment that runs the tests.

        Of a folder that a .pth file names, Python does not read the .pth files: an editable
        install of mmdscnet stays behind.
        """
        (site_packages,) = self.python.parents[1].glob('lib/python*/site-packages')
        (site_packages / 'stack.pth').write_text(sysconfig.get_path('purelib'))


@pytest.fixture(scope='session')
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Make an environment without pip and packages, which sees variables besides the usual."""

    def make(**variables: str) -> Environment:
        folder = tmp_path_factory.mktemp('environment')
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
        inherited = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        path = f'{folder}/bin{os.pathsep}{inherited["PATH"]}'
        own = {'PATH': path, 'OMP_NUM_THREADS': '1'}
        return Environment(folder / 'bin' / 'python', {**inherited, **own, **variables})

    return make


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


CLASSES = ['cat', 'dog', 'cow']
# Four sizes, and an image with no class.
IMAGES = {
    'a': ((40, 56), ['cat']),
    'b': ((40, 56), ['dog', 'cow']),
    'c': ((56, 40), ['cow']),
    'd': ((40, 56), []),
    'e': ((48, 48), ['cat', 'dog']),
    'f': ((40, 56), ['cat', 'cow']),
    'g': ((33, 47), ['dog']),
}
TEST_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
BACKBONE = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    # One batch gives the statistics.
    norm_cfg=dict(type='BN', momentum=1.0),
)
DSC_HEAD = dict(
    type='DSCHead', embed_channels=8, pgcl=dict(type='PGCLLoss'), sgcl=dict(type='SGCLLoss')
)
SEAM = dict(
    type='SEAM',
    pcm=dict(type='PixelCorrelationModule', in_channels=(16, 32), in_index=(2, 3), channels=(4, 8)),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
)
SEAM_HEAD = dict(align_corners=True, normalization='min_max')
FCN_HEAD = dict(
    type='FCNHead',
    channels=8,
    num_convs=1,
    concat_input=False,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss'),
)
# Of each network what differs from a CAMHead in an EncoderDecoder: segmentor and head.
NETWORKS = dict(
    cam=({}, {}),
    dscnet=({}, DSC_HEAD),
    seam=(SEAM, SEAM_HEAD),
    dscnet_on_seam=(SEAM, {**DSC_HEAD, **SEAM_HEAD}),
    fcn=({}, FCN_HEAD),
)


def model_config(network, **kwargs):
    segmentor, head = NETWORKS[network]
    preprocessor = dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[63.75] * 3, bgr_to_rgb=True
    )
    config = dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor,
        backbone=BACKBONE,
        decode_head={'type': 'CAMHead', 'in_channels': 32, 'num_classes': 4, **head},
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    return ConfigDict({**config, **segmentor, **kwargs})


def views_of(scales=(0.5, 1.0, 1.5), directions=('horizontal',)):
    flips = [dict(type='RandomFlip', prob=0.0)]
    flips += [dict(type='RandomFlip', prob=1.0, direction=direction) for direction in directions]
    resizes = [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in scales]
    end = [[dict(type='LoadCheckedMask')], [dict(type='PackWSSSInputs')]]
    return [
        dict(type='LoadImageFromFile'),
        dict(type='TestTimeAug', transforms=[resizes, flips, *end]),
    ]


@pytest.fixture(scope='session')
def voc_folder(make_voc_folder, tmp_path_factory):
    """Folder of seven images, for tests that change none of them."""
    return make_voc_folder(tmp_path_factory.mktemp('voc') / 'data', IMAGES, CLASSES)


@pytest.fixture
def own_voc_folder(make_voc_folder, tmp_path):
    """Folder of seven images, for tests that change them."""
    return make_voc_folder(tmp_path / 'data', IMAGES, CLASSES)


@pytest.fixture
def dataset_config(voc_folder):
    """Config of the seven images."""

    def make(folder=voc_folder, pipeline=TEST_PIPELINE, **kwargs):
        config = dict(
            type='VOCLayoutDataset',
            data_root=str(folder),
            ann_file='ImageSets/Segmentation/val.txt',
            image_labels='image_labels.json',
            metainfo=dict(classes=('background', *CLASSES)),
            test_mode=True,
            pipeline=pipeline,
        )
        return ConfigDict({**config, **kwargs})

    return make


@pytest.fixture
def build_dataset(dataset_config):
    """Build the seven images: as they are or, with ``views``, in views."""

    def build(*args, views=None, **kwargs):
        if views is not None:
            kwargs['pipeline'] = views_of(**views)
        return DATASETS.build(dataset_config(*args, **kwargs))

    return build


@pytest.fixture
def build_config():
    """Make the config of a small network."""
    return model_config


@pytest.fixture
def build_model():
    """Build a small network with random weights, in evaluation mode."""

    def build(network, **kwargs):
        model = MODELS.build(model_config(network, **kwargs))
        blocks = torch.randn(4, 3, 6, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
        model.train().extract_feat(blocks)
        model.eval()
        for parameter in model.decode_head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        if hasattr(model.decode_head, 'memory'):
            model.decode_head.memory.normal_()
            model.decode_head.memory_valid[:3] = True
        if hasattr(model.decode_head, 'classifier'):
            # Scores of either sign, so that the predicted classes differ between images.
            mean = model.extract_feat(blocks)[-1].mean(dim=(0, 2, 3))
            weight = model.decode_head.classifier.weight.data
            shares = (weight[..., 0, 0] @ mean / mean.square().sum()).detach()
            weight -= shares[:, None, None, None] * mean.detach()[:, None, None]
        return model

    return build


@pytest.fixture
def read_files():
    """Read name, content and time of all files of a folder that are shown."""

    def read(folder, pattern='*'):
        paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith('.'))
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    return read


@pytest.fixture
def random_cams():
    """Draw CAMs of an image."""

    def draw(size, num_classes, seed=0):
        rng = np.random.default_rng(seed)
        return rng.random((num_classes, *size), dtype=np.float32)

    return draw


@pytest.fixture
def cams_of_mmseg():
    """Compute CAMs and class ids of every image, by ``CAMTTAModel.test_step`` on it alone."""

    def compute(model, dataset):
        tta = CAMTTAModel(module=copy.deepcopy(model)).eval()
        result = {}
        for index in range(len(dataset)):
            with torch.inference_mode():
                (sample,) = tta.test_step(pseudo_collate([dataset[index]]))
            present = tta.module.decode_head.stack_image_labels([sample.metainfo])[0].bool()
            cams = sample.seg_logits.data[1:][present]
            result[Path(sample.img_path).stem] = cams.numpy(), 1 + present.nonzero()[:, 0].numpy()
        return result

    return compute


TINY_BASE = """
_base_ = {base!r}
data = dict(data_root={root!r}, image_size=32, splits=dict(train=8, val=4))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=data)
pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackWSSSInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=pipeline, **data),
)
val_dataloader = loader
test_dataloader = loader
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(base_channels=4),
    decode_head=dict(in_channels=16),
)
train_cfg = dict(max_epochs=1)
default_hooks = dict(image_scores=dict(metric=None))
"""


@pytest.fixture(scope='session')
def tiny_base(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a plain CAM network that trains on eight shapes in a moment."""
    folder = tmp_path_factory.mktemp('tiny')
    path = folder / 'cam.py'
    base = str(repository / 'configs' / 'cam' / 'shapes.py')
    path.write_text(TINY_BASE.format(base=base, root=str(folder / 'shapes')))
    return path
