import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from mmdscnet.apis.diagnosis import (
    HISTOGRAM_EDGES,
    build_masked_images,
    cut_batches,
    diagnose,
    draw_images,
    judge_cams,
    mean_known,
    ratio,
    require_dsc_model,
    see_batch,
    show_changes,
    summarize_values,
)
from mmdscnet.apis.run_report import count_images, group_image, predict, read_cams
from mmdscnet.evaluation.threshold_sweep import per_class_scores
from mmdscnet.functional.cam import image_scores

CLASSES = ('background', 'cat', 'dog')
IMAGES = {
    'a': ((32, 40), ['dog']),
    'b': ((40, 32), ['cat', 'dog']),
    'c': ((32, 40), ['cat']),
    'd': ((48, 40), ['cat']),
    'e': ((48, 40), []),
}
HEAD = dict(
    type='DSCHead',
    in_channels=32,
    num_classes=3,
    embed_channels=8,
    pgcl=dict(type='PGCLLoss'),
    sgcl=dict(type='SGCLLoss'),
)
SEAM = dict(
    type='SEAM',
    pcm=dict(type='PixelCorrelationModule', in_channels=(16, 32), in_index=(2, 3), channels=(4, 8)),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
)
SIZE = 32


@pytest.fixture
def cfg(make_voc_folder, tmp_path):
    root = make_voc_folder(tmp_path / 'data', IMAGES, list(CLASSES[1:]))
    dataset = dict(
        type='VOCLayoutDataset',
        data_root=str(root),
        ann_file='not/there.txt',
        image_labels='image_labels.json',
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=[],
    )
    return Config(dict(default_scope='mmseg', test_dataloader=dict(dataset=dataset)))


@pytest.fixture
def dataset(cfg):
    return build_masked_images(cfg, 'ImageSets/Segmentation/val.txt', SIZE)


def build_model(head=None, **model):
    init_default_scope('mmseg')
    network = dict(
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
        decode_head=HEAD | (head or {}),
        test_cfg=dict(mode='whole'),
    )
    built = MODELS.build(ConfigDict(network | model))
    for parameter in built.decode_head.parameters():
        nn.init.normal_(parameter)
    built.decode_head.memory.normal_()
    built.decode_head.memory_valid.fill_(True)
    return built.eval()


def test_images_have_one_size_and_masks(dataset):
    assert [item['inputs'].shape for item in dataset] == [(3, SIZE, SIZE)] * 5
    masks = [item['data_samples'].gt_sem_seg.data for item in dataset]
    assert all(mask.shape == (1, SIZE, SIZE) for mask in masks)
    # Nothing is interpolated between two classes.
    assert set(np.unique(torch.stack(masks))) == {0, 1, 2, 255}
    assert torch.equal(dataset[1]['inputs'], dataset[1]['inputs'])


@pytest.mark.parametrize('key', ['image_labels', 'data_prefix'])
def test_images_without_masks_or_labels_are_refused(key, cfg):
    lacking = dict(image_labels=None, data_prefix=dict(img_path='JPEGImages'))
    cfg.test_dataloader.dataset[key] = lacking[key]
    name = dict(image_labels='image-level labels', data_prefix='masks')[key]
    with pytest.raises(ValueError, match=f'come without {name}'):
        build_masked_images(cfg, 'ImageSets/Segmentation/val.txt', SIZE)


def test_images_are_drawn_in_whole_batches_and_always_the_same():
    drawn = draw_images(23, None, 4)
    assert len(drawn) == len(set(drawn)) == 20
    assert drawn == draw_images(23, 99, 4)
    assert draw_images(23, 9, 4) == drawn[:8]
    assert drawn != sorted(drawn)


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match='3 images fill no batch of batch_size=4'):
        draw_images(10, 3, 4)
    with pytest.raises(ValueError, match='batch_size=1 leaves nothing to compare'):
        draw_images(10, None, 1)


