"""InfoNCE, by masks and by classes (Eq. 3, 6, 7, 9)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.contrast import class_contrast, masked_info_nce, slot_similarity

HALVES = [torch.bfloat16, torch.float16]


def naive_info_nce(
    similarity: Tensor, positive_mask: Tensor, negative_mask: Tensor, temperature: float
) -> float:
    image_losses = []
    for scores, positives, negatives in zip(
        similarity.tolist(), positive_mask.tolist(), negative_mask.tolist(), strict=True
    ):
        anchor_losses = []
        for row, is_positive, is_negative in zip(scores, positives, negatives, strict=True):
            rest = sum(
                math.exp(s / temperature) for s, n in zip(row, is_negative, strict=True) if n
            )
            terms = [
                -math.log(math.exp(s / temperature) / (math.exp(s / temperature) + rest))
                for s, p in zip(row, is_positive, strict=True)
                if p
            ]
            if terms:
                anchor_losses.append(sum(terms) / len(terms))
        if anchor_losses:
            image_losses.append(sum(anchor_losses) / len(anchor_losses))
    return sum(image_losses) / len(image_losses) if image_losses else 0.0


def cross_entropy_info_nce(
    similarity: Tensor, positive_mask: Tensor, negative_mask: Tensor, temperature: float
) -> Tensor:
    """The same through PyTorch's cross entropy: the positive is candidate 0 among negatives."""
    image_losses = []
    for scores, positives, negatives in zip(similarity, positive_mask, negative_mask, strict=True):
        anchor_losses = []
        for row, is_positive, is_negative in zip(scores, positives, negatives, strict=True):
            if not is_positive.any():
                continue
            own = row[is_positive]
            logits = torch.cat([own[:, None], row[is_negative].expand(len(own), -1)], 1)
            target = torch.zeros(len(own), dtype=torch.int64)
            anchor_losses.append(F.cross_entropy(logits / temperature, target))
        if anchor_losses:
            image_losses.append(torch.stack(anchor_losses).mean())
    return torch.stack(image_losses).mean()


def naive_class_contrast(
    anchors: Tensor,
    anchor_valid: Tensor,
    keys: Tensor,
    key_valid: Tensor,
    temperature: float,
    own_image_is_positive: bool,
) -> float:
    image_losses = []
    for n in range(anchors.shape[0]):
        anchor_losses = []
        for a in range(1, anchors.shape[1]):
            if not anchor_valid[n, a]:
                continue
            positives, negatives = [], []
            for m in range(keys.shape[0]):
                for b in range(keys.shape[1]):
                    if not key_valid[m, b]:
                        continue
                    cosine = F.cosine_similarity(anchors[n, a], keys[m, b], dim=0)
                    weight = math.exp(float(cosine) / temperature)
                    if a != b:
                        negatives.append(weight)
                    elif m != n or own_image_is_positive:
                        positives.append(weight)
            terms = [-math.log(p / (p + sum(negatives))) for p in positives]
            if terms:
                anchor_losses.append(sum(terms) / len(terms))
        if anchor_losses:
            image_losses.append(sum(anchor_losses) / len(anchor_losses))
    return sum(image_losses) / len(image_losses) if image_losses else 0.0


def make_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Similarity and masks; image 2 has no positive, anchor (0, 0) no negative."""
    similarity = 2 * torch.rand(4, 3, 7) - 1
    kind = torch.randint(0, 3, (4, 3, 7))
    kind[2][kind[2] == 0] = 2
    kind[0, 0] = torch.tensor([0, 0, 2, 2, 2, 2, 2])
    return similarity, kind == 0, kind == 1


def make_classes(num_keys: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors of four images and ``num_keys`` key images, three classes and background."""
    anchor_valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1]]).bool()
    key_valid = torch.cat([anchor_valid, torch.tensor([[0, 1, 1, 0]]).bool()])[:num_keys]
    return torch.randn(4, 4, 5), anchor_valid, torch.randn(num_keys, 4, 5), key_valid


# InfoNCE under masks


def test_info_nce_by_hand():
    similarity = torch.tensor([[[math.log(2), math.log(3), math.log(5), 9.0]]])
    positive = torch.tensor([[[True, False, False, False]]])
    negative = torch.tensor([[[False, True, True, False]]])
    loss = masked_info_nce(similarity, positive, negative, temperature=1.0)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-math.log(2 / 10), abs=1e-6)


