import math
import os
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmseg.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import mmdscnet  # noqa: F401  (the ranks at the end of this file run without conftest.py)
from mmdscnet.functional.cam import normalize_cams
from mmdscnet.functional.dual_stream import read_group_classes
from mmdscnet.functional.pixel_groups import group_pixels, stack_levels
from mmdscnet.functional.pseudo_label import make_pseudo_labels, pixel_cross_entropy
from mmdscnet.functional.semantic_graph import make_class_nodes
from mmdscnet.models.decode_heads.cam_head import HeadOutputs, resize_maps
from mmdscnet.models.decode_heads.dsc_head import ImageContext

CONTRASTS = dict(m1={'loss_pgcl'}, m2={'loss_sgcl'}, m3={'loss_pgcl', 'loss_sgcl'})
CONTRASTS['m4'] = CONTRASTS['m3']
ABLATIONS = sorted(CONTRASTS)
LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
PSEUDO = dict(pseudo_label=dict(type='PseudoLabelLoss'))


@pytest.fixture
def feats():
    return (torch.randn(4, 6, 5, 5),)


@pytest.fixture
def trained(build_head, feats):
    """Make an M4 head whose enriched stream, message and memory do something."""
    head = build_head('m4')
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    head.loss_by_image_labels(feats, LABELS)
    return head.eval()


def metas_of(samples):
    return [sample.metainfo for sample in samples]


def sum_of(losses):
    return sum(losses.values())


# ---------------------------------------------------------------------------- losses and gradients


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_losses_are_those_of_the_ablation(build_head, feats, make_samples, ablation):
    losses = build_head(ablation).loss(feats, make_samples(LABELS), train_cfg=None)
    refined = {'loss_cls_refined'} if ablation == 'm4' else set()
    assert set(losses) == {'loss_cls'} | refined | CONTRASTS[ablation]
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    assert all(losses[name] > 0 for name in CONTRASTS[ablation])


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_head_holds_the_parameters_it_trains_and_no_others(build_head, ablation):
    expected = {'classifier', 'projection'}
    if ablation != 'm1':
        expected |= {'message'}
    if ablation == 'm4':
        expected |= {'refined_classifier', 'enriched_classifier'}
    names = {name.split('.')[0] for name, _ in build_head(ablation).named_parameters()}
    assert names == expected


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_gradient_reaches_every_parameter(build_head, feats, ablation):
    head = build_head(ablation)
    sum_of(head.loss_by_image_labels(feats, LABELS)).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_warm_up_keeps_every_parameter_in_the_graph(build_head, feats, ablation):
    head = build_head(ablation)
    head.contrast_scale = 0.0
    losses = head.loss_by_image_labels(feats, LABELS)
    assert all(losses[name] == 0 for name in CONTRASTS[ablation])
    sum_of(losses).backward()
    # DistributedDataParallel waits for the gradient of every parameter.
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert head.classifier.weight.grad.count_nonzero() > 0
    assert head.projection.weight.grad.count_nonzero() == 0


def test_contrasts_computed_again_in_backward_see_the_memory_of_their_step(build_head, feats):
    def train(recompute):
        torch.manual_seed(1)
        head = build_head('m3')
        if recompute:
            turn_on_activation_checkpointing(head, ['pgcl', 'sgcl'])
        for _ in range(2):
            losses = head.loss_by_image_labels(feats, LABELS)
        sum_of(losses).backward()
        return [parameter.grad for parameter in head.parameters()]

    torch.testing.assert_close(train(recompute=True), train(recompute=False), rtol=0, atol=1e-6)


def test_contrasts_train_the_embeddings_but_not_the_classifier(build_head, feats):
    head = build_head('m3')
    losses = head.loss_by_image_labels(feats, LABELS)
    (losses['loss_pgcl'] + losses['loss_sgcl']).backward()
    assert head.projection.weight.grad.count_nonzero() > 0
    assert head.message.weight.grad.count_nonzero() > 0
    assert head.classifier.weight.grad is None


def test_refined_loss_trains_both_streams(trained, feats):
    trained.loss_by_image_labels(feats, LABELS)['loss_cls_refined'].backward()
    for module in (
        trained.refined_classifier,
        trained.enriched_classifier,
        trained.projection,
        trained.message,
    ):
        assert module.weight.grad.count_nonzero() > 0


