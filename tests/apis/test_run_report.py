import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from PIL import Image
from torch import nn

from mmdscnet.apis import judge
from mmdscnet.apis.run_report import (
    build_judged_split,
    count_images,
    group_image,
    predict,
    require_cam_model,
    score_run,
    show_images,
)
from mmdscnet.functional.cam import normalize_cams
from mmdscnet.functional.pixel_groups import group_pixels
from mmdscnet.pseudo_labels import open_label_map

CLASSES = ('background', 'cat', 'dog')
IMAGES = {
    'a': ((32, 40), ['dog']),
    'b': ((40, 32), ['cat', 'dog']),
    'c': ((32, 40), []),
    'd': ((48, 40), ['cat']),
}
BACKBONE = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    norm_cfg=dict(type='BN'),
)
DSC_HEAD = dict(type='DSCHead', in_channels=32, num_classes=3, embed_channels=8)
SEAM = dict(
    type='SEAM',
    pcm=dict(type='PixelCorrelationModule', in_channels=(16, 32), in_index=(2, 3), channels=(4, 8)),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
)


def make_loader(root, split):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale_factor=1.5, keep_ratio=True),
        dict(type='LoadCheckedMask'),
        dict(type='PackWSSSInputs'),
    ]
    dataset = dict(
        type='VOCLayoutDataset',
        data_root=str(root),
        ann_file=f'ImageSets/Segmentation/{split}.txt',
        image_labels='image_labels.json',
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=pipeline,
    )
    sampler = dict(type='DefaultSampler', shuffle=False)
    return dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset)


@pytest.fixture
def make_config(make_voc_folder, tmp_path):
    """Config with the threshold chosen on c and d, judged on a and b."""

    def make(head=None, **model):
        root = make_voc_folder(tmp_path / 'data', IMAGES, list(CLASSES[1:]))
        for split, ids in dict(train='cd', val='ab').items():
            path = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
            path.write_text('\n'.join(ids))
        preprocessor = dict(
            type='SegDataPreProcessor', mean=[127.5] * 3, std=[63.75] * 3, bgr_to_rgb=True
        )
        network = dict(
            type='EncoderDecoder',
            data_preprocessor=preprocessor,
            backbone=BACKBONE,
            decode_head=head or dict(type='CAMHead', in_channels=32, num_classes=3),
            test_cfg=dict(mode='whole'),
        )
        return Config(
            dict(
                default_scope='mmseg',
                model=network | model,
                val_dataloader=make_loader(root, 'train'),
                test_dataloader=make_loader(root, 'val'),
                val_cfg=dict(),
                test_cfg=dict(),
                val_evaluator=dict(type='CAMIoUMetric'),
                test_evaluator=dict(type='CAMIoUMetric'),
                work_dir=str(tmp_path / 'run'),
                default_hooks=dict(logger=None),
                log_level='WARNING',
            )
        )

    return make


def build_model(cfg):
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    for name, parameter in model.decode_head.named_parameters():
        if 'classifier' in name:
            nn.init.normal_(parameter)
    return model.eval()


def judge_config(cfg, model, labels='given'):
    counted = {
        split: count_images(model, build_judged_split(cfg, split, labels), 0)
        for split in ('val', 'test')
    }
    return counted, score_run(counted['val'], counted['test'])


def show(cfg, model, scores):
    dataset = build_judged_split(cfg, 'test', 'given')
    return list(show_images(model, dataset, [0, 1], scores))


def test_scores_are_those_of_judge(make_config):
    cfg = make_config()
    model = build_model(cfg)
    _, scores = judge_config(cfg, model)
    runner = Runner.from_cfg(cfg)
    runner.model.load_state_dict(model.state_dict())
    expected = judge(runner)
    assert scores.bg_thr == expected.bg_thr
    assert scores.scores.mean_iou == pytest.approx(expected.judged, abs=0.01)
    assert scores.mean_iou.max() == pytest.approx(expected.best, abs=0.01)
    place = scores.thresholds.tolist().index(scores.bg_thr)
    assert scores.scores.mean_iou == pytest.approx(scores.mean_iou[place])
    shares = scores.scores.iou + scores.scores.false_positive + scores.scores.false_negative
    np.testing.assert_allclose(shares, 100)


@pytest.mark.parametrize('thr', [0.0, 0.3, 0.57])
def test_image_iou_is_that_of_the_shown_label(make_config, thr):
    cfg = make_config()
    model = build_model(cfg)
    counted, scores = judge_config(cfg, model)
    place = round(100 * thr)
    iou = counted['test'].image_iou(place)
    for index, item in enumerate(show(cfg, model, scores._replace(bg_thr=thr, image_iou=iou))):
        label, truth = item.row.pseudo_label, item.row.truth
        judged = truth != 255
        expected = [
            ((label == k) & (truth == k)).sum() / (((label == k) | (truth == k)) & judged).sum()
            for k in range(3)
            if (((label == k) | (truth == k)) & judged).any()
        ]
        assert item.iou == iou[index] == pytest.approx(100 * np.mean(expected))


def test_plain_head_has_neither_refined_cams_nor_groups(make_config):
    cfg = make_config()
    model = build_model(cfg)
    first, second = show(cfg, model, judge_config(cfg, model)[1])
    assert first.row.refined_cams is None
    assert first.row.groups is None
    assert (first.row.title, second.row.title) == ('a.jpg', 'b.jpg')
    assert first.row.image.shape == (32, 40, 3)
    assert second.row.cams.shape == (2, 40, 32)
    assert not first.row.cams[0].any()


