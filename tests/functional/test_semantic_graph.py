"""Class nodes and their messages over the batch's graph (Eq. 8)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdscnet.functional.semantic_graph import (
    group_class_probabilities,
    make_class_nodes,
    make_class_profiles,
    pass_messages,
)

HALVES = [torch.bfloat16, torch.float16]


def naive_probabilities(cam_logits: Tensor, group_ids: Tensor, valid: Tensor) -> Tensor:
    """Every valid group must have a pixel."""
    num_images, num_slots = valid.shape
    probabilities = torch.zeros(num_images, num_slots, num_slots, dtype=cam_logits.dtype)
    for n in range(num_images):
        present = valid[n].nonzero().flatten().tolist()
        for group in present:
            pixels = cam_logits[n][:, group_ids[n] == group]
            evidence = [0.0, *pixels.mean(1).tolist()]
            total = sum(math.exp(evidence[k]) for k in present)
            for k in present:
                probabilities[n, group, k] = math.exp(evidence[k]) / total
    return probabilities


def naive_average(vectors: Tensor, probabilities: Tensor) -> Tensor:
    """Mean of the groups' vectors, weighted by a column of the probabilities."""
    nodes = torch.zeros_like(vectors)
    for n in range(len(vectors)):
        for k in range(vectors.shape[1]):
            weights = probabilities[n, :, k].tolist()
            if sum(weights) > 0:
                weighted = [w * vectors[n, g] for g, w in enumerate(weights)]
                nodes[n, k] = sum(weighted) / sum(weights)
    return nodes


def naive_messages(
    nodes: Tensor,
    profiles: Tensor,
    neighbours: Tensor,
    neighbour_profiles: Tensor,
    neighbour_valid: Tensor,
    visible: Tensor,
    temperature: float,
) -> Tensor:
    messages = torch.zeros_like(nodes)
    num_images, num_slots, _ = nodes.shape
    for n in range(num_images):
        for a in range(num_slots):
            weights, values = [], []
            for m in range(len(neighbours)):
                for b in range(num_slots):
                    if not visible[n, m] or not neighbour_valid[m, b] or (n, a) == (m, b):
                        continue
                    cosine = F.cosine_similarity(nodes[n, a], neighbours[m, b], dim=0)
                    shared = float(profiles[n, a] @ neighbour_profiles[m, b])
                    weights.append(shared * math.exp(float(cosine) / temperature))
                    values.append(neighbours[m, b])
            if sum(weights) > 0:
                weighted = [w * v for w, v in zip(weights, values, strict=True)]
                messages[n, a] = sum(weighted) / sum(weights)
    return messages


def make_evidence() -> tuple[Tensor, Tensor, Tensor]:
    """Evidence, group ids and validity of three images; every valid group has a pixel."""
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    group_ids = torch.zeros(3, 12, dtype=torch.int64)
    group_ids[0] = torch.tensor([0, 1, 3] * 4)
    group_ids[2] = torch.tensor([0, 1, 2, 3, 3, 3] * 2)
    return torch.randn(3, 3, 3, 4), group_ids.view(3, 3, 4), valid


def make_graph(num_keys: int = 4) -> dict[str, Tensor]:
    """Three images and ``num_keys`` key images; the keys begin with the images themselves."""
    probabilities = group_class_probabilities(*make_evidence())
    nodes = make_class_nodes(torch.randn(3, 4, 5), probabilities)
    profiles = make_class_profiles(probabilities)
    valid = make_evidence()[2]
    memory_profiles = torch.eye(4).expand(num_keys - 3, 4, 4)
    memory_valid = torch.tensor([False, True, True, False]).expand(num_keys - 3, 4)
    return {
        'nodes': nodes,
        'profiles': profiles,
        'neighbours': torch.cat([nodes, torch.randn(num_keys - 3, 4, 5)]),
        'neighbour_profiles': torch.cat([profiles, memory_profiles]),
        'neighbour_valid': torch.cat([valid, memory_valid]),
        'visible': torch.ones(3, num_keys, dtype=torch.bool),
    }


