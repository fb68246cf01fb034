import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint, save_checkpoint
from mmseg.registry import MODELS
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mmdscnet.functional.cam import normalize_cams, stretch_cams
from mmdscnet.functional.pseudo_label import make_pseudo_labels, pixel_cross_entropy
from mmdscnet.models.decode_heads.cam_head import (
    HeadOutputs,
    classification_loss,
    resize_maps,
)

LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
PSEUDO = dict(pseudo_label=dict(type='PseudoLabelLoss'))


@pytest.fixture
def feats():
    return (torch.randn(4, 2, 9, 9), torch.randn(4, 6, 5, 5))


@pytest.fixture
def head(build_head):
    return build_head('m0').eval()


@pytest.fixture
def set_weight(head):
    """Make the class evidence equal to the first three channels."""
    head.classifier.weight.data.copy_(torch.eye(3, 6)[:, :, None, None])


def metas_of(samples):
    return [sample.metainfo for sample in samples]


def test_evidence_comes_from_the_chosen_stage(build_head, feats):
    head = build_head('m0', in_channels=2, in_index=0)
    assert head.forward(feats).shape == (4, 3, 9, 9)
    assert torch.equal(head.forward(feats), F.conv2d(feats[0], head.classifier.weight))


def test_loss_is_the_soft_margin_of_the_mean_evidence(head, feats, make_samples):
    expected = 0.0
    for evidence, row in zip(head.forward(feats), LABELS, strict=True):
        for map_, label in zip(evidence, row, strict=True):
            margin = map_.mean().item() * (1 if label else -1)
            expected += math.log1p(math.exp(-margin)) / LABELS.numel()
    losses = head.loss(feats, make_samples(LABELS), train_cfg=None)
    assert set(losses) == {'loss_cls'}
    assert losses['loss_cls'].item() == pytest.approx(expected, rel=1e-5)


def test_gradient_reaches_every_parameter(build_head, feats):
    head = build_head('m0')
    head.loss_by_image_labels(feats, LABELS)['loss_cls'].backward()
    assert {name for name, _ in head.named_parameters()} == {'classifier.weight'}
    assert head.classifier.weight.grad.abs().min() > 0


def test_images_without_any_class_train_and_are_background(head, feats, make_samples):
    nothing = torch.zeros(4, 3)
    assert head.loss_by_image_labels(feats, nothing)['loss_cls'].isfinite()
    scores = head.predict(feats, metas_of(make_samples(nothing)), test_cfg=None)
    assert scores[:, 1:].count_nonzero() == 0
    assert scores.argmax(dim=1).count_nonzero() == 0


def test_dropout_is_for_training_only(build_head, feats):
    head = build_head('m0', dropout_ratio=0.5)
    assert not torch.equal(head.forward(feats), head.forward(feats))
    head.eval()
    assert torch.equal(head.forward(feats), head.forward(feats))


def test_missing_labels_error_says_where_to_give_them(head, feats, make_samples):
    with pytest.raises(ValueError, match=r'no gt_image_label: give the data set image_labels='):
        head.loss(feats, make_samples(4), train_cfg=None)


@pytest.mark.parametrize('method', ['loss', 'predict'])
def test_partly_missing_labels_error_names_the_image(head, feats, make_samples, method):
    samples = make_samples(LABELS)
    samples[2] = make_samples(3)[2]
    batch = samples if method == 'loss' else metas_of(samples)
    with pytest.raises(ValueError, match=r'2\.jpg has no gt_image_label but others'):
        getattr(head, method)(feats, batch, None)


@pytest.mark.parametrize('method', ['loss', 'predict'])
def test_wrong_label_length_error_names_image_and_setting(head, feats, make_samples, method):
    samples = make_samples(torch.ones(4, 5))
    batch = samples if method == 'loss' else metas_of(samples)
    with pytest.raises(ValueError, match=r'0\.jpg .* 5 classes, .* 3: .*num_classes=6'):
        getattr(head, method)(feats, batch, None)


@pytest.mark.parametrize('num_classes', [0, 1])
def test_class_count_without_foreground_is_refused(num_classes):
    with pytest.raises(ValueError, match=f'num_classes={num_classes} must count the background'):
        MODELS.build(dict(type='CAMHead', in_channels=6, num_classes=num_classes))


