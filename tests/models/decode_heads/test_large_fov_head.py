import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import nn


@pytest.fixture
def build():
    def build_head(**kwargs):
        head = dict(type='LargeFOVHead', in_channels=6, channels=8, num_classes=4)
        module = MODELS.build(dict(head, **kwargs))
        module.init_weights()
        return module

    return build_head


@pytest.fixture
def feats():
    return (torch.randn(2, 3, 9, 9), torch.randn(2, 6, 15, 17))


def test_head_is_the_three_convolutions_of_deeplab(build, feats):
    head = build().eval()
    first, second = (module.conv for module in head.hidden)
    x = F.conv2d(feats[1], first.weight, first.bias, padding=12, dilation=12).relu()
    x = F.conv2d(x, second.weight, second.bias).relu()
    expected = F.conv2d(x, head.conv_seg.weight, head.conv_seg.bias)
    assert expected.shape == (2, 4, 15, 17)
    torch.testing.assert_close(head(feats), expected)


def test_parameters_at_the_width_of_resnet38d(build):
    head = build(in_channels=4096, channels=512, num_classes=21)
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes == {
        'hidden.0.conv.weight': (512, 4096, 3, 3),
        'hidden.0.conv.bias': (512,),
        'hidden.1.conv.weight': (512, 512, 1, 1),
        'hidden.1.conv.bias': (512,),
        'conv_seg.weight': (21, 512, 1, 1),
        'conv_seg.bias': (21,),
    }


def test_a_pixel_sees_as_far_as_the_dilation(build):
    head = build(dilation=3).eval()
    x = torch.randn(1, 6, 9, 9, requires_grad=True)
    head([x])[0, :, 4, 4].sum().backward()
    seen = x.grad.abs().sum(dim=(0, 1)).nonzero()
    assert {tuple(place) for place in seen.tolist()} <= {
        (r, c) for r in (1, 4, 7) for c in (1, 4, 7)
    }
    assert len(seen) > 1


def test_defaults_are_those_of_the_paper():
    head = MODELS.build(dict(type='LargeFOVHead', in_channels=6, num_classes=21))
    assert head.channels == 512
    assert head.hidden[0].conv.dilation == head.hidden[0].conv.padding == (12, 12)
    assert head.dropout.p == 0.5


def test_gradient_reaches_every_parameter(build, feats, make_samples):
    head = build(dilation=2)
    samples = make_samples(2, size=(30, 34))
    for sample in samples:
        sample.gt_sem_seg.data = sample.gt_sem_seg.data.long()
    head.loss(feats, samples, train_cfg=None)['loss_ce'].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_dropout_is_for_training_only(build, feats):
    head = build()
    assert not torch.equal(head(feats), head(feats))
    head.eval()
    assert torch.equal(head(feats), head(feats))


def test_normalisation_is_a_choice(build):
    head = build(norm_cfg=dict(type='BN'))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in head.modules()) == 2


def test_head_predicts_in_the_segmentor(build_segmentor, make_samples):
    head = dict(type='LargeFOVHead', in_channels=32, channels=8, num_classes=4)
    segmentor = build_segmentor('m0', decode_head=head).eval()
    with torch.no_grad():
        (result,) = segmentor.predict(torch.randn(1, 3, 48, 48), make_samples(1))
    assert result.seg_logits.data.shape == (4, 48, 48)


def test_checkpoint_round_trip(build, feats):
    head, other = build().eval(), build().eval()
    assert not torch.equal(head(feats), other(feats))
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(feats), other(feats))


def test_dilation_is_checked(build):
    with pytest.raises(ValueError, match='dilation=0 must be at least 1'):
        build(dilation=0)