def test_features_get_finite_gradient(trained):
    feats = torch.randn(4, 6, 5, 5, requires_grad=True)
    sum_of(trained.loss_by_image_labels([feats], LABELS)).backward()
    assert feats.grad.isfinite().all()
    assert (feats.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize('ablation', ABLATIONS)
@pytest.mark.parametrize(
    ('image_labels', 'size'),
    [(torch.zeros(4, 3), 5), (torch.eye(4, 3), 5), (LABELS[:1], 5), (LABELS[2:3], 5), (LABELS, 1)],
    ids=['no-class', 'no-partner', 'one-image', 'one-empty-image', 'one-pixel'],
)
def test_degenerate_batches_are_finite(build_head, ablation, image_labels, size):
    head = build_head(ablation)
    feats = torch.randn(len(image_labels), 6, size, size, requires_grad=True)
    for _ in range(2):
        losses = head.loss_by_image_labels([feats], image_labels)
        assert all(loss.isfinite() for loss in losses.values())
    sum_of(losses).backward()
    assert feats.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    assert head.memory.isfinite().all()


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_equal_pixels_are_finite(build_head, ablation):
    head = build_head(ablation)
    feats = torch.zeros(4, 6, 5, 5, requires_grad=True)
    sum_of(head.loss_by_image_labels([feats], LABELS)).backward()
    assert feats.grad.isfinite().all()


def test_images_without_any_class_are_background(trained, feats, make_samples):
    scores = trained.predict(feats, metas_of(make_samples(torch.zeros(4, 3))), test_cfg=None)
    assert scores.isfinite().all()
    assert scores.argmax(dim=1).count_nonzero() == 0


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_order_of_the_images_is_of_no_matter(build_head, feats, ablation):
    order = torch.tensor([2, 0, 3, 1])
    first, second = build_head(ablation), build_head(ablation)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        losses = first.loss_by_image_labels(feats, LABELS)
        permuted = second.loss_by_image_labels([feats[0][order]], LABELS[order])
        torch.testing.assert_close(permuted, losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(second.memory, first.memory)


def test_permuting_the_pixels_permutes_the_maps(trained, feats):
    maps = trained.forward(feats, LABELS)
    turned = trained.forward([feats[0].rot90(dims=(2, 3))], LABELS)
    torch.testing.assert_close(turned, maps.rot90(dims=(2, 3)), rtol=0, atol=1e-5)


def test_loss_weights_scale_the_contrasts(build_head, feats):
    once = build_head('m3')
    twice = build_head(
        'm3',
        pgcl=dict(type='PGCLLoss', loss_weight=1.2, loss_name='loss_groups'),
        sgcl=dict(type='SGCLLoss', loss_weight=0.8, loss_name='loss_nodes'),
    )
    twice.load_state_dict(once.state_dict())
    expected = once.loss_by_image_labels(feats, LABELS)
    losses = twice.loss_by_image_labels(feats, LABELS)
    torch.testing.assert_close(losses['loss_groups'], 2 * expected['loss_pgcl'])
    torch.testing.assert_close(losses['loss_nodes'], 2 * expected['loss_sgcl'])


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_batch_is_described_by_evidence_and_contrasts(build_head, feats, ablation):
    head = build_head(ablation)
    outputs = head.describe_batch(feats, LABELS)
    assert torch.equal(outputs.cam_logits, head.plain_evidence(feats))
    assert (outputs.refined_logits is not None) == (ablation == 'm4')
    assert set(outputs.contrasts) == CONTRASTS[ablation]
    assert outputs.best_logits is (outputs.refined_logits if ablation == 'm4' else outputs[0])


def naive_soft_margin(maps, image_labels):
    """Mean over images and classes of the logistic loss of the mean evidence."""
    terms = []
    for image, row in zip(maps, image_labels, strict=True):
        for map_, label in zip(image, row, strict=True):
            margin = map_.mean().item() * (1 if label else -1)
            terms.append(math.log1p(math.exp(-margin)))
    return sum(terms) / len(terms)


def test_classification_losses_equal_naive_loops(build_head):
    plain, refined = torch.randn(2, 4, 3, 5, 5)
    losses = build_head('m4').classification_losses(HeadOutputs(plain, refined, {}), LABELS)
    assert set(losses) == {'loss_cls', 'loss_cls_refined'}
    assert losses['loss_cls'].item() == pytest.approx(naive_soft_margin(plain, LABELS), rel=1e-5)
    expected = naive_soft_margin(refined, LABELS)
    assert losses['loss_cls_refined'].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_losses_are_those_of_what_the_head_describes(build_head, feats, ablation):
    first, second = build_head(ablation), build_head(ablation)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        losses = first.loss_by_image_labels(feats, LABELS)
        outputs = second.describe_batch(feats, LABELS)
        assert losses == second.classification_losses(outputs, LABELS) | outputs.contrasts
    assert torch.equal(second.memory, first.memory)


def test_refined_evidence_starts_as_the_plain_one(build_head, feats):
    outputs = build_head('m4', dropout_ratio=0.5).describe_batch(feats, LABELS)
    assert torch.equal(outputs.refined_logits, outputs.cam_logits)


def test_describing_a_batch_remembers_it(build_head, feats):
    head = build_head('m4')
    head.describe_batch(feats, LABELS * torch.tensor([1.0, 0.0, 1.0]))
    assert head.memory_valid.tolist() == [True, True, False, True]


# ------------------------------------------------------------------------ training by pseudo labels


@pytest.fixture
def make_stored(make_samples):
    """Pack the image-level labels with random label maps, as a data set with a store does."""

    def make():
        samples = make_samples(LABELS, size=(20, 24))
        for sample in samples:
            sample.gt_sem_seg.data = torch.randint(0, 4, (1, 20, 24))
        return samples

    return make


def build_trained(build_head, ablation, **kwargs):
    """Build a head whose two streams differ, as those of a trained one do."""
    head = build_head(ablation, **kwargs)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_without_pseudo_labels_nothing_changes(build_head, feats, make_samples, ablation):
    def train(**kwargs):
        torch.manual_seed(1)
        head = build_head(ablation, dropout_ratio=0.5, **kwargs)
        losses = [head.loss(feats, make_samples(LABELS), None) for _ in range(2)][1]
        return losses, head.state_dict(), torch.rand(1)

    expected, state, drawn = train()
    losses, other_state, other_drawn = train(**PSEUDO)
    assert losses.keys() - expected.keys() == {'loss_pseudo'}
    assert {name: losses[name] for name in expected} == expected
    torch.testing.assert_close(dict(other_state), dict(state), rtol=0, atol=0)
    assert other_drawn == drawn


@pytest.mark.parametrize('target', ['online', 'stored'])
@pytest.mark.parametrize('ablation', ABLATIONS)
def test_best_evidence_learns_from_pseudo_labels(build_head, feats, make_stored, ablation, target):
    head = build_trained(build_head, ablation, **PSEUDO)
    head.pseudo_label_target = target
    samples = make_stored()
    loss = head.loss(feats, samples, None)['loss_pseudo']
    head.memory_valid.fill_(False)
    head.memory.zero_()
    maps = head.describe_batch(feats, LABELS).best_logits
    if target == 'online':
        labels = make_pseudo_labels(normalize_cams(maps, LABELS), head.bg_thr)
    else:
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    maps = resize_maps(maps, labels.shape[1:], align_corners=False)
    torch.testing.assert_close(loss, pixel_cross_entropy(maps, labels))


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_pseudo_labels_train_the_refined_classifier(build_head, feats, make_stored, target):
    head = build_trained(build_head, 'm4', **PSEUDO)
    head.pseudo_label_target = target
    head.loss(feats, make_stored(), None)['loss_pseudo'].backward()
    for name in ('refined_classifier', 'enriched_classifier', 'projection', 'message'):
        assert getattr(head, name).weight.grad.count_nonzero() > 0, name


def test_pseudo_labels_train_the_plain_classifier_where_nothing_refines(
    build_head, feats, make_stored
):
    head = build_trained(build_head, 'm3', **PSEUDO)
    head.loss(feats, make_stored(), None)['loss_pseudo'].backward()
    trained = {name for name, value in head.named_parameters() if value.grad is not None}
    assert trained == {'classifier.weight'}


def test_online_pseudo_labels_never_look_at_a_mask(build_head, feats, make_samples, make_stored):
    head = build_trained(build_head, 'm4', **PSEUDO)
    other = build_head('m4', **PSEUDO)
    other.load_state_dict(head.state_dict())
    without = make_samples(LABELS)
    for sample in without:
        del sample.gt_sem_seg
    assert head.loss(feats, make_stored(), None) == other.loss(feats, without, None)


def test_scales_of_contrasts_and_pseudo_labels_are_independent(build_head, feats, make_stored):
    head = build_head('m4', **PSEUDO)
    head.contrast_scale = 0.0
    losses = head.loss(feats, make_stored(), None)
    assert losses['loss_pgcl'] == losses['loss_sgcl'] == 0 < losses['loss_pseudo']
    head.contrast_scale, head.pseudo_label_scale = 1.0, 0.0
    losses = head.loss(feats, make_stored(), None)
    assert losses['loss_pseudo'] == 0 < losses['loss_pgcl']
    sum_of(losses).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


# ------------------------------------------------------------------- the start, and the checkpoints


@pytest.mark.parametrize('labelled', [True, False])
def test_refined_cams_start_as_the_plain_ones(build_head, feats, make_samples, labelled):
    head, plain = build_head('m4').eval(), build_head('m0').eval()
    plain.classifier.weight.data.copy_(head.classifier.weight.data)
    head.update_memory(filled_context())
    metas = metas_of(make_samples(LABELS if labelled else 4))
    expected = plain.predict(feats, metas, test_cfg=None)
    assert torch.equal(head.predict(feats, metas, test_cfg=None), expected)


@pytest.mark.parametrize('labelled', [True, False])
def test_segmentor_starts_from_the_baseline(build_segmentor, make_samples, tmp_path, labelled):
    plain, segmentor = build_segmentor('m0').eval(), build_segmentor('m4').eval()
    save_checkpoint(plain.state_dict(), str(tmp_path / 'm0.pth'))
    load_checkpoint(segmentor, str(tmp_path / 'm0.pth'))
    inputs = torch.randn(4, 3, 32, 32)
    labels = LABELS if labelled else 4
    with torch.no_grad():
        expected = plain.predict(inputs, make_samples(labels, size=(32, 32)))
        results = segmentor.predict(inputs, make_samples(labels, size=(32, 32)))
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result.seg_logits.data, reference.seg_logits.data)
        assert torch.equal(result.pred_sem_seg.data, reference.pred_sem_seg.data)


def test_checkpoint_of_the_baseline_replaces_whatever_the_head_was_built_with(
    build_head, feats, make_samples, tmp_path
):
    plain = build_head('m0').eval()
    save_checkpoint(plain.state_dict(), str(tmp_path / 'm0.pth'))
    # Never initialised, as a runner that loads a checkpoint to test it leaves it.
    head = MODELS.build(
        dict(type='DSCHead', in_channels=6, num_classes=4, embed_channels=8, pgcl=None)
    ).eval()
    assert head.enriched_classifier.weight.count_nonzero() > 0
    load_checkpoint(head, str(tmp_path / 'm0.pth'))
    assert torch.equal(head.refined_classifier.weight, plain.classifier.weight)
    assert head.enriched_classifier.weight.count_nonzero() == 0
    metas = metas_of(make_samples(LABELS))
    expected = plain.predict(feats, metas, test_cfg=None)
    assert torch.equal(head.predict(feats, metas, test_cfg=None), expected)


def test_baseline_is_read_into_a_copy_of_the_checkpoint(build_head):
    state = build_head('m0').state_dict()
    build_head('m4').load_state_dict(state, strict=False)
    assert set(state) == {'classifier.weight'}


def test_own_checkpoint_keeps_its_refined_classifier(trained, build_head, feats):
    other = build_head('m4').eval()
    other.load_state_dict(trained.state_dict())
    assert not torch.equal(other.refined_classifier.weight, other.classifier.weight)
    assert torch.equal(other.forward(feats, LABELS), trained.forward(feats, LABELS))


def test_checkpoint_carries_the_class_memory(trained, build_head, tmp_path):
    save_checkpoint(trained.state_dict(), str(tmp_path / 'head.pth'))
    other = build_head('m4')
    assert not other.memory_valid.any()
    load_checkpoint(other, str(tmp_path / 'head.pth'))
    assert other.memory_valid.all()
    assert torch.equal(other.memory, trained.memory)


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_checkpoint_of_other_classes_is_refused(build_head, build_segmentor, tmp_path, ablation):
    other = build_head(ablation, num_classes=6, in_channels=32)
    state = {f'decode_head.{name}': value for name, value in other.state_dict().items()}
    save_checkpoint(state, str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match=r'5 foreground .*decode_head\.classifier.*num_classes=6'):
        load_checkpoint(build_segmentor('m4'), str(tmp_path / 'other.pth'))


def test_head_without_any_part_of_the_method_is_refused():
    config = dict(type='DSCHead', in_channels=6, num_classes=4, dual_stream=False)
    with pytest.raises(ValueError, match='pixel_contrast is CAMHead'):
        MODELS.build(config)


@pytest.mark.parametrize('momentum', [-0.1, 1.0])
def test_memory_momentum_outside_its_range_is_refused(build_head, momentum):
    with pytest.raises(ValueError, match=rf'memory_momentum={momentum} must lie in \[0, 1\)'):
        build_head('m4', memory_momentum=momentum)


@pytest.mark.parametrize(
    ('option', 'match'),
    [
        (dict(graph_rounds=-1), 'graph_rounds=-1 must be 0 or more'),
        (dict(stream_scope='all'), "stream_scope='all' is none of"),
        (dict(reading='pixels'), "reading='pixels' is none of"),
        (dict(pseudo_label_source='stored'), "pseudo_label_source='stored' is none of"),
        (dict(pseudo_label_pupil='none'), "pseudo_label_pupil='none' is none of"),
        (dict(refined_cls_weight=-1.0), 'refined_cls_weight=-1.0 must be 0 or more'),
        (dict(refined_cls_weight=0.0), 'refined_cls_weight=0 leaves nothing to train'),
        (
            dict(refined_cls_weight=0.0, pseudo_label_pupil='plain', **PSEUDO),
            'refined_cls_weight=0 leaves nothing to train',
        ),
        (dict(detach_context=True, sgcl=None), 'detach_context=True without sgcl'),
    ],
)
def test_options_that_cannot_work_are_refused(build_head, option, match):
    with pytest.raises(ValueError, match=match):
        build_head('m4', **option)


# ---------------------------------------------------------------------------------------- switches

SWITCHES = dict(
    no_background=dict(grouping=dict(background=False)),
    outliers=dict(grouping=dict(keep_outliers=True, min_cam=0.3, num_rounds=0)),
    no_graph=dict(graph_rounds=0),
    two_rounds=dict(graph_rounds=2),
    convolution=dict(graph_attention=False),
    batch_scope=dict(stream_scope='batch'),
    detached=dict(detach_context=True),
    no_memory=dict(memory_momentum=None),
    pixels_alone=dict(refined_cls_weight=0.0, pseudo_label_pupil='both', **PSEUDO),
    classes=dict(reading='classes', group_index=(0,), **PSEUDO),
    plain_labels=dict(pseudo_label_source='plain', pseudo_label_pupil='plain', **PSEUDO),
)


@pytest.mark.parametrize('switch', sorted(SWITCHES))
def test_every_switch_trains_every_parameter(build_head, feats, switch):
    head = build_head('m4', **SWITCHES[switch])
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    for _ in range(2):
        losses = head.loss_by_image_labels(feats, LABELS)
    sum_of(losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('switch', sorted(SWITCHES))
def test_every_switch_leaves_the_order_of_the_images_alone(build_head, feats, switch):
    head = build_head('m4', **SWITCHES[switch])
    order = torch.tensor([2, 0, 3, 1])
    state = {name: value.clone() for name, value in head.state_dict().items()}
    losses = head.loss_by_image_labels(feats, LABELS)
    head.load_state_dict(state)
    permuted = head.loss_by_image_labels((feats[0][order],), LABELS[order])
    torch.testing.assert_close(permuted, losses)


def test_graph_of_no_round_has_no_weights(build_head):
    names = {name for name, _ in build_head('m4', graph_rounds=0).named_parameters()}
    assert not any(name.startswith('message') for name in names)


def describe(head, feats):
    seen = head.projection(feats[0]), head.plain_evidence(feats), LABELS
    return head.describe_images(*seen, head.group(feats, *seen))


def test_second_round_passes_on_what_the_first_brought(build_head, trained, feats):
    own = describe(trained, feats)
    visible = torch.ones(4, 5, dtype=torch.bool)
    once = trained.make_nodes(own, visible)
    trained.graph_rounds = 2
    twice = trained.make_nodes(own, visible)
    assert not torch.allclose(once, twice)
    trained.graph_rounds = 0
    torch.testing.assert_close(
        trained.make_nodes(own, visible), make_class_nodes(own.groups, own.probabilities)
    )


def test_pixels_may_read_the_groups_of_all_images(trained, feats):
    trained.stream_scope = 'batch'
    embeddings = trained.projection(feats[0])
    own = describe(trained, feats)
    everything = torch.ones(4, 5, dtype=torch.bool)
    nodes = trained.make_nodes(own, everything)
    readable = trained.make_readable(own, nodes, own, nodes, everything)
    refined = trained.refine(feats[0], embeddings, readable)
    groups = torch.cat([own.groups[own.valid], trained.memory])
    values = torch.cat([nodes[own.valid], trained.memory])
    cosine = torch.cosine_similarity(embeddings[:, None], groups[None, :, :, None, None], dim=2)
    attention = (cosine / trained.temperature).softmax(dim=1)
    enriched = torch.einsum('ngij,ge->neij', attention, values)
    expected = trained.refined_classifier(feats[0]) + trained.enriched_classifier(enriched)
    torch.testing.assert_close(refined, expected, atol=1e-4, rtol=1e-4)


def test_reading_all_groups_an_image_scores_alone_as_in_a_batch(trained, feats, make_samples):
    trained.stream_scope = 'batch'
    metas = metas_of(make_samples(LABELS))
    together = trained.predict(feats, metas, test_cfg=None)
    for index in range(4):
        alone = trained.predict((feats[0][index, None],), [metas[index]], test_cfg=None)
        torch.testing.assert_close(alone[0], together[index])


def test_detached_context_learns_nothing_from_the_refined_scores(build_head, feats):
    head = build_head('m4', detach_context=True)
    nn.init.normal_(head.enriched_classifier.weight)
    head.loss_by_image_labels(feats, LABELS)['loss_cls_refined'].backward()
    assert head.message.weight.grad is None
    assert head.projection.weight.grad.abs().sum() > 0


READS_CLASSES = dict(reading='classes', group_index=(0, 1), grouping=dict(min_cam=0.4))


@pytest.fixture
def levels():
    """Outputs of a backbone, the last of which the head reads."""
    return torch.randn(4, 3, 9, 9), torch.randn(4, 6, 5, 5)


def test_head_that_reads_classes_has_no_second_classifier(build_head, levels):
    head = build_head('m4', **READS_CLASSES)
    names = {name.split('.')[0] for name, _ in head.named_parameters()}
    assert names == {'classifier', 'projection', 'message'}
    losses = head.loss_by_image_labels(levels, LABELS)
    assert set(losses) == {'loss_cls', 'loss_pgcl', 'loss_sgcl'}


def test_reading_alone_trains_what_the_baseline_trains(build_head, levels):
    head = build_head('m4', pgcl=None, sgcl=None, **READS_CLASSES)
    assert {name for name, _ in head.named_parameters()} == {'classifier.weight'}
    plain = build_head('m0')
    plain.load_state_dict(head.state_dict(), strict=False)
    losses = head.loss_by_image_labels(levels, LABELS)
    assert losses == plain.loss_by_image_labels(levels, LABELS)
    assert head.embed(levels[1]) is levels[1]
    assert head.forward(levels, LABELS).shape == (4, 3, 5, 5)


def test_classes_are_those_of_groups_by_the_levels_that_the_config_names(build_head, levels):
    head = build_head('m4', **READS_CLASSES)
    evidence = head.forward(levels, LABELS)
    cams = normalize_cams(head.classifier(levels[1]), LABELS)
    rows = stack_levels(levels, (5, 5))
    groups = group_pixels(torch.zeros(4, 1, 5, 5), cams, LABELS, rows=rows, min_cam=0.4)
    expected = read_group_classes(groups.correlation, groups.valid, head.temperature)
    torch.testing.assert_close(evidence, expected)
    one_level = build_head('m4', **dict(READS_CLASSES, group_index=(1,)))
    one_level.load_state_dict(head.state_dict())
    assert not torch.allclose(one_level.forward(levels, LABELS), evidence)


def test_reading_classes_an_image_scores_alone_as_in_a_batch(build_head, levels, make_samples):
    head = build_head('m4', **READS_CLASSES)
    metas = metas_of(make_samples(LABELS))
    together = head.predict(levels, metas, test_cfg=None)
    for index in range(4):
        own = [level[index, None] for level in levels]
        alone = head.predict(own, [metas[index]], test_cfg=None)
        torch.testing.assert_close(alone[0], together[index])


def test_classes_that_are_read_are_absent_where_they_are_not_labelled(build_head, levels):
    maps = build_head('m4', **READS_CLASSES).forward(levels, LABELS)
    assert maps.min() >= 0
    assert maps.sum(dim=1).max() <= 1 + 1e-5
    assert maps[LABELS == 0].eq(0).all()


def test_without_a_memory_nothing_is_remembered(build_head, feats):
    head = build_head('m4', memory_momentum=None)
    head.loss_by_image_labels(feats, LABELS)
    assert not head.memory_valid.any()


def test_weight_scales_the_loss_of_the_refined_scores(build_head, feats):
    head = build_head('m4')
    outputs = head.describe_batch(feats, LABELS)
    whole = head.classification_losses(outputs, LABELS)
    head.refined_cls_weight = 0.25
    quarter = head.classification_losses(outputs, LABELS)
    torch.testing.assert_close(quarter['loss_cls_refined'], whole['loss_cls_refined'] / 4)
    assert quarter['loss_cls'] == whole['loss_cls']
    head.refined_cls_weight = 0.0
    assert set(head.classification_losses(outputs, LABELS)) == {'loss_cls'}


@pytest.mark.parametrize('source', ['plain', 'refined'])
@pytest.mark.parametrize('pupil', ['plain', 'refined', 'both'])
def test_pseudo_labels_are_made_and_learned_by_whom_the_config_says(
    build_head, feats, source, pupil
):
    head = build_head('m4', pseudo_label_source=source, pseudo_label_pupil=pupil, **PSEUDO)
    plain, refined = torch.randn(2, 4, 3, 5, 5)
    outputs = HeadOutputs(plain, refined, {})
    losses = head.pseudo_label_losses(outputs, LABELS, None)
    labels = head.make_online_labels(dict(plain=plain, refined=refined)[source], LABELS)
    pupils = dict(plain=[plain], refined=[refined], both=[plain, refined])[pupil]
    expected = sum(pixel_cross_entropy(logits, labels) for logits in pupils)
    torch.testing.assert_close(losses['loss_pseudo'], expected)


@pytest.mark.parametrize('pupil', ['plain', 'refined', 'both'])
def test_without_a_dual_stream_the_plain_evidence_is_source_and_pupil(build_head, pupil):
    head = build_head('m3', pseudo_label_pupil=pupil, **PSEUDO)
    outputs = HeadOutputs(torch.randn(4, 3, 5, 5), None, {})
    assert head.labelling_logits(outputs) is outputs.cam_logits
    (taught,) = head.taught_logits(outputs)
    assert taught is outputs.cam_logits


# --------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize('labelled', [True, False])
def test_an_image_scores_alone_as_in_a_batch(trained, feats, make_samples, labelled):
    assert trained.memory_valid.all()
    metas = metas_of(make_samples(LABELS if labelled else 4))
    together = trained.predict(feats, metas, test_cfg=None)
    for index in range(4):
        own = [feats[0][index : index + 1]]
        alone = trained.predict(own, metas[index : index + 1], test_cfg=None)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)


def test_class_memory_is_read_at_inference(trained, feats):
    before = trained.forward(feats, LABELS)
    trained.memory.mul_(-1)
    assert not torch.allclose(trained.forward(feats, LABELS), before, atol=1e-3)
    trained.memory_valid.fill_(False)
    trained.memory.fill_(float('inf')).nan_to_num_(posinf=1e3)
    forgotten = trained.forward(feats, LABELS)
    trained.memory.zero_()
    assert torch.equal(trained.forward(feats, LABELS), forgotten)


def test_inference_leaves_the_memory_alone(trained, feats, make_samples):
    before = trained.memory.clone()
    trained.predict(feats, metas_of(make_samples(LABELS)), test_cfg=None)
    assert torch.equal(trained.memory, before)


def test_given_labels_overrule_the_predicted_ones(trained, feats, make_samples):
    predicted = trained.predict(feats, metas_of(make_samples(4)), test_cfg=None)
    given = trained.predict(feats, metas_of(make_samples(LABELS)), test_cfg=None)
    assert not torch.equal(given, predicted)
    absent = LABELS == 0
    assert given[:, 1:][absent].count_nonzero() == 0


def test_labels_are_predicted_once_from_the_plain_cams(trained, feats, make_samples):
    labels = trained.predict_labels(trained.plain_evidence(feats))
    refined = trained.predict_labels(trained.forward(feats, labels))
    assert not torch.equal(labels, refined)
    predicted = trained.predict(feats, metas_of(make_samples(4)), test_cfg=None)
    expected = trained.predict(feats, metas_of(make_samples(labels.detach())), test_cfg=None)
    assert torch.equal(predicted, expected)


def test_refinement_can_be_left_out(trained, build_head, feats, make_samples):
    plain = build_head('m0').eval()
    plain.classifier.weight.data.copy_(trained.classifier.weight.data)
    for labels in (LABELS, 4):
        metas = metas_of(make_samples(labels))
        expected = plain.predict(feats, metas, test_cfg=None)
        assert torch.equal(trained.predict(feats, metas, dict(refine=False)), expected)
        assert not torch.equal(trained.predict(feats, metas, dict(refine=True)), expected)


def test_partly_missing_labels_error_names_the_image(trained, feats, make_samples):
    metas = metas_of(make_samples(LABELS))
    del metas[1]['gt_image_label']
    with pytest.raises(ValueError, match=r'1\.jpg has no gt_image_label but others'):
        trained.predict(feats, metas, test_cfg=None)


def test_missing_labels_error_says_where_to_give_them(trained, feats, make_samples):
    with pytest.raises(ValueError, match=r'no gt_image_label: give the data set image_labels='):
        trained.loss(feats, make_samples(4), train_cfg=None)


# ------------------------------------------------------------------------------------ class memory


def filled_context(value=1.0, classes=(0, 1, 2, 3), images=2):
    """Context of images whose groups are sure of their classes and equal to a constant."""
    valid = torch.zeros(images, 4, dtype=torch.bool)
    valid[:, list(classes)] = True
    groups = torch.full((images, 4, 8), value) * valid.unsqueeze(2)
    return ImageContext(groups, valid, torch.diag_embed(valid.float()), groups, valid)


def test_class_memory_forgets_a_batch_that_is_not_finite(build_head):
    head = build_head('m4')
    head.update_memory(filled_context(2.0, classes=(0, 1)))
    head.update_memory(filled_context(float('inf'), classes=(0, 3)))
    assert head.memory[:2].eq(2.0).all()
    assert head.memory.isfinite().all()
    assert head.memory_valid.tolist() == [True, True, False, False]


def test_class_memory_is_a_moving_average(build_head):
    head = build_head('m4', memory_momentum=0.9)
    head.update_memory(filled_context(2.0, classes=(0, 1)))
    assert head.memory_valid.tolist() == [True, True, False, False]
    # The first time there is nothing to keep.
    assert head.memory[:, 0].tolist() == [2.0, 2.0, 0.0, 0.0]
    head.update_memory(filled_context(4.0, classes=(0, 3)))
    assert head.memory_valid.tolist() == [True, True, False, True]
    torch.testing.assert_close(head.memory[:, 0], torch.tensor([2.2, 2.0, 0.0, 4.0]))
    assert torch.equal(head.memory, head.memory[:, :1].expand(4, 8))


def test_class_memory_averages_the_images_of_a_class(build_head):
    head = build_head('m4')
    one, three = filled_context(1.0, (0, 1), images=1), filled_context(3.0, (0, 2), images=1)
    head.update_memory(ImageContext(*map(torch.cat, zip(one, three, strict=True))))
    torch.testing.assert_close(head.memory[:, 0], torch.tensor([2.0, 1.0, 3.0, 0.0]))


def test_a_step_remembers_the_classes_of_its_batch(build_head, feats):
    head = build_head('m1')
    head.loss_by_image_labels(feats, LABELS * torch.tensor([1.0, 0.0, 1.0]))
    assert head.memory_valid.tolist() == [True, True, False, True]
    assert head.memory[2].count_nonzero() == 0
    assert not head.memory.requires_grad


def test_class_memory_gives_a_lone_image_its_partner(build_head, feats):
    head = build_head('m1')
    feat, label = [feats[0][:1]], LABELS[:1]
    assert head.loss_by_image_labels(feat, label)['loss_pgcl'] == 0
    assert head.loss_by_image_labels(feat, label)['loss_pgcl'] > 0


# ------------------------------------------------------------------------------ precision and speed


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_bfloat16_losses_are_close_to_float32(build_head, ablation):
    feats = torch.randn(4, 6, 8, 8)
    # Pixels of a class resemble each other, as trained ones do: rounding moves none elsewhere.
    feats += 4 * torch.randn(4, 6, 1, 1)
    full, low = build_head(ablation), build_head(ablation)
    low.load_state_dict(full.state_dict())
    for _ in range(2):
        expected = full.loss_by_image_labels([feats], LABELS)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            losses = low.loss_by_image_labels([feats], LABELS)
        torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.02, check_dtype=False)
    sum_of(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in low.parameters())
    assert low.memory.dtype == torch.float32


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_a_step_reads_no_value_back(build_head, make_samples, ablation):
    """Tensors without values refuse to be read, for which a GPU would have to be waited for."""
    head, samples = build_head(ablation), make_samples(LABELS)
    with FakeTensorMode(allow_non_fake_inputs=True):
        feats = torch.randn(4, 6, 5, 5)
        sum_of(head.loss([feats], samples, train_cfg=None)).backward()
        with pytest.raises(DataDependentOutputException):
            feats.sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('ablation', ABLATIONS)