def test_models_without_groups_are_refused():
    with pytest.raises(ValueError, match='pixel groups, and the model has Linear'):
        require_dsc_model(nn.Linear(1, 1))
    model = build_model()
    model.decode_head = MODELS.build(dict(type='CAMHead', in_channels=32, num_classes=3))
    with pytest.raises(ValueError, match='the model has CAMHead'):
        require_dsc_model(model)


@pytest.mark.parametrize('scope', ['image', 'batch'])
def test_training_numbers_are_those_of_the_training_step(dataset, scope):
    model = build_model(dict(stream_scope=scope))
    numbers, _ = diagnose(model, dataset, [0, 1, 2, 3], 4)
    (batch,) = cut_batches(dataset, [0, 1, 2, 3], 4)
    seen = see_batch(model, batch)
    before = model.decode_head.memory.clone()
    losses = model.decode_head.loss_by_image_labels(seen.feats, seen.image_labels)
    leakage = numbers['leakage']
    assert leakage['loss_cls'] == pytest.approx(losses['loss_cls'].item())
    assert leakage['loss_refined_given'] == pytest.approx(losses['loss_cls_refined'].item())
    assert 0 <= numbers['attention']['entropy'] <= 1
    # The step moves the memory, the diagnosis does not.
    assert not torch.equal(before, model.decode_head.memory)
    model.decode_head.memory.copy_(before)
    diagnose(model, dataset, [0, 1, 2, 3], 4)
    assert torch.equal(before, model.decode_head.memory)


def test_scores_are_told_apart_by_label(dataset):
    model = build_model()
    leakage = diagnose(model, dataset, [0, 1, 2, 3], 4)[0]['leakage']
    (batch,) = cut_batches(dataset, [0, 1, 2, 3], 4)
    with torch.no_grad():
        seen = see_batch(model, batch)
        refined = model.decode_head.describe_batch(seen.feats, seen.image_labels).refined_logits
    present = seen.image_labels > 0
    for name, evidence in (('plain', seen.cam_logits), ('given', refined)):
        scores = image_scores(evidence)
        found = leakage[f'scores_{name}']
        assert found['present_told'] == pytest.approx(float(scores[present].mean()), rel=1e-4)
        assert found['absent_untold'] == pytest.approx(float(scores[~present].mean()), rel=1e-4)
        assert found['present_untold'] is None
    assert leakage['scores_permuted']['absent_told'] is not None


def test_place_is_measured_over_all_batches(dataset):
    model = build_model()
    place = diagnose(model, dataset, [0, 1, 2, 3], 2)[0]['place']
    (batch,) = cut_batches(dataset, [0, 1, 2, 3], 4)
    with torch.no_grad():
        maps = see_batch(model, batch).embeddings
    by_place = maps.mean(dim=0).flatten(1).var(dim=1, correction=0).sum()
    total = maps.transpose(0, 1).flatten(1).var(dim=1, correction=0).sum()
    assert place['share'] == pytest.approx(float(by_place / total), rel=1e-4)
    whole = diagnose(model, dataset, [0, 1, 2, 3], 4)[0]['place']
    assert len(place['mask_by_row']) == len(place['groups_by_column']) == maps.shape[2]
    # The masks begin a quarter below the top.
    assert whole['mask_by_row'][0] == 0 < whole['mask_by_row'][-1]
    assert whole['groups_by_row'] != whole['groups_by_column']