@pytest.mark.usefixtures('set_weight')
def test_scores_are_background_then_cams(head, feats, make_samples):
    samples = make_samples(LABELS, size=(20, 20))
    scores = head.predict(feats, metas_of(samples), test_cfg=None)
    assert scores.shape == (4, 4, 20, 20)
    assert torch.all(scores[:, 0] == head.bg_thr)
    for cams, feat, row in zip(scores[:, 1:], feats[-1], LABELS, strict=True):
        evidence = F.interpolate(feat[None, :3], size=(20, 20), mode='bilinear')[0].relu()
        for cam, map_, label in zip(cams, evidence, row, strict=True):
            torch.testing.assert_close(cam, label * map_ / map_.max())


def test_maps_take_the_padded_size(head, feats, make_samples):
    metas = metas_of(make_samples(LABELS, size=(20, 20)))
    for meta in metas:
        meta['pad_shape'] = (24, 28)
    assert head.predict(feats, metas, test_cfg=None).shape == (4, 4, 24, 28)


def test_background_can_follow_the_power_rule(build_head, feats, make_samples):
    head = build_head('m0', bg_alpha=3.0).eval()
    scores = head.predict(feats, metas_of(make_samples(LABELS)), test_cfg=None)
    torch.testing.assert_close(scores[:, 0], (1 - scores[:, 1:].amax(dim=1)) ** 3)


def test_background_wins_ties(build_head):
    head = build_head('m0', bg_thr=0.5)
    evidence = torch.tensor([0.5, 0.51, 1.0]).view(1, 1, 1, 3).repeat(1, 3, 1, 1)
    scores = head.score_maps(evidence, torch.tensor([[0.0, 1.0, 0.0]]))
    assert scores.argmax(dim=1).flatten().tolist() == [0, 2, 2]


@pytest.mark.usefixtures('set_weight')
def test_without_labels_the_confident_classes_count(head, make_samples):
    feat = torch.zeros(2, 6, 4, 4)
    feat[0, :3] = torch.tensor([2.0, 1.0, -1.0])[:, None, None]
    feat[1, :3] = torch.tensor([-3.0, -2.0, -1.0])[:, None, None]
    feat[1, 2, 0, 0] = 1.0
    scores = head.predict([feat], metas_of(make_samples(2)), test_cfg=None)
    present = scores[:, 1:].amax(dim=(2, 3)) > 0
    # The second image has no class above the threshold: its best one counts.
    assert present.tolist() == [[True, True, False], [False, False, True]]


def test_given_labels_overrule_the_predicted_ones(head, feats, make_samples):
    given = head.predict(feats, metas_of(make_samples(LABELS)), test_cfg=None)
    assert torch.equal(given[:, 1:].amax(dim=(2, 3)) > 0, LABELS > 0)
    predicted = head.predict(feats, metas_of(make_samples(4)), test_cfg=None)
    assert not torch.equal(given, predicted)


def test_logits_are_asked_for_by_the_test_config(head, feats, make_samples):
    logits = head.predict(feats, metas_of(make_samples(LABELS)), dict(cam_output='logits'))
    expected = F.interpolate(head.forward(feats), size=(48, 48), mode='bilinear')
    assert torch.equal(logits[:, 0], torch.zeros(4, 48, 48))
    torch.testing.assert_close(logits[:, 1:], expected)


@pytest.mark.parametrize('labelled', [True, False])
def test_an_image_scores_alone_as_in_a_batch(head, feats, make_samples, labelled):
    metas = metas_of(make_samples(LABELS if labelled else 4))
    together = head.predict(feats, metas, test_cfg=None)
    for index in range(4):
        own = [feat[index : index + 1] for feat in feats]
        alone = head.predict(own, metas[index : index + 1], test_cfg=None)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)


def test_bfloat16_loss_is_close(head, feats):
    full = head.loss_by_image_labels(feats, LABELS)['loss_cls']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = head.loss_by_image_labels(feats, LABELS)['loss_cls']
    assert low.item() == pytest.approx(full.item(), rel=1e-2)


def test_checkpoint_round_trip(build_head, head):
    other = build_head('m0')
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.classifier.weight, head.classifier.weight)


