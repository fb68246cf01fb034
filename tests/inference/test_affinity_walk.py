import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmdscnet.inference import AffinityWalk
from mmdscnet.pseudo_labels import CAMs, PseudoLabeler

AFFINITY_HEAD = dict(
    type='AffinityHead', in_channels=(16, 32), in_index=(2, 3), channels=(4, 8), num_classes=4
)
CAM_HEAD = dict(type='CAMHead', in_channels=32, num_classes=4)


@pytest.fixture
def build():
    def build(head):
        init_default_scope('mmseg')
        config = dict(
            type='EncoderDecoder',
            data_preprocessor=dict(
                type='SegDataPreProcessor', mean=[127.5] * 3, std=[63.75] * 3, bgr_to_rgb=True
            ),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=4,
                strides=(1, 2, 1, 1),
                dilations=(1, 1, 2, 4),
                norm_cfg=dict(type='BN'),
            ),
            decode_head=head,
            test_cfg=dict(mode='whole'),
        )
        return MODELS.build(config).eval()

    return build


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.fixture
def cams():
    maps = np.random.default_rng(1).random((2, 40, 56), dtype=np.float32)
    return CAMs(maps, np.array([1, 3], dtype=np.uint8))


def test_scores_are_those_of_the_network(build, image, cams):
    model = build(AFFINITY_HEAD)
    scores = AffinityWalk(model)(image, cams)
    meta = dict(img_shape=(40, 56), cams=cams.cams, cam_classes=cams.class_ids)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
    with torch.no_grad():
        expected = model.encode_decode(((pixels - 127.5) / 63.75)[None], [meta])[0]
    assert scores.shape == (3, 40, 56)
    np.testing.assert_allclose(scores, expected[[0, 1, 3]], atol=1e-5)
    assert not expected[2].any()


def test_labels_are_the_best_scores_of_the_walk(build, image, cams):
    walk = AffinityWalk(build(AFFINITY_HEAD))
    label_map = PseudoLabeler().label(cams, image, walk)
    ids = np.array([0, 1, 3])
    np.testing.assert_array_equal(label_map, ids[walk(image, cams).argmax(axis=0)])


def test_other_network_is_refused(build):
    with pytest.raises(ValueError, match='needs an AffinityHead, and the model has CAMHead'):
        AffinityWalk(build(CAM_HEAD))
