import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmpretrain.evaluation import AveragePrecision
from mmseg.structures import SegDataSample

import mmdscnet
from mmdscnet.evaluation.multi_label_map_metric import (
    MultiLabelMAPMetric,
    average_precision,
    rank_images,
)

CLASSES = ('background', 'cat', 'dog', 'cow')

DISTRIBUTED = """
import json, os, sys
import mmdscnet
import numpy as np
import torch.distributed as dist
from mmdscnet.evaluation import MultiLabelMAPMetric

rank, indices = int(sys.argv[1]), ([0, 2, 4], [1, 3, 0])
dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)
metric = MultiLabelMAPMetric()
metric.dataset_meta = dict(classes=('background', 'cat', 'dog', 'cow'))
rng = np.random.default_rng(0)
samples = [dict(pred_image_scores=rng.normal(size=3)) for _ in range(5)]
for index, sample in enumerate(samples):
    # The fourth has no truth, and must not move the others.
    if index != 3:
        sample['gt_image_label'] = rng.integers(0, 2, 3)
# Five images on two ranks: the second sees image 0 again, as a padding sampler does.
metric.process(None, [samples[index] for index in indices[rank]])
metrics = metric.evaluate(size=5)
metric.process(None, samples)
print(json.dumps([metrics, metric.compute_metrics(metric.results)['mAP']]))
"""


def make_sample(scores, label=None, mask=None, name='a'):
    metainfo = dict(img_path=f'{name}.jpg')
    if scores is not None:
        metainfo['pred_image_scores'] = np.asarray(scores, dtype=np.float32)
    if label is not None:
        metainfo['gt_image_label'] = np.asarray(label, dtype=np.float32)
    sample = SegDataSample(metainfo=metainfo)
    if mask is not None:
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(mask, dtype=torch.uint8)[None])
    return sample


def evaluate(samples, **kwargs):
    evaluator = Evaluator([MultiLabelMAPMetric(**kwargs)])
    evaluator.dataset_meta = dict(classes=CLASSES)
    for sample in samples:
        evaluator.process([sample])
    return evaluator.evaluate(len(samples))


@pytest.fixture
def log(monkeypatch):
    """What the metric logs, as arguments of print_log."""
    calls = []
    monkeypatch.setattr(
        'mmdscnet.evaluation.multi_label_map_metric.print_log', lambda *args: calls.append(args)
    )
    return calls


def naive_average_precision(scores, truth):
    """Walk down the images from the highest score; a positive waits for all of its score."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], truth[index]))
    found, precisions = 0, []
    for place, index in enumerate(order, start=1):
        if truth[index]:
            found += 1
            precisions.append(found / place)
    return 100 * sum(precisions) / len(precisions) if precisions else float('nan')


def random_pairs(levels=None, images=40):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(images, 3))
    if levels is not None:
        scores = rng.integers(0, levels, (images, 3)).astype(float)
    return scores, rng.random((images, 3)) < 0.3


def test_value_by_hand():
    samples = [
        make_sample([3, 0, 0], [1, 0, 0]),
        make_sample([2, 1, 0], [0, 1, 0]),
        make_sample([1, 2, 0], [1, 0, 0]),
    ]
    # Cats at places 1 and 3: (1/1 + 2/3) / 2; the dog at 2: 1/2; no cow.
    assert evaluate(samples) == {'classifier/mAP': round(100 * (5 / 6 + 1 / 2) / 2, 2)}


@pytest.mark.parametrize('levels', [None, 4, 1])
def test_equals_a_walk_down_the_images(levels):
    scores, truth = random_pairs(levels)
    truth[:, 2] = False
    expected = [naive_average_precision(scores[:, k], truth[:, k]) for k in range(3)]
    np.testing.assert_allclose(average_precision(scores, truth), expected, rtol=1e-5)


def test_equals_mmpretrain_where_scores_differ_and_classes_occur():
    scores, truth = random_pairs()
    expected = AveragePrecision.calculate(torch.tensor(scores), torch.tensor(truth).long())
    samples = [make_sample(*pair) for pair in zip(scores, truth, strict=True)]
    assert evaluate(samples)['classifier/mAP'] == pytest.approx(float(expected), abs=0.006)


def test_order_of_images_with_equal_scores_does_not_matter():
    scores, truth = random_pairs(levels=3)
    order = np.random.default_rng(1).permutation(len(scores))
    np.testing.assert_array_equal(
        average_precision(scores, truth), average_precision(scores[order], truth[order])
    )


def test_equal_scores_earn_less_than_any_order_of_them():
    """Mmpretrain's value depends on how the images happen to be sorted."""
    _, truth = random_pairs()
    scores = np.random.default_rng(1).normal(size=truth.shape)
    assert (
        average_precision(np.zeros_like(scores), truth) < average_precision(scores, truth)
    ).all()


