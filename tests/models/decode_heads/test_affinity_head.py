import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.registry import MODELS

from mmdscnet.functional.pixel_affinity import pair_affinities, pair_offsets
from mmdscnet.functional.random_walk import random_walk

# K = 3 foreground classes, E = 9 channels of the embeddings; the first tap has the largest grid.
HEAD = dict(
    type='AffinityHead', num_classes=4, in_channels=(4, 6), in_index=(0, 1), channels=(3, 6)
)
# The same on three outputs of the ResNet of conftest.py.
RESNET_HEAD = dict(HEAD, in_channels=(4, 8, 32), in_index=(0, 1, 3), channels=(3, 4, 5))


@pytest.fixture
def build_affinity_head():
    """Build and initialise the head, with other arguments where given."""

    def build(**kwargs):
        head = MODELS.build(dict(HEAD, **kwargs))
        head.init_weights()
        return head.eval()

    return build


@pytest.fixture
def head(build_affinity_head):
    return build_affinity_head()


@pytest.fixture
def feats():
    return (torch.randn(2, 4, 6, 8), torch.randn(2, 6, 3, 4))


@pytest.fixture
def labelled(make_samples):
    """Two samples with classes and ignored pixels on a grid of (6, 8)."""
    samples = make_samples(2, size=(6, 8))
    for sample in samples:
        labels = torch.tensor([0, 1, 2, 255])[torch.randint(4, (1, 6, 8))]
        sample.gt_sem_seg = PixelData(data=labels)
    return samples


def make_metas(classes, size=(6, 8), cam_size=(6, 8)):
    """Meta information with random CAMs of the given classes, one list an image."""
    return [
        dict(
            img_path=f'{index}.jpg',
            img_shape=size,
            ori_shape=size,
            cams=np.random.rand(len(ids), *cam_size).astype(np.float32),
            cam_classes=np.array(ids, dtype=np.int64),
        )
        for index, ids in enumerate(classes)
    ]


def dense_scores(meta, num_classes=4, bg_alpha=6.0):
    """Scores of all classes at the size of the CAMs, by definition."""
    scores = torch.zeros(num_classes, *meta['cams'].shape[1:])
    for class_id, cam in zip(meta['cam_classes'], meta['cams'], strict=True):
        scores[class_id] = torch.from_numpy(cam)
    scores[0] = (1 - scores[1:].amax(dim=0)) ** bg_alpha
    return scores


def test_embeddings_are_on_the_largest_grid(head, feats):
    first, second = (
        F.elu(F.conv2d(feat, conv.weight))
        for feat, conv in zip(feats, head.reductions, strict=True)
    )
    taps = torch.cat([first, F.interpolate(second, (6, 8), mode='bilinear')], dim=1)
    expected = F.elu(F.conv2d(taps, head.embedding.weight))
    torch.testing.assert_close(head.forward(feats), expected)


def test_weights_start_as_in_the_released_implementation(build_affinity_head):
    head = build_affinity_head(in_channels=(400, 600), channels=(100, 200))
    for conv in head.reductions:
        assert conv.weight.std().item() == pytest.approx((2 / conv.in_channels) ** 0.5, rel=0.05)
    bound = 4 * (6 / 600) ** 0.5
    assert head.embedding.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


# Training


def test_loss_equals_naive_double_loop(head, feats, labelled):
    losses = head.loss(feats, labelled, train_cfg=None)
    embeddings = head.forward(feats).detach()
    terms = dict(background=[], foreground=[], different=[])
    for image, sample in zip(embeddings, labelled, strict=True):
        labels = sample.gt_sem_seg.data[0].tolist()
        for y in range(6):
            for x in range(8):
                for dy, dx in pair_offsets(5):
                    if y + dy >= 6 or not 0 <= x + dx < 8:
                        continue
                    own, other = labels[y][x], labels[y + dy][x + dx]
                    if 255 in (own, other):
                        continue
                    distance = (image[:, y, x] - image[:, y + dy, x + dx]).abs().mean()
                    affinity = math.exp(-distance.item())
                    if own != other:
                        terms['different'].append(-math.log(1 - affinity + 1e-5))
                    else:
                        kind = 'foreground' if own else 'background'
                        terms[kind].append(-math.log(affinity + 1e-5))
    mean = {kind: sum(values) / len(values) for kind, values in terms.items()}
    expected = mean['background'] / 4 + mean['foreground'] / 4 + mean['different'] / 2
    assert set(losses) == {'loss_affinity'}
    assert losses['loss_affinity'].item() == pytest.approx(expected, rel=1e-4)


