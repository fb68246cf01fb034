"""What the tests of exports share: a small folder in VOC's layout, and small networks."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

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


@pytest.fixture(autouse=True)
def mmseg_scope():
    """Let mmseg find its own classes, as ``default_scope`` of a config does."""
    init_default_scope('mmseg')


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