def test_head_that_ignores_the_nodes_leaks_nothing(dataset):
    model = build_model()
    head = model.decode_head
    head.refined_classifier.weight.data.copy_(head.classifier.weight.data)
    head.enriched_classifier.weight.data.zero_()
    numbers, images = diagnose(model, dataset, [0, 1, 2, 3], 4)
    leakage, areas = numbers['leakage'], numbers['areas']
    for told in ('given', 'predicted', 'permuted'):
        assert leakage[f'loss_refined_{told}'] == pytest.approx(leakage['loss_cls'])
    assert numbers['enriched']['std_ratio'] == pytest.approx(0, abs=1e-5)
    assert numbers['enriched']['location']['feature'] == numbers['enriched']['location']['plain']
    assert areas['plain'] == areas['refined'] == areas['feature_part']
    assert areas['mended'] == areas['spoiled'] == 0
    rows = show_changes(head, dataset, [0, 1, 2, 3], images, 1)
    assert len(rows) == 2
    assert not any(row.changes.any() for row in rows)


def test_groups_are_those_of_the_report(dataset):
    model = build_model()
    numbers, images = diagnose(model, dataset, [2, 1], 2)
    for place, index in enumerate([2, 1]):
        (batch,) = cut_batches(dataset, [index], 1)
        expected = group_image(model, batch, images.group_ids.shape[1:])
        np.testing.assert_array_equal(images.group_ids[place], expected)
    truth = F.interpolate(images.truth[:, None].float(), images.group_ids.shape[1:], mode='nearest')
    hits = (images.group_ids == truth[:, 0]) & (images.group_ids == 1)
    sizes = (images.group_ids == 1) & (truth[:, 0] != 255)
    share = (hits.sum(dim=(1, 2)) / sizes.sum(dim=(1, 2))).mean()
    assert numbers['groups']['by_class']['cat']['agreement'] == pytest.approx(float(share))
    assert numbers['groups']['by_class']['cat']['slots'] == 2


@pytest.mark.parametrize('refine', [False, True])
def test_areas_are_those_of_the_labels_that_are_exported(refine, cfg, dataset):
    model = build_model()
    numbers, images = diagnose(model, dataset, [0, 1, 2, 3], 2)
    areas = numbers['areas']['refined' if refine else 'plain']
    for place in range(4):
        (batch,) = cut_batches(dataset, [place], 1)
        # What the model exports, before it is resized to the size of the file.
        meta = batch['data_samples'][0].metainfo
        batch['data_samples'][0].set_metainfo(dict(meta, ori_shape=(SIZE, SIZE)))
        cams = read_cams(predict(model, batch, refine))
        expected = np.where(cams.max(axis=0) > areas['bg_thr'], 1 + cams.argmax(axis=0), 0)
        evidence = images.refined if refine else images.plain
        judged = judge_cams(model.decode_head, evidence, images, 255)
        agree = judged.labels[place].numpy() == expected
        assert agree.mean() > 0.999
    known = images.truth != 255
    cells = 3 * images.truth[known].long() + judged.labels[known].long()
    confusion = cells.bincount(minlength=9).view(3, 3)
    mean_iou = 100 * float(per_class_scores(confusion)['IoU'].nanmean())
    assert areas['miou'] == judged.mean_iou == pytest.approx(mean_iou)


def test_miou_is_that_of_the_report_at_the_size_of_the_files(make_voc_folder, cfg, tmp_path):
    images = {name: ((SIZE, SIZE), labels) for name, (_, labels) in IMAGES.items()}
    root = make_voc_folder(tmp_path / 'square', images, list(CLASSES[1:]))
    cfg.test_dataloader.dataset.data_root = str(root)
    dataset = build_masked_images(cfg, 'ImageSets/Segmentation/val.txt', SIZE)
    model = build_model()
    areas = diagnose(model, dataset, list(range(5)), 5)[0]['areas']
    counted = count_images(model, dataset, 0)
    best = 100 * per_class_scores(counted.confusions())['IoU'].nanmean(dim=1).max()
    assert areas['refined']['miou'] == pytest.approx(float(best), abs=0.05)


