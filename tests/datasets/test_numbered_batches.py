import itertools
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmdscnet.datasets import numbered_batches
from mmdscnet.datasets.numbered_batches import (
    EndlessBatches,
    NumberedIndex,
    NumberedItems,
    number_batches,
)

COUNT = 10


class Draws(Dataset):
    """Items that are random numbers of all three kinds."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def make_loader(batch_size=3, workers=0, seed=0, shuffle=True, endless=False, **kwargs):
    dataset = Draws()
    sampler = (InfiniteSampler if endless else DefaultSampler)(dataset, shuffle=shuffle, seed=seed)
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list,
        **kwargs,
    )
    return number_batches(loader, seed)


def epoch_of(loader, epoch=0):
    loader.batch_sampler.sampler.set_epoch(epoch)
    return list(loader)


@pytest.fixture
def as_rank(monkeypatch):
    """Let samplers and batches believe to be of a rank."""

    def become(rank, world_size):
        for name in ('mmengine.dataset.sampler', numbered_batches.__name__):
            monkeypatch.setattr(f'{name}.get_dist_info', lambda: (rank, world_size))

    return become


def test_epoch_can_be_read_again():
    assert epoch_of(make_loader()) == epoch_of(make_loader())


def test_epochs_and_seeds_differ():
    loader = make_loader(shuffle=False)
    draws = [*epoch_of(loader), *epoch_of(loader, 1), *epoch_of(make_loader(seed=1, shuffle=False))]
    numbers = [number for batch in draws for item in batch for number in item[1:]]
    assert len(numbers) == 3 * 3 * COUNT
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize('workers', [1, 3])
def test_worker_processes_change_nothing(workers):
    alone, together = make_loader(), make_loader(workers=workers)
    for epoch in (0, 1):
        assert epoch_of(together, epoch) == epoch_of(alone, epoch)


def test_random_numbers_of_the_process_are_left_alone():
    make_items = NumberedItems(Draws())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_items([NumberedIndex(0, (1, 2, 3))])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('start', range(5))
def test_epoch_goes_on_from_any_batch(start):
    loader = make_loader()
    whole = epoch_of(loader)
    loader.batch_sampler.start = start
    assert epoch_of(loader) == whole[start:]
    # And only this one.
    assert epoch_of(loader) == whole


@pytest.mark.parametrize('endless', [False, True])
@pytest.mark.parametrize('ranks', [2, 4])
def test_ranks_together_read_what_one_process_reads(as_rank, ranks, endless):
    def read(loader):
        return list(itertools.islice(iter(loader), 2))

    whole = read(make_loader(batch_size=4, endless=endless))
    shares = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        shares.append(read(make_loader(batch_size=4 // ranks, endless=endless)))
    for batch in range(2):
        parts = [share[batch] for share in shares]
        together = [item for items in zip(*parts, strict=True) for item in items]
        assert together == whole[batch]


def test_last_batch_is_left_out_where_it_is_incomplete():
    assert [len(batch) for batch in make_loader()] == [3, 3, 3, 1]
    loader = make_loader(drop_last=True)
    assert [len(batch) for batch in loader] == [3, 3, 3]
    assert len(loader) == 3


@pytest.mark.parametrize('endless', [False, True])
@pytest.mark.parametrize('seen', [0, 1, 4, 6, 9])
def test_endless_batches_go_on_after_those_that_were_seen(endless, seen):
    whole = list(itertools.islice(EndlessBatches(make_loader(endless=endless), 0), 12))
    assert all(batch is not None for batch in whole)
    batches = EndlessBatches(make_loader(endless=endless), seen)
    resumed = list(itertools.islice(batches, 12))
    assert resumed[:seen] == [None] * seen
    assert resumed[seen:] == whole[seen:]


def test_seen_batches_are_left_out_at_once_for_the_loop_of_the_forks():
    whole = list(itertools.islice(EndlessBatches(make_loader(), 0), 8))
    batches = EndlessBatches(make_loader(), 5)
    batches.skip_iter(5)
    assert list(itertools.islice(batches, 3)) == whole[5:]


def test_seen_batches_are_not_read():
    loader = make_loader(endless=True)
    read = []
    loader.dataset.__getitems__ = read.append
    loader.collate_fn = lambda batch: batch
    list(itertools.islice(EndlessBatches(loader, 1000), 1001))
    assert len(read) == 1


def test_endless_sampler_that_was_read_begins_anew():
    """A loop that counts iterations has begun to read when the batches are numbered."""
    sampler = InfiniteSampler(Draws(), seed=0)
    loader = DataLoader(Draws(), 3, sampler=sampler, collate_fn=list)
    next(iter(loader))
    read = next(iter(number_batches(loader, 0)))
    assert read == next(iter(make_loader(endless=True)))


def test_sampler_takes_the_seed_of_the_run():
    sampler = DefaultSampler(Draws(), seed=99)
    loader = number_batches(DataLoader(Draws(), 3, sampler=sampler, collate_fn=list), 7)
    assert list(loader) == epoch_of(make_loader(seed=7))


def test_settings_of_the_loader_are_kept():
    old = DataLoader(
        Draws(),
        2,
        num_workers=2,
        collate_fn=pseudo_collate,
        timeout=9,
        prefetch_factor=5,
        persistent_workers=True,
        worker_init_fn=print,
        multiprocessing_context='fork',
        generator=torch.Generator(),
        pin_memory=False,
        drop_last=True,
    )
    new = number_batches(old, 0)
    for name in [
        'dataset',
        'num_workers',
        'collate_fn',
        'timeout',
        'prefetch_factor',
        'persistent_workers',
        'worker_init_fn',
        'multiprocessing_context',
        'generator',
        'pin_memory',
    ]:
        assert getattr(new, name) is getattr(old, name) or getattr(new, name) == getattr(old, name)
    assert new.batch_sampler.drop_last
    assert new.batch_sampler.batch_size == 2


def test_batch_sampler_of_another_kind_is_refused():
    class Own(BatchSampler):
        pass

    loader = DataLoader(Draws(), batch_sampler=Own(range(4), 2, False))
    with pytest.raises(TypeError, match=r'Own cannot be numbered: take batch_sampler out'):
        number_batches(loader, 0)


def test_key_holds_seed_epoch_and_place(as_rank):
    as_rank(1, 2)
    batches = make_loader(batch_size=2, seed=4, shuffle=False).batch_sampler
    batches.sampler.set_epoch(3)
    assert list(batches)[1] == [NumberedIndex(5, (4, 0, 3, 5)), NumberedIndex(7, (4, 0, 3, 7))]
