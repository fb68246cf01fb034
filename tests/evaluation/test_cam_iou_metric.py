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
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

import mmdscnet
from mmdscnet.evaluation.cam_iou_metric import CAMIoUMetric

CLASSES = ('background', 'cat', 'dog')

DISTRIBUTED = """
import json, os, sys
import mmdscnet
import torch
import torch.distributed as dist
from mmdscnet.evaluation import CAMIoUMetric

rank = int(sys.argv[1])
dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)
metric = CAMIoUMetric(bg_thr=0.3)
metric.dataset_meta = dict(classes=('background', 'cat', 'dog'))
generator = torch.Generator().manual_seed(0)
samples = [
    dict(
        img_path=f'{i}.jpg',
        seg_logits=dict(data=torch.rand((3, 9, 8), generator=generator)),
        gt_sem_seg=dict(data=torch.randint(0, 3, (1, 9, 8), generator=generator)),
    )
    for i in range(3)
]
# Three images on two ranks: the second rank sees image 0 again, as a padding sampler does.
metric.process(None, [samples[i] for i in ([0, 2], [1, 0])[rank]])
print(json.dumps(metric.evaluate(size=3)))
"""


def make_sample(cams, truth, name='a', labels=False):
    """Make a sample as EncoderDecoder leaves it: background score in channel 0."""
    cams = torch.as_tensor(cams, dtype=torch.float32)
    metainfo = {'img_path': f'{name}.jpg', 'seg_map_path': f'{name}.png'}
    if labels:
        metainfo['gt_image_label'] = np.ones(len(cams), np.float32)
    sample = SegDataSample(metainfo=metainfo)
    logits = torch.cat([torch.full((1, *cams.shape[1:]), 0.4), cams])
    sample.seg_logits = PixelData(data=logits)
    if truth is not None:
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    return sample


def evaluate(samples, **kwargs):
    evaluator = Evaluator([CAMIoUMetric(**kwargs)])
    evaluator.dataset_meta = {'classes': CLASSES}
    for sample in samples:
        evaluator.process([sample])
    return evaluator.evaluate(len(samples))


def random_samples(number=3, labels=False):
    generator = torch.Generator().manual_seed(0)
    return [
        make_sample(
            torch.rand((2, 9, 8), generator=generator),
            torch.randint(0, 3, (9, 8), generator=generator),
            str(i),
            labels,
        )
        for i in range(number)
    ]


def test_values_by_hand():
    # Up to 0.29 the second pixel (background in truth) is cat; from 0.80 on the third is lost.
    cams = [[[0.9, 0.295, 0.8, 0.1]], [[0.0, 0.0, 0.0, 0.0]]]
    truth = [[1, 0, 1, 255]]
    metrics = evaluate([make_sample(cams, truth)], bg_thr=0.2)
    assert metrics == {
        # At 0.30: all three right; dog occurs nowhere and is not in the mean.
        'labels_predicted/best_mIoU': 100.0,
        'labels_predicted/best_mPrecision': 100.0,
        'labels_predicted/best_mRecall': 100.0,
        'labels_predicted/best_bg_thr': 0.3,
        # At 0.20: cat 2 of 3, background 0 of 1, never predicted.
        'labels_predicted/mIoU': 33.33,
        'labels_predicted/mPrecision': 66.67,
        'labels_predicted/mRecall': 50.0,
        'labels_predicted/bg_thr': 0.2,
    }


@pytest.mark.parametrize('bg_thr', [0.0, 0.37, 0.505, 0.99])
def test_miou_at_given_threshold_equals_mmseg_on_the_pseudo_labels(bg_thr):
    samples = random_samples()
    reference = IoUMetric(iou_metrics=['mIoU', 'mFscore'], prefix='ref')
    reference.dataset_meta = {'classes': CLASSES}
    for sample in samples:
        logits = sample.seg_logits.data.clone()
        logits[0] = bg_thr
        prediction = {'pred_sem_seg': {'data': logits.argmax(0, keepdim=True)}}
        reference.process({}, [prediction | {'gt_sem_seg': {'data': sample.gt_sem_seg.data}}])
    expected = reference.evaluate(len(samples))
    metrics = evaluate(samples, bg_thr=bg_thr)
    for name in ('mIoU', 'mPrecision', 'mRecall'):
        assert metrics[f'labels_predicted/{name}'] == pytest.approx(
            float(expected[f'ref/{name}']), abs=0.011
        )