def test_a_step_never_waits_for_the_gpu(build_head, feats, ablation):
    head = build_head(ablation).cuda()
    feat, labels = [feats[0].cuda()], LABELS.cuda()
    torch.cuda.set_sync_debug_mode('error')
    try:
        sum_of(head.loss_by_image_labels(feat, labels)).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


# ----------------------------------------------------------------------------------- a stock config


def test_stock_mmseg_config_trains_with_another_head(make_samples):
    path = Path(mmseg.__file__).parent / '.mim/configs/_base_/models/fcn_r50-d8.py'
    cfg = Config.fromfile(path).model
    cfg.pretrained, cfg.auxiliary_head = None, None
    cfg.backbone.norm_cfg = dict(type='BN')
    cfg.data_preprocessor.size = (48, 48)
    cfg.decode_head = dict(
        type='DSCHead',
        in_channels=2048,
        in_index=3,
        num_classes=4,
        pgcl=dict(type='PGCLLoss'),
        sgcl=dict(type='SGCLLoss'),
    )
    model = MODELS.build(cfg)
    model.init_weights()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.01)))
    images = [torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8) for _ in range(2)]
    log = model.train_step(dict(inputs=images, data_samples=make_samples(LABELS[[0, 3]])), wrapper)
    assert all(value.isfinite() for value in log.values())
    after = dict(model.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    for part in ('backbone.stem.0.weight', 'decode_head.classifier.weight'):
        assert not torch.equal(before[part], after[part]), part


# -------------------------------------------------------------------------------------- many ranks


class SmallNet(nn.Module):
    """A convolution and a head, so that gradient passes through the features."""

    def __init__(self, ablation):
        super().__init__()
        contrasts = {name[5:]: dict(type=f'{name[5:].upper()}Loss') for name in CONTRASTS[ablation]}
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 6, 3)
        head = dict(type='DSCHead', in_channels=6, num_classes=4, embed_channels=8)
        self.head = MODELS.build(dict(head, dual_stream=ablation == 'm4', **contrasts))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, images, image_labels):
        return self.head.loss_by_image_labels([self.backbone(images)], image_labels)