def test_labels_are_read_at_the_centres_of_the_grid(head, feats, labelled):
    expected = head.loss(feats, labelled, None)['loss_affinity']
    for sample in labelled:
        # Three pixels a cell, of which only the middle one is the label.
        fine = torch.full((1, 18, 24), 3)
        fine[:, 1::3, 1::3] = sample.gt_sem_seg.data
        sample.gt_sem_seg = PixelData(data=fine)
    torch.testing.assert_close(head.loss(feats, labelled, None)['loss_affinity'], expected)


def test_ignored_pixels_do_not_train(head, feats, labelled):
    for sample in labelled:
        sample.gt_sem_seg.data.fill_(255)
    loss = head.loss(feats, labelled, None)['loss_affinity']
    loss.backward()
    assert loss == 0
    assert head.embedding.weight.grad.count_nonzero() == 0


def test_bfloat16_loss_is_close(head, feats, labelled):
    full = head.loss(feats, labelled, None)['loss_affinity']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = head.loss(feats, labelled, None)['loss_affinity']
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(full.item(), rel=2e-2)


def test_segmentor_trains_every_parameter(build_segmentor, make_samples):
    segmentor = build_segmentor('m0', decode_head=RESNET_HEAD).train()
    samples = make_samples(2)
    for sample in samples:
        sample.gt_sem_seg.data[:, :, 24:] = 2
    losses = segmentor.loss(torch.randn(2, 3, 48, 48), samples)
    assert set(losses) == {'decode.loss_affinity'}
    losses['decode.loss_affinity'].backward()
    for name, parameter in segmentor.named_parameters():
        assert parameter.grad.isfinite().all(), name
    # Not all of the backbone: the residual branches of mmseg's ResNet start at 0.
    for name, parameter in segmentor.decode_head.named_parameters():
        assert parameter.grad.abs().min() > 0, name
    assert segmentor.backbone.conv1.weight.grad.abs().min() > 0


def test_sample_without_label_map_is_named(head, feats, labelled):
    del labelled[1].gt_sem_seg
    with pytest.raises(ValueError, match=r'1\.jpg has no gt_sem_seg: .*pseudo_label_folder'):
        head.loss(feats, labelled, train_cfg=None)


# Inference


def test_without_a_step_the_scores_are_those_of_the_cams(build_affinity_head, feats):
    head = build_affinity_head(num_steps=0)
    metas = make_metas([[2], [3, 1]])
    scores = head.predict(feats, metas, test_cfg=None)
    expected = torch.stack([dense_scores(meta) for meta in metas])
    torch.testing.assert_close(scores, expected)
    assert torch.equal(scores.argmax(dim=1), expected.argmax(dim=1))


def test_background_is_scored_at_the_size_of_the_cams(build_affinity_head, feats):
    head = build_affinity_head(num_steps=0, bg_alpha=2.0)
    metas = make_metas([[2], [1, 3]], cam_size=(12, 16))
    scores = head.predict(feats, metas, test_cfg=None)
    fine = torch.stack([dense_scores(meta, bg_alpha=2.0) for meta in metas])
    torch.testing.assert_close(scores, F.avg_pool2d(fine, 2))


def test_scores_are_those_of_a_walk_over_all_classes(head, feats):
    metas = make_metas([[2], [3, 1]], size=(24, 32))
    scores = head.predict(feats, metas, test_cfg=None)
    dense = torch.stack([dense_scores(meta) for meta in metas])
    walked = random_walk(dense, pair_affinities(head.forward(feats), 5), 5)
    expected = F.interpolate(walked, (24, 32), mode='bilinear')
    torch.testing.assert_close(scores, expected)
    assert scores[0, [1, 3]].count_nonzero() == 0
    assert scores[1, 2].count_nonzero() == 0


def test_class_fills_the_region_that_its_cam_only_touches(build_affinity_head):
    head = build_affinity_head(in_channels=(1,), in_index=(0,), channels=(1,), num_classes=3)
    for conv in (head.reductions[0], head.embedding):
        conv.weight.data.fill_(1)
    regions = torch.zeros(1, 1, 6, 8)
    regions[..., 4:] = 200.0
    # At 0.2 the class is below its background of (1 - 0.2) ** 6 = 0.26.
    cams = np.zeros((1, 6, 8), dtype=np.float32)
    cams[0, :, 4:] = 0.2
    cams[0, 2:5, 5:7] = 1
    meta = dict(img_shape=(6, 8), cams=cams, cam_classes=[2])
    labels = head.predict([regions], [meta], test_cfg=None).argmax(dim=1)[0]
    before = dense_scores(dict(cams=cams, cam_classes=[2]), 3).argmax(dim=0)
    assert before.eq(2).sum() == 6
    assert labels[:, :4].eq(0).all()
    assert labels[:, 4:].eq(2).all()


