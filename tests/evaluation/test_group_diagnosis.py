import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdscnet.evaluation.group_diagnosis import (
    attend_groups,
    attention_entropy,
    count_truth_by_slot,
    pair_similarities,
    place_share,
    resize_truth,
    slot_agreement,
    slot_purity,
)
from mmdscnet.functional.contrast import class_contrast
from mmdscnet.functional.dual_stream import read_class_nodes


def test_counts_are_those_of_a_loop_over_pixels():
    slots, truth = torch.randint(0, 4, (2, 3, 5, 6))
    truth[0, :2] = 255
    expected = torch.zeros(3, 4, 4, dtype=torch.int64)
    for image, y, x in np.ndindex(3, 5, 6):
        if truth[image, y, x] != 255:
            expected[image, slots[image, y, x], truth[image, y, x]] += 1
    assert torch.equal(count_truth_by_slot(slots, truth.byte(), 4, 255), expected)


def test_purity_and_agreement_by_hand():
    # Slot 0: 3 background, 1 of class 1. Slot 1: 2 of class 2 and 1 of its own. Slot 2: nothing.
    counts = torch.tensor([[3, 1, 0], [0, 1, 2], [0, 0, 0]])
    torch.testing.assert_close(
        slot_purity(counts), torch.tensor([3 / 4, 2 / 3, math.nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        slot_agreement(counts), torch.tensor([3 / 4, 1 / 3, math.nan]).double(), equal_nan=True
    )


def test_image_of_void_counts_nothing():
    truth = torch.full((1, 2, 2), 255)
    counts = count_truth_by_slot(torch.zeros_like(truth), truth, 3, 255)
    assert counts.sum() == 0
    assert slot_purity(counts).isnan().all()


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r'slot_ids has shape \(1, 2, 2\).*resize the masks'):
        count_truth_by_slot(torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 4).long(), 3, 255)


@pytest.mark.parametrize('own_is_pair', [False, True])
def test_pairs_are_those_of_a_loop(own_is_pair):
    anchors, keys = torch.randn(2, 4, 3, 5)
    anchor_valid, key_valid = torch.rand(2, 4, 3) > 0.3
    found = pair_similarities(anchors, anchor_valid, keys, key_valid, own_is_pair)
    expected = {'positives': [], 'own': [], 'negatives': [], 'background': []}
    for i, a, j, b in np.ndindex(4, 3, 4, 3):
        if a == 0 or not anchor_valid[i, a] or not key_valid[j, b]:
            continue
        kind = 'negatives'
        if b == 0:
            kind = 'background'
        elif a == b:
            kind = 'own' if i == j else 'positives'
        if kind != 'own' or own_is_pair:
            expected[kind].append(F.cosine_similarity(anchors[i, a], keys[j, b], dim=0))
    for kind, values in found._asdict().items():
        wanted = torch.tensor(expected[kind])
        torch.testing.assert_close(values, wanted, msg=kind)
    assert len(found.positives) > 0


def test_pairs_tell_the_loss_of_one_anchor():
    # Two images of class 1: the only positive is the other image's, the negatives the backgrounds.
    groups, valid = torch.randn(2, 2, 4), torch.ones(2, 2, dtype=torch.bool)
    found = pair_similarities(groups, valid, groups, valid, own_is_pair=False)
    assert len(found.own) == len(found.negatives) == 0
    logits = torch.cat([found.positives[:, None], found.background.view(2, 2)], dim=1) / 0.1
    expected = F.cross_entropy(logits, torch.zeros(2).long())
    loss = class_contrast(groups, valid, groups, valid, 0.1, own_image_is_positive=False)
    torch.testing.assert_close(loss, expected)


def test_lone_background_has_no_pair():
    valid = torch.tensor([[True, False]])
    found = pair_similarities(torch.randn(1, 2, 4), valid, torch.randn(1, 2, 4), valid, True)
    assert [len(values) for values in found] == [0, 0, 0, 0]


def test_attention_is_what_the_dual_stream_reads_with():
    embeddings, groups, nodes = torch.randn(2, 5, 3, 4), torch.randn(2, 3, 5), torch.randn(2, 3, 7)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    attention = attend_groups(embeddings, groups, valid, 0.2)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(2, 3, 4))
    assert not attention[0, 2].any()
    read = torch.einsum('nahw,nae->nehw', attention, nodes)
    expected = read_class_nodes(embeddings, groups, nodes, valid, 0.2)
    torch.testing.assert_close(read, expected)


def test_entropy_is_1_of_an_even_spread_and_0_of_a_choice():
    even = torch.tensor([0.5, 0.5, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    choice = torch.tensor([0, 1.0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    valid = torch.tensor([[True, True, False]] * 2)
    entropy = attention_entropy(torch.cat([even, choice]), valid)
    torch.testing.assert_close(entropy, torch.tensor([1.0, 0.0]))


def test_entropy_of_a_single_group_is_unknown():
    assert attention_entropy(torch.ones(1, 1, 2, 2), torch.tensor([[True]])).isnan()


def sum_maps(maps):
    return maps.sum(dim=0), maps.square().sum(dim=(0, 2, 3)), len(maps)


def test_place_explains_what_is_the_same_in_all_images():
    same = torch.randn(1, 3, 4, 5).expand(6, -1, -1, -1)
    assert place_share(*sum_maps(same)) == pytest.approx(1)
    # Images that differ by their level alone, as much as places do.
    levels = torch.tensor([-1.0, 1]).view(2, 1, 1, 1)
    places = torch.tensor([-1.0, 1]).view(1, 1, 1, 2)
    assert place_share(*sum_maps((levels + places).expand(2, 1, 3, 2))) == pytest.approx(0.5)
    noise = place_share(*sum_maps(torch.randn(200, 8, 4, 4)))
    assert noise == pytest.approx(1 / 200, rel=0.2)
    assert math.isnan(place_share(*sum_maps(torch.zeros(2, 3, 4, 4))))


def test_place_share_is_that_of_the_variances():
    maps = 3 + torch.randn(5, 2, 3, 4)
    total = maps.numpy().var(axis=(0, 2, 3)).sum()
    by_place = maps.numpy().mean(axis=0).var(axis=(1, 2)).sum()
    assert place_share(*sum_maps(maps)) == pytest.approx(by_place / total, rel=1e-4)


def test_masks_shrink_to_the_pixels_at_the_centres():
    truth = torch.arange(36).view(1, 6, 6).byte()
    assert torch.equal(resize_truth(truth, (2, 2)), truth[:, 1::3, 1::3])
    assert resize_truth(torch.full((1, 6, 6), 255).byte(), (2, 3)).eq(255).all()
