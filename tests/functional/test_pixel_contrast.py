"""Pixels against pixels (Eq. 3) and pixels against prototypes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mmdscnet.functional import pixel_contrast as module
from mmdscnet.functional.contrast import masked_info_nce
from mmdscnet.functional.pixel_contrast import (
    make_prototypes,
    pixel_contrast,
    pixel_prototype_contrast,
)

HALVES = [torch.bfloat16, torch.float16]
CHUNKS = [None, 1, 3, 512]
IMAGE_LABELS = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]])
# By number of classes: nothing to contrast, whatever the embeddings.
NOTHING = {
    'all-background': torch.zeros(3, 2, 2, dtype=torch.int64),
    'all-ignored': torch.full((3, 2, 2), 255),
    'no-partner': torch.arange(3)[:, None, None].repeat(1, 2, 2),
    'one-pixel': torch.ones(1, 1, 1, dtype=torch.int64),
}


def naive_pixel_contrast(embeddings: Tensor, labels: Tensor, temperature: float) -> float:
    """Eq. 3 in loops over the pixels."""
    pixels = [
        (image, label, vector)
        for image in range(len(labels))
        for label, vector in zip(
            labels[image].flatten().tolist(), embeddings[image].flatten(1).T, strict=True
        )
        if label != 255
    ]
    image_losses = []
    for image in range(len(labels)):
        anchor_losses = []
        for own, label, vector in pixels:
            if own != image or label == 0:
                continue
            similar = [
                math.exp(F.cosine_similarity(vector, other, dim=0).item() / temperature)
                for *_, other in pixels
            ]
            negative = sum(
                value for value, (_, y, _) in zip(similar, pixels, strict=True) if y != label
            )
            terms = [
                -math.log(value / (value + negative))
                for value, (other, y, _) in zip(similar, pixels, strict=True)
                if y == label and other != own
            ]
            if terms:
                anchor_losses.append(sum(terms) / len(terms))
        if anchor_losses:
            image_losses.append(sum(anchor_losses) / len(anchor_losses))
    return sum(image_losses) / len(image_losses) if image_losses else 0.0


def masked_pixel_contrast(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The same by the masks of all pairs."""
    rows = F.normalize(embeddings.flatten(2).transpose(1, 2), dim=2)
    similarity = torch.einsum('iae,jbe->iajb', rows, rows).flatten(2)
    labels = labels.flatten(1)
    anchors, candidates = labels[:, :, None], labels.flatten()
    taken = (anchors != 255) & (anchors != 0) & (candidates != 255)
    same = anchors == candidates
    images = torch.arange(len(labels))
    other = images[:, None, None] != images.repeat_interleave(labels.shape[1])
    return masked_info_nce(similarity, taken & same & other, taken & ~same, temperature)


def naive_prototypes(embeddings: Tensor, cams: Tensor) -> dict[int, Tensor]:
    """Prototypes of the classes, 0 is the background, in loops."""
    images, _, height, width = embeddings.shape
    scores = torch.cat([1 - cams.amax(dim=1, keepdim=True), cams], dim=1)
    prototypes = {}
    for label in range(scores.shape[1]):
        pixels = [
            (scores[n, label, y, x].item(), embeddings[n, :, y, x])
            for n in range(images)
            for y in range(height)
            for x in range(width)
        ]
        best = sorted(pixels, key=lambda pixel: -pixel[0])[: max(height * width // 8, 1)]
        if best[0][0] > 0:
            prototypes[label] = F.normalize(sum(score * vector for score, vector in best), dim=0)
    return prototypes


def naive_prototype_contrast(
    embeddings: Tensor, cams: Tensor, labels: Tensor, temperature: float
) -> float:
    prototypes = naive_prototypes(embeddings, cams)
    losses = []
    for image, image_labels in zip(embeddings, labels, strict=True):
        for vector, label in zip(image.flatten(1).T, image_labels.flatten().tolist(), strict=True):
            if label not in prototypes:
                continue
            similar = {
                other: math.exp(F.cosine_similarity(vector, key, dim=0).item() / temperature)
                for other, key in prototypes.items()
            }
            losses.append(-math.log(similar[label] / sum(similar.values())))
    return sum(losses) / len(losses)


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(4, 5, 4, 5)


@pytest.fixture
def labels() -> Tensor:
    """Class 4 is in one image only, image 3 has background and ignored pixels only."""
    labels = torch.randint(0, 4, (4, 4, 5))
    labels[0, 0] = 4
    labels[1, 0] = 255
    labels[3] = torch.tensor([0, 255, 0, 255, 255])
    return labels


@pytest.fixture
def cams() -> Tensor:
    return torch.rand(4, 4, 4, 5) * IMAGE_LABELS[:, :, None, None]


@pytest.fixture
def class_labels() -> Tensor:
    """Labels of the images' classes; class 4 is in no image, but somebody may say so."""
    labels = torch.randint(0, 4, (4, 4, 5))
    labels[0, 0] = 255
    labels[1, 0] = 4
    return labels


# Pixels against pixels


def test_pixel_contrast_by_hand():
    # Each anchor has one positive, its equal, and two opposite backgrounds.
    embeddings = torch.tensor([[[[2.0, -1.0]]], [[[1.0, -3.0]]]])
    loss = pixel_contrast(embeddings, torch.tensor([[[1, 0]], [[1, 0]]]), 1.0)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2 / math.e)), abs=1e-6)


