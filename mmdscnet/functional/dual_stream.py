"""The dual stream: pixels read the class nodes of the groups that they resemble (Eq. 10)."""

import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.precision import full_precision


@full_precision
def read_class_nodes(
    embeddings: Tensor, groups: Tensor, nodes: Tensor, valid: Tensor, temperature: float
) -> Tensor:
    r"""Give each pixel a mixture of its image's class nodes.

    .. math:: \hat z_u = \sum_a \mathrm{softmax}_a\big(\cos(z_u, P^a)/\tau\big)\, S^a

    DSCNet, arXiv:2405.04913, Eq. 10. Cost O(V A E) an image.

    Note:
        The print takes plain dot products, which at thousands of channels turn the softmax into a
        hard choice; here it is the cosine over a temperature.

    Args:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        groups: Group embeddings P, shape (N, A, E), or (1, A, E) where all images read the same.
        nodes: Class nodes S, one a group slot, of the same shape.
        valid: Whether the image may read this group, at least one an image, bool, shape (N, A).
        temperature: Divisor of the cosine similarity, positive.

    Returns:
        Enriched pixels, shape (N, E, h, w).
    """
    height, width = embeddings.shape[2:]
    pixels = F.normalize(embeddings.flatten(2), dim=1, eps=1e-6)
    cosine = F.normalize(groups, dim=2, eps=1e-6) @ pixels
    attention = (cosine / temperature).masked_fill(~valid.unsqueeze(2), float('-inf'))
    enriched = nodes.transpose(1, 2) @ attention.softmax(dim=1)
    return enriched.view(*enriched.shape[:2], height, width)


@full_precision
def read_group_classes(correlation: Tensor, valid: Tensor, temperature: float) -> Tensor:
    r"""Give each pixel the classes of the groups that it resembles.

    .. math:: O^k_u = \mathrm{softmax}_a\big(\rho(z_u, c_a)/\tau\big)\big|_{a = k}

    The attention of Eq. 10, of which a pixel reads, in place of the class node of a group, the
    class that the group stands for. DSCNet, arXiv:2405.04913, Eq. 10.

    Note:
        The print classifies the enriched pixels once more (Eq. 11). Here nothing is learned: a
        class node stands for its class, so how much a pixel reads of it is the refined CAM.

    Args:
        correlation: Correlation of each pixel with the centre of each group, in [-1, 1], shape
            (N, A, h, w).
        valid: Whether the image has this group, at least one an image, bool, shape (N, A).
        temperature: Divisor of the correlation, positive.

    Returns:
        Refined CAMs in [0, 1], whose sum over the classes is 1 less the background, shape
        (N, K, h, w).
    """
    absent = ~valid[:, :, None, None]
    attention = (correlation / temperature).masked_fill(absent, float('-inf')).softmax(dim=1)
    return attention[:, 1:]
