import numpy as np
import pytest
import torch
from mmseg.registry import METRICS

from mmdscnet.evaluation.label_folder import count_labels, score_labels
from mmdscnet.functional.pseudo_label import make_pseudo_labels


def build(**kwargs):
    metric = METRICS.build(dict(type='PseudoLabelMetric', **kwargs))
    metric.dataset_meta = dict(classes=('background', 'cat', 'dog'))
    return metric


def sample_of(cams, truth, **extra):
    scores = torch.cat([torch.zeros_like(cams[:1]), cams])
    return dict(seg_logits=dict(data=scores), gt_sem_seg=dict(data=truth[None]), **extra)


@pytest.fixture
def images():
    truths = torch.randint(0, 3, (3, 6, 7))
    truths[:, 0] = 255
    return list(zip(torch.rand(3, 2, 6, 7), truths, strict=True))


@pytest.mark.parametrize('rule', [dict(bg_thr=0.6), dict(bg_thr=0.4, fg_thr=0.7)])
def test_labels_are_judged_as_the_functions_make_them(images, rule):
    metric = build(labeler=rule)
    metric.process(None, [sample_of(*image) for image in images])
    labels = [make_pseudo_labels(cams[None], **rule)[0].numpy() for cams, _ in images]
    confusion = sum(
        count_labels(label.astype(np.uint8), truth.numpy().astype(np.uint8), 3)
        for label, (_, truth) in zip(labels, images, strict=True)
    )
    scores = score_labels(confusion, 3)
    results = metric.evaluate(3)
    assert results['pseudo_labels/mIoU'] == pytest.approx(scores.mean_iou)
    assert results['pseudo_labels/coverage'] == pytest.approx(100 * scores.coverage)
    assert (results['pseudo_labels/coverage'] < 100) == ('fg_thr' in rule)


def test_classes_that_the_image_does_not_have_take_no_part(images):
    cams, _ = images[0]
    truth = torch.ones(6, 7, dtype=torch.int64)
    metric = build(labeler=dict(bg_thr=0.0))
    metric.process(None, [sample_of(cams, truth, gt_image_label=np.array([1.0, 0.0]))])
    assert metric.evaluate(1)['pseudo_labels/mIoU'] == pytest.approx(100)


def test_missing_truth_is_named(images):
    sample = sample_of(*images[0], img_path='a.jpg')
    del sample['gt_sem_seg']
    with pytest.raises(ValueError, match=r'a\.jpg: no CAMs .* no truth'):
        build().process(None, [sample])