def test_checkpoint_of_other_classes_is_refused(build_head, head):
    other = build_head('m0', num_classes=6)
    with pytest.raises(ValueError, match=r'has 5 foreground .* 3: .*num_classes=6'):
        head.load_state_dict(other.state_dict())


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_checkpoint_file_of_other_classes_is_refused(build_segmentor, tmp_path, ablation):
    path = str(tmp_path / 'other.pth')
    head = dict(type='CAMHead', in_channels=32, num_classes=6)
    save_checkpoint(build_segmentor(ablation, decode_head=head).state_dict(), path)
    with pytest.raises(ValueError, match=r'5 foreground .*decode_head\.classifier.*num_classes=6'):
        load_checkpoint(build_segmentor(ablation), path)


def test_segmentor_writes_scores_and_pseudo_labels(build_segmentor, make_samples):
    segmentor = build_segmentor('m0').eval()
    segmentor.decode_head.classifier.weight.data.abs_()
    samples = make_samples(LABELS, size=(32, 40))
    for sample in samples:
        sample.set_metainfo(dict(ori_shape=(50, 60)))
    inputs = torch.randn(4, 3, 32, 40)
    with torch.no_grad():
        results = segmentor.predict(inputs, samples)
    for result, row in zip(results, LABELS, strict=True):
        scores = result.seg_logits.data
        assert scores.shape == (4, 50, 60)
        assert torch.equal(scores[1:].amax(dim=(1, 2)) > 0, row > 0)
        assert torch.equal(result.pred_sem_seg.data, scores.argmax(dim=0, keepdim=True))


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_prediction_in_windows_is_refused(build_segmentor, make_samples, ablation):
    test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    segmentor = build_segmentor(ablation, test_cfg=test_cfg).eval()
    with pytest.raises(ValueError, match=r"normalise the CAMs of each window .*use mode='whole'"):
        segmentor.predict(torch.randn(2, 3, 48, 48), make_samples(LABELS[:2]))


def test_segmentor_predicts_without_samples(build_segmentor):
    segmentor = build_segmentor('m0').eval()
    with torch.no_grad():
        results = segmentor.predict(torch.randn(2, 3, 32, 32))
    assert results[0].seg_logits.data.shape == (4, 32, 32)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(bg_thr=1.5), r'bg_thr=1\.5 must lie in \[0, 1\)'),
        (dict(score_thr=7), r'score_thr=7, a probability'),
        (dict(bg_alpha=-1), r'bg_alpha=-1 must be positive'),
    ],
)
def test_setting_outside_its_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='CAMHead', in_channels=6, num_classes=4, **setting))


def test_padded_image_is_refused():
    head = MODELS.build(dict(type='CAMHead', in_channels=6, num_classes=4))
    meta = dict(img_shape=(8, 8), img_padding_size=[0, 3, 0, 0])
    with pytest.raises(ValueError, match='test with batch_size=1'):
        head.predict([torch.zeros(1, 6, 2, 2)], [meta], test_cfg=None)


# ----------------------------------------------------------------- what a segmentor asks a head for


@pytest.fixture
def plain_and_refined():
    return HeadOutputs(torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5), {'loss_a': torch.ones(())})


def test_best_evidence_is_the_refined_where_there_is_such(plain_and_refined):
    assert plain_and_refined.best_logits is plain_and_refined.refined_logits
    plain = plain_and_refined._replace(refined_logits=None)
    assert plain.best_logits is plain.cam_logits


@pytest.mark.parametrize('align_corners', [True, False])
def test_all_maps_of_the_outputs_are_resized(plain_and_refined, align_corners):
    resized = plain_and_refined.resize((7, 9), align_corners)
    for name in ('cam_logits', 'refined_logits'):
        expected = F.interpolate(
            getattr(plain_and_refined, name), (7, 9), mode='bilinear', align_corners=align_corners
        )
        assert torch.equal(getattr(resized, name), expected)
    assert resized.contrasts == plain_and_refined.contrasts
    assert plain_and_refined._replace(refined_logits=None).resize((7, 9), True)[1] is None