def to_dtype(graph: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in graph.items()}


# Probabilities of groups


def test_probabilities_by_hand():
    # Group 1 has logits log 2 and log 4 (mean log 2 * 1.5), group 0 has logit 0; class 2 is absent.
    logits = torch.tensor([[[[math.log(2), math.log(4), 0.0]], [[9.0, 9.0, 9.0]]]])
    valid = torch.tensor([[True, True, False]])
    probabilities = group_class_probabilities(logits, torch.tensor([[[1, 1, 0]]]), valid)
    strong = 2**1.5
    expected = [[0.5, 0.5, 0.0], [1 / (1 + strong), strong / (1 + strong), 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(probabilities, torch.tensor([expected]))


def test_probabilities_equal_naive_loop():
    evidence = make_evidence()
    torch.testing.assert_close(group_class_probabilities(*evidence), naive_probabilities(*evidence))


def test_probabilities_of_present_groups_sum_to_one_over_present_classes():
    cam_logits, group_ids, valid = make_evidence()
    probabilities = group_class_probabilities(cam_logits, group_ids, valid)
    torch.testing.assert_close(probabilities.sum(2), valid.float())
    assert (probabilities.mT[~valid] == 0).all()
    assert (probabilities[~valid] == 0).all()


def test_labelled_group_without_pixels_still_has_probabilities():
    cam_logits, group_ids, valid = make_evidence()
    probabilities = group_class_probabilities(cam_logits, torch.zeros_like(group_ids), valid)
    torch.testing.assert_close(probabilities.sum(2), valid.float())


def test_image_without_class_is_certainly_background():
    probabilities = group_class_probabilities(*make_evidence())
    assert probabilities[1, 0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_single_pixel_has_probabilities():
    valid = torch.tensor([[True, True]])
    ids = torch.ones(1, 1, 1, dtype=torch.int64)
    probabilities = group_class_probabilities(torch.zeros(1, 1, 1, 1), ids, valid)
    assert probabilities[0, 1].tolist() == [0.5, 0.5]


def test_no_gradient_reaches_the_evidence():
    cam_logits, group_ids, valid = make_evidence()
    assert not group_class_probabilities(
        cam_logits.requires_grad_(), group_ids, valid
    ).requires_grad


def test_probabilities_do_not_depend_on_the_order_of_pixels_and_follow_that_of_images():
    cam_logits, group_ids, valid = make_evidence()
    images, pixels = torch.randperm(3), torch.randperm(12)
    moved = group_class_probabilities(
        cam_logits[images].flatten(2)[..., pixels].view_as(cam_logits),
        group_ids[images].flatten(1)[:, pixels].view_as(group_ids),
        valid[images],
    )
    torch.testing.assert_close(
        moved, group_class_probabilities(cam_logits, group_ids, valid)[images]
    )


def test_large_evidence_gives_finite_probabilities():
    cam_logits, group_ids, valid = make_evidence()
    probabilities = group_class_probabilities(1e4 * cam_logits, group_ids, valid)
    torch.testing.assert_close(probabilities.sum(2), valid.float())


# Nodes and profiles


def test_class_nodes_by_hand():
    groups = torch.tensor([[[4.0, 0.0], [0.0, 8.0], [5.0, 5.0]]])
    probabilities = torch.tensor([[[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]])
    nodes = make_class_nodes(groups, probabilities)
    torch.testing.assert_close(nodes, torch.tensor([[[3.0, 2.0], [1.0, 6.0], [0.0, 0.0]]]))


def test_class_nodes_equal_naive_loop():
    probabilities, groups = group_class_probabilities(*make_evidence()), torch.randn(3, 4, 5)
    torch.testing.assert_close(
        make_class_nodes(groups, probabilities), naive_average(groups, probabilities)
    )


def test_nodes_and_profiles_of_absent_classes_are_zero():
    valid = make_evidence()[2]
    probabilities = group_class_probabilities(*make_evidence())
    assert (make_class_nodes(torch.randn(3, 4, 5), probabilities)[~valid] == 0).all()
    assert (make_class_profiles(probabilities)[~valid] == 0).all()


def test_certain_groups_are_their_own_nodes():
    groups = torch.randn(2, 4, 5)
    torch.testing.assert_close(make_class_nodes(groups, torch.eye(4).expand(2, 4, 4)), groups)


def test_image_without_any_group_has_zero_nodes_and_finite_gradient():
    groups = torch.randn(1, 3, 2, requires_grad=True)
    nodes = make_class_nodes(groups, torch.zeros(1, 3, 3))
    nodes.sum().backward()
    assert (nodes == 0).all()
    assert (groups.grad == 0).all()


def test_class_nodes_gradcheck():
    groups = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    probabilities = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make_class_nodes, (groups, probabilities))


def test_class_profile_by_hand():
    probabilities = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    profiles = make_class_profiles(probabilities)
    # (.75 * (.75, .25) + .5 * (.5, .5)) / 1.25 and (.25 * (.75, .25) + .5 * (.5, .5)) / .75
    expected = torch.tensor([[[0.65, 0.35], [0.4375 / 0.75, 0.3125 / 0.75]]])
    torch.testing.assert_close(profiles, expected)


def test_class_profiles_are_distributions_and_equal_naive_loop():
    valid = make_evidence()[2]
    probabilities = group_class_probabilities(*make_evidence())
    profiles = make_class_profiles(probabilities)
    torch.testing.assert_close(profiles, naive_average(probabilities, probabilities))
    torch.testing.assert_close(profiles.sum(2), valid.float())


def test_class_profiles_gradcheck():
    probabilities = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make_class_profiles, (probabilities,))


# Messages


def test_message_by_hand():
    # Node (0, 0) sees (0, 1) with shared 1/4 and cosine 0, and (1, 1) with shared 1 and cosine 1.
    nodes = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    memory = torch.tensor([[[7.0, 7.0], [3.0, 0.0]]])
    message = pass_messages(
        nodes=nodes,
        profiles=torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]),
        neighbours=torch.cat([nodes, memory]),
        neighbour_profiles=torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [1.0, 0.0]]]),
        neighbour_valid=torch.tensor([[True, True], [False, True]]),
        visible=torch.tensor([[True, True]]),
        temperature=0.5,
    )[0, 0]
    near, far = math.exp(2), 0.25
    expected = torch.tensor([3 * near, 2 * far]) / (near + far)
    torch.testing.assert_close(message, expected)


