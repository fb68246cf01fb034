"""Tests through mmengine's Runner, on the seven small images and networks of conftest.py."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import METRICS, MODELS

NETWORKS = ['cam', 'dscnet', 'seam', 'dscnet_on_seam']
HOOK = dict(type='ImageScoresHook', metric=dict(type='MultiLabelMAPMetric'))
KEEP = dict(type='KeepScoresMetric')
VIEWS = dict(scales=(0.5, 1.0))


@METRICS.register_module()
class KeepScoresMetric(BaseMetric):
    """Keep what reaches a metric."""

    default_prefix = 'kept'

    def __init__(self):
        super().__init__()
        self.kept = {}

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            self.kept[sample['img_path']] = sample['pred_image_scores']
            self.results.append(None)

    def compute_metrics(self, results):
        return {}


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture
def build_runner(build_dataset, tmp_path, forget_instances):
    """Make a Runner that validates and tests a model, with the hook."""

    def build(model, hook=HOOK, evaluator=None, **dataset):
        forget_instances()
        init_default_scope('mmseg')
        loader = dict(
            dataset=build_dataset(**dataset),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            num_workers=0,
        )
        evaluator = evaluator or dict(type='CAMIoUMetric', bg_thr=0.3)
        return Runner(
            model=model,
            work_dir=str(tmp_path / 'run'),
            val_dataloader=loader,
            val_cfg=dict(type='ValLoop'),
            val_evaluator=evaluator,
            test_dataloader=loader,
            test_cfg=dict(type='TestLoop'),
            test_evaluator=evaluator,
            custom_hooks=[hook] if hook else [],
            default_scope='mmseg',
            log_level='ERROR',
        )

    return build


def scores_of(runner):
    """Test with a metric that keeps the scores of each image."""
    runner.test()
    (kept,) = (m for m in runner.test_evaluator.metrics if isinstance(m, KeepScoresMetric))
    return kept.kept


@torch.no_grad()
def naive_scores(model, inputs):
    """Classify an image by its average-pooled features."""
    inputs = model.data_preprocessor(dict(inputs=[inputs]), training=False)['inputs']
    feat = model.extract_feat(inputs)[-1].mean(dim=(2, 3))
    return (feat @ model.decode_head.classifier.weight[..., 0, 0].T)[0].numpy()


def naive_scores_of(model, dataset):
    """Average over the views of each image, where it has any."""
    scores = {}
    for index in range(len(dataset)):
        item = dataset[index]
        views, sample = item['inputs'], item['data_samples']
        if torch.is_tensor(views):
            views, sample = [views], [sample]
        scores[sample[0].img_path] = np.mean([naive_scores(model, view) for view in views], axis=0)
    return scores


def assert_equal_scores(scores, expected):
    assert scores.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_allclose(scores[path], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('labels', [dict(), dict(image_labels=None)], ids=['given', 'predicted'])
@pytest.mark.parametrize('network', NETWORKS)
def test_scores_are_those_of_the_plain_classifier(
    network, labels, build_runner, build_model, build_dataset
):
    model = build_model(network)
    runner = build_runner(model, evaluator=KEEP, **labels)
    assert_equal_scores(scores_of(runner), naive_scores_of(model, build_dataset()))


@pytest.mark.parametrize('labels', [dict(), dict(image_labels=None)], ids=['given', 'predicted'])
@pytest.mark.parametrize('network', ['cam', 'dscnet_on_seam'])
def test_scores_are_averaged_over_the_views(
    network, labels, build_runner, build_model, build_dataset
):
    model = build_model(network)
    tta = MODELS.build(dict(type='CAMTTAModel', module=model))
    runner = build_runner(tta, evaluator=KEEP, views=VIEWS, **labels)
    assert_equal_scores(scores_of(runner), naive_scores_of(model, build_dataset(views=VIEWS)))


@pytest.mark.parametrize('network', NETWORKS)
def test_given_labels_do_not_move_the_map(network, build_runner, build_model):
    model = build_model(network)
    given = build_runner(model).test()
    # Now the masks, which show the same classes, are the truth.
    predicted = build_runner(model, image_labels=None).test()
    assert 'labels_given/mIoU' in given
    assert 'labels_predicted/mIoU' in predicted
    assert given['classifier/mAP'] == predicted['classifier/mAP'] < 100


def test_single_evaluator_gets_the_map_beside_its_own_results(build_runner, build_model):
    model = build_model('dscnet')
    without = build_runner(model, hook=None).test()
    runner = build_runner(model)
    tested, validated = runner.test(), runner.val()
    assert tested == validated
    # What reads the results finds those of the config's metric first.
    assert list(tested) == [*without, 'classifier/mAP']
    assert {name: tested[name] for name in without} == without


def test_model_and_evaluator_are_left_as_they_were(build_runner, build_model):
    model = build_model('cam')
    runner = build_runner(model)
    first = runner.test()
    assert not model._forward_hooks
    assert [type(metric).__name__ for metric in runner.test_evaluator.metrics] == ['CAMIoUMetric']
    assert runner.test() == first


def test_interrupted_evaluation_leaves_nothing_behind(build_runner, build_model, monkeypatch):
    model = build_model('cam')
    runner = build_runner(model)
    expected = runner.test()
    predict, images = model.predict, []

    def fail_at_the_third(inputs, data_samples):
        images.append(data_samples)
        if len(images) == 3:
            raise KeyboardInterrupt
        return predict(inputs, data_samples)

    monkeypatch.setattr(model, 'predict', fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        runner.val()
    assert runner.val()['classifier/mAP'] == expected['classifier/mAP']
    assert not model._forward_hooks


def test_metric_may_stand_in_the_evaluator_instead(build_runner, build_model):
    model = build_model('cam')
    expected = build_runner(model).test()
    metrics = [dict(type='CAMIoUMetric', bg_thr=0.3), dict(type='MultiLabelMAPMetric')]
    runner = build_runner(model, hook=dict(type='ImageScoresHook'), evaluator=metrics)
    assert runner.test() == expected


@pytest.mark.slow
def test_compiled_model_has_scores_too(build_runner, build_model):
    """As with ``compile`` in a config, which replaces the function ``forward``."""
    model = build_model('dscnet')
    expected = build_runner(model).test()
    model.forward = torch.compile(model.forward, backend='eager')
    assert build_runner(model).test()['classifier/mAP'] == expected['classifier/mAP']


def test_model_without_a_cam_head_is_refused(build_runner, build_model):
    runner = build_runner(build_model('fcn'))
    with pytest.raises(ValueError, match='finds no CAMHead in the model: take the hook out'):
        runner.test()