def test_temperature_divides_the_similarity():
    similarity, positive, negative = make_pairs()
    torch.testing.assert_close(
        masked_info_nce(similarity, positive, negative, 0.25),
        masked_info_nce(similarity / 0.25, positive, negative, 1.0),
    )


@pytest.mark.parametrize('temperature', [0.07, 0.5, 2.0])
def test_info_nce_equals_naive_loop(temperature: float):
    pairs = make_pairs()
    loss = masked_info_nce(*pairs, temperature)
    assert loss.item() == pytest.approx(naive_info_nce(*pairs, temperature), rel=1e-5)


@pytest.mark.parametrize('temperature', [0.07, 0.5, 2.0])
def test_info_nce_equals_torch_cross_entropy(temperature: float):
    pairs = make_pairs()
    torch.testing.assert_close(
        masked_info_nce(*pairs, temperature), cross_entropy_info_nce(*pairs, temperature)
    )


def test_single_positive_among_all_candidates_is_plain_cross_entropy():
    similarity, target = 2 * torch.rand(1, 6, 5) - 1, torch.randint(0, 5, (6,))
    positive = F.one_hot(target, 5).bool()[None]
    torch.testing.assert_close(
        masked_info_nce(similarity, positive, ~positive, 0.1),
        F.cross_entropy(similarity[0] / 0.1, target),
    )


def test_mean_is_per_image_first():
    # Image 0 has two anchors of loss log 2, image 1 one anchor of loss log 3.
    positive = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 0]]]).bool()
    negative = torch.tensor([[[0, 1, 0], [1, 0, 0]], [[0, 1, 1], [1, 1, 1]]]).bool()
    loss = masked_info_nce(torch.zeros(2, 2, 3), positive, negative, 1.0)
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2, abs=1e-6)


def test_info_nce_gradcheck():
    similarity, positive, negative = make_pairs()
    similarity = similarity.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: masked_info_nce(s, positive, negative, 0.5), (similarity,)
    )


def test_permuting_images_anchors_and_candidates_leaves_the_loss_unchanged():
    pairs = make_pairs()
    images, anchors, candidates = torch.randperm(4), torch.randperm(3), torch.randperm(7)
    moved = [tensor[images][:, anchors][:, :, candidates] for tensor in pairs]
    torch.testing.assert_close(masked_info_nce(*moved, 0.2), masked_info_nce(*pairs, 0.2))


def test_pairs_outside_both_masks_have_no_influence():
    similarity, positive, negative = make_pairs()
    similarity.requires_grad_()
    masked_info_nce(similarity, positive, negative, 0.2).backward()
    assert (similarity.grad[~(positive | negative)] == 0).all()


def test_loss_falls_with_the_positive_and_rises_with_the_negative():
    similarity, positive, negative = make_pairs()
    similarity.requires_grad_()
    masked_info_nce(similarity, positive, negative, 0.2).backward()
    assert (similarity.grad[positive] <= 0).all()
    assert (similarity.grad[negative] >= 0).all()
    assert similarity.grad.abs().sum() > 0


