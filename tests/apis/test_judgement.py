"""A classifier of one image through mmengine's Runner, with cams whose best threshold is known."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from mmdscnet.apis import Judgement, judge, train_and_judge
from mmdscnet.apis import judgement as module
from mmdscnet.apis.judgement import build_training, choose_threshold, judge_at

TRUTH = [0, 0, 1, 1]
# Perfect from 0.21 on, and from 0.41 on.
CAMS = dict(val=[0.0, 0.205, 0.5, 1.0], test=[0.0, 0.405, 0.5, 1.0])
# At 0.21 one pixel of the background in test is foreground.
MIOU_OF_TEST = pytest.approx(100 * (1 / 2 + 2 / 3) / 2, abs=0.01)


@DATASETS.register_module()
class JudgementToyDataset(torch.utils.data.Dataset):
    metainfo = dict(classes=('background', 'thing'))

    def __init__(self, split, labelled=True, image_labels=None):
        self.split = split
        self.labelled = labelled or image_labels is not None

    def __len__(self):
        return 3 if self.split == 'train' else 1

    def __getitem__(self, index):
        sample = SegDataSample(metainfo=dict(img_path=f'{self.split}.jpg'))
        if self.labelled:
            sample.set_metainfo(dict(gt_image_label=torch.ones(1).numpy()))
        sample.gt_sem_seg = PixelData(data=torch.tensor([[TRUTH]], dtype=torch.uint8))
        return dict(inputs=torch.tensor(CAMS.get(self.split, [0.0])), data_samples=sample)


@MODELS.register_module()
class JudgementToyModel(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.modes = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.modes.append(mode)
        if mode == 'loss':
            return dict(loss=self.weight.square().sum())
        for cams, sample in zip(inputs, data_samples, strict=True):
            scores = torch.stack([torch.full_like(cams, 0.25), cams])[:, None]
            sample.seg_logits = PixelData(data=scores)
        return data_samples


def make_loader(split, labelled=True):
    return dict(
        dataset=dict(type='JudgementToyDataset', split=split, labelled=labelled),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=1,
        num_workers=0,
    )


@pytest.fixture
def cfg(tmp_path):
    init_default_scope('mmseg')
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(type='JudgementToyModel'),
            train_dataloader=make_loader('train'),
            val_dataloader=make_loader('val'),
            test_dataloader=make_loader('test'),
            train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            val_evaluator=dict(type='CAMIoUMetric', curve_path=str(tmp_path / 'val.json')),
            test_evaluator=dict(type='CAMIoUMetric', curve_path=str(tmp_path / 'test.json')),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            work_dir=str(tmp_path / 'run'),
            log_level='ERROR',
        )
    )


def test_threshold_is_chosen_on_val_and_judged_on_test(cfg):
    _, judgement = train_and_judge(cfg)
    assert judgement == Judgement(
        bg_thr=0.21, chosen_on=100.0, judged=MIOU_OF_TEST, best=100.0, labels='labels_given'
    )


def test_nothing_is_evaluated_during_the_training(cfg):
    runner, _ = train_and_judge(cfg)
    assert runner.model.modes == ['loss'] * 3 + ['predict'] * 2


def test_nothing_is_evaluated_during_a_training_by_steps(cfg):
    cfg.train_cfg = dict(by_epoch=False, max_iters=3, val_interval=1)
    runner, _ = train_and_judge(cfg)
    assert runner.model.modes == ['loss'] * 3 + ['predict'] * 2


def test_trained_model_is_the_one_that_is_judged(cfg):
    runner, _ = train_and_judge(cfg)
    # Three steps by the gradient of a square, 0.8 each.
    torch.testing.assert_close(runner.model.weight.data, torch.tensor([0.8**3]))


def test_mode_of_the_labels_is_that_of_test(cfg):
    cfg.test_dataloader = make_loader('test', labelled=False)
    _, judgement = train_and_judge(cfg)
    assert judgement.labels == 'labels_predicted'
    assert judgement.judged == MIOU_OF_TEST


def test_both_curves_are_written(cfg, tmp_path):
    train_and_judge(cfg)
    assert (tmp_path / 'val.json').is_file()
    assert (tmp_path / 'test.json').is_file()


def test_threshold_of_the_config_does_not_decide(cfg):
    cfg.test_evaluator.bg_thr = 0.9
    cfg.val_evaluator.bg_thr = 0.9
    _, judgement = train_and_judge(cfg)
    assert (judgement.bg_thr, judgement.judged) == (0.21, MIOU_OF_TEST)


def test_judging_leaves_the_evaluators_of_the_config_alone(cfg):
    runner, _ = train_and_judge(cfg)
    assert 'bg_thr' not in runner.cfg.test_evaluator
    assert 'bg_thr' not in runner.cfg.val_evaluator


def test_loops_get_the_data_of_their_split(monkeypatch):
    calls = []

    class FakeLoop:
        def __init__(self, runner, dataloader, evaluator):
            calls.append((dataloader, evaluator))

        def run(self):
            names = dict(best_bg_thr=0.3, best_mIoU=50.0, mIoU=40.0)
            return {f'labels_given/{name}': value for name, value in names.items()}

    monkeypatch.setattr(module, 'TestLoop', FakeLoop)
    evaluators = dict(val_evaluator=dict(type='A'), test_evaluator=dict(type='B'))
    runner = SimpleNamespace(
        cfg=Config(evaluators),
        _test_loop='loop of test',
        val_dataloader='images of val',
        test_dataloader='images of test',
    )
    assert judge(runner) == Judgement(0.3, 50.0, 40.0, 50.0, 'labels_given')
    assert calls == [
        ('images of val', dict(type='A', bg_thr=None)),
        ('images of test', dict(type='B', bg_thr=0.3)),
    ]
    assert runner._test_loop == 'loop of test'


def train(cfg):
    runner = build_training(cfg)
    runner.train()
    return runner


def test_threshold_is_chosen_without_the_images_of_test(cfg):
    cfg.test_dataloader.dataset.split = None
    assert choose_threshold(train(cfg)) == (0.21, 100.0)


def test_labels_can_be_withheld_from_the_judged_images_alone(cfg):
    cfg.test_dataloader.dataset.update(labelled=False, image_labels='labels.json')
    runner = train(cfg)
    threshold = choose_threshold(runner)
    judgements = [judge_at(runner, threshold, predict) for predict in (False, True, False)]
    labels = [judgement.labels for judgement in judgements]
    assert labels == ['labels_given', 'labels_predicted', 'labels_given']
    assert runner.cfg.test_dataloader.dataset.image_labels == 'labels.json'
    assert {judgement.bg_thr for judgement in judgements} == {0.21}
    assert judgements[1].judged == MIOU_OF_TEST


def test_labels_that_cannot_be_withheld_are_an_error(cfg):
    runner = train(cfg)
    with pytest.raises(ValueError, match=r'image_labels \(type JudgementToyDataset\): use a data'):
        judge_at(runner, choose_threshold(runner), predict_labels=True)


def test_unfit_test_data_is_found_before_the_training(cfg, monkeypatch):
    cfg.test_dataloader.dataset.unknown = 1
    monkeypatch.setattr(Runner, 'train', lambda runner: pytest.fail('trained'))
    with pytest.raises(TypeError, match='unknown'):
        train_and_judge(cfg)
