"""A run that takes no time: a linear model on four points, through the real tools."""

import importlib.util
import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

TOY = """
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmseg.registry import DATASETS, METRICS, MODELS


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        outputs = self.layer(inputs)
        return dict(loss=outputs.square().mean()) if mode == 'loss' else list(outputs)


@DATASETS.register_module()
class ToyDataset(torch.utils.data.Dataset):
    metainfo = dict(classes=('background', 'toy'))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.full((2,), float(index)))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += [sample.item() for sample in data_samples]

    def compute_metrics(self, results):
        return dict(count=float(len(results)))
"""

CONFIG = """
custom_imports = dict(imports=['mmdscnet', 'toy'])
default_scope = 'mmseg'
model = dict(type='ToyModel')
loader = dict(
    dataset=dict(type='ToyDataset'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    batch_size=1,
    num_workers=0,
)
train_dataloader = test_dataloader = loader
train_cfg = dict(by_epoch=False, max_iters=2)
test_cfg = dict()
test_evaluator = dict(type='ToyMetric')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False))
randomness = dict(seed=0)
log_level = 'WARNING'
"""

# A small network and data set for the exports.
EXPORT_CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[63.75] * 3, bgr_to_rgb=True
    ),
    backbone=dict(
        type='ResNet', depth=18, base_channels=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        norm_cfg=dict(type='BN'),
    ),
    decode_head=dict(type='CAMHead', in_channels=32, num_classes={num_classes}),
    test_cfg=dict(mode='whole'),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in (0.5, 1.0)],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadCheckedMask')],
            [dict(type='PackWSSSInputs')],
        ],
    ),
]
tta_model = dict(type='CAMTTAModel')
test_dataloader = dict(
    dataset=dict(
        type='VOCLayoutDataset',
        data_root={data_root!r},
        ann_file='ImageSets/Segmentation/val.txt',
        image_labels='image_labels.json',
        metainfo=dict(classes={classes!r}),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
"""


@pytest.fixture(scope='session')
def toy_dir(tmp_path_factory):
    """Folder with ``toy.py``, which registers the classes once a process, and ``config.py``."""
    path = tmp_path_factory.mktemp('toy')
    (path / 'toy.py').write_text(TOY)
    (path / 'config.py').write_text(CONFIG)
    return path


@pytest.fixture
def run_tool(repository, toy_dir, monkeypatch, forget_instances):
    """Run ``tools/<name>`` with a command line, as if in a process of its own."""

    def run(name, *args):
        tool = repository / 'tools' / name
        monkeypatch.syspath_prepend(toy_dir)
        monkeypatch.setattr(sys, 'path', list(sys.path))
        monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, args)])
        monkeypatch.setenv('LOCAL_RANK', '0')
        forget_instances()
        runpy.run_path(str(tool), run_name='__main__')

    return run


@pytest.fixture
def load_tool(repository, monkeypatch):
    """Import ``tools/<name>`` as a module, without running it."""

    def load(name):
        monkeypatch.setattr(sys, 'path', list(sys.path))
        path = repository / 'tools' / name
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def export_project(make_voc_folder, tmp_path):
    """Folder with data of VOC's classes, or of some of them, ``config.py`` and ``weights.pth``."""

    def make(classes=('cat', 'dog'), name='project'):
        images = {'a': ((32, 40), ['dog']), 'b': ((40, 32), ['cat', 'dog']), 'c': ((32, 40), [])}
        folder = tmp_path / name
        root = make_voc_folder(folder / 'data', images, list(classes))
        text = EXPORT_CONFIG.format(
            num_classes=1 + len(classes), data_root=str(root), classes=('background', *classes)
        )
        (folder / 'config.py').write_text(text)
        init_default_scope('mmseg')
        model = MODELS.build(Config.fromfile(folder / 'config.py').model)
        torch.nn.init.normal_(model.decode_head.classifier.weight)
        torch.save(model.state_dict(), folder / 'weights.pth')
        return folder

    return make