@pytest.mark.parametrize('temperature', [0.2, 1.0])
@pytest.mark.parametrize('num_keys', [3, 4, 5])
def test_messages_equal_naive_loop(num_keys: int, temperature: float):
    graph = make_graph(num_keys)
    # A floor keeps every shared probability above zero, where the next test looks.
    for name in ('profiles', 'neighbour_profiles'):
        graph[name] = 0.9 * graph[name] + 0.025
    graph['visible'] = torch.rand(3, num_keys) > 0.3
    torch.testing.assert_close(
        pass_messages(**graph, temperature=temperature),
        naive_messages(**graph, temperature=temperature),
    )


def test_without_a_temperature_only_the_shared_classes_weigh():
    graph = make_graph(4)
    convolved = pass_messages(**graph, temperature=None)
    torch.testing.assert_close(convolved, pass_messages(**graph, temperature=1e9))
    graph['nodes'] = graph['nodes'].flip(2)
    torch.testing.assert_close(pass_messages(**graph, temperature=None), convolved)


def test_nodes_that_share_no_class_probability_are_not_joined():
    # The neighbour of the same class is opposite, the one of another class is the same vector.
    nodes = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    keys = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    message = pass_messages(
        nodes=nodes,
        profiles=torch.eye(2)[None],
        neighbours=torch.cat([nodes, keys]),
        neighbour_profiles=torch.eye(2).expand(2, 2, 2),
        neighbour_valid=torch.tensor([[False, True], [True, True]]),
        visible=torch.ones(1, 2, dtype=torch.bool),
        temperature=0.1,
    )[0, 1]
    torch.testing.assert_close(message, torch.tensor([-1.0, 0.0]))


