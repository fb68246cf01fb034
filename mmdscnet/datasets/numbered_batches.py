"""Training images that come out the same wherever a training begins to read them.

A data loader of torch keeps its place in two kinds of hidden state: how far the sampler is, and
what the generators of the worker processes have drawn. Neither travels in a checkpoint. Here a
batch has a number, and the random numbers of an image are a function of the seed of the run, the
epoch and the place of the image in it, counted over all ranks. So the images do not depend on the
number of worker processes, nor on the number of ranks among which a batch is shared, and a training
that resumes goes on with the next batch without reading those before it.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from mmdscnet.random_draws import kept_random_state, seed_cpu_draws

# Kinds of draws of a run, of which seed_draws makes its keys.
IMAGE_DRAWS, STEP_DRAWS, EPOCH_DRAWS = range(3)


class NumberedIndex(NamedTuple):
    """What a worker process needs to make an item of a batch.

    Attributes:
        image: Index in the data set.
        key: What the random numbers of its pipeline depend on.
    """

    image: int
    key: tuple[int, ...]


class NumberedBatches(Sampler[list[NumberedIndex]]):
    """The batches of a batch sampler, with numbers, from any of them on.

    Args:
        batches: The batch sampler; its sampler shares an epoch among the ranks element by element,
            as those of mmengine and :class:`GroupSampler` do.
        seed: Seed of the run.

    Attributes:
        sampler: The sampler of the images, where mmengine looks for it to set the epoch.
        batch_size: Images a batch on this rank.
        drop_last: Whether a last, incomplete batch is left out.
        start: Number of batches of the next epoch that are left out, because a training has seen
            them; 0 again after that epoch.
    """

    def __init__(self, batches: BatchSampler, seed: int) -> None:
        self.batches = batches
        self.sampler = batches.sampler
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last
        self.seed = seed
        self.rank, self.world_size = get_dist_info()
        self.start = 0

    def __len__(self) -> int:
        """Number of batches of a whole epoch; not the end of an endless sampler."""
        return len(self.batches)

    @property
    def batches_per_epoch(self) -> float:
        """Number of batches of an epoch, infinity for an endless sampler."""
        return math.inf if isinstance(self.sampler, InfiniteSampler) else len(self.batches)

    def __iter__(self) -> Iterator[list[NumberedIndex]]:
        """Iterate over the batches of the sampler's epoch."""
        start, self.start = self.start, 0
        epoch, first = getattr(self.sampler, 'epoch', 0), self.rank
        for number, batch in enumerate(self.batches):
            places = range(first, first + len(batch) * self.world_size, self.world_size)
            first = places.stop
            if number >= start:
                yield [
                    NumberedIndex(image, (self.seed, IMAGE_DRAWS, epoch, place))
                    for image, place in zip(batch, places, strict=True)
                ]


class NumberedItems:
    """Make the items of a batch, each with random numbers of its own.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, batch: Sequence[NumberedIndex]) -> list[Any]:
        """Make the items.

        Args:
            batch: Which.

        Returns:
            What the data set gives for them. Generators of this process are as before.
        """
        with kept_random_state():
            return [self._make(*numbered) for numbered in batch]

    def _make(self, image: int, key: tuple[int, ...]) -> Any:
        seed_cpu_draws(*key)
        return self.dataset[image]


class EndlessBatches:
    """Epoch after epoch of a data loader, for a loop that counts iterations.

    mmengine's loop takes and throws away as many batches as a resumed training took steps. These
    come as None, and are not read.

    Args:
        loader: Data loader with :class:`NumberedBatches`.
        seen: Number of its batches that the training has seen.
        steps: Number of batches that the loop throws away; None for as many. They differ after a
            change of the batch size.
    """

    def __init__(self, loader: DataLoader, seen: int, steps: int | None = None) -> None:
        self.loader = loader
        assert isinstance(loader.batch_sampler, NumberedBatches)
        self.numbered = loader.batch_sampler
        self.unread = seen if steps is None else steps
        epoch, start = divmod(seen, self.numbered.batches_per_epoch)
        self.epoch, self.start = int(epoch), int(start)
        self.batches: Iterator[Any] | None = None

    def __iter__(self) -> 'EndlessBatches':
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Give the next batch, or None for one that was seen."""
        if self.unread:
            self.unread -= 1
            return None
        if self.batches is None:
            self.batches = self._begin_epoch()
        batch = next(self.batches, None)
        if batch is None:
            self.epoch += 1
            self.batches = self._begin_epoch()
            batch = next(self.batches)
        return batch

    def skip_iter(self, steps: int) -> None:
        """Leave out what was seen, which the loop of the maintained forks asks for at once.

        Args:
            steps: Number of steps that the training took.
        """
        self.unread = max(self.unread - steps, 0)

    def _begin_epoch(self) -> Iterator[Any]:
        if hasattr(self.numbered.sampler, 'set_epoch'):
            self.numbered.sampler.set_epoch(self.epoch)
        self.numbered.start, self.start = self.start, 0
        return iter(self.loader)


def number_batches(loader: DataLoader, seed: int) -> DataLoader:
    """Rebuild a data loader so that its batches are numbered.

    Args:
        loader: Data loader as mmengine builds it. Its data set gets a ``__getitems__``, by which
            torch then asks for a batch.
        seed: Seed of the run, the same on every rank; the sampler gets it too.

    Returns:
        The new data loader.

    Raises:
        TypeError: If it has a batch sampler of its own, whose rules are not known.
        ValueError: If it gives no batch at all.
    """
    if type(loader.batch_sampler) is not BatchSampler:
        raise TypeError(
            f'batches of {type(loader.batch_sampler).__name__} cannot be numbered: take '
            'batch_sampler out of train_dataloader, or ExactResumeHook out of default_hooks'
        )
    old = loader.batch_sampler
    sampler = _restart(loader.sampler, seed)
    batches = BatchSampler(sampler, old.batch_size, old.drop_last)
    if len(batches) == 0:
        raise ValueError(
            f'train_dataloader gives no batch: with drop_last=True, batch_size={old.batch_size} is '
            f'more than the {len(sampler)} images of a process: choose a smaller one'
        )
    dataset: Any = loader.dataset
    dataset.__getitems__ = NumberedItems(dataset)
    return DataLoader(
        dataset,
        batch_sampler=NumberedBatches(batches, seed),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _restart(sampler: Any, seed: int) -> Any:
    if isinstance(sampler, InfiniteSampler):
        # It cannot be sent back to its beginning, which a loop has begun to read.
        sampler = copy.copy(sampler)
        sampler.seed = seed
        sampler.indices = sampler._indices_of_rank()
    elif hasattr(sampler, 'seed'):
        # A resumed training has the seed of its checkpoint, which came after the sampler.
        sampler.seed = seed
    return sampler
