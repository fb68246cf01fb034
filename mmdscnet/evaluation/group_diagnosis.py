"""What pixel groups are worth: against masks, against each other, and to the pixels that read them.

Letters: N images, K foreground classes, A = K + 1 slots (0 is the background), E channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.contrast import slot_similarity
from mmdscnet.functional.dual_stream import read_class_nodes


class PairSimilarities(NamedTuple):
    """Cosine similarities of the pairs that a contrast sees, by the kind of the pair.

    Attributes:
        positives: Same class in another image, shape (P,).
        own: Same class in the same image, where that is a pair, shape (O,).
        negatives: Another foreground class, in any image, shape (Q,).
        background: The background of any image, which is a negative too, shape (B,).
    """

    positives: Tensor
    own: Tensor
    negatives: Tensor
    background: Tensor


def count_truth_by_slot(
    slot_ids: Tensor, truth: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """Count each image's pixels by the slot they are given to and by their true class.

    Args:
        slot_ids: Slot of each pixel, 0..K, shape (N, h, w).
        truth: True class of each pixel, 0..K or ``ignore_index``, shape (N, h, w).
        num_classes: Classes with background, A.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        Numbers of pixels, int64, shape (N, A, A), indexed [image, slot, truth].

    Raises:
        ValueError: If the maps differ in shape.
    """
    if slot_ids.shape != truth.shape:
        raise ValueError(
            f'slot_ids has shape {tuple(slot_ids.shape)}, truth {tuple(truth.shape)}: resize the '
            'masks to the maps'
        )
    images = torch.arange(len(truth), device=truth.device)[:, None, None]
    cells = (images * num_classes + slot_ids) * num_classes + truth.long()
    size = len(truth) * num_classes * num_classes
    histogram = torch.bincount(cells[truth != ignore_index], minlength=size)
    return histogram.view(len(truth), num_classes, num_classes)


def slot_purity(counts: Tensor) -> Tensor:
    """Compute which share of a slot's pixels is of the slot's most frequent true class.

    Args:
        counts: Numbers of pixels, shape (..., A, A), indexed [..., slot, truth].

    Returns:
        Shares in [0, 1], NaN for a slot without a judged pixel, float64, shape (..., A).
    """
    return counts.amax(dim=-1).double() / counts.sum(dim=-1)


def slot_agreement(counts: Tensor) -> Tensor:
    """Compute which share of a slot's pixels is truly of the slot's own class.

    Args:
        counts: Numbers of pixels, shape (..., A, A), indexed [..., slot, truth].

    Returns:
        Shares in [0, 1], NaN for a slot without a judged pixel, float64, shape (..., A).
    """
    return counts.diagonal(dim1=-2, dim2=-1).double() / counts.sum(dim=-1)


def pair_similarities(
    anchors: Tensor, anchor_valid: Tensor, keys: Tensor, key_valid: Tensor, own_is_pair: bool
) -> PairSimilarities:
    """Compare class slots of the images of a batch, as the contrasts pair them.

    Anchors are foreground slots, as in :func:`mmdscnet.functional.contrast.class_contrast`; the
    class memory is left out.

    Args:
        anchors: One vector a slot, shape (N, A, E).
        anchor_valid: Whether the image has the slot, bool, shape (N, A).
        keys: One vector a slot of the same images, shape (N, A, E).
        key_valid: Whether the key exists, bool, shape (N, A).
        own_is_pair: Whether an anchor meets the key of its own image and class; not where both are
            the same vectors.

    Returns:
        The similarities by the kind of the pair.
    """
    images, slots, _ = anchors.shape
    similarity = slot_similarity(anchors, keys)
    device = anchors.device
    place = torch.arange(slots, device=device)
    is_anchor = (anchor_valid & (place > 0))[:, :, None, None]
    exists = is_anchor & key_valid[None, None]
    same_class = (place[:, None] == place[None])[None, :, None, :]
    same_image = torch.eye(images, dtype=torch.bool, device=device)[:, None, :, None]
    is_background = (place == 0)[None, None, None, :]
    same = exists & same_class
    other = exists & ~same_class
    return PairSimilarities(
        positives=similarity[same & ~same_image],
        own=similarity[same & same_image & own_is_pair],
        negatives=similarity[other & ~is_background],
        background=similarity[other & is_background],
    )


def attend_groups(embeddings: Tensor, groups: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Compute how much each pixel reads of each of its image's groups (Eq. 10).

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        groups: Group embeddings P, shape (N, A, E).
        valid: Whether the image has this group, at least one an image, bool, shape (N, A).
        temperature: Divisor of the cosine similarity, positive.

    Returns:
        Attention, a distribution over the slots of each pixel, shape (N, A, h, w).
    """
    images, slots, _ = groups.shape
    # What pixels read of nodes that are the unit vectors is their attention itself.
    units = torch.eye(slots, dtype=groups.dtype, device=groups.device).expand(images, -1, -1)
    return read_class_nodes(embeddings, groups, units, valid, temperature)


def attention_entropy(attention: Tensor, valid: Tensor) -> Tensor:
    """Measure how undecided the pixels are, relative to an even spread over the image's groups.

    Args:
        attention: Distribution over the slots of each pixel, shape (N, A, h, w).
        valid: Whether the image has this group, bool, shape (N, A).

    Returns:
        Mean entropy over the pixels, as a share of the largest possible, in [0, 1], shape (N,);
        NaN for an image of a single group, which leaves nothing to decide.
    """
    entropy = torch.special.entr(attention).sum(dim=1).mean(dim=(1, 2))
    largest = valid.sum(dim=1).to(entropy.dtype).log()
    return torch.where(largest > 0, entropy / largest, torch.nan)


def place_share(map_sums: Tensor, square_sums: Tensor, num_images: int) -> float:
    """Tell how much of the variance of embeddings their place in the image explains, by itself.

    What zero padding and padded training images leave at the borders is the same in all images, and
    pixel groups may follow it instead of the objects.

    Args:
        map_sums: Embeddings, summed over the images, shape (E, h, w).
        square_sums: Their squares, summed over images and places, shape (E,).
        num_images: Number of images.

    Returns:
        Variance of the mean map over the variance of all pixels, in [0, 1]; NaN of constant
        embeddings. Images that have nothing in common give about one over their number.
    """
    place_means = map_sums.double().flatten(1) / num_images
    means = place_means.mean(dim=1)
    by_place = (place_means - means[:, None]).square().mean(dim=1).sum()
    squares = square_sums.double() / (num_images * place_means.shape[1])
    return float(by_place / (squares - means.square()).sum())


def resize_truth(truth: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks to the size of maps, each place taking the mask's pixel at its centre.

    Args:
        truth: Class ids, shape (N, H, W).
        size: Height and width of the maps.

    Returns:
        Class ids, of the same type, shape (N, *size).
    """
    resized = F.interpolate(truth[:, None].float(), size, mode='nearest-exact')
    return resized[:, 0].to(truth.dtype)