def test_image_without_class_is_background(head, feats):
    scores = head.predict(feats, make_metas([[], [1]]), test_cfg=None)
    torch.testing.assert_close(scores[0, 0], torch.ones(6, 8), rtol=0, atol=1e-4)
    assert scores[0, 1:].count_nonzero() == 0


def test_an_image_scores_alone_as_in_a_batch(head, feats):
    metas = make_metas([[1, 2, 3], [2]])
    together = head.predict(feats, metas, test_cfg=None)
    for index in range(2):
        own = [feat[index : index + 1] for feat in feats]
        alone = head.predict(own, metas[index : index + 1], test_cfg=None)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)


def test_cams_of_the_images_may_differ_in_size(head, feats):
    metas = [*make_metas([[1, 2]], cam_size=(11, 13)), *make_metas([[3]], cam_size=(30, 7))]
    scores = head.predict(feats, metas, test_cfg=None)
    assert scores.shape == (2, 4, 6, 8)
    assert scores.isfinite().all()


def test_stored_half_precision_and_read_only_cams_will_do(head, feats):
    metas = make_metas([[1, 2], [3]])
    for meta in metas:
        meta['cams'] = meta['cams'].astype(np.float16)
        meta['cams'].flags.writeable = False
    assert head.predict(feats, metas, test_cfg=None).dtype == torch.float32


def test_segmentor_writes_pseudo_labels(build_segmentor, make_samples):
    segmentor = build_segmentor('m0', decode_head=RESNET_HEAD).eval()
    samples = make_samples(2, size=(32, 40))
    metas = make_metas([[2], [1, 3]], cam_size=(50, 60))
    for sample, meta in zip(samples, metas, strict=True):
        cams = dict(cams=meta['cams'], cam_classes=meta['cam_classes'])
        sample.set_metainfo(dict(cams, ori_shape=(50, 60)))
    with torch.no_grad():
        results = segmentor.predict(torch.randn(2, 3, 32, 40), samples)
    presence = [[True, False, True, False], [True, True, False, True]]
    for result, present in zip(results, presence, strict=True):
        scores = result.seg_logits.data
        assert scores.shape == (4, 50, 60)
        assert (scores.amax(dim=(1, 2)) > 0).tolist() == present
        assert torch.equal(result.pred_sem_seg.data, scores.argmax(dim=0, keepdim=True))


def test_checkpoint_round_trip(build_affinity_head, head, feats):
    other = build_affinity_head()
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other.forward(feats), head.forward(feats))


# Mistakes


@pytest.mark.parametrize('key', ['cams', 'cam_classes'])
def test_image_without_cams_is_named(head, feats, key):
    metas = make_metas([[1], [2]])
    del metas[1][key]
    with pytest.raises(ValueError, match=r'1\.jpg has no cams .*: put LoadCAMs into the test'):
        head.predict(feats, metas, test_cfg=None)


@pytest.mark.parametrize('ids', [[1, 4], [0, 2], [-1, 1], [2, 2]])
def test_classes_that_the_head_does_not_have_are_refused(head, feats, ids):
    message = r'1\.jpg has cam_classes=.* different ids in 1\.\.3: set model\.decode_head\.num_cl'
    with pytest.raises(ValueError, match=message):
        head.predict(feats, make_metas([[1], ids]), test_cfg=None)


@pytest.mark.parametrize('shape', [(2, 6, 8), (6, 8)])
def test_cams_that_do_not_match_their_classes_are_refused(head, feats, shape):
    metas = make_metas([[1], [3]])
    metas[1]['cams'] = np.zeros(shape, dtype=np.float32)
    with pytest.raises(ValueError, match=r'1\.jpg has cams of the shape .* one map \(H, W\) a'):
        head.predict(feats, metas, test_cfg=None)


@pytest.mark.parametrize(
    ('meta', 'test_cfg', 'message'),
    [
        ({}, dict(mode='slide'), r"test_cfg\.mode='slide' .*use mode='whole'"),
        (dict(img_padding_size=[0, 3, 0, 0]), {}, r'padding of the image: test with batch_size=1'),
        (dict(flip=True), {}, r'take the flip out of the test pipeline'),
    ],
)
def test_other_view_than_that_of_the_cams_is_refused(head, feats, meta, test_cfg, message):
    metas = make_metas([[1], [2]])
    metas[0].update(meta)
    with pytest.raises(ValueError, match=message):
        head.predict(feats, metas, test_cfg)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(num_classes=1), r'num_classes=1 must count the background'),
        (dict(channels=(3, 6, 9)), r'channels=\(3, 6, 9\) must have one entry a tap'),
        (dict(bg_alpha=0), r'bg_alpha=0 must be positive'),
        (dict(loss_name='affinity'), r"loss_name='affinity' must begin with"),
    ],
)
def test_setting_outside_its_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(HEAD, **setting))
