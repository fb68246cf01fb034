"""The semantic graph: class nodes of each image, passed over the batch's graph (Eq. 8)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.contrast import slot_similarity
from mmdscnet.functional.precision import full_precision


@full_precision
def group_class_probabilities(cam_logits: Tensor, group_ids: Tensor, valid: Tensor) -> Tensor:
    r"""Say how probable each class is for each group.

    .. math:: M(g, \cdot) = \mathrm{softmax}\Big(\frac{1}{|g|} \sum_{u \in g} l_u\Big)

    over the image's present classes and the background, whose logit is 0 (the value at which the
    classifier is undecided). DSCNet, arXiv:2405.04913, Eq. 8.

    Args:
        cam_logits: Class evidence, unbounded, shape (N, K, h, w); no gradient flows into it.
        group_ids: Slot of each pixel's group, shape (N, h, w).
        valid: Whether the image has this class, background included, bool, shape (N, A).

    Returns:
        Probabilities M, groups by classes, shape (N, A, A). Rows sum to 1 over the valid classes
        (all equal for a labelled class whose group no pixel joined); rows of absent classes are 0.
    """
    members = F.one_hot(group_ids.flatten(1), valid.shape[1]).to(cam_logits.dtype)
    size = members.sum(dim=1).clamp_min(1)
    evidence = members.transpose(1, 2) @ cam_logits.detach().flatten(2).transpose(1, 2)
    logits = F.pad(evidence / size.unsqueeze(2), (1, 0))
    probabilities = logits.masked_fill(~valid.unsqueeze(1), float('-inf')).softmax(dim=2)
    return probabilities * valid.unsqueeze(2)


@full_precision
def make_class_nodes(groups: Tensor, probabilities: Tensor) -> Tensor:
    r"""Average the groups of an image into one node a class.

    .. math:: S^k = \frac{\sum_g M(g, k)\, p_g}{\sum_g M(g, k)}

    DSCNet, arXiv:2405.04913, Eq. 8.

    Args:
        groups: Group embeddings, shape (N, A, E).
        probabilities: M of :func:`group_class_probabilities`, shape (N, A, A).

    Returns:
        Class nodes, zero for absent classes, shape (N, A, E).
    """
    weights = probabilities / probabilities.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return weights.transpose(1, 2) @ groups


@full_precision
def make_class_profiles(probabilities: Tensor) -> Tensor:
    r"""Describe each class node by the classes that its groups stand for.

    .. math:: q^k = \frac{\sum_g M(g, k)\, M(g, \cdot)}{\sum_g M(g, k)}

    Args:
        probabilities: M of :func:`group_class_probabilities`, shape (N, A, A).

    Returns:
        Class distribution of each node, zero for absent classes, shape (N, A, A).
    """
    return make_class_nodes(probabilities, probabilities)


@full_precision
def pass_messages(
    nodes: Tensor,
    profiles: Tensor,
    neighbours: Tensor,
    neighbour_profiles: Tensor,
    neighbour_valid: Tensor,
    visible: Tensor,
    temperature: float | None,
) -> Tensor:
    r"""One round of messages over the graph that joins the nodes of many images.

    Two nodes are joined by their shared class probability :math:`q \cdot q'`, and attend by it
    times :math:`\exp(\cos(S, S')/\tau)`, or by it alone (a graph convolution). A node does not
    attend to itself. DSCNet, arXiv:2405.04913, Eq. 8 ("graph over the batch"; the print gives no
    formula for it).

    Args:
        nodes: Class nodes, shape (N, A, E).
        profiles: Their class distributions, shape (N, A, A).
        neighbours: Nodes of the key images, shape (M, A, E); key image i < N is image i itself.
        neighbour_profiles: Their class distributions, shape (M, A, A).
        neighbour_valid: Whether the node exists, bool, shape (M, A).
        visible: Which key images an image may attend to, bool, shape (N, M).
        temperature: Divisor of the cosine similarity, positive; None leaves the similarity out.

    Returns:
        Messages, the attention-weighted mean of the neighbours, shape (N, A, E); 0 for a node
        without any, which the nodes of absent classes are.
    """
    images, slots, _ = nodes.shape
    shared = torch.einsum('iac,jbc->iajb', profiles, neighbour_profiles)
    same = torch.eye(images * slots, len(neighbours) * slots, dtype=torch.bool, device=nodes.device)
    joined = visible[:, None, :, None] & neighbour_valid[None, None] & ~same.view_as(shared)
    joined = joined & (shared > 0)
    logits = shared.clamp_min(1e-30).log()
    if temperature is not None:
        logits = logits + slot_similarity(nodes, neighbours) / temperature
    # A finite filler keeps the softmax of a node without neighbours free of nan.
    filler = torch.finfo(logits.dtype).min / 4
    attention = logits.masked_fill(~joined, filler).flatten(2).softmax(dim=2)
    attention = attention * joined.flatten(2)
    return attention @ neighbours.flatten(0, 1)