def test_resized_maps_by_hand():
    maps = torch.tensor([[[[0.0, 3.0]]]])
    aligned = resize_maps(maps, (2, 4), align_corners=True)
    assert torch.equal(aligned, torch.tensor([0.0, 1, 2, 3]).expand(1, 1, 2, 4))
    halved = resize_maps(maps, (1, 4), align_corners=False)
    torch.testing.assert_close(halved, torch.tensor([[[[0.0, 0.75, 2.25, 3.0]]]]))


def test_resized_maps_are_float32_under_autocast():
    maps = torch.randn(1, 2, 3, 4).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        resized = resize_maps(maps, (6, 7), align_corners=True)
    assert resized.dtype == torch.float32
    assert torch.equal(resized, resize_maps(maps.float(), (6, 7), align_corners=True))


def test_classification_loss_by_hand():
    evidence = torch.tensor([[[[0.0, 2.0]], [[-1.0, 1.0]]]])
    loss = classification_loss(evidence, torch.tensor([[1.0, 0.0]]))
    expected = (math.log1p(math.exp(-1.0)) + math.log(2.0)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_plain_head_describes_a_batch_by_its_evidence(head, feats):
    outputs = head.describe_batch(feats, LABELS)
    assert torch.equal(outputs.cam_logits, head.forward(feats))
    assert outputs.refined_logits is None
    assert outputs.contrasts == {}


def test_losses_are_those_of_what_the_head_describes(head, feats):
    outputs = head.describe_batch(feats, LABELS)
    assert head.loss_by_image_labels(feats, LABELS) == head.classification_losses(outputs, LABELS)


def test_online_labels_may_have_a_rule_of_their_own(feats):
    config = dict(type='CAMHead', in_channels=6, num_classes=4, bg_thr=0.6)
    head = MODELS.build(dict(config, online_labels=dict(bg_thr=0.2, fg_thr=0.4)))
    evidence = torch.rand(4, 3, 5, 5)
    cams = normalize_cams(evidence, LABELS)
    labels = head.make_online_labels(evidence, LABELS)
    assert torch.equal(labels, make_pseudo_labels(cams, 0.2, fg_thr=0.4))
    assert head.score_maps(evidence, LABELS)[:, 0].eq(0.6).all()
    plain = MODELS.build(config)
    assert torch.equal(plain.make_online_labels(evidence, LABELS), make_pseudo_labels(cams, 0.6))


@pytest.mark.parametrize(
    ('rule', 'match'),
    [
        (dict(threshold=0.2), r"online_labels has \['threshold'\]"),
        (dict(fg_thr=0.1), 'fg_thr=0.1 lies below bg_thr=0.25'),
    ],
)
def test_rules_of_online_labels_that_cannot_be_are_refused(rule, match):
    with pytest.raises(ValueError, match=match):
        MODELS.build(dict(type='CAMHead', in_channels=6, num_classes=4, online_labels=rule))


def test_labels_of_training_are_collected_in_order(head, make_samples):
    labels = head.require_image_labels(make_samples(LABELS))
    assert labels.dtype == torch.float32
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('test_cfg', [None, dict(refine=False), dict(mode='whole')])
def test_evidence_comes_with_given_or_predicted_labels(
    head, feats, make_samples, labelled, test_cfg
):
    metas = metas_of(make_samples(LABELS if labelled else 4))
    evidence, labels = head.predict_evidence(feats, metas, test_cfg)
    assert torch.equal(evidence, head.forward(feats))
    assert torch.equal(labels, LABELS if labelled else head.predict_labels(evidence))


def test_evidence_of_windows_is_refused(head, feats, make_samples):
    with pytest.raises(ValueError, match=r"use mode='whole'"):
        head.predict_evidence(feats, metas_of(make_samples(LABELS)), dict(mode='slide'))


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
@pytest.mark.parametrize('test_cfg', [None, dict(refine=False)])
@pytest.mark.parametrize('labels', [LABELS, 1 - LABELS, 4], ids=['given', 'wrong', 'predicted'])
def test_no_label_takes_part_in_the_scores_of_a_prediction(
    build_head, feats, make_samples, ablation, test_cfg, labels
):
    head = build_head(ablation).eval()
    assert head.predicted_scores is None
    head.predict(feats, metas_of(make_samples(labels)), test_cfg)
    expected = F.conv2d(feats[1], head.classifier.weight).mean(dim=(2, 3))
    torch.testing.assert_close(head.predicted_scores, expected)
    assert not head.predicted_scores.requires_grad


@pytest.mark.parametrize('test_cfg', [None, dict(cam_output='logits')])
def test_prediction_is_finished_evidence(head, feats, make_samples, test_cfg):
    metas = metas_of(make_samples(LABELS))
    finished = head.finish(*head.predict_evidence(feats, metas, test_cfg), metas, test_cfg)
    assert torch.equal(finished, head.predict(feats, metas, test_cfg))


@pytest.mark.parametrize('align_corners', [True, False])
def test_finished_evidence_grows_as_the_head_says(build_head, make_samples, align_corners):
    head = build_head('m0', align_corners=align_corners)
    evidence, metas = torch.randn(4, 3, 5, 5), metas_of(make_samples(LABELS, size=(20, 24)))
    logits = head.finish(evidence, LABELS, metas, dict(cam_output='logits'))
    expected = F.interpolate(evidence, (20, 24), mode='bilinear', align_corners=align_corners)
    assert logits[:, 0].count_nonzero() == 0
    assert torch.equal(logits[:, 1:], expected)
    assert torch.equal(
        head.finish(evidence, LABELS, metas, None), head.score_maps(expected, LABELS)
    )


@pytest.mark.parametrize('bg_alpha', [None, 2.0])
def test_min_max_normalisation_subtracts_the_lowest_value(build_head, bg_alpha):
    head = build_head('m0', normalization='min_max', bg_alpha=bg_alpha)
    evidence = torch.rand(4, 3, 5, 6) + 0.5
    scores = head.score_maps(evidence, LABELS)
    for cams, maps, row in zip(scores[:, 1:], evidence, LABELS, strict=True):
        for cam, map_, label in zip(cams, maps, row, strict=True):
            expected = label * (map_ - map_.min()) / (map_.max() - map_.min())
            torch.testing.assert_close(cam, expected, rtol=0, atol=1e-4)
    strongest = scores[:, 1:].amax(dim=1)
    background = (1 - strongest) ** 2 if bg_alpha else torch.full_like(strongest, head.bg_thr)
    torch.testing.assert_close(scores[:, 0], background)


def test_normalisation_is_by_the_peak_alone_by_default(build_head):
    evidence = torch.rand(4, 3, 5, 6) + 0.5
    scores = build_head('m0').score_maps(evidence, LABELS)
    assert torch.equal(scores, build_head('m0', normalization='max').score_maps(evidence, LABELS))
    assert scores[0, 1].min() > 0.3


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"normalization='softmax' is none of .*'max', 'min_max'"):
        MODELS.build(dict(type='CAMHead', in_channels=6, num_classes=4, normalization='softmax'))


