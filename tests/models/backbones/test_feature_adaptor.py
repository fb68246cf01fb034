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