def test_no_positive_gives_exactly_zero_attached_to_the_graph():
    similarity = torch.randn(2, 3, 4, requires_grad=True)
    nothing = torch.zeros(2, 3, 4, dtype=torch.bool)
    loss = masked_info_nce(similarity, nothing, ~nothing, 0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert (similarity.grad == 0).all()


def test_no_negative_gives_zero_loss_and_zero_gradient():
    similarity = torch.randn(2, 3, 4, requires_grad=True)
    nothing = torch.zeros(2, 3, 4, dtype=torch.bool)
    loss = masked_info_nce(similarity, ~nothing, nothing, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(similarity.grad, torch.zeros(2, 3, 4))


def test_anchors_and_images_without_positive_do_not_count():
    similarity, positive, negative = make_pairs()
    expected = masked_info_nce(similarity, positive, negative, 0.2)
    others = [0, 1, 3]
    torch.testing.assert_close(
        masked_info_nce(similarity[others], positive[others], negative[others], 0.2), expected
    )
    torch.testing.assert_close(
        masked_info_nce(
            torch.cat([similarity, torch.randn(4, 1, 7)], 1),
            torch.cat([positive, torch.zeros(4, 1, 7).bool()], 1),
            torch.cat([negative, torch.ones(4, 1, 7).bool()], 1),
            0.2,
        ),
        expected,
    )


@pytest.mark.parametrize('temperature', [1e-3, 1e-6])
def test_tiny_temperature_gives_finite_loss_and_gradient(temperature: float):
    similarity, positive, negative = make_pairs()
    similarity.requires_grad_()
    loss = masked_info_nce(similarity, positive, negative, temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(similarity.grad).all()


@pytest.mark.parametrize('temperature', [0.0, -0.1])
def test_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(ValueError, match=rf'temperature.*{temperature}'):
        masked_info_nce(*make_pairs(), temperature)


@pytest.mark.parametrize('dtype', HALVES)
def test_info_nce_is_float32_under_autocast(dtype: torch.dtype):
    similarity, positive, negative = make_pairs()
    similarity = similarity.to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        loss = masked_info_nce(similarity, positive, negative, 0.05)
    assert loss.dtype == torch.float32
    expected = masked_info_nce(similarity.float(), positive, negative, 0.05)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


# Contrast of class slots


def test_slot_similarity_by_hand():
    anchors = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    keys = torch.tensor([[[6.0, 8.0], [-0.3, -0.4]], [[0.0, 2.0], [4.0, -3.0]]])
    expected = torch.tensor([[[[1.0, -1.0], [0.8, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    torch.testing.assert_close(slot_similarity(anchors, keys), expected)


def test_slot_similarity_equals_naive_loop():
    anchors, keys = torch.randn(2, 3, 5), torch.randn(4, 3, 5)
    similarity = slot_similarity(anchors, keys)
    assert similarity.shape == (2, 3, 4, 3)
    for i, a, j, b in torch.cartesian_prod(*map(torch.arange, similarity.shape)).tolist():
        expected = F.cosine_similarity(anchors[i, a], keys[j, b], dim=0)
        torch.testing.assert_close(similarity[i, a, j, b], expected)


def test_gradient_of_a_zero_vector_stays_small():
    anchors = torch.zeros(1, 1, 5, requires_grad=True)
    slot_similarity(anchors, torch.randn(3, 1, 5)).sum().backward()
    assert 0 < anchors.grad.norm() < 1e7


@pytest.mark.parametrize('dtype', HALVES)
def test_slot_similarity_is_float32_under_autocast(dtype: torch.dtype):
    anchors, keys = torch.randn(2, 3, 5).to(dtype), torch.randn(4, 3, 5).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        similarity = slot_similarity(anchors, keys)
    assert similarity.dtype == torch.float32
    expected = slot_similarity(anchors.float(), keys.float())
    torch.testing.assert_close(similarity, expected, rtol=0, atol=0)


def test_class_contrast_by_hand():
    # Class 1 in both images, equal vectors; the only negatives are two orthogonal backgrounds.
    vectors = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]]])
    valid = torch.ones(2, 2, dtype=torch.bool)
    loss = class_contrast(vectors, valid, vectors, valid, 1.0, own_image_is_positive=False)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2)), abs=1e-6)


@pytest.mark.parametrize('own_image_is_positive', [False, True])
@pytest.mark.parametrize('num_keys', [4, 5])
def test_class_contrast_equals_naive_loop(num_keys: int, own_image_is_positive: bool):
    slots = make_classes(num_keys)
    loss = class_contrast(*slots, 0.3, own_image_is_positive)
    expected = naive_class_contrast(*slots, 0.3, own_image_is_positive)
    assert expected > 0
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_permuting_images_leaves_class_contrast_unchanged():
    slots, order = make_classes(), torch.randperm(4)
    moved = [tensor[order] for tensor in slots]
    for own in (False, True):
        torch.testing.assert_close(
            class_contrast(*moved, 0.3, own), class_contrast(*slots, 0.3, own)
        )


def test_lengths_of_the_vectors_do_not_matter():
    anchors, anchor_valid, keys, key_valid = make_classes()
    torch.testing.assert_close(
        class_contrast(
            anchors * (torch.rand(4, 4, 1) + 0.5),
            anchor_valid,
            keys * (torch.rand(4, 4, 1) + 0.5),
            key_valid,
            0.3,
            False,
        ),
        class_contrast(anchors, anchor_valid, keys, key_valid, 0.3, False),
    )


def test_background_is_a_negative_and_never_an_anchor():
    anchors, anchor_valid, keys, key_valid = make_classes()
    anchors.requires_grad_()
    keys.requires_grad_()
    class_contrast(anchors, anchor_valid, keys, key_valid, 0.3, False).backward()
    assert (anchors.grad[:, 0] == 0).all()
    assert keys.grad[:, 0].abs().sum() > 0


def test_background_alone_is_no_positive():
    valid = torch.tensor([[True, False], [True, False]])
    vectors = torch.randn(2, 2, 3)
    assert class_contrast(vectors, valid, vectors, valid, 0.1, True).item() == 0.0


def test_absent_slots_have_no_influence():
    anchors, anchor_valid, keys, key_valid = make_classes(5)
    anchors.requires_grad_()
    keys.requires_grad_()
    class_contrast(anchors, anchor_valid, keys, key_valid, 0.3, True).backward()
    assert (anchors.grad[~anchor_valid] == 0).all()
    assert (keys.grad[~key_valid] == 0).all()


def test_class_contrast_gradcheck():
    anchors, anchor_valid, keys, key_valid = make_classes(5)
    assert torch.autograd.gradcheck(
        lambda a, k: class_contrast(a, anchor_valid, k, key_valid, 0.5, True),
        (anchors.double().requires_grad_(), keys.double().requires_grad_()),
    )


@pytest.mark.parametrize('anchor_valid', [[[True, True]], [[True, False]], [[False, False]]])
def test_single_image_gives_exactly_zero_attached_to_the_graph(anchor_valid: list[list[bool]]):
    vectors, valid = torch.randn(1, 2, 3, requires_grad=True), torch.tensor(anchor_valid)
    loss = class_contrast(vectors, valid, vectors, valid, 0.1, own_image_is_positive=False)
    assert loss.item() == 0.0
    loss.backward()
    assert (vectors.grad == 0).all()


def test_zero_vectors_give_finite_loss_and_gradient():
    vectors, valid = torch.zeros(2, 3, 4, requires_grad=True), torch.ones(2, 3).bool()
    loss = class_contrast(vectors, valid, vectors, valid, 0.1, own_image_is_positive=False)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5), abs=1e-6)
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_class_contrast_is_float32_under_autocast(dtype: torch.dtype):
    anchors, anchor_valid, keys, key_valid = make_classes(5)
    anchors, keys = anchors.to(dtype), keys.to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        loss = class_contrast(anchors, anchor_valid, keys, key_valid, 0.1, True)
    expected = class_contrast(anchors.float(), anchor_valid, keys.float(), key_valid, 0.1, True)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_denominator_as_printed_holds_the_negatives_alone():
    similarity = torch.rand(2, 3, 5) * 2 - 1
    positive = torch.rand(2, 3, 5) < 0.4
    loss = masked_info_nce(similarity, positive, ~positive, 0.5, positive_in_denominator=False)
    images = []
    for scores, chosen in zip(similarity / 0.5, positive, strict=True):
        anchors = [
            torch.stack([row[~own].exp().sum().log() - value for value in row[own]]).mean()
            for row, own in zip(scores, chosen, strict=True)
            if own.any() and not own.all()
        ]
        images.append(torch.stack(anchors).mean())
    torch.testing.assert_close(loss, torch.stack(images).mean())
    # The print can fall without bound.
    far = torch.tensor([[[1.0, -1.0]]])
    own = torch.tensor([[[True, False]]])
    assert masked_info_nce(far, own, ~own, 0.1, positive_in_denominator=False) < 0


def test_denominator_as_printed_without_negatives_says_nothing():
    similarity = torch.rand(1, 2, 3, requires_grad=True)
    positive = torch.ones(1, 2, 3, dtype=torch.bool)
    loss = masked_info_nce(similarity, positive, ~positive, 0.1, positive_in_denominator=False)
    loss.backward()
    assert loss == 0
    assert similarity.grad.eq(0).all()


def test_keys_of_the_class_that_do_not_resemble_the_anchor_are_no_positives():
    anchors = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    keys = anchors.clone()
    keys[1, 1] = torch.tensor([0.6, 0.8])
    valid = torch.ones(2, 2, dtype=torch.bool)

    def contrast(min_correlation):
        return class_contrast(
            anchors, valid, keys, valid, 0.5, True, min_correlation=min_correlation
        )

    assert contrast(0.5) == contrast(None)
    only_alike = contrast(0.7)
    assert only_alike < contrast(None)
    # What is no positive is no negative either.
    without = valid.clone()
    without[1, 1] = False
    torch.testing.assert_close(only_alike, class_contrast(anchors, valid, keys, without, 0.5, True))
