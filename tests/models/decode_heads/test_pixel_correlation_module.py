import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint, save_checkpoint
from mmseg.registry import MODELS
from torch import nn

PCM = dict(type='PixelCorrelationModule', in_channels=(5, 7), in_index=(0, 1), channels=(4, 6))


def build(**kwargs):
    pcm = MODELS.build(dict(PCM, **kwargs))
    pcm.init_weights()
    return pcm


@pytest.fixture
def pcm():
    return build()


@pytest.fixture
def batch():
    """Images, three outputs of a backbone of which two are taps, and class evidence."""
    images = torch.randn(3, 3, 40, 48, requires_grad=True)
    shapes = [(3, 5, 5, 6), (3, 7, 5, 6), (3, 9, 5, 6)]
    feats = tuple(torch.randn(shape, requires_grad=True) for shape in shapes)
    return images, feats, torch.randn(3, 4, 5, 6, requires_grad=True)


def transcribe(pcm, images, taps, cam_logits):
    """The module as the description has it, with the dense V x V matrix."""
    maps = cam_logits.relu()
    maps = maps / (maps.flatten(2).max(dim=2).values[..., None, None] + 1e-5)
    strongest = maps.max(dim=1, keepdim=True).values
    cams = torch.cat([1 - strongest, torch.where(maps == strongest, maps, 0)], dim=1)
    size = cams.shape[2:]
    parts = [F.interpolate(images, size, mode='bilinear', align_corners=True)]
    for tap, conv in zip(taps, pcm.reduce, strict=True):
        part = F.conv2d(tap, conv.weight).relu()
        parts.append(F.interpolate(part, size, mode='bilinear', align_corners=True))
    vectors = F.conv2d(torch.cat(parts, dim=1), pcm.fuse.weight).flatten(2)
    vectors = F.normalize(vectors, dim=1)
    affinity = (vectors.transpose(1, 2) @ vectors).relu()
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)
    return (cams.flatten(2) @ affinity).view_as(cams)


def test_maps_equal_the_description(pcm, batch):
    images, feats, cam_logits = batch
    revised = pcm(images, feats, cam_logits)
    assert revised.shape == (3, 5, 5, 6)
    expected = transcribe(pcm, images, feats[:2], cam_logits)
    torch.testing.assert_close(revised, expected, rtol=0, atol=1e-4)


def test_taps_of_other_sizes_are_resized_to_the_evidence(pcm, batch):
    images, (first, second, _), cam_logits = batch
    taps = first.repeat_interleave(2, dim=2), second[..., :3]
    revised = pcm(images, taps, cam_logits)
    expected = transcribe(pcm, images, taps, cam_logits)
    torch.testing.assert_close(revised, expected, rtol=0, atol=1e-4)


def test_taps_are_chosen_by_their_index(batch):
    images, feats, cam_logits = batch
    pcm = build(in_channels=(9,), in_index=(-1,), channels=(6,))
    revised = pcm(images, feats, cam_logits)
    expected = transcribe(pcm, images, feats[2:], cam_logits)
    torch.testing.assert_close(revised, expected, rtol=0, atol=1e-4)


def test_widths_are_those_of_seam_by_default():
    pcm = MODELS.build(dict(type='PixelCorrelationModule'))
    shapes = {name: tuple(weight.shape) for name, weight in pcm.named_parameters()}
    assert shapes == {
        'reduce.0.weight': (64, 512, 1, 1),
        'reduce.1.weight': (128, 1024, 1, 1),
        'fuse.weight': (192, 195, 1, 1),
    }


def test_gradient_reaches_the_three_convolutions_and_nothing_else(pcm, batch):
    images, feats, cam_logits = batch
    (pcm(images.detach(), feats, cam_logits) * torch.randn(3, 5, 5, 6)).sum().backward()
    assert len(list(pcm.parameters())) == 3
    for name, parameter in pcm.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name
    assert all(feat.grad is None for feat in feats)
    assert cam_logits.grad is None