def test_threshold_between_the_swept_ones_is_never_the_best():
    # Only a threshold in (0.295, 0.297) is perfect.
    metrics = evaluate(
        [make_sample([[[0.295, 0.297]], [[0.0, 0.0]]], [[0, 1]])],
        bg_thr=0.296,
    )
    assert metrics['labels_predicted/mIoU'] == 100
    assert metrics['labels_predicted/best_mIoU'] < 100


def test_lowest_of_equally_good_thresholds_is_the_best():
    metrics = evaluate([make_sample([[[0.9]], [[0.0]]], [[1]])])
    assert metrics['labels_predicted/best_bg_thr'] == 0
    assert metrics['labels_predicted/best_mIoU'] == 100


def test_without_threshold_only_the_sweep_is_reported():
    names = {name.partition('/')[2] for name in evaluate(random_samples())}
    assert names == {'best_mIoU', 'best_mPrecision', 'best_mRecall', 'best_bg_thr'}


def test_mode_is_named_by_the_samples():
    given, predicted = evaluate(random_samples(labels=True)), evaluate(random_samples())
    assert {name.partition('/')[0] for name in given} == {'labels_given'}
    assert {name.partition('/')[0] for name in predicted} == {'labels_predicted'}
    assert list(given.values()) == list(predicted.values())


def test_prefix_comes_before_the_mode():
    assert all(
        name.startswith('train/labels_') for name in evaluate(random_samples(), prefix='train')
    )


def test_no_warning_of_a_missing_prefix(caplog):
    with caplog.at_level(logging.WARNING, logger='mmengine'):
        CAMIoUMetric()
    assert 'prefix' not in caplog.text


def test_second_evaluation_starts_anew():
    metric = METRICS.build({'type': 'CAMIoUMetric'})
    metric.dataset_meta = {'classes': CLASSES}
    results = []
    for _ in range(2):
        metric.process(None, [sample.to_dict() for sample in random_samples()])
        results.append(metric.evaluate(3))
    assert results[0] == results[1]


def test_stored_results_are_small():
    metric = CAMIoUMetric()
    metric.dataset_meta = {'classes': CLASSES}
    cams = torch.rand((2, 300, 400))
    metric.process(None, [make_sample(cams, torch.zeros((300, 400))).to_dict()])
    (result,) = metric.results
    assert len(result['cells']) <= 101 * 2
    assert int(result['numbers'].sum()) == 300 * 400


