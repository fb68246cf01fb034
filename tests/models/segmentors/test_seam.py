"""SEAM's training step against one transcription of its description, and its CAMs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mmdscnet.functional.cam import normalize_cams, stretch_cams
from mmdscnet.functional.dual_stream import read_group_classes
from mmdscnet.functional.pixel_groups import group_pixels, stack_levels
from mmdscnet.functional.pseudo_label import make_pseudo_labels, pixel_cross_entropy

LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 1]])
SIZE = (64, 80)
PSEUDO = dict(pseudo_label=dict(type='PseudoLabelLoss'))
SEAM_TERMS = {'loss_er', 'loss_ecr', 'loss_min_pooling'}
ABLATIONS = ['m0', 'm1', 'm2', 'm3', 'm4']
HEAD_TERMS = dict(
    m0={'loss_cls'},
    m1={'loss_cls', 'loss_pgcl'},
    m2={'loss_cls', 'loss_sgcl'},
    m3={'loss_cls', 'loss_pgcl', 'loss_sgcl'},
    m4={'loss_cls', 'loss_cls_refined', 'loss_pgcl', 'loss_sgcl'},
)


@pytest.fixture
def images():
    # Blocks, so that the small view resembles the large one.
    coarse = torch.randn(3, 3, 8, 10)
    return F.interpolate(coarse, SIZE, mode='bilinear') + 0.1 * torch.randn(3, 3, *SIZE)


@pytest.fixture
def build_trained(build_seam):
    """Build a SEAM whose every class has positive evidence somewhere, as a trained one has."""

    def build(ablation, **kwargs):
        seam = build_seam(ablation, **kwargs)
        for parameter in seam.decode_head.parameters():
            nn.init.normal_(parameter, std=0.5)
        return seam

    return build


@pytest.fixture
def settled(build_trained, images, make_samples):
    """Make a SEAM in evaluation, with the batch statistics and the memory of a few steps."""

    def make(ablation, **kwargs):
        seam = build_trained(ablation, **kwargs)
        for _ in range(5):
            seam.loss(images, make_samples(LABELS, size=SIZE))
        return seam.eval()

    return make


# ------------------------------------------------------------------------------- the transcription


def grow(maps, size):
    return F.interpolate(maps, size, mode='bilinear', align_corners=True)


def maxnorm(maps):
    maps = maps.relu()
    high = maps.flatten(2).max(dim=2).values[..., None, None]
    low = maps.flatten(2).min(dim=2).values[..., None, None]
    return (maps - low - 1e-5).relu() / (high - low + 1e-5)


def correlate(pcm, images, feats, cam):
    """The PCM on evidence of K + 1 channels, that of the background first."""
    cam_d = cam.detach().relu()
    cam_d = cam_d / (cam_d.flatten(2).max(dim=2).values[..., None, None] + 1e-5)
    strongest = cam_d[:, 1:].max(dim=1, keepdim=True).values
    cam_d[:, 1:][cam_d[:, 1:] != strongest] = 0
    cam_d[:, :1] = 1 - strongest
    conv4 = F.conv2d(feats[1].detach(), pcm.reduce[0].weight).relu()
    conv5 = F.conv2d(feats[2].detach(), pcm.reduce[1].weight).relu()
    stacked = torch.cat([grow(images, cam.shape[2:]), conv4, conv5], dim=1)
    f = F.conv2d(stacked, pcm.fuse.weight).flatten(2)
    f = f / (f.norm(dim=1, keepdim=True) + 1e-5)
    affinity = (f.transpose(1, 2) @ f).relu()
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)
    return (cam_d.flatten(2) @ affinity).view_as(cam)


def soft_margin(cam, image_labels):
    scores = cam.mean(dim=(2, 3))
    terms = image_labels * F.logsigmoid(scores) + (1 - image_labels) * F.logsigmoid(-scores)
    return -terms.mean()


def lowest_quarter(cam_rv):
    foreground = cam_rv[:, 1:].max(dim=1).values.relu().flatten(1)
    pixels = foreground.shape[1]
    return foreground.sort(dim=1).values[:, : pixels // 4].mean()


def cross(cam, cam_rv):
    """One direction of ECR, on maps of K + 1 channels."""
    target = cam.detach().clone()
    strongest = target[:, 1:].max(dim=1, keepdim=True).values
    target[:, :1] = 1 - strongest
    target[:, 1:][target[:, 1:] != strongest] = 0
    difference = (target - cam_rv).abs().flatten(1)
    count = int(difference.shape[1] * 0.2)
    return difference.sort(dim=1, descending=True).values[:, :count].mean()


def transcribe_step(seam, images, image_labels, evidence_of=None):
    """The training step of SEAM as described: classifier of K + 1 channels, both views.

    ``evidence_of(feats)`` gives the evidence of another head than the plain one.
    """

    def plain_evidence(feats):
        return F.conv2d(feats[3], seam.decode_head.classifier.weight)

    height, width = images.shape[2:]
    small = grow(images, (int(height * 0.3), int(width * 0.3)))
    labels = torch.cat([torch.ones(len(images), 1), image_labels], dim=1)[:, :, None, None]
    cams, cams_rv = [], []
    for view in (images, small):
        feats = seam.backbone(view)
        evidence = (evidence_of or plain_evidence)(feats)
        # What the classifier says of the background is of no matter.
        cam = torch.cat([torch.randn_like(evidence[:, :1]), evidence], dim=1)
        cams.append(grow(cam, view.shape[2:]))
        cams_rv.append(grow(correlate(seam.pcm, view, feats, cam), view.shape[2:]))
    loss_cls = sum(soft_margin(cam[:, 1:], image_labels) for cam in cams) / 2
    loss_rvmin = sum(lowest_quarter(cam_rv * labels) for cam_rv in cams_rv) / 2
    cam1, cam_rv1 = (
        grow(maxnorm(maps), small.shape[2:]) * labels for maps in (cams[0], cams_rv[0])
    )
    cam2, cam_rv2 = (maxnorm(maps) * labels for maps in (cams[1], cams_rv[1]))
    return {
        'decode.loss_cls': loss_cls,
        'loss_min_pooling': loss_rvmin,
        'loss_er': (cam1[:, 1:] - cam2[:, 1:]).abs().mean(),
        'loss_ecr': cross(cam2, cam_rv1) + cross(cam1, cam_rv2),
    }


def gradients_of(loss, module):
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, gradients, strict=True))


def assert_gradients_close(gradients, expected):
    for name, gradient in gradients.items():
        reference = expected[name]
        if gradient is None or reference is None:
            both = [value for value in (gradient, reference) if value is not None]
            assert all(value.count_nonzero() == 0 for value in both), name
            continue
        atol = 1e-3 * reference.abs().max().item() + 1e-7
        torch.testing.assert_close(gradient, reference, rtol=0, atol=atol, msg=name)


def trained_by(loss, module):
    """Names of the parameters that learn from a loss."""
    gradients = gradients_of(loss, module)
    return {name for name, value in gradients.items() if value is not None and value.any()}


def learnable(seam, *prefixes):
    return {name for name, _ in seam.named_parameters() if name.startswith(prefixes)}


# ----------------------------------------------------------------------------------- training, M0


@pytest.mark.parametrize('size', [SIZE, (48, 48), (57, 75)])
@pytest.mark.parametrize('image_labels', [LABELS, LABELS * torch.tensor([[1.0], [0], [1]])])
def test_step_equals_the_description(build_trained, make_samples, images, size, image_labels):
    seam = build_trained('m0')
    images = grow(images, size)
    losses = seam.loss(images, make_samples(image_labels, size=size))
    expected = transcribe_step(seam, images, image_labels)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    assert all(value > 0 for value in losses.values())


@pytest.mark.parametrize('term', ['decode.loss_cls', *sorted(SEAM_TERMS)])
def test_gradient_of_every_term_equals_the_description(build_trained, make_samples, images, term):
    seam = build_trained('m0')
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    expected = transcribe_step(seam, images, LABELS)
    gradients = gradients_of(losses[term], seam)
    assert any(value is not None and value.any() for value in gradients.values())
    assert_gradients_close(gradients, gradients_of(expected[term], seam))


def test_gradient_of_the_sum_equals_the_description(build_trained, make_samples, images):
    seam = build_trained('m0')
    total, _ = seam.parse_losses(seam.loss(images, make_samples(LABELS, size=SIZE)))
    expected = sum(transcribe_step(seam, images, LABELS).values())
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=0)
    assert_gradients_close(gradients_of(total, seam), gradients_of(expected, seam))


@pytest.mark.parametrize('term', ['loss_ecr', 'loss_min_pooling'])
def test_cross_equivariance_and_minimum_pooling_train_the_three_convolutions_alone(
    build_trained, make_samples, images, term
):
    seam = build_trained('m0')
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    convolutions = {'pcm.reduce.0.weight', 'pcm.reduce.1.weight', 'pcm.fuse.weight'}
    assert trained_by(losses[term], seam) == convolutions == learnable(seam, 'pcm')


@pytest.mark.parametrize('term', ['decode.loss_cls', 'loss_er'])
def test_backbone_and_classifier_learn_from_classification_and_equivariance(
    build_trained, make_samples, images, term
):
    seam = build_trained('m0')
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    assert trained_by(losses[term], seam) == learnable(seam, 'backbone', 'decode_head')


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_gradient_reaches_every_parameter(build_seam, make_samples, images, ablation):
    seam = build_seam(ablation)
    total, _ = seam.parse_losses(seam.loss(images, make_samples(LABELS, size=SIZE)))
    total.backward()
    for name, parameter in seam.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_second_view_is_the_shrunken_first(build_seam, make_samples, images, monkeypatch):
    seam, seen = build_seam('m0'), []
    backbone = seam.extract_feat
    monkeypatch.setattr(seam, 'extract_feat', lambda view: seen.append(view) or backbone(view))
    seam.loss(images, make_samples(LABELS, size=SIZE))
    large, small = seen
    assert large is images
    assert torch.equal(small, grow(images, (19, 24)))
    # The corners stay in place.
    torch.testing.assert_close(
        small[:, :, [0, 0, -1, -1], [0, -1, 0, -1]], images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    )


def test_scale_of_the_second_view_can_be_chosen(build_seam, make_samples, images, monkeypatch):
    seam, seen = build_seam('m0', view_scale=0.5), []
    backbone = seam.extract_feat
    monkeypatch.setattr(seam, 'extract_feat', lambda view: seen.append(view) or backbone(view))
    seam.loss(images, make_samples(LABELS, size=SIZE))
    assert torch.equal(seen[1], grow(images, (32, 40)))


@pytest.mark.parametrize('scale', [0, 1, -0.3, 1.5])
def test_scale_of_the_second_view_outside_its_range_is_refused(build_seam, scale):
    with pytest.raises(ValueError, match=rf'view_scale={scale} must lie in \(0, 1\): SEAM uses'):
        build_seam('m0', view_scale=scale)


def test_weights_and_names_of_the_terms_are_those_of_their_configs(
    build_trained, make_samples, images
):
    seam = build_trained('m0')
    samples = make_samples(LABELS, size=SIZE)
    expected = seam.loss(images, samples)
    for index, part in enumerate(('equivariance', 'cross_equivariance', 'min_pooling')):
        getattr(seam, part).loss_weight = index + 2.0
        getattr(seam, part).loss_name = f'loss_{part}'
    losses = seam.loss(images, samples)
    torch.testing.assert_close(losses['loss_equivariance'], 2 * expected['loss_er'])
    torch.testing.assert_close(losses['loss_cross_equivariance'], 3 * expected['loss_ecr'])
    torch.testing.assert_close(losses['loss_min_pooling'], 4 * expected['loss_min_pooling'])


def test_order_of_the_images_is_of_no_matter(build_trained, make_samples, images):
    seam, order = build_trained('m0'), [2, 0, 1]
    expected = seam.loss(images, make_samples(LABELS, size=SIZE))
    losses = seam.loss(images[order], make_samples(LABELS[order], size=SIZE))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_missing_labels_error_says_where_to_give_them(build_seam, make_samples, images):
    with pytest.raises(ValueError, match=r'no gt_image_label: give the data set image_labels='):
        build_seam('m0').loss(images, make_samples(3, size=SIZE))


# ------------------------------------------------------------------------- training, DSCNet on SEAM


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_terms_are_those_of_the_head_and_of_seam(build_seam, make_samples, images, ablation):
    losses = build_seam(ablation).loss(images, make_samples(LABELS, size=SIZE))
    assert set(losses) == {f'decode.{name}' for name in HEAD_TERMS[ablation]} | SEAM_TERMS
    assert all(value.shape == () and value.isfinite() for value in losses.values())


@pytest.mark.parametrize('ablation', ABLATIONS)
def test_losses_of_the_head_are_averaged_over_the_views(
    build_trained, make_samples, images, ablation
):
    seam = build_trained(ablation)
    # The class memory moves from view to view.
    head = copy.deepcopy(seam.decode_head)
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    views = []
    for view in (images, grow(images, (19, 24))):
        outputs = head.describe_batch(seam.backbone(view), LABELS)
        terms = dict(outputs.contrasts)
        terms['loss_cls'] = soft_margin(grow(outputs.cam_logits, view.shape[2:]), LABELS)
        if outputs.refined_logits is not None:
            refined = grow(outputs.refined_logits, view.shape[2:])
            terms['loss_cls_refined'] = soft_margin(refined, LABELS)
        views.append(terms)
    for name in HEAD_TERMS[ablation]:
        expected = (views[0][name] + views[1][name]) / 2
        torch.testing.assert_close(losses[f'decode.{name}'], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('ablation', ['m1', 'm2', 'm3', 'm4'])
def test_terms_of_seam_are_those_of_the_cams_that_the_head_would_export(
    build_trained, make_samples, images, ablation
):
    seam = build_trained(ablation)
    head = copy.deepcopy(seam.decode_head)
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))

    def evidence_of(feats):
        outputs = head.describe_batch(feats, LABELS)
        return outputs.refined_logits if ablation == 'm4' else outputs.cam_logits

    expected = transcribe_step(seam, images, LABELS, evidence_of)
    for name in SEAM_TERMS:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-6)
    if ablation == 'm4':
        plain = transcribe_step(seam, images, LABELS)
        assert abs(losses['loss_er'] - plain['loss_er']) > 1e-3


def test_equivariance_of_refined_cams_trains_what_refines_them(build_trained, make_samples, images):
    seam = build_trained('m4')
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    trained = trained_by(losses['loss_er'], seam)
    for name in ('refined_classifier', 'enriched_classifier', 'projection', 'message'):
        assert f'decode_head.{name}.weight' in trained
    assert learnable(seam, 'backbone') <= trained
    assert not learnable(seam, 'pcm') & trained


@pytest.mark.parametrize('term', ['loss_ecr', 'loss_min_pooling'])
@pytest.mark.parametrize('ablation', ['m3', 'm4'])
def test_terms_across_the_pixel_correlation_leave_the_head_alone(
    build_trained, make_samples, images, ablation, term
):
    seam = build_trained(ablation)
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    assert trained_by(losses[term], seam) == learnable(seam, 'pcm')


@pytest.mark.parametrize('ablation', ['m1', 'm2', 'm3', 'm4'])
def test_terms_of_seam_start_from_those_of_the_baseline(
    build_seam, make_samples, images, ablation, tmp_path
):
    plain, seam = build_seam('m0'), build_seam(ablation)
    nn.init.normal_(plain.decode_head.classifier.weight, std=0.5)
    save_checkpoint(plain.state_dict(), str(tmp_path / 'm0.pth'))
    load_checkpoint(seam, str(tmp_path / 'm0.pth'))
    samples = make_samples(LABELS, size=SIZE)
    expected, losses = plain.loss(images, samples), seam.loss(images, samples)
    for name in ('decode.loss_cls', *SEAM_TERMS):
        torch.testing.assert_close(losses[name], expected[name])
    if ablation == 'm4':
        torch.testing.assert_close(losses['decode.loss_cls_refined'], expected['decode.loss_cls'])


def test_a_freshly_initialised_m4_refines_nothing_yet(build_seam, make_samples, images):
    seam = build_seam('m4')
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    expected = transcribe_step(seam, images, LABELS)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------ training by pseudo labels


@pytest.fixture
def make_stored(make_samples):
    """Pack the image-level labels with random label maps, as a data set with a store does."""

    def make():
        samples = make_samples(LABELS, size=SIZE)
        for sample in samples:
            sample.gt_sem_seg.data = torch.randint(0, 4, (1, *SIZE))
        return samples

    return make


@pytest.mark.parametrize('target', ['online', 'stored'])
@pytest.mark.parametrize('ablation', ['m0', 'm3', 'm4'])
def test_pseudo_labels_train_the_maps_of_the_first_view(
    build_trained, make_stored, images, ablation, target
):
    seam, samples = build_trained(ablation, **PSEUDO), make_stored()
    seam.decode_head.pseudo_label_target = target
    head = copy.deepcopy(seam.decode_head)
    losses = seam.loss(images, samples)
    outputs = head.describe_batch(seam.backbone(images), LABELS)
    maps = grow(outputs.best_logits, SIZE)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    if target == 'online':
        labels = make_pseudo_labels(stretch_cams(maps, LABELS), head.bg_thr)
    torch.testing.assert_close(losses['decode.loss_pseudo'], pixel_cross_entropy(maps, labels))


def test_without_pseudo_labels_nothing_changes(build_trained, make_stored, images):
    plain, other = build_trained('m4'), build_trained('m4', **PSEUDO)
    other.load_state_dict(plain.state_dict())
    expected, losses = (seam.loss(images, make_stored()) for seam in (plain, other))
    assert losses.keys() - expected.keys() == {'decode.loss_pseudo'}
    assert {name: losses[name] for name in expected} == expected


@pytest.mark.parametrize('target', ['online', 'stored'])
def test_pseudo_labels_train_backbone_and_refined_classifier(
    build_trained, make_stored, images, target
):
    seam = build_trained('m4', **PSEUDO)
    seam.decode_head.pseudo_label_target = target
    trained = trained_by(seam.loss(images, make_stored())['decode.loss_pseudo'], seam)
    assert learnable(seam, 'backbone', 'decode_head.refined', 'decode_head.enriched') <= trained
    assert not learnable(seam, 'pcm', 'decode_head.classifier') & trained


def test_online_pseudo_labels_never_look_at_a_mask(build_trained, make_stored, images):
    seam, without = build_trained('m0', **PSEUDO), make_stored()
    for sample in without:
        del sample.gt_sem_seg
    assert seam.loss(images, make_stored()) == seam.loss(images, without)


def test_missing_stored_labels_error_names_image_and_mend(build_seam, make_stored, images):
    seam, samples = build_seam('m0', **PSEUDO), make_stored()
    seam.decode_head.pseudo_label_target = 'stored'
    del samples[1].gt_sem_seg
    with pytest.raises(ValueError, match=r'1\.jpg has no gt_sem_seg.*LoadStoredLabels'):
        seam.loss(images, samples)


# ------------------------------------------------------- training: degenerate, precision, no syncs


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
@pytest.mark.parametrize(
    'image_labels',
    [torch.zeros(3, 3), torch.ones(3, 3), torch.eye(3)],
    ids=['no-class', 'all-classes', 'one-class-each'],
)
def test_batches_of_any_labels_are_finite(
    build_trained, make_samples, images, ablation, image_labels
):
    seam = build_trained(ablation)
    for _ in range(2):
        losses = seam.loss(images, make_samples(image_labels, size=SIZE))
    assert all(value.isfinite() for value in losses.values())
    seam.parse_losses(losses)[0].backward()
    for name, parameter in seam.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_image_without_class_has_nothing_to_compare_but_its_background(
    build_trained, make_samples, images
):
    losses = build_trained('m0').loss(images, make_samples(torch.zeros(3, 3), size=SIZE))
    assert losses['loss_er'] == 0
    assert losses['loss_min_pooling'] == 0
    assert losses['decode.loss_cls'] > 0


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
@pytest.mark.parametrize('value', [0.0, -0.5])
def test_classifier_without_positive_evidence_is_finite(
    build_trained, make_samples, images, ablation, value
):
    seam = build_trained(ablation)
    for name, parameter in seam.decode_head.named_parameters():
        if 'classifier' in name:
            nn.init.constant_(parameter, value)
    losses = seam.loss(images, make_samples(LABELS, size=SIZE))
    assert all(value.isfinite() for value in losses.values())
    seam.parse_losses(losses)[0].backward()
    assert all(parameter.grad.isfinite().all() for parameter in seam.parameters())


def test_images_of_one_colour_are_finite(build_trained, make_samples):
    seam = build_trained('m0')
    losses = seam.loss(torch.zeros(3, 3, *SIZE), make_samples(LABELS, size=SIZE))
    assert all(value.isfinite() for value in losses.values())
    seam.parse_losses(losses)[0].backward()
    assert all(parameter.grad.isfinite().all() for parameter in seam.parameters())


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_bfloat16_losses_are_close_and_float32(build_trained, make_samples, images, ablation):
    full = build_trained(ablation)
    low = copy.deepcopy(full)
    samples = make_samples(LABELS, size=SIZE)
    expected = full.loss(images, samples)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = low.loss(images, samples)
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(expected[name].item(), rel=0.1, abs=0.02), name
    low.parse_losses(losses)[0].backward()
    assert all(parameter.grad.isfinite().all() for parameter in low.parameters())


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_a_step_reads_no_value_back(build_seam, make_samples, ablation):
    """Tensors without values refuse to be read, for which a GPU would have to be waited for."""
    seam, samples = build_seam(ablation), make_samples(LABELS, size=SIZE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = torch.randn(3, 3, *SIZE)
        sum(seam.loss(inputs, samples).values()).backward()
        with pytest.raises(DataDependentOutputException):
            inputs.sum().item()


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_same_seed_same_numbers(build_seam, make_samples, ablation):
    def train():
        torch.manual_seed(7)
        seam = build_seam(ablation, dropout_ratio=0.5)
        wrapper = build_optim_wrapper(seam, dict(optimizer=dict(type='SGD', lr=0.1)))
        images = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in LABELS]
        data = dict(inputs=images, data_samples=make_samples(LABELS, size=SIZE))
        logs = [seam.train_step(copy.deepcopy(data), wrapper) for _ in range(3)]
        return logs, dict(seam.state_dict())

    logs, state = train()
    again, state_again = train()
    assert logs == again
    assert logs[0] != logs[1]
    torch.testing.assert_close(state, state_again, rtol=0, atol=0)


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_training_lowers_the_losses(build_seam, make_samples, images, ablation):
    seam = build_seam(ablation)
    optimizer = torch.optim.SGD(seam.parameters(), lr=0.05, momentum=0.9)
    totals = []
    for _ in range(12):
        total, _ = seam.parse_losses(seam.loss(images, make_samples(LABELS, size=SIZE)))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


# --------------------------------------------------------------------------------------- inference


def revised_maps(seam, images, refined_labels=None):
    """The foreground of the PCM, at the size of the view."""
    feats = seam.backbone(images)
    if refined_labels is None:
        evidence = F.conv2d(feats[3], seam.decode_head.classifier.weight)
    else:
        evidence = seam.decode_head.forward(feats, refined_labels)
    cam = torch.cat([torch.zeros_like(evidence[:, :1]), evidence], dim=1)
    return grow(correlate(seam.pcm, images, feats, cam)[:, 1:], images.shape[2:])


def plain_maps(seam, images):
    evidence = F.conv2d(seam.backbone(images)[3], seam.decode_head.classifier.weight)
    return grow(evidence, images.shape[2:])


def scores_of(results):
    return torch.stack([result.seg_logits.data for result in results])


def predict(seam, images, samples):
    with torch.no_grad():
        return seam.predict(images, samples)


def with_original_size(samples, size):
    for sample in samples:
        sample.set_metainfo(dict(ori_shape=size))
    return samples


@pytest.mark.parametrize('original', [SIZE, (75, 100)])
def test_cams_are_those_after_the_pixel_correlation(settled, make_samples, images, original):
    seam = settled('m0')
    samples = with_original_size(make_samples(LABELS, size=SIZE), original)
    results = predict(seam, images, samples)
    scores = scores_of(results)
    with torch.no_grad():
        cams = maxnorm(revised_maps(seam, images)) * LABELS[:, :, None, None]
    expected = F.interpolate(cams, original, mode='bilinear', align_corners=False)
    torch.testing.assert_close(scores[:, 1:], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores[:, 0], torch.full((3, *original), seam.decode_head.bg_thr))
    for result, row in zip(results, LABELS, strict=True):
        assert torch.equal(result.seg_logits.data[1:].amax(dim=(1, 2)) > 0, row > 0)
        argmax = result.seg_logits.data.argmax(dim=0, keepdim=True)
        assert torch.equal(result.pred_sem_seg.data, argmax)


@pytest.mark.parametrize('original', [SIZE, (75, 100)])
def test_evidence_grows_with_aligned_corners_to_the_view_and_without_to_the_image(
    settled, make_samples, images, original
):
    seam = settled('m0', test_cfg=dict(cam_output='logits'))
    samples = with_original_size(make_samples(LABELS, size=SIZE), original)
    logits = scores_of(predict(seam, images, samples))
    with torch.no_grad():
        maps = revised_maps(seam, images)
    expected = F.interpolate(maps, original, mode='bilinear', align_corners=False)
    assert logits[:, 0].count_nonzero() == 0
    torch.testing.assert_close(logits[:, 1:], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_cams_of_the_plain_classifier_can_be_asked_for(settled, make_samples, images, ablation):
    seam = settled(ablation, test_cfg=dict(refine=False))
    scores = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    with torch.no_grad():
        expected = maxnorm(plain_maps(seam, images)) * LABELS[:, :, None, None]
    torch.testing.assert_close(scores[:, 1:], expected, rtol=0, atol=1e-4)
    seam.test_cfg = ConfigDict(mode='whole')
    revised = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    assert not torch.allclose(revised, scores, atol=0.05)


def test_pixel_correlation_revises_the_refined_cams(settled, make_samples, images):
    seam = settled('m4')
    scores = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    with torch.no_grad():
        expected = maxnorm(revised_maps(seam, images, LABELS)) * LABELS[:, :, None, None]
    torch.testing.assert_close(scores[:, 1:], expected, rtol=0, atol=1e-4)


def test_revised_cams_seed_the_groups_of_which_pixels_read(settled, make_samples, images):
    seam = settled('m4', reading='classes', group_index=(1, 3))
    scores = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    with torch.no_grad():
        feats = seam.backbone(images)
        evidence = F.conv2d(feats[3], seam.decode_head.classifier.weight)
        cam = torch.cat([torch.zeros_like(evidence[:, :1]), evidence], dim=1)
        revised = correlate(seam.pcm, images, feats, cam)[:, 1:]
        rows = stack_levels([feats[1], feats[3]], tuple(revised.shape[2:]))
        cams = normalize_cams(revised, LABELS)
        groups = group_pixels(torch.zeros_like(revised), cams, LABELS, rows=rows)
        maps = read_group_classes(groups.correlation, groups.valid, seam.decode_head.temperature)
        expected = maxnorm(grow(maps, images.shape[2:])) * LABELS[:, :, None, None]
    torch.testing.assert_close(scores[:, 1:], expected, rtol=0, atol=1e-4)
    seam.test_cfg = ConfigDict(mode='whole', refine=False)
    plain = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    with torch.no_grad():
        expected = maxnorm(plain_maps(seam, images)) * LABELS[:, :, None, None]
    torch.testing.assert_close(plain[:, 1:], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('ablation', ['m0', 'm3', 'm4'])
def test_labels_are_predicted_from_the_plain_evidence(settled, make_samples, images, ablation):
    seam = settled(ablation)
    results = predict(seam, images, make_samples(3, size=SIZE))
    with torch.no_grad():
        image_scores = plain_maps(seam, images).mean(dim=(2, 3))
    best = F.one_hot(image_scores.argmax(dim=1), 3).bool()
    labels = ((image_scores.sigmoid() > seam.decode_head.score_thr) | best).float()
    assert 0 < labels.mean() < 1
    expected = predict(seam, images, make_samples(labels, size=SIZE))
    assert torch.equal(scores_of(results), scores_of(expected))
    for result, row in zip(results, labels, strict=True):
        assert torch.equal(result.seg_logits.data[1:].amax(dim=(1, 2)) > 0, row > 0)


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
@pytest.mark.parametrize('labelled', [True, False])
def test_cams_of_an_image_do_not_depend_on_its_batch_mates(
    settled, make_samples, images, ablation, labelled
):
    seam = settled(ablation)
    samples = make_samples(LABELS if labelled else 3, size=SIZE)
    together = scores_of(predict(seam, images, samples))
    for index in range(3):
        own = slice(index, index + 1)
        alone = scores_of(predict(seam, images[own], samples[own]))
        torch.testing.assert_close(alone, together[own], rtol=0, atol=1e-4)


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_permuting_the_images_permutes_the_cams(settled, make_samples, images, ablation):
    seam, order = settled(ablation), [2, 0, 1]
    expected = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    permuted = predict(seam, images[order], make_samples(LABELS[order], size=SIZE))
    torch.testing.assert_close(scores_of(permuted), expected[order], rtol=0, atol=1e-4)


def test_image_without_class_is_background(settled, make_samples, images):
    results = predict(settled('m0'), images, make_samples(torch.zeros(3, 3), size=SIZE))
    assert scores_of(results)[:, 1:].count_nonzero() == 0
    assert all(result.pred_sem_seg.data.count_nonzero() == 0 for result in results)


def test_test_step_normalises_the_images_and_predicts(settled, make_samples):
    seam = settled('m0')
    pixels = torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8)
    data = dict(inputs=list(pixels), data_samples=make_samples(LABELS, size=SIZE))
    with torch.no_grad():
        scores = scores_of(seam.test_step(data))
    normalised = (pixels.float() - 127.5) / 63.75
    expected = scores_of(predict(seam, normalised, make_samples(LABELS, size=SIZE)))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_bfloat16_cams_are_close(settled, make_samples, images):
    seam = settled('m0')
    expected = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores = scores_of(predict(seam, images, make_samples(LABELS, size=SIZE)))
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().mean() < 0.03


def test_inference_changes_nothing(settled, make_samples, images):
    seam = settled('m4')
    before = copy.deepcopy(dict(seam.state_dict()))
    predict(seam, images, make_samples(LABELS, size=SIZE))
    torch.testing.assert_close(dict(seam.state_dict()), before, rtol=0, atol=0)


def test_prediction_in_windows_is_refused(settled, make_samples, images):
    seam = settled('m0', test_cfg=dict(crop_size=(32, 32), stride=(16, 16)))
    seam.test_cfg.mode = 'slide'
    with pytest.raises(ValueError, match=r"use mode='whole'"):
        seam.predict(images, make_samples(LABELS, size=SIZE))


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
def test_checkpoint_round_trip(settled, build_seam, make_samples, images, ablation, tmp_path):
    seam, other = settled(ablation), build_seam(ablation).eval()
    save_checkpoint(seam.state_dict(), str(tmp_path / 'seam.pth'))
    load_checkpoint(other, str(tmp_path / 'seam.pth'), strict=True)
    samples = make_samples(LABELS, size=SIZE)
    expected = scores_of(predict(seam, images, samples))
    assert torch.equal(scores_of(predict(other, images, samples)), expected)


def test_checkpoint_of_other_classes_is_refused(build_seam, tmp_path):
    save_checkpoint(build_seam('m0', num_classes=6).state_dict(), str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match=r'5 foreground .*decode_head\.classifier.*num_classes=6'):
        load_checkpoint(build_seam('m4'), str(tmp_path / 'other.pth'))


def test_auxiliary_head_is_refused(build_seam):
    head = dict(type='CAMHead', in_channels=32, num_classes=4)
    with pytest.raises(ValueError, match='auxiliary_head would not be trained by SEAM'):
        build_seam('m0', auxiliary_head=head)
