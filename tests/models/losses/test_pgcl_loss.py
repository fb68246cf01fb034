import math

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

VALID = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 0]]).bool()
NO_MEMORY = torch.zeros(1, 4, 5), torch.zeros(1, 4, dtype=torch.bool)


@pytest.fixture
def groups():
    return torch.randn(3, 4, 5, requires_grad=True)


@pytest.fixture
def memory():
    return torch.randn(1, 4, 5), torch.tensor([[True, True, False, True]])


def build(**kwargs):
    return MODELS.build(dict(type='PGCLLoss', **kwargs))


def naive_loss(groups, valid, memory, memory_valid, temperature):
    """Eq. 6 and 7 in loops, with the positive in the denominator."""
    keys = [
        (image, slot, vector[slot])
        for image, (vector, exists) in enumerate(
            zip([*groups, *memory], [*valid, *memory_valid], strict=True)
        )
        for slot in range(len(exists))
        if exists[slot]
    ]
    images = []
    for own, (vectors, exists) in enumerate(zip(groups, valid, strict=True)):
        anchors = []
        for slot in range(1, len(exists)):
            if not exists[slot]:
                continue
            similar = {
                (image, other): math.exp(
                    F.cosine_similarity(vectors[slot], key, dim=0).item() / temperature
                )
                for image, other, key in keys
            }
            negative = sum(value for (_, other), value in similar.items() if other != slot)
            terms = [
                -math.log(value / (value + negative))
                for (image, other), value in similar.items()
                if other == slot and image != own
            ]
            if terms:
                anchors.append(sum(terms) / len(terms))
        if anchors:
            images.append(sum(anchors) / len(anchors))
    return sum(images) / len(images)


@pytest.mark.parametrize('temperature', [0.1, 0.5])
@pytest.mark.parametrize('remembers', [False, True])
def test_value_equals_naive_loops(groups, memory, temperature, remembers):
    memory = memory if remembers else NO_MEMORY
    expected = 0.6 * naive_loss(groups.detach(), VALID, *memory, temperature)
    loss = build(temperature=temperature)(groups, VALID, *memory)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_weight_scales_the_loss(groups, memory):
    once = build(loss_weight=1.0)(groups, VALID, *memory)
    torch.testing.assert_close(build(loss_weight=2.5)(groups, VALID, *memory), 2.5 * once)


def test_name_in_the_log_is_settable():
    assert build().loss_name == 'loss_pgcl'
    assert build(loss_name='loss_other').loss_name == 'loss_other'


def test_gradient_reaches_existing_groups_only(groups, memory):
    build()(groups, VALID, *memory).backward()
    assert torch.equal(groups.grad.abs().sum(dim=2) > 0, VALID)


def test_groups_of_one_class_attract_each_other(groups):
    loss = build()(groups, VALID, *NO_MEMORY)
    (gradient,) = torch.autograd.grad(loss, groups)
    assert build()(groups - 0.01 * gradient, VALID, *NO_MEMORY) < loss


@pytest.mark.parametrize(
    'valid',
    [torch.zeros(3, 4).bool(), torch.eye(4)[:3].bool(), torch.eye(4)[:1].expand(3, 4).bool()],
    ids=['nothing', 'no-partner', 'background-only'],
)
def test_nothing_to_contrast_is_an_attached_zero(groups, valid):
    loss = build()(groups, valid, *NO_MEMORY)
    assert loss == 0
    loss.backward()
    assert groups.grad.count_nonzero() == 0


def test_own_group_is_no_partner(groups, memory):
    alone = groups[:1].detach(), VALID[:1]
    assert build()(*alone, *NO_MEMORY) == 0
    assert build()(*alone, *memory) > 0


def test_order_of_images_is_of_no_matter(groups, memory):
    order = [2, 0, 1]
    expected = build()(groups, VALID, *memory)
    torch.testing.assert_close(build()(groups[order], VALID[order], *memory), expected)


def test_temperature_that_is_not_positive_is_refused(groups):
    with pytest.raises(ValueError, match='temperature=0 must be positive'):
        build(temperature=0)(groups, VALID, *NO_MEMORY)