def test_numbers_are_json_and_shares_add_up(dataset):
    numbers, _ = diagnose(build_model(), dataset, [4, 3, 2, 1], 2)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    areas = numbers['areas']
    mended = sum(changes['gained_right'] for changes in areas['by_class'].values())
    spoiled = sum(changes['lost_wrong'] for changes in areas['by_class'].values())
    assert (areas['mended'], areas['spoiled']) == (pytest.approx(mended), pytest.approx(spoiled))
    moved = [
        sum(
            changes[f'{what}_right'] + changes[f'{what}_wrong']
            for changes in areas['by_class'].values()
        )
        for what in ('gained', 'lost')
    ]
    assert moved[0] == pytest.approx(moved[1])
    for pairs in numbers['similarity'].values():
        for found in pairs.values():
            assert sum(found['histogram']) == found['pairs']


@pytest.mark.parametrize(
    ('head', 'contrasts'),
    [
        (dict(sgcl=None, dual_stream=False), ['groups']),
        (dict(pgcl=None, dual_stream=False), ['groups', 'nodes']),
    ],
)
def test_head_without_dual_stream_is_diagnosed_in_part(head, contrasts, dataset):
    model = build_model(head)
    numbers, images = diagnose(model, dataset, [0, 1], 2)
    assert list(numbers['similarity']) == contrasts
    assert numbers['enriched'] is numbers['attention'] is numbers['leakage'] is None
    assert list(numbers['areas']) == ['plain']
    assert images.refined is images.feature_part is None
    rows = show_changes(model.decode_head, dataset, [0, 1], images, 3)
    assert [row.refined for row in rows] == [row.changes for row in rows] == [None, None]


def test_seam_is_diagnosed_before_the_pixel_correlation(dataset):
    head = dict(align_corners=True, normalization='min_max')
    model = build_model(head, **SEAM)
    _, images = diagnose(require_dsc_model(model), dataset, [0, 1], 2)
    (batch,) = cut_batches(dataset, [0, 1], 2)
    with torch.no_grad():
        seen = see_batch(model, batch)
        expected = model.decode_head(seen.feats, seen.image_labels)
    torch.testing.assert_close(images.refined, expected)


def test_changes_go_from_the_most_harmed_to_the_most_helped(dataset):
    model = build_model()
    indices = [0, 1, 2, 3]
    _, images = diagnose(model, dataset, indices, 4)
    plain, refined = (
        judge_cams(model.decode_head, evidence, images, 255).image_iou
        for evidence in (images.plain, images.refined)
    )
    order = np.argsort(refined - plain)
    rows = show_changes(model.decode_head, dataset, indices, images, 1)
    assert [row.title for row in rows] == [f'{"abcd"[place]}.jpg' for place in order[[0, -1]]]
    assert rows[0].note == f'IoU {plain[order[0]]:.1f} % to {refined[order[0]]:.1f} %'
    # The photo as it is, the maps stretched to one size.
    assert rows[0].image.shape[:2] == IMAGES['abcd'[order[0]]][0]
    assert rows[0].truth.shape == rows[0].refined.shape == (SIZE, SIZE)


def test_image_of_void_alone_is_not_shown(dataset):
    model = build_model()
    _, images = diagnose(model, dataset, [0, 1, 2, 3], 4)
    images.truth[1] = 255
    rows = show_changes(model.decode_head, dataset, [0, 1, 2, 3], images, 9)
    assert {row.title for row in rows} == {'a.jpg', 'c.jpg', 'd.jpg'}


def test_what_is_unknown_is_none():
    assert mean_known(torch.tensor([1.0, torch.nan, 3])) == 2
    assert mean_known(torch.tensor([torch.nan])) is mean_known(torch.zeros(0)) is None
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, 0.0) is ratio(None, 2.0) is ratio(3.0, None) is None


def test_similarities_beyond_1_by_rounding_are_counted():
    found = summarize_values(torch.tensor([1 + 1e-6, -1 - 1e-6, 0.99]))
    assert found['pairs'] == sum(found['histogram']) == 3
    assert len(found['histogram']) == len(HISTOGRAM_EDGES) - 1
    assert summarize_values(torch.zeros(0))['mean'] is None