def test_node_does_not_attend_to_itself():
    graph = make_graph(3)
    graph['visible'] = torch.eye(3, dtype=torch.bool)
    messages = pass_messages(**graph, temperature=0.5)
    # Image 1 has the background only: nobody else to listen to.
    assert (messages[1, 0] == 0).all()


def test_no_visible_or_valid_neighbour_gives_zero_and_finite_gradient():
    for name in ('visible', 'neighbour_valid'):
        graph = make_graph()
        graph[name] = torch.zeros_like(graph[name])
        graph['nodes'] = graph['nodes'].requires_grad_()
        messages = pass_messages(**graph, temperature=0.1)
        messages.sum().backward()
        assert (messages == 0).all()
        assert (graph['nodes'].grad == 0).all()


def test_hidden_images_have_no_influence():
    graph = make_graph()
    graph['visible'] = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]).bool()
    graph['neighbours'] = graph['neighbours'].detach().requires_grad_()
    pass_messages(**graph, temperature=0.5)[0].sum().backward()
    assert (graph['neighbours'].grad[1:3] == 0).all()
    assert graph['neighbours'].grad[3].abs().sum() > 0


def test_message_is_a_mean_of_neighbours():
    graph = make_graph()
    graph['neighbours'] = torch.ones_like(graph['neighbours'])
    messages = pass_messages(**graph, temperature=0.3)
    valid = graph['neighbour_valid'][:3]
    torch.testing.assert_close(messages[valid], torch.ones_like(messages[valid]))


def test_permuting_images_permutes_the_messages():
    graph, order = make_graph(3), torch.randperm(3)
    messages = pass_messages(**graph, temperature=0.5)
    moved = {name: tensor[order] for name, tensor in graph.items()}
    torch.testing.assert_close(pass_messages(**moved, temperature=0.5), messages[order])


def test_messages_gradcheck():
    graph = to_dtype(make_graph(), torch.float64)
    # Away from the zero vector, at which the cosine has no derivative.
    nodes = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    neighbours = torch.randn(4, 4, 5, dtype=torch.float64, requires_grad=True)

    def messages(nodes: Tensor, neighbours: Tensor) -> Tensor:
        changed = {'nodes': nodes, 'neighbours': neighbours}
        return pass_messages(**{**graph, **changed}, temperature=0.5)

    assert torch.autograd.gradcheck(messages, (nodes, neighbours))


def test_zero_nodes_and_tiny_temperature_give_finite_messages_and_gradients():
    graph = make_graph()
    nodes = (graph['nodes'] * torch.tensor([0.0, 1, 1])[:, None, None]).requires_grad_()
    graph['nodes'] = nodes
    messages = pass_messages(**graph, temperature=1e-4)
    messages.sum().backward()
    assert torch.isfinite(messages).all()
    assert torch.isfinite(nodes.grad).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_graph_is_float32_under_autocast(dtype: torch.dtype):
    cam_logits, group_ids, valid = make_evidence()
    cam_logits, groups = cam_logits.to(dtype), torch.randn(3, 4, 5).to(dtype)
    full = group_class_probabilities(cam_logits.float(), group_ids, valid)
    graph = to_dtype(make_graph(), dtype)
    expected = [
        full,
        make_class_nodes(groups.float(), full),
        make_class_profiles(full),
        pass_messages(**to_dtype(graph, torch.float32), temperature=0.1),
    ]
    with torch.autocast('cpu', dtype=dtype):
        actual = [
            group_class_probabilities(cam_logits, group_ids, valid),
            make_class_nodes(groups, full),
            make_class_profiles(full),
            pass_messages(**graph, temperature=0.1),
        ]
    for result, reference in zip(actual, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, reference, rtol=0, atol=0)