# ------------------------------------------------------------------------ training by pseudo labels


@pytest.fixture
def make_stored(make_samples):
    """Pack image-level labels with label maps, (N, H, W), as a data set with a store does."""

    def make(label_maps):
        samples = make_samples(LABELS, size=tuple(label_maps.shape[1:]))
        for sample, label_map in zip(samples, label_maps, strict=True):
            sample.gt_sem_seg.data = label_map[None]
        return samples

    return make


def test_without_the_option_nothing_changes(build_head, feats, make_samples):
    torch.manual_seed(1)
    plain = build_head('m0', dropout_ratio=0.5)
    expected, drawn = plain.loss(feats, make_samples(LABELS), None), torch.rand(1)
    torch.manual_seed(1)
    other = build_head('m0', dropout_ratio=0.5, **PSEUDO)
    losses = other.loss(feats, make_samples(LABELS), None)
    assert torch.equal(torch.rand(1), drawn)
    assert other.state_dict().keys() == plain.state_dict().keys()
    assert set(expected) == {'loss_cls'}
    assert set(losses) == {'loss_cls', 'loss_pseudo'}
    assert losses['loss_cls'] == expected['loss_cls']


@pytest.mark.usefixtures('set_weight')
def test_online_labels_by_hand(build_head):
    head = build_head('m0', bg_thr=0.3, fg_thr=0.7, **PSEUDO)
    evidence = torch.tensor([-1.0, 0.5, 1.0, 2.0]).view(1, 1, 1, 4).repeat(1, 3, 1, 1)
    evidence[:, 1] *= 4
    # The second class is absent: its evidence is of no matter.
    labels = head.make_online_labels(evidence, torch.tensor([[0.0, 0.0, 1.0]]))
    assert labels.tolist() == [[[0, 0, 255, 3]]]


