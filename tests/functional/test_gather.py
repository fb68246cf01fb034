"""The global batch: two gloo processes against one."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdscnet.functional.contrast import class_contrast
from mmdscnet.functional.gather import check_sizes, gather_images, own_images, world_size

RANKS = 2
IMAGES = 3  # a rank


def make_rows(rank: int, seed: int = 0) -> Tensor:
    """Rows of one rank."""
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return torch.randn(IMAGES, 2, 4, generator=generator)


def make_weights(rank: int) -> Tensor:
    """Weights of one rank's loss over the rows of all ranks."""
    return torch.cat([make_rows(other, seed=rank + 1) for other in range(RANKS)])


def contrast_slots(embeddings: Tensor) -> Tensor:
    """Contrast of two slots an image, all valid."""
    valid = torch.ones(embeddings.shape[:2], dtype=torch.bool)
    return class_contrast(embeddings, valid, embeddings, valid, 0.5, own_image_is_positive=False)


def make_projection() -> nn.Linear:
    """The same layer in every process."""
    projection = nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter).sin())
    return projection


def weigh_all(rank: int) -> dict[str, Tensor]:
    """Each rank weighs the rows of all ranks by weights of its own."""
    rows = make_rows(rank).requires_grad_()
    gathered = gather_images(rows)
    (gathered.square() * make_weights(rank)).sum().backward()
    return {'gathered': gathered.detach(), 'weighed_grad': rows.grad}


def weigh_own(rank: int) -> dict[str, Tensor]:
    """Each rank weighs the rows of its own only."""
    rows = make_rows(rank).requires_grad_()
    own = own_images(gather_images(rows))
    (own * (rank + 1)).sum().backward()
    return {'own': own.detach(), 'own_grad': rows.grad}


def add_two(rank: int) -> dict[str, Tensor]:
    """Two gathered tensors and a third one share one gradient: that of their sum."""
    rows = [make_rows(rank, seed).requires_grad_() for seed in range(2)]
    local = torch.zeros(RANKS * IMAGES, 2, 4, requires_grad=True)
    total = local + gather_images(rows[0]) + gather_images(rows[1])
    (total * make_weights(rank)).sum().backward()
    return {'first_grad': rows[0].grad, 'second_grad': rows[1].grad, 'local_grad': local.grad}


def contrast_in_parallel(rank: int) -> dict[str, Tensor]:
    """DistributedDataParallel around a layer whose outputs meet in one loss."""
    projection = nn.parallel.DistributedDataParallel(make_projection())
    loss = contrast_slots(gather_images(projection(make_rows(rank))))
    loss.backward()
    return {'loss': loss.detach(), 'weight_grad': projection.module.weight.grad}


def gather_strided(rank: int) -> dict[str, Tensor]:
    """Neither contiguous memory, nor float32, nor a gradient is needed."""
    return {'strided': gather_images(make_rows(rank).double().transpose(0, 2)).transpose(0, 1)}


def gather_uneven(rank: int) -> dict[str, Tensor]:
    """The second rank has one image less: no row is exchanged, and both say so."""
    with pytest.raises(
        ValueError, match=r'the ranks hold \[3, 2\] images of one batch; .*rounds up'
    ):
        gather_images(make_rows(rank)[: IMAGES - rank])
    return {}


# After what must fail, the ranks still agree.
CASES = (gather_uneven, weigh_all, weigh_own, add_two, contrast_in_parallel, gather_strided)


def run_rank(rank: int, folder: str) -> None:
    """Body of one process: run every case and save what it returned."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/init', rank=rank, world_size=RANKS
    )
    results = {'world_size': torch.tensor(world_size())}
    for case in CASES:
        results.update(case(rank))
    torch.save(results, f'{folder}/rank{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Run both ranks once; the results of each."""
    folder = tmp_path_factory.mktemp('ranks')
    with pytest.MonkeyPatch.context() as patch:
        # A child imports the worker by the name of its module. `tests.functional.test_gather`
        # would lead it to any installed package named `tests`; the file's own name does not.
        patch.syspath_prepend(str(Path(__file__).parent))
        worker = importlib.import_module(Path(__file__).stem).run_rank
        torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f'rank{rank}.pt') for rank in range(RANKS)]


def test_single_process_returns_the_tensor_itself():
    rows = torch.randn(2, 3)
    assert world_size() == 1
    assert gather_images(rows) is rows
    torch.testing.assert_close(own_images(rows), rows, rtol=0, atol=0)


def test_world_size_counts_the_ranks(ranks: list[dict[str, Tensor]]):
    assert [int(result['world_size']) for result in ranks] == [RANKS, RANKS]


def test_rows_come_in_the_order_of_the_ranks(ranks: list[dict[str, Tensor]]):
    expected = torch.cat([make_rows(rank) for rank in range(RANKS)])
    for result in ranks:
        torch.testing.assert_close(result['gathered'], expected, rtol=0, atol=0)


def test_strided_tensors_are_gathered_in_their_dtype(ranks: list[dict[str, Tensor]]):
    expected = torch.cat([make_rows(r).double().transpose(0, 2) for r in range(RANKS)])
    for result in ranks:
        torch.testing.assert_close(result['strided'], expected.transpose(0, 1), rtol=0, atol=0)


def test_gradient_is_the_sum_over_the_losses_of_the_ranks(ranks: list[dict[str, Tensor]]):
    weights = sum(make_weights(rank) for rank in range(RANKS)).chunk(RANKS)
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result['weighed_grad'], 2 * make_rows(rank) * weights[rank])


def test_own_images_are_the_rows_of_the_rank(ranks: list[dict[str, Tensor]]):
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result['own'], make_rows(rank), rtol=0, atol=0)


def test_losses_of_own_images_do_not_mix(ranks: list[dict[str, Tensor]]):
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result['own_grad'], torch.full((IMAGES, 2, 4), rank + 1.0))


@pytest.mark.parametrize('name', ['first_grad', 'second_grad'])
def test_gathered_tensors_that_share_a_gradient_do_not_sum_it_twice(
    ranks: list[dict[str, Tensor]], name: str
):
    weights = sum(make_weights(rank) for rank in range(RANKS)).chunk(RANKS)
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result[name], weights[rank])


def test_gradient_of_other_tensors_is_not_overwritten(ranks: list[dict[str, Tensor]]):
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result['local_grad'], make_weights(rank))


def test_two_ranks_give_the_loss_and_the_gradient_of_one(ranks: list[dict[str, Tensor]]):
    projection = make_projection()
    loss = contrast_slots(projection(torch.cat([make_rows(rank) for rank in range(RANKS)])))
    loss.backward()
    for result in ranks:
        torch.testing.assert_close(result['loss'], loss.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            result['weight_grad'], projection.weight.grad, rtol=1e-5, atol=1e-6
        )


def test_equal_sizes_pass():
    check_sizes(torch.tensor([3, 3]), 3)


def test_other_sizes_are_named_with_the_mend():
    with pytest.raises(ValueError, match=r'hold \[3, 2\] images .*DefaultSampler.*round_up=True'):
        check_sizes(torch.tensor([3, 2]), 3)


def test_sizes_on_a_gpu_are_not_read_back():
    """Tensors without values refuse to be read, for which a GPU would have to be waited for."""
    with FakeTensorMode():
        check_sizes(torch.empty(2, dtype=torch.int64, device='cuda'), 3)