def train_two_steps(ablation, rank, ranks):
    """Record losses, gradients and memory of the second step, which reads the memory."""
    torch.set_num_threads(1)
    net = SmallNet(ablation)
    model = nn.parallel.DistributedDataParallel(net) if ranks > 1 else net
    images, labels = torch.randn(4, 3, 7, 7).chunk(ranks)[rank], LABELS.chunk(ranks)[rank]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        losses = model(images, labels)
        sum_of(losses).backward()
        optimizer.step()
    return dict(
        losses={name: loss.detach() for name, loss in losses.items()},
        grads={name: parameter.grad for name, parameter in net.named_parameters()},
        memory=net.head.memory,
        memory_valid=net.head.memory_valid,
    )


def run_rank(rank, folder):
    """Be one of two ranks: the work of the processes that the test starts."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    records = {ablation: train_two_steps(ablation, rank, ranks=2) for ablation in ABLATIONS}
    torch.save(records, f'{folder}/rank{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory, repository):
    """Records of two ranks. torch's spawn would have to import this file by a package name."""
    folder = tmp_path_factory.mktemp('two_ranks')
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    path = os.pathsep.join([str(repository), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path)
    processes = [subprocess.Popen(command, env=env) for command in commands]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_two_ranks_with_half_the_batch_equal_one(two_ranks, ablation):
    expected = train_two_steps(ablation, rank=0, ranks=1)
    records = [record[ablation] for record in two_ranks]
    for name, loss in expected['losses'].items():
        mean = torch.stack([record['losses'][name] for record in records]).mean()
        torch.testing.assert_close(mean, loss, rtol=0, atol=1e-5, msg=name)
        if name in CONTRASTS[ablation]:
            torch.testing.assert_close(records[0]['losses'][name], records[1]['losses'][name])
    for record in records:
        torch.testing.assert_close(record['grads'], expected['grads'], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(record['memory'], expected['memory'], rtol=1e-5, atol=1e-5)
        assert torch.equal(record['memory_valid'], expected['memory_valid'])


if __name__ == '__main__':
    run_rank(int(sys.argv[1]), sys.argv[2])