@pytest.mark.parametrize(
    ('normalization', 'normalize'), [('max', normalize_cams), ('min_max', stretch_cams)]
)
@pytest.mark.parametrize(
    'rule', [dict(), dict(fg_thr=0.6), dict(bg_alpha=2.0, fg_thr=0.1)], ids=str
)
def test_online_loss_is_that_against_the_heads_own_labels(
    build_head, feats, make_samples, normalization, normalize, rule
):
    head = build_head('m0', normalization=normalization, **rule, **PSEUDO)
    evidence = head.forward(feats)
    rule = dict(bg_thr=head.bg_thr) | rule
    labels = make_pseudo_labels(normalize(evidence, LABELS), **rule)
    assert (labels == 255).any() == ('fg_thr' in rule and 'bg_alpha' not in rule)
    loss = head.loss(feats, make_samples(LABELS), None)['loss_pseudo']
    torch.testing.assert_close(loss, pixel_cross_entropy(evidence, labels))


def test_online_labels_agree_with_those_of_inference(build_head, feats, make_samples):
    for normalization in ('max', 'min_max'):
        head = build_head('m0', normalization=normalization, **PSEUDO).eval()
        labels = head.make_online_labels(head.forward(feats), LABELS)
        # At the size of the maps nothing is resized.
        scores = head.predict(feats, metas_of(make_samples(LABELS, size=(5, 5))), None)
        assert torch.equal(labels, scores.argmax(dim=1))


def test_online_labels_carry_no_gradient(build_head, feats):
    head = build_head('m0', **PSEUDO)
    evidence = head.forward(feats).detach().requires_grad_()
    outputs = HeadOutputs(evidence, None, {})
    (gradient,) = torch.autograd.grad(
        head.pseudo_label_losses(outputs, LABELS, None)['loss_pseudo'], evidence
    )
    labels = head.make_online_labels(evidence, LABELS)
    (expected,) = torch.autograd.grad(pixel_cross_entropy(evidence, labels), evidence)
    assert torch.equal(gradient, expected)


def test_online_target_never_looks_at_a_mask(build_head, feats, make_samples, make_stored):
    head = build_head('m0', **PSEUDO).eval()
    without = make_samples(LABELS)
    for sample in without:
        del sample.gt_sem_seg
    expected = head.loss(feats, without, None)
    for label_maps in (torch.full((4, 48, 48), 255), torch.randint(0, 4, (4, 48, 48))):
        assert head.loss(feats, make_stored(label_maps), None) == expected
    assert expected['loss_pseudo'] > 0


@pytest.mark.parametrize('align_corners', [True, False])
def test_stored_loss_is_that_against_the_mask(build_head, feats, make_stored, align_corners):
    head = build_head('m0', align_corners=align_corners, **PSEUDO).eval()
    head.pseudo_label_target = 'stored'
    label_maps = torch.randint(0, 4, (4, 20, 24), dtype=torch.uint8)
    label_maps[:, :3] = 255
    loss = head.loss(feats, make_stored(label_maps), None)['loss_pseudo']
    maps = resize_maps(head.forward(feats), (20, 24), align_corners)
    torch.testing.assert_close(loss, pixel_cross_entropy(maps, label_maps.long()))


def test_stored_labels_that_are_all_void_are_a_finite_zero(build_head, feats, make_stored):
    head = build_head('m0', **PSEUDO)
    head.pseudo_label_target = 'stored'
    losses = head.loss(feats, make_stored(torch.full((4, 20, 24), 255)), None)
    assert losses['loss_pseudo'] == 0
    losses['loss_pseudo'].backward()
    assert head.classifier.weight.grad.count_nonzero() == 0


