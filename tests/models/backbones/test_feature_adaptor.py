import pytest
import torch
from mmseg.registry import MODELS

HIDDEN = pytest.mark.parametrize('hidden_channels', [None, 8])


def build(hidden_channels=None):
    adaptor = MODELS.build(
        dict(type='FeatureAdaptor', in_channels=6, hidden_channels=hidden_channels)
    )
    adaptor.init_weights()
    return adaptor


@HIDDEN
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_features_are_the_stored_ones_at_first(hidden_channels, dtype):
    feats = torch.randn(2, 6, 3, 4).to(dtype)
    (adapted,) = build(hidden_channels)(feats)
    assert adapted.dtype == torch.float32
    assert torch.equal(adapted, feats.float())


@HIDDEN
def test_zero_start_still_learns(hidden_channels):
    adaptor = build(hidden_channels)
    optimizer = torch.optim.SGD(adaptor.parameters(), lr=0.1)
    feats, target = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 3, 4)
    losses = []
    for _ in range(50):
        loss = (adaptor(feats)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    # From the second step on every parameter moves.
    assert all(parameter.grad.abs().sum() > 0 for parameter in adaptor.parameters())


def test_change_is_a_residual_on_each_cell():
    adaptor = build()
    with torch.no_grad():
        adaptor.change.project.weight.normal_()
        adaptor.change.project.bias.normal_()
    feats = torch.randn(1, 6, 2, 3)
    weight, bias = adaptor.change.project.weight[:, :, 0, 0], adaptor.change.project.bias
    cell = feats[0, :, 1, 2]
    expected = cell + weight @ cell + bias
    torch.testing.assert_close(adaptor(feats)[0][0, :, 1, 2], expected)


def test_hidden_channels_see_only_what_is_positive():
    adaptor = build(8)
    with torch.no_grad():
        adaptor.change.project.weight.fill_(1.0)
        adaptor.change.expand.bias.fill_(-100.0)
    feats = torch.randn(1, 6, 2, 3)
    assert torch.equal(adaptor(feats)[0], feats)
    assert adaptor.change.expand.out_channels == 8


@HIDDEN
def test_checkpoint_restores_it(hidden_channels):
    trained, fresh = build(hidden_channels), build(hidden_channels)
    torch.nn.init.normal_(trained.change.project.weight)
    fresh.load_state_dict(trained.state_dict())
    feats = torch.randn(1, 6, 2, 3)
    assert torch.equal(trained(feats)[0], fresh(feats)[0])


def test_levels_are_split_off_unchanged():
    adaptor = MODELS.build(dict(type='FeatureAdaptor', in_channels=6, level_channels=(2, 3)))
    torch.nn.init.normal_(adaptor.change.project.weight)
    feats = torch.randn(2, 11, 3, 4).half()
    first, second, adapted = adaptor(feats)
    assert torch.equal(first, feats[:, :2].float())
    assert torch.equal(second, feats[:, 2:5].float())
    assert [level.requires_grad for level in (first, second, adapted)] == [False, False, True]
    features = feats[:, 5:].float()
    torch.testing.assert_close(adapted, features + adaptor.change(features))


def test_adaptor_sees_its_features_alone():
    plain = build()
    adaptor = MODELS.build(dict(type='FeatureAdaptor', in_channels=6, level_channels=(2, 3)))
    torch.nn.init.normal_(plain.change.project.weight)
    adaptor.load_state_dict(plain.state_dict())
    feats = torch.randn(1, 11, 2, 3)
    assert torch.equal(adaptor(feats)[-1], plain(feats[:, 5:])[0])


@pytest.mark.parametrize(
    ('level_channels', 'channels'), [((), 11), ((2, 3), 6), ((2, 3), 12), ((5,), 10)]
)
def test_other_channels_are_refused(level_channels, channels):
    adaptor = MODELS.build(
        dict(type='FeatureAdaptor', in_channels=6, level_channels=level_channels)
    )
    message = rf'features of {channels} channels .* --levels, into a new folder'
    with pytest.raises(ValueError, match=message):
        adaptor(torch.zeros(1, channels, 2, 3))
