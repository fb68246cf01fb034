from types import SimpleNamespace

import torch
from mmseg.registry import HOOKS
from torch import nn


def run_step(hook):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    if hook is not None:
        hook.before_train(SimpleNamespace(model=model))
    maps = model(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)))
    maps.square().mean().backward()
    return maps, model


def test_maps_have_their_channels_last_in_memory():
    maps, model = run_step(HOOKS.build(dict(type='ChannelsLastHook')))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_numbers_are_those_of_the_other_order():
    plain_maps, plain = run_step(None)
    maps, model = run_step(HOOKS.build(dict(type='ChannelsLastHook')))
    torch.testing.assert_close(maps, plain_maps)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_networks_that_only_judge_are_reordered_too():
    model = nn.Conv2d(3, 4, 3)
    HOOKS.build(dict(type='ChannelsLastHook')).before_test(SimpleNamespace(model=model))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
