import math

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

VALID = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 0]]).bool()
# A present class may own no pixel, and the background too.
KEY_VALID = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]]).bool()
NO_MEMORY = torch.zeros(1, 4, 5), torch.zeros(1, 4, dtype=torch.bool)


@pytest.fixture
def nodes():
    return torch.randn(3, 4, 5, requires_grad=True)


@pytest.fixture
def keys():
    return torch.randn(3, 4, 5, requires_grad=True)


@pytest.fixture
def memory():
    return torch.randn(1, 4, 5), torch.tensor([[True, True, False, True]])


def build(**kwargs):
    return MODELS.build(dict(type='SGCLLoss', **kwargs))


def naive_loss(nodes, valid, keys, key_valid, temperature):
    """Eq. 9 in loops: the regions of every image, the own one included."""
    images = []
    for vectors, exists in zip(nodes, valid, strict=True):
        anchors = []
        for slot in range(1, len(exists)):
            similar = [
                (other, math.exp(F.cosine_similarity(vectors[slot], key[other], dim=0).item()))
                for key, key_exists in zip(keys, key_valid, strict=True)
                for other in range(len(exists))
                if key_exists[other] and exists[slot]
            ]
            similar = [(other, value ** (1 / temperature)) for other, value in similar]
            negative = sum(value for other, value in similar if other != slot)
            terms = [
                -math.log(value / (value + negative)) for other, value in similar if other == slot
            ]
            if terms:
                anchors.append(sum(terms) / len(terms))
        if anchors:
            images.append(sum(anchors) / len(anchors))
    return sum(images) / len(images)


@pytest.mark.parametrize('temperature', [0.1, 0.5])
@pytest.mark.parametrize('remembers', [False, True])
def test_value_equals_naive_loops(nodes, keys, memory, temperature, remembers):
    memory = memory if remembers else NO_MEMORY
    all_keys = torch.cat([keys.detach(), memory[0]]), torch.cat([KEY_VALID, memory[1]])
    expected = 0.4 * naive_loss(nodes.detach(), VALID, *all_keys, temperature)
    loss = build(temperature=temperature)(nodes, VALID, keys, KEY_VALID, *memory)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_weight_scales_the_loss(nodes, keys, memory):
    batch = (nodes, VALID, keys, KEY_VALID, *memory)
    once = build(loss_weight=1.0)(*batch)
    torch.testing.assert_close(build(loss_weight=2.5)(*batch), 2.5 * once)


def test_name_in_the_log_is_settable():
    assert build().loss_name == 'loss_sgcl'
    assert build(loss_name='loss_other').loss_name == 'loss_other'


def test_gradient_reaches_nodes_of_classes_and_existing_keys(nodes, keys, memory):
    build()(nodes, VALID, keys, KEY_VALID, *memory).backward()
    is_class = torch.arange(4) > 0
    assert torch.equal(nodes.grad.abs().sum(dim=2) > 0, VALID & is_class)
    assert torch.equal(keys.grad.abs().sum(dim=2) > 0, KEY_VALID)


def test_own_region_is_a_partner(nodes, keys):
    loss = build()(nodes[:1], VALID[:1], keys[:1], KEY_VALID[:1], *NO_MEMORY)
    assert loss > 0


@pytest.mark.parametrize('empty', ['nodes', 'keys', 'classes'])
def test_nothing_to_contrast_is_an_attached_zero(nodes, keys, empty):
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    background_only = nothing | (torch.arange(4) == 0)
    valid = dict(nodes=nothing, keys=VALID, classes=background_only)[empty]
    key_valid = nothing if empty == 'keys' else KEY_VALID
    loss = build()(nodes, valid, keys, key_valid, *NO_MEMORY)
    assert loss == 0
    loss.backward()
    assert nodes.grad.count_nonzero() == 0
    assert keys.grad.count_nonzero() == 0


def test_order_of_images_is_of_no_matter(nodes, keys, memory):
    order = [2, 0, 1]
    expected = build()(nodes, VALID, keys, KEY_VALID, *memory)
    permuted = [tensor[order] for tensor in (nodes, VALID, keys, KEY_VALID)]
    torch.testing.assert_close(build()(*permuted, *memory), expected)


def test_temperature_that_is_not_positive_is_refused(nodes, keys):
    with pytest.raises(ValueError, match=r'temperature=-0\.1 must be positive'):
        build(temperature=-0.1)(nodes, VALID, keys, KEY_VALID, *NO_MEMORY)