def test_ranks_follow_the_scores():
    scores = np.array([[0.5], [-1.0], [0.5], [2.0]])
    truth = np.array([[False], [True], [True], [False]])
    assert rank_images(scores, truth)[:, 0].tolist() == [2, 0, 1, 3]


def test_absent_class_is_not_in_the_mean():
    scores, truth = random_pairs()
    truth[:, 1] = False
    samples = [make_sample(*pair) for pair in zip(scores, truth, strict=True)]
    present = average_precision(scores, truth)[[0, 2]]
    assert evaluate(samples)['classifier/mAP'] == round(present.mean(), 2)


def test_mask_tells_the_classes_where_no_label_is_given():
    scores, _ = random_pairs(images=3)
    masks = [[[0, 1, 255]], [[3, 3, 7]], [[0, 0, 2]]]
    labels = [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    by_mask = [make_sample(s, mask=mask) for s, mask in zip(scores, masks, strict=True)]
    by_label = [make_sample(s, label) for s, label in zip(scores, labels, strict=True)]
    assert evaluate(by_mask, ignore_index=7) == evaluate(by_label)


def test_label_goes_before_the_mask():
    samples = [make_sample([1, 0, 0], [1, 0, 0], [[2]]), make_sample([0, 1, 0], [0, 0, 0], [[1]])]
    assert evaluate(samples) == {'classifier/mAP': 100.0}


def test_image_without_truth_is_left_out():
    scores, truth = random_pairs(images=9)
    samples = [make_sample(*pair) for pair in zip(scores, truth, strict=True)]
    assert evaluate([*samples, make_sample([9, 9, 9])]) == evaluate(samples)


@pytest.mark.parametrize('label', [None, [0, 0, 0]])
def test_without_any_class_there_is_a_warning_and_no_number(label, log):
    assert evaluate([make_sample([1, 2, 3], label)] * 2) == {}
    ((text, _, level),) = log
    assert 'of 2 images none is known to have a class' in text
    assert level == logging.WARNING


def test_log_has_a_row_a_class(log):
    samples = [make_sample([1, 0, 0], [1, 0, 0]), make_sample([0, 1, 0], [0, 1, 1])]
    evaluate([*samples, make_sample([5, 5, 5])])
    ((text, _),) = log
    assert 'mAP 83.33 over 3 classes and 2 images (1 without truth left out)' in text
    rows = [line.split('|')[1:-1] for line in text.splitlines() if '|' in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ['Class', 'Images', 'AP'],
        ['cat', '1', '100.0'],
        ['dog', '1', '100.0'],
        ['cow', '1', '50.0'],
    ]


def test_two_uneven_ranks_give_the_numbers_of_one(tmp_path):
    path = os.pathsep.join([str(Path(mmdscnet.__file__).parents[1]), *sys.path])
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', DISTRIBUTED, str(rank), str(tmp_path / 'rendezvous')],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {'PYTHONPATH': path},
        )
        for rank in range(2)
    ]
    outputs = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    for metrics, alone in outputs:
        assert metrics == {'classifier/mAP': alone}


@pytest.mark.parametrize('missing', ['mmpretrain', 'torchvision'])
def test_missing_package_error_says_what_to_install(missing, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None if name == missing else name)
    with pytest.raises(ImportError, match=rf'needs {missing}: install .*requirements/lite\.txt'):
        MultiLabelMAPMetric()


def test_missing_scores_name_image_and_hook():
    with pytest.raises(ValueError, match=r"cow\.jpg: .*no pred_image_scores.*'ImageScoresHook'"):
        evaluate([make_sample(None, [1, 0, 0], name='cow')])


def test_wrong_number_of_scores_is_named():
    with pytest.raises(ValueError, match=r'scores of 2 classes, .* has 3 .*num_classes=4'):
        evaluate([make_sample([1, 2], [1, 0])])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_scores_that_are_not_finite_are_named(value):
    with pytest.raises(ValueError, match=r'a\.jpg: image scores are .* not finite'):
        evaluate([make_sample([0, value, 0], [1, 0, 0])])


def test_missing_classes_are_named():
    with pytest.raises(ValueError, match=r'dataset_meta has no classes.*background first'):
        MultiLabelMAPMetric().process(None, [make_sample([1, 2, 3]).to_dict()])