@pytest.mark.slow
def test_padding_samples_of_two_ranks_count_once(tmp_path):
    root = Path(mmdscnet.__file__).parents[1]
    environment = os.environ | {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', DISTRIBUTED, str(rank), str(tmp_path / 'rendezvous')],
            stdout=subprocess.PIPE,
            env=environment,
            cwd=tmp_path,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(3):
        logits = torch.rand((3, 9, 8), generator=generator)
        truth = torch.randint(0, 3, (1, 9, 8), generator=generator)
        samples.append(make_sample(logits[1:], truth[0], str(i)))
    expected = evaluate(samples, bg_thr=0.3)
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == expected


def test_curve_file_holds_the_whole_curve(tmp_path):
    path = tmp_path / 'run' / 'curve.json'
    metrics = evaluate(random_samples(), curve_path=str(path), bg_thr=0.305)
    content = json.loads(path.read_text())
    assert content['labels'] == 'predicted'
    assert content['num_images'] == 3
    assert content['thresholds'] == [i / 100 for i in range(100)]
    assert len(content['mIoU']) == 100
    best = max(range(100), key=lambda i: content['mIoU'][i])
    assert best / 100 == content['best_bg_thr'] == metrics['labels_predicted/best_bg_thr']
    assert round(content['mIoU'][best], 2) == content['best_mIoU']
    assert content['best_mIoU'] == metrics['labels_predicted/best_mIoU']


def test_log_shows_curve_table_and_where_the_threshold_belongs(monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmdscnet.evaluation.cam_iou_metric.print_log', lambda text, *_: lines.append(text)
    )
    evaluate([make_sample([[[0.9, 0.295]], [[0.0, 0.0]]], [[1, 0]])])
    curve, best, table = lines
    assert '0.25: 25.00  0.30: 100.00' in curve
    assert 'chosen on this very split: use it with bg_thr=0.3 on another split' in best
    assert 'at bg_thr=0.3' in table
    assert all(name in table for name in (*CLASSES, 'IoU', 'Precision', 'Recall'))


@pytest.mark.parametrize('bg_thr', [-0.01, 1, 1.5, float('nan')])
def test_bg_thr_outside_its_range_is_named(bg_thr):
    with pytest.raises(ValueError, match=rf'bg_thr={bg_thr}.*\[0, 1\).*best_bg_thr'):
        CAMIoUMetric(bg_thr=bg_thr)


def test_mixed_modes_name_two_images():
    samples = [*random_samples(2), make_sample(torch.rand(2, 3, 3), torch.ones(3, 3), 'odd', True)]
    with pytest.raises(
        ValueError, match=r'odd\.jpg has image-level labels.*0\.jpg has none.*twice'
    ):
        evaluate(samples)


def test_empty_evaluation_names_the_mend():
    with pytest.raises(ValueError, match=r'no image was evaluated.*ann_file'):
        evaluate([])


def test_split_of_ignored_pixels_names_the_mend():
    sample = make_sample(torch.rand(2, 3, 3), torch.full((3, 3), 255))
    with pytest.raises(ValueError, match=r'no pixel to judge.*1 images.*ignore_index=255'):
        evaluate([sample])


def test_truth_id_outside_the_classes_names_the_mask():
    truth = torch.zeros(3, 3, dtype=torch.uint8)
    truth[0, 0], truth[1, 1], truth[2, 2] = 3, 20, 255
    with pytest.raises(ValueError, match=r'cow\.png: truth ids \[3, 20\].*3 classes.*map the ids'):
        evaluate([make_sample(torch.rand(2, 3, 3), truth, 'cow')])


def test_other_ignore_index_does_not_count():
    cams, truth = [[[0.9, 0.9]], [[0.0, 0.0]]], [[1, 7]]
    assert evaluate([make_sample(cams, truth)], ignore_index=7)['labels_predicted/best_mIoU'] == 100


def test_missing_truth_names_the_image():
    with pytest.raises(ValueError, match=r'cow\.jpg: no truth.*LoadAnnotations'):
        evaluate([make_sample(torch.rand(2, 3, 3), None, 'cow')])


def test_missing_cams_name_the_image():
    sample = make_sample(torch.rand(2, 3, 3), torch.zeros(3, 3), 'cow')
    del sample.seg_logits
    with pytest.raises(ValueError, match=r'cow\.jpg: the output has no seg_logits.*CAM head'):
        evaluate([sample])


def test_truth_of_another_size_names_mask_and_image():
    sample = make_sample(torch.rand(2, 3, 3), torch.zeros(3, 3), 'cow').to_dict()
    sample['gt_sem_seg']['data'] = torch.zeros(1, 4, 5)
    metric = CAMIoUMetric()
    metric.dataset_meta = {'classes': CLASSES}
    with pytest.raises(ValueError, match=r'cow\.png: truth is 4x5.*cow\.jpg are 3x3'):
        metric.process(None, [sample])


def test_wrong_number_of_cams_is_named():
    with pytest.raises(ValueError, match=r'20 cam channels.*3 classes.*num_classes=3'):
        evaluate([make_sample(torch.rand(20, 3, 3), torch.zeros(3, 3))])


@pytest.mark.parametrize('value', [float('nan'), 1.1, -3.0])
def test_values_that_are_no_cams_are_named(value):
    cams = torch.zeros(2, 3, 3)
    cams[1, 2, 2] = value
    with pytest.raises(ValueError, match=r'cow\.jpg: cams run from .* not within \[0, 1\]'):
        evaluate([make_sample(cams, torch.zeros(3, 3), 'cow')])


def test_missing_classes_are_named():
    metric = CAMIoUMetric()
    with pytest.raises(ValueError, match=r'dataset_meta has no classes.*background first'):
        metric.process(None, [make_sample(torch.rand(2, 3, 3), torch.zeros(3, 3)).to_dict()])
