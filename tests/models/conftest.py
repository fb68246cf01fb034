"""What the tests of heads and segmentors share: the ablations of Table IV, in small."""

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

# D = 6 channels, K = 3 foreground classes, E = 8 channels of the embeddings.
CAM_HEAD = dict(type='CAMHead', in_channels=6, num_classes=4)
DSC_HEAD = dict(CAM_HEAD, type='DSCHead', embed_channels=8)
PGCL, SGCL = dict(type='PGCLLoss'), dict(type='SGCLLoss')
ABLATIONS = dict(
    m0=CAM_HEAD,
    m1=dict(DSC_HEAD, pgcl=PGCL, dual_stream=False),
    m2=dict(DSC_HEAD, sgcl=SGCL, dual_stream=False),
    m3=dict(DSC_HEAD, pgcl=PGCL, sgcl=SGCL, dual_stream=False),
    m4=dict(DSC_HEAD, pgcl=PGCL, sgcl=SGCL, dual_stream=True),
)
# Four outputs of 4, 8, 16 and 32 channels, the first at stride 4 and the others at 8.
BACKBONE = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    norm_cfg=dict(type='BN'),
)
# The last of the four outputs of the backbone is the head's, the two in between are the taps.
SEAM_PARTS = dict(
    pcm=dict(type='PixelCorrelationModule', in_channels=(8, 16), in_index=(1, 2), channels=(5, 7)),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
)
SEAM_HEAD = dict(in_channels=32, align_corners=True, normalization='min_max')


@pytest.fixture(autouse=True)
def mmseg_scope():
    """Let mmseg find its own classes, as ``default_scope`` of a config does."""
    init_default_scope('mmseg')


@pytest.fixture
def build_head():
    """Build and initialise the head of an ablation, with other arguments where given."""

    def build(ablation, **kwargs):
        head = MODELS.build(dict(ABLATIONS[ablation], **kwargs))
        head.init_weights()
        return head

    return build


@pytest.fixture
def build_segmentor():
    """Build and initialise mmseg's EncoderDecoder with the head of an ablation."""

    def build(ablation, **kwargs):
        config = dict(
            type='EncoderDecoder',
            data_preprocessor=dict(
                type='SegDataPreProcessor', mean=[127.5] * 3, std=[63.75] * 3, size=(48, 48)
            ),
            backbone=BACKBONE,
            decode_head=dict(ABLATIONS[ablation], in_channels=32),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
        segmentor = MODELS.build(ConfigDict(config, **kwargs))
        segmentor.init_weights()
        return segmentor

    return build


@pytest.fixture
def build_seam(build_segmentor):
    """Build and initialise SEAM with the head of an ablation, with other arguments for the head."""

    def build(ablation, test_cfg=None, view_scale=0.3, auxiliary_head=None, **head):
        return build_segmentor(
            ablation,
            type='SEAM',
            # Otherwise no gradient reaches most of the backbone in the first step.
            backbone=dict(BACKBONE, zero_init_residual=False),
            decode_head=dict(ABLATIONS[ablation], **SEAM_HEAD | head),
            test_cfg=dict(mode='whole', **(test_cfg or {})),
            view_scale=view_scale,
            auxiliary_head=auxiliary_head,
            **SEAM_PARTS,
        )

    return build


@pytest.fixture
def make_samples():
    """Pack image-level labels, (N, K) or a count of images without any, as mmseg hands them."""

    def make(image_labels, size=(48, 48)):
        samples = []
        rows = [None] * image_labels if isinstance(image_labels, int) else image_labels
        for index, row in enumerate(rows):
            sample = SegDataSample(metainfo=dict(img_path=f'{index}.jpg'))
            sample.set_metainfo(dict(img_shape=size, ori_shape=size))
            if row is not None:
                sample.set_metainfo(dict(gt_image_label=np.asarray(row, dtype=np.float32)))
            sample.gt_sem_seg = PixelData(data=np.zeros((1, *size), dtype=np.uint8)).to_tensor()
            samples.append(sample)
        return samples

    return make