def test_missing_stored_labels_error_names_image_and_mend(build_head, feats, make_samples):
    head, samples = build_head('m0', **PSEUDO), make_samples(LABELS)
    head.pseudo_label_target = 'stored'
    del samples[2].gt_sem_seg
    with pytest.raises(ValueError, match=r'2\.jpg has no gt_sem_seg.*LoadStoredLabels'):
        head.loss(feats, samples, None)


def test_stored_target_without_the_loss_needs_no_mask(head, feats, make_samples):
    samples = make_samples(LABELS)
    head.pseudo_label_target = 'stored'
    for sample in samples:
        del sample.gt_sem_seg
    assert set(head.loss(feats, samples, None)) == {'loss_cls'}


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_scale_and_weight_multiply_the_loss(build_head, feats, make_stored, target):
    samples = make_stored(torch.randint(0, 4, (4, 20, 24)))
    heads = [
        build_head('m0', pseudo_label=dict(type='PseudoLabelLoss', loss_weight=weight))
        for weight in (1.0, 3.0)
    ]
    heads[1].load_state_dict(heads[0].state_dict())
    for head in heads:
        head.pseudo_label_target = target
    heads[1].pseudo_label_scale = 0.5
    expected, loss = (head.loss(feats, samples, None)['loss_pseudo'] for head in heads)
    torch.testing.assert_close(loss, 1.5 * expected)
    heads[0].pseudo_label_scale = 0.0
    off = heads[0].loss(feats, samples, None)['loss_pseudo']
    assert off == 0
    off.backward()
    assert heads[0].classifier.weight.grad.count_nonzero() == 0


def test_key_in_the_log_is_that_of_the_loss(build_head, feats, make_samples):
    config = dict(type='PseudoLabelLoss', loss_name='loss_pixels')
    losses = build_head('m0', pseudo_label=config).loss(feats, make_samples(LABELS), None)
    assert set(losses) == {'loss_cls', 'loss_pixels'}


def test_segmentor_trains_by_the_loss(build_segmentor, make_stored):
    head = dict(type='CAMHead', in_channels=32, num_classes=4, **PSEUDO)
    segmentor = build_segmentor('m0', decode_head=head)
    segmentor.decode_head.pseudo_label_target = 'stored'
    samples = make_stored(torch.randint(0, 4, (4, 32, 32)))
    losses = segmentor.loss(torch.randn(4, 3, 32, 32), samples)
    assert set(losses) == {'decode.loss_cls', 'decode.loss_pseudo'}
    losses['decode.loss_pseudo'].backward()
    assert segmentor.backbone.conv1.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_images_without_any_class_are_finite(build_head, make_samples, target):
    head, samples = build_head('m0', **PSEUDO), make_samples(torch.zeros(4, 3))
    head.pseudo_label_target = target
    feats = torch.randn(4, 6, 1, 1, requires_grad=True)
    sum(head.loss([feats], samples, None).values()).backward()
    assert feats.grad.isfinite().all()


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_a_step_by_pseudo_labels_reads_no_value_back(build_head, make_samples, target):
    """Tensors without values refuse to be read, for which a GPU would have to be waited for."""
    head, samples = build_head('m0', fg_thr=0.6, **PSEUDO), make_samples(LABELS)
    head.pseudo_label_target = target
    with FakeTensorMode(allow_non_fake_inputs=True):
        feats = torch.randn(4, 6, 5, 5)
        sum(head.loss([feats], samples, None).values()).backward()
        with pytest.raises(DataDependentOutputException):
            feats.sum().item()


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_bfloat16_loss_by_pseudo_labels_is_float32(build_head, feats, make_stored, target):
    head = build_head('m0', **PSEUDO).eval()
    head.pseudo_label_target = target
    samples = make_stored(torch.randint(0, 4, (4, 20, 24)))
    expected = head.loss(feats, samples, None)['loss_pseudo']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = head.loss(feats, samples, None)['loss_pseudo']
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)


def test_empty_ignore_band_is_refused():
    config = dict(type='CAMHead', in_channels=6, num_classes=4, bg_thr=0.3)
    with pytest.raises(ValueError, match=r'fg_thr=0\.2 lies below bg_thr=0\.3'):
        MODELS.build(dict(config, fg_thr=0.2))
    assert MODELS.build(dict(config, fg_thr=0.2, bg_alpha=2.0)).fg_thr == 0.2