@pytest.mark.parametrize('chunk', CHUNKS)
@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_pixel_contrast_equals_naive_loop(embeddings, labels, temperature, chunk):
    expected = naive_pixel_contrast(embeddings, labels, temperature)
    assert expected > 0
    loss = pixel_contrast(embeddings, labels, temperature, chunk)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('chunk', CHUNKS)
def test_value_and_gradient_equal_those_of_the_masked_pairs(embeddings, labels, chunk):
    embeddings.requires_grad_()
    results = []
    for loss in (
        pixel_contrast(embeddings, labels, 0.2, chunk),
        masked_pixel_contrast(embeddings, labels, 0.2),
    ):
        results.append((loss, *torch.autograd.grad(3 * loss, embeddings)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('chunk', [None, 3])
def test_pixel_contrast_gradcheck(embeddings, labels, chunk):
    assert torch.autograd.gradcheck(
        lambda z: pixel_contrast(z, labels, 0.5, chunk), (embeddings.double().requires_grad_(),)
    )


def test_order_of_images_and_of_pixels_is_of_no_matter(embeddings, labels):
    expected = pixel_contrast(embeddings, labels, 0.2)
    images, pixels = torch.randperm(4), torch.randperm(20)
    moved, moved_labels = embeddings[images].flatten(2), labels[images].flatten(1)
    moved, moved_labels = moved[:, :, pixels].unflatten(2, (4, 5)), moved_labels[:, pixels]
    torch.testing.assert_close(
        pixel_contrast(moved, moved_labels.unflatten(1, (4, 5)), 0.2), expected
    )


def test_names_of_the_classes_are_of_no_matter(embeddings, labels):
    names = torch.arange(256)
    names[1:5] = torch.tensor([80, 7, 3, 2])
    torch.testing.assert_close(
        pixel_contrast(embeddings, names[labels], 0.2), pixel_contrast(embeddings, labels, 0.2)
    )


def test_background_is_a_negative_and_never_an_anchor(embeddings):
    labels = torch.zeros(4, 4, 5, dtype=torch.int64)
    labels[:2, 0, 0] = 1
    together = torch.ones_like(embeddings)
    together[0, :, 0, 0] = together[1, :, 0, 0] = torch.tensor([1.0, -1, 1, -1, 0])
    together.requires_grad_()
    pixel_contrast(together, labels, 0.5).backward()
    norms = together.grad.norm(dim=1)
    assert (norms > 0).all()
    # Two anchors with one positive and 78 equal backgrounds each.
    far, near = math.exp(0.0), math.exp(1 / 0.5)
    expected = -math.log(near / (near + 78 * far))
    assert pixel_contrast(together, labels, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_pixels_of_the_class_in_the_own_image_take_no_part(embeddings):
    labels = torch.ones(2, 4, 5, dtype=torch.int64)
    labels[1] = 255
    labels[1, 0, 0] = 1
    z = embeddings[:2].clone().requires_grad_()
    loss = pixel_contrast(z, labels, 0.2)
    loss.backward()
    # 20 anchors meet one pixel of the other image and no negative.
    assert loss.item() == 0.0
    assert (z.grad == 0).all()


def test_ignored_pixels_have_no_influence(embeddings, labels):
    embeddings.requires_grad_()
    pixel_contrast(embeddings, labels, 0.2).backward()
    ignored = (labels == 255)[:, None].expand_as(embeddings)
    assert (embeddings.grad[ignored] == 0).all()
    assert (embeddings.grad[~ignored] != 0).any()


def test_another_ignore_index_is_possible(embeddings, labels):
    other = labels.masked_fill(labels == 255, 9)
    torch.testing.assert_close(
        pixel_contrast(embeddings, other, 0.2, ignore_index=9),
        pixel_contrast(embeddings, labels, 0.2),
    )


@pytest.mark.parametrize('labels', NOTHING.values(), ids=NOTHING)
def test_nothing_to_contrast_is_an_attached_zero(labels):
    z = torch.randn(len(labels), 3, *labels.shape[1:], requires_grad=True)
    loss = pixel_contrast(z, labels, 0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert (z.grad == 0).all()


def test_no_negative_is_zero_loss_and_zero_gradient():
    z = torch.randn(3, 4, 2, 2, requires_grad=True)
    loss = pixel_contrast(z, torch.ones(3, 2, 2, dtype=torch.int64), 0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert (z.grad == 0).all()


@pytest.mark.parametrize('temperature', [1e-3, 1e-6])
def test_tiny_temperature_gives_finite_loss_and_gradient(embeddings, labels, temperature):
    embeddings.requires_grad_()
    loss = pixel_contrast(embeddings, labels, temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


def test_zero_vectors_give_finite_loss_and_gradient(labels):
    z = torch.zeros(4, 3, 4, 5, requires_grad=True)
    loss = pixel_contrast(z, labels, 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_no_more_than_a_chunk_of_pairs_is_in_memory(embeddings, labels, monkeypatch):
    sizes = []
    contrast_block = module.contrast_block

    def record(logits, *args):
        sizes.append(len(logits))
        return contrast_block(logits, *args)

    monkeypatch.setattr(module, 'contrast_block', record)
    pixel_contrast(embeddings, labels, 0.2, chunk=4)
    shared = torch.isin(labels, torch.tensor([1, 2, 3])).sum()
    assert max(sizes) == 4
    assert sum(sizes) == shared


@pytest.mark.parametrize('dtype', HALVES)
def test_pixel_contrast_is_float32_under_autocast(embeddings, labels, dtype):
    z = embeddings.to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        loss = pixel_contrast(z, labels, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad.dtype == dtype
    exact = z.detach().float()
    torch.testing.assert_close(loss, pixel_contrast(exact, labels, 0.05), rtol=0, atol=0)


@pytest.mark.parametrize('temperature', [0.0, -0.1])
def test_temperature_that_is_not_positive_is_refused(embeddings, labels, temperature):
    with pytest.raises(ValueError, match=rf'temperature={temperature} must be positive'):
        pixel_contrast(embeddings, labels, temperature)


@pytest.mark.parametrize('chunk', [0, -3])
def test_chunk_that_is_not_positive_is_refused(embeddings, labels, chunk):
    with pytest.raises(ValueError, match=f'chunk={chunk} must be at least 1'):
        pixel_contrast(embeddings, labels, 0.1, chunk)


def test_labels_of_another_size_are_refused(embeddings, labels):
    with pytest.raises(ValueError, match=r'pseudo_labels of shape \(4, 4, 4\).*\(4, 4, 5\)'):
        pixel_contrast(embeddings, labels[:, :, :4], 0.1)


# Pixels against prototypes


def test_prototypes_by_hand():
    # An eighth of 4 x 4 pixels are two, over both images.
    embeddings = torch.zeros(2, 2, 4, 4)
    embeddings[0, 0], embeddings[1, 1] = 6.0, 3.0
    cams = torch.zeros(2, 1, 4, 4)
    cams[0, 0, 1, 2], cams[1, 0, 3, 3], cams[1, 0, 0, 0] = 0.5, 1.0, 0.4
    prototypes, exists = make_prototypes(embeddings, cams, torch.ones(2, 1))
    assert exists.all()
    torch.testing.assert_close(prototypes[1], torch.tensor([0.5**0.5, 0.5**0.5]))


def test_prototypes_equal_naive_loop(embeddings, cams):
    prototypes, exists = make_prototypes(embeddings, cams, IMAGE_LABELS)
    expected = naive_prototypes(embeddings, cams)
    assert exists.tolist() == [True, True, True, True, False]
    assert list(expected) == [0, 1, 2, 3]
    torch.testing.assert_close(prototypes[:4], torch.stack(list(expected.values())))


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_prototype_contrast_equals_naive_loop(embeddings, cams, class_labels, temperature):
    loss = pixel_prototype_contrast(embeddings, cams, class_labels, IMAGE_LABELS, temperature)
    expected = naive_prototype_contrast(embeddings, cams, class_labels, temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_prototype_contrast_gradcheck(embeddings, cams, class_labels):
    """Without the prototypes, which are held where they are."""
    z = embeddings.double()
    prototypes = make_prototypes(z, cams.double(), IMAGE_LABELS)

    def contrast(z):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, 'make_prototypes', lambda *_: prototypes)
            return pixel_prototype_contrast(z, cams, class_labels, IMAGE_LABELS, 0.5)

    assert torch.autograd.gradcheck(contrast, (z.requires_grad_(),))


def test_no_gradient_flows_through_prototypes_or_cams(embeddings, cams):
    labels = torch.full((4, 4, 5), 255)
    labels[0, 0, 0] = 1
    z, cams = embeddings.clone().requires_grad_(), cams.clone().requires_grad_()
    pixel_prototype_contrast(z, cams, labels, IMAGE_LABELS, 0.2).backward()
    assert z.grad[0, :, 0, 0].abs().sum() > 0
    z.grad[0, :, 0, 0] = 0
    assert (z.grad == 0).all()
    assert cams.grad is None


def test_order_of_images_does_not_move_the_prototype_contrast(embeddings, cams, class_labels):
    maps = embeddings, cams, class_labels, IMAGE_LABELS
    order = torch.randperm(4)
    torch.testing.assert_close(
        pixel_prototype_contrast(*(x[order] for x in maps), 0.2),
        pixel_prototype_contrast(*maps, 0.2),
    )


def test_cams_of_absent_classes_make_no_prototype(embeddings, cams, class_labels):
    noisy = torch.where(IMAGE_LABELS[:, :, None, None] > 0, cams, 0.9)
    torch.testing.assert_close(
        pixel_prototype_contrast(embeddings, noisy, class_labels, IMAGE_LABELS, 0.2),
        pixel_prototype_contrast(embeddings, cams, class_labels, IMAGE_LABELS, 0.2),
    )


def test_background_pixels_are_contrasted(embeddings, cams):
    labels = torch.zeros(4, 4, 5, dtype=torch.int64)
    z = embeddings.requires_grad_()
    pixel_prototype_contrast(z, cams, labels, IMAGE_LABELS, 0.2).backward()
    assert (z.grad.norm(dim=1) > 0).all()


def test_pixels_move_towards_their_prototype(embeddings, cams, class_labels):
    z = embeddings.requires_grad_()
    prototypes, _ = make_prototypes(z, cams, IMAGE_LABELS)
    labels = class_labels.clamp_max(3)
    pixel_prototype_contrast(z, cams, labels, IMAGE_LABELS, 0.2).backward()
    own = prototypes[labels].permute(0, 3, 1, 2)
    before = F.cosine_similarity(z, own).mean()
    assert F.cosine_similarity(z - z.grad, own).mean() > before


@pytest.mark.parametrize('labels', [255, 4], ids=['all-ignored', 'class-without-prototype'])
def test_no_labelled_pixel_is_an_attached_zero(embeddings, cams, labels):
    z = embeddings.requires_grad_()
    loss = pixel_prototype_contrast(z, cams, torch.full((4, 4, 5), labels), IMAGE_LABELS, 0.2)
    assert loss.item() == 0.0
    loss.backward()
    assert (z.grad == 0).all()


def test_background_alone_is_an_attached_zero():
    z = torch.randn(1, 3, 1, 1, requires_grad=True)
    nothing = torch.zeros(1, 2, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    loss = pixel_prototype_contrast(z, nothing, labels, torch.ones(1, 2), 0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert (z.grad == 0).all()


def test_one_pixel_that_a_cam_covers_is_an_attached_zero():
    z = torch.zeros(1, 3, 1, 1, requires_grad=True)
    cams, labels = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, dtype=torch.int64)
    loss = pixel_prototype_contrast(z, cams, labels, torch.ones(1, 1), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_prototype_contrast_is_float32_under_autocast(embeddings, cams, class_labels, dtype):
    z, halved = embeddings.to(dtype), cams.to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        loss = pixel_prototype_contrast(z, halved, class_labels, IMAGE_LABELS, 0.05)
    assert loss.dtype == torch.float32
    expected = pixel_prototype_contrast(z.float(), halved.float(), class_labels, IMAGE_LABELS, 0.05)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_prototype_contrast_reads_no_value_back():
    """Tensors without values refuse to be read, for which a GPU would have to be waited for."""
    with FakeTensorMode():
        z = torch.randn(2, 3, 4, 4, requires_grad=True)
        labels = torch.zeros(2, 4, 4, dtype=torch.int64)
        maps = z, torch.rand(2, 3, 4, 4), labels, torch.ones(2, 3)
        pixel_prototype_contrast(*maps, 0.1).backward()
        with pytest.raises(DataDependentOutputException):
            z.sum().item()


def test_temperature_of_the_prototype_contrast_must_be_positive(embeddings, cams, class_labels):
    with pytest.raises(ValueError, match=r'temperature=0 must be positive'):
        pixel_prototype_contrast(embeddings, cams, class_labels, IMAGE_LABELS, 0)


def test_cams_of_another_size_are_refused(embeddings, cams, class_labels):
    with pytest.raises(ValueError, match=r'cams of size \(4, 3\).*\(4, 5\)'):
        pixel_prototype_contrast(embeddings, cams[..., :3], class_labels, IMAGE_LABELS, 0.1)


def test_prototype_contrast_refuses_labels_of_another_size(embeddings, cams, class_labels):
    with pytest.raises(ValueError, match=r'pseudo_labels of shape \(3, 4, 5\)'):
        pixel_prototype_contrast(embeddings, cams, class_labels[:3], IMAGE_LABELS, 0.1)
