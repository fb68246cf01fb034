from types import SimpleNamespace

import pytest
from mmseg.registry import HOOKS, MODELS
from torch import nn

SIZES = dict(in_channels=4, num_classes=3)


def build_hook(**kwargs):
    return HOOKS.build(dict(type='ContrastWarmupHook', **kwargs))


@pytest.fixture
def head():
    return MODELS.build(dict(type='DSCHead', pgcl=dict(type='PGCLLoss'), **SIZES))


def scales(hook, head, max_iters, start=0):
    """Run the hook through a training and record the factor of the contrasts at each step."""
    runner = SimpleNamespace(model=nn.ModuleDict(dict(decode_head=head)), max_iters=max_iters)
    hook.before_train(runner)
    recorded = []
    for runner.iter in range(start, max_iters):
        hook.before_train_iter(runner, batch_idx=0)
        recorded.append(head.contrast_scale)
    return recorded


def test_contrasts_are_off_for_the_share_and_on_after(head):
    assert scales(build_hook(share=0.3), head, max_iters=10) == [0.0] * 3 + [1.0] * 7


def test_part_of_a_step_counts_as_warm_up(head):
    assert scales(build_hook(share=0.25), head, max_iters=10) == [0.0] * 3 + [1.0] * 7


def test_warm_up_is_short_by_default(head):
    assert sum(scales(build_hook(), head, max_iters=100)) == 85


@pytest.mark.parametrize(('share', 'scale'), [(0, 1.0), (1, 0.0)])
def test_extreme_shares_are_never_and_always(head, share, scale):
    assert scales(build_hook(share=share), head, max_iters=4) == [scale] * 4


def test_a_resumed_training_goes_on_where_it_was(head):
    assert scales(build_hook(share=0.5), head, max_iters=8, start=3) == [0.0] + [1.0] * 4


def test_every_head_of_the_model_is_switched(head):
    hook, other = build_hook(share=1), MODELS.build(dict(type='DSCHead', **SIZES))
    model = nn.Sequential(head, nn.Sequential(other))
    hook.before_train(SimpleNamespace(model=model))
    hook.before_train_iter(SimpleNamespace(model=model, iter=0, max_iters=2), batch_idx=0)
    assert (head.contrast_scale, other.contrast_scale) == (0.0, 0.0)


def test_a_head_contrasts_without_the_hook(head):
    assert head.contrast_scale == 1.0


def test_model_without_a_dscnet_head_is_refused():
    model = MODELS.build(dict(type='CAMHead', **SIZES))
    with pytest.raises(ValueError, match='finds no DSCHead in the model: remove the hook'):
        build_hook().before_train(SimpleNamespace(model=model))


@pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=f'share={share} is a share of the training steps'):
        build_hook(share=share)