def test_maps_lie_in_unit_interval_background_first(pcm, batch):
    images, feats, cam_logits = batch
    revised = pcm(images, feats, cam_logits)
    assert revised.min() >= 0
    assert revised.max() <= 1
    # Background and class of every pixel add up to 1, and so do averages of them.
    revised = pcm(images, feats, cam_logits[:, :1])
    torch.testing.assert_close(revised.sum(dim=1), torch.ones(3, 5, 6), rtol=0, atol=1e-4)


@pytest.mark.parametrize('value', [0.0, -1.0])
def test_without_evidence_all_is_background(pcm, batch, value):
    images, feats, cam_logits = batch
    revised = pcm(images, feats, torch.full_like(cam_logits, value))
    assert revised[:, 1:].count_nonzero() == 0
    torch.testing.assert_close(revised[:, 0], torch.ones(3, 5, 6), rtol=0, atol=1e-4)
    revised.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in pcm.parameters())


def test_black_image_without_features_is_finite(pcm, batch):
    images, feats, cam_logits = batch
    revised = pcm(0 * images, [0 * feat for feat in feats], cam_logits)
    revised.sum().backward()
    assert revised.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in pcm.parameters())


def test_single_pixel_keeps_its_winner(pcm):
    feats = torch.randn(1, 5, 1, 1), torch.randn(1, 7, 1, 1)
    evidence = torch.tensor([2.0, -1.0, 0.0]).view(1, 3, 1, 1)
    revised = pcm(torch.randn(1, 3, 8, 8), feats, evidence)
    expected = torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(revised.flatten(), expected, rtol=0, atol=1e-4)


def test_an_image_is_revised_alone_as_in_a_batch(pcm, batch):
    images, feats, cam_logits = batch
    together = pcm(images, feats, cam_logits)
    for index in range(3):
        own = slice(index, index + 1)
        alone = pcm(images[own], [feat[own] for feat in feats], cam_logits[own])
        torch.testing.assert_close(alone, together[own])


def test_bfloat16_maps_are_close_and_float32(pcm, batch):
    images, feats, cam_logits = batch
    expected = pcm(images, feats, cam_logits)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        revised = pcm(images, [feat.bfloat16() for feat in feats], cam_logits)
    assert revised.dtype == torch.float32
    torch.testing.assert_close(revised, expected, rtol=0, atol=0.02)
    revised[:, 1].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in pcm.parameters())


def test_start_is_that_of_the_released_implementation():
    pcm = build(in_channels=(256, 512), channels=(32, 64))
    for conv in pcm.reduce:
        expected = math.sqrt(2 / conv.in_channels)
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
        # Normal, not uniform, which would end at sqrt(3) standard deviations.
        assert conv.weight.abs().max() > 2.5 * expected
    bound = 4 * math.sqrt(6 / (99 + 96))
    assert 0.98 * bound < pcm.fuse.weight.abs().max() <= bound
    assert pcm.fuse.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_start_can_be_configured(pcm, tmp_path):
    constant = build(init_cfg=dict(type='Constant', val=0.5, layer='Conv2d'))
    assert all(parameter.eq(0.5).all() for parameter in constant.parameters())
    for parameter in pcm.parameters():
        nn.init.normal_(parameter)
    save_checkpoint(pcm.state_dict(), str(tmp_path / 'pcm.pth'))
    other = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'pcm.pth')))
    torch.testing.assert_close(dict(other.state_dict()), dict(pcm.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    'setting', [dict(in_channels=(5,)), dict(in_index=(0, 1, 2)), dict(channels=(4, 6, 8))]
)
def test_lists_of_other_lengths_are_refused(setting):
    with pytest.raises(ValueError, match=r'in_channels=.*in_index=.*channels=.*one entry a tap'):
        MODELS.build(dict(PCM, **setting))


def test_checkpoint_round_trip(pcm, batch, tmp_path):
    save_checkpoint(pcm.state_dict(), str(tmp_path / 'pcm.pth'))
    other = build()
    assert not torch.equal(other(*batch), pcm(*batch))
    load_checkpoint(other, str(tmp_path / 'pcm.pth'))
    assert torch.equal(other(*batch), pcm(*batch))
