import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


@pytest.fixture
def build_pair(build_segmentor):
    """Wrap a segmentor with any of mmseg's heads by mmseg's class and by ours."""

    def build(**head):
        decode_head = dict(type='FCNHead', in_channels=32, channels=8, num_classes=4, num_convs=1)
        segmentor = build_segmentor('m0', decode_head=dict(decode_head, **head))
        torch.nn.init.normal_(segmentor.decode_head.conv_seg.weight)
        return tuple(
            MODELS.build(dict(type=name, module=segmentor)).eval()
            for name in ('SegTTAModel', 'ProbabilityTTAModel')
        )

    return build


def make_views(logits, **metainfo):
    views = []
    for index, of_view in enumerate(logits):
        view = SegDataSample(metainfo=dict(img_path='a.jpg', view=index, **metainfo))
        view.seg_logits = PixelData(data=of_view)
        view.gt_sem_seg = PixelData(data=torch.full((1, *of_view.shape[1:]), index))
        views.append(view)
    return views


def make_data(num_views):
    """Views of two images: scaled, and flipped on every second."""
    rng = np.random.default_rng(0)
    data = dict(inputs=[], data_samples=[])
    for index in range(num_views):
        size = (32 + 16 * (index // 2), 40 + 16 * (index // 2))
        meta = dict(img_path='a.jpg', ori_shape=(45, 50), img_shape=size)
        meta |= dict(flip=bool(index % 2), flip_direction='horizontal')
        images = torch.from_numpy(rng.integers(0, 256, (2, 3, *size), dtype=np.uint8))
        data['inputs'].append(list(images))
        data['data_samples'].append([SegDataSample(metainfo=meta) for _ in images])
    return data


@pytest.mark.parametrize('num_views', [1, 5])
def test_labels_equal_those_of_mmseg(build_pair, num_views):
    theirs, ours = build_pair()
    logits = 3 * torch.randn(num_views, 4, 30, 40)
    (expected,) = theirs.merge_preds([make_views(logits)])
    (merged,) = ours.merge_preds([make_views(logits)])
    assert merged.pred_sem_seg.data.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(merged.pred_sem_seg.data, expected.pred_sem_seg.data)


@pytest.mark.parametrize('num_views', [1, 4])
def test_scaled_and_flipped_views_are_merged_as_by_mmseg(build_pair, num_views):
    theirs, ours = build_pair()
    with torch.no_grad():
        expected = theirs.test_step(make_data(num_views))
        results = ours.test_step(make_data(num_views))
    assert len(results) == len(expected) == 2
    for result, other in zip(results, expected, strict=True):
        assert result.seg_logits.data.shape == (4, 45, 50)
        assert result.pred_sem_seg.data.shape == (1, 45, 50)
        assert torch.equal(result.pred_sem_seg.data, other.pred_sem_seg.data)


def test_probabilities_are_the_mean_over_the_views(build_pair):
    _, model = build_pair()
    logits = 3 * torch.randn(5, 4, 6, 7)
    (merged,) = model.merge_preds([make_views(logits)])
    probabilities = merged.seg_logits.data
    torch.testing.assert_close(probabilities, logits.softmax(dim=1).mean(dim=0))
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(6, 7))
    assert torch.equal(merged.pred_sem_seg.data, probabilities.argmax(dim=0, keepdim=True))


def test_probabilities_of_half_precision_logits_are_in_full(build_pair):
    _, model = build_pair()
    (merged,) = model.merge_preds([make_views(torch.randn(2, 4, 3, 3).bfloat16())])
    assert merged.seg_logits.data.dtype == torch.float32
    torch.testing.assert_close(merged.seg_logits.data.sum(dim=0), torch.ones(3, 3))


def test_each_image_is_merged_by_itself(build_pair):
    _, model = build_pair()
    logits = torch.randn(2, 3, 4, 5, 5)
    together = model.merge_preds([make_views(views) for views in logits])
    for merged, views in zip(together, logits, strict=True):
        (alone,) = model.merge_preds([make_views(views)])
        assert torch.equal(merged.seg_logits.data, alone.seg_logits.data)


def test_truth_and_meta_information_are_those_of_the_first_view(build_pair):
    _, model = build_pair()
    (merged,) = model.merge_preds([make_views(torch.randn(3, 4, 2, 2), ori_shape=(2, 2))])
    assert merged.gt_sem_seg.data.unique().tolist() == [0]
    assert merged.metainfo == dict(img_path='a.jpg', view=0, ori_shape=(2, 2))


def test_single_output_channel_is_refused(build_pair):
    with pytest.raises(ValueError, match='out_channels=1 gives no probability .*out_channels=2'):
        build_pair(num_classes=2, out_channels=1, threshold=0.5)