def test_dual_stream_shows_both_cams_and_groups(make_config):
    cfg = make_config(DSC_HEAD)
    model = build_model(cfg)
    dataset = build_judged_split(cfg, 'test', 'given')
    row = show(cfg, model, judge_config(cfg, model)[1])[1].row
    batch = pseudo_collate([dataset[1]])
    refined = predict(model, batch).seg_logits.data[1:].numpy()
    np.testing.assert_allclose(row.refined_cams, refined)
    assert np.abs(row.cams - refined).max() > 0.01
    assert 'refine' not in model.test_cfg
    # The groups by hand, before they are resized.
    with torch.no_grad():
        inputs = model.data_preprocessor(batch)['inputs']
        feat = model.extract_feat(inputs)[-1]
        labels = torch.ones(1, 2)
        cams = normalize_cams(model.decode_head.classifier(feat), labels)
        ids = group_pixels(model.decode_head.projection(feat), cams, labels).group_ids[0]
    assert len(ids.unique()) > 1
    assert row.groups.shape == (40, 32)
    y = ((torch.arange(40) + 0.5) * ids.shape[0] / 40).long()
    x = ((torch.arange(32) + 0.5) * ids.shape[1] / 32).long()
    np.testing.assert_array_equal(row.groups, ids[y][:, x].numpy())


def test_groups_without_dual_stream_have_no_refined_cams(make_config):
    head = dict(DSC_HEAD, dual_stream=False, pgcl=dict(type='PGCLLoss'))
    cfg = make_config(head)
    model = build_model(cfg)
    row = show(cfg, model, judge_config(cfg, model)[1])[0].row
    assert row.refined_cams is None
    # Image a has dogs alone.
    assert set(np.unique(row.groups)) <= {0, 2}


@pytest.mark.parametrize('head', [None, DSC_HEAD])
def test_seam_shows_cams_before_and_after_the_pixel_correlation(make_config, head):
    cfg = make_config(head, **SEAM)
    model = build_model(cfg)
    row = show(cfg, model, judge_config(cfg, model)[1])[1].row
    assert np.abs(row.cams - row.refined_cams).max() > 0.01
    assert (row.groups is None) == (head is None)


def test_groups_of_seam_that_reads_classes_are_those_it_reads(make_config):
    head = dict(DSC_HEAD, reading='classes', group_index=(2, 3))
    cfg = make_config(head, **SEAM)
    model = build_model(cfg)
    batch = pseudo_collate([build_judged_split(cfg, 'test', 'given')[1]])
    grouped = []
    group = model.decode_head.group
    model.decode_head.group = lambda *args: grouped.append(group(*args)) or grouped[-1]
    predict(model, batch)
    size = grouped[0].group_ids.shape[1:]
    shown = group_image(model, batch, size)
    np.testing.assert_array_equal(shown, grouped[0].group_ids[0].numpy())
    # The plain CAMs seed other ones.
    del model.decode_head.group
    with torch.no_grad():
        feats = model.extract_feat(model.data_preprocessor(batch)['inputs'])
        plain = model.decode_head.classifier(feats[3])
        plain_ids = group(feats, feats[3], plain, torch.ones(1, 2)).group_ids[0]
    assert (plain_ids.numpy() != shown).any()


def test_labels_are_predicted_on_demand(make_config):
    cfg = make_config(DSC_HEAD)
    model = build_model(cfg)
    given, scores = judge_config(cfg, model)
    predicted, other_scores = judge_config(cfg, model, 'predicted')
    assert [given[split].labels for split in ('val', 'test')] == ['given'] * 2
    assert [predicted[split].labels for split in ('val', 'test')] == ['predicted'] * 2
    assert scores.scores.mean_iou != other_scores.scores.mean_iou
    dataset = build_judged_split(cfg, 'test', 'predicted')
    (item,) = show_images(model, dataset, [1], other_scores)
    assert item.row.groups is not None


def test_image_of_void_alone_is_unknown(make_config):
    cfg = make_config()
    model = build_model(cfg)
    counted, _ = judge_config(cfg, model)
    counts = [(torch.zeros(0, dtype=torch.int64),) * 2, *counted['test'].counts]
    iou = counted['test']._replace(counts=counts).image_iou(30)
    assert np.isnan(iou[0])
    assert np.isfinite(iou[1:]).all()


def test_data_without_masks_is_refused(make_config):
    cfg = make_config()
    cfg.test_dataloader.dataset.data_prefix = dict(img_path='JPEGImages')
    with pytest.raises(ValueError, match='test_dataloader come without masks'):
        build_judged_split(cfg, 'test', 'given')
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='has no val_dataloader'):
        build_judged_split(cfg, 'val', 'given')


def test_masks_of_void_alone_are_refused(make_config):
    cfg = make_config()
    dataset = build_judged_split(cfg, 'test', 'given')
    dataset.ignore_index = 0
    model = build_model(cfg)
    for index in range(2):
        path = dataset.get_data_info(index)['seg_map_path']
        Image.fromarray(np.zeros_like(open_label_map(path))).save(path)
    with pytest.raises(ValueError, match='no pixel to judge.*2 images'):
        count_images(model, dataset, 0)


def test_models_without_cams_are_refused():
    init_default_scope('mmseg')
    head = dict(type='FCNHead', in_channels=32, channels=4, num_classes=3, num_convs=1)
    model = MODELS.build(
        ConfigDict(type='EncoderDecoder', backbone=BACKBONE, decode_head=head, test_cfg={})
    )
    with pytest.raises(ValueError, match='shows CAMs, and the model has FCNHead'):
        require_cam_model(model)
    with pytest.raises(ValueError, match='the model has Linear'):
        require_cam_model(nn.Linear(1, 1))
