"""The CAMs of many images, one after the other, on one or several ranks."""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.dist import get_dist_info
from mmengine.utils import ProgressBar
from mmseg.models.segmentors import EncoderDecoder
from torch.utils.data import DataLoader

from mmdscnet.inference.batch_cams import check_labels, compute_cams
from mmdscnet.inference.view_batches import (
    Images,
    ReadableImages,
    Unreadable,
    batch_by_size,
    collate_readable,
)
from mmdscnet.pseudo_labels import CAMs

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class Throughput:
    """How images go through a network: what decides the speed, and memory, of an export.

    Args:
        batch_size: Images a batch, at most; only images of one size share a batch.
        num_workers: Processes that read images; 0 to read in the calling one.
        precision: Of the network: ``float32``, or ``bfloat16`` or ``float16`` for autocast.

    Raises:
        ValueError: If a value is out of its range.
    """

    batch_size: int = 4
    num_workers: int = 2
    precision: str = 'float32'

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f'batch_size={self.batch_size} must be at least 1 image')
        if self.num_workers < 0:
            raise ValueError(f'num_workers={self.num_workers} must be at least 0 processes')
        if self.precision not in PRECISIONS:
            raise ValueError(f'precision={self.precision!r} is none of {list(PRECISIONS)}')


class ImageCAMs(NamedTuple):
    """The CAMs of an image.

    Attributes:
        image_path: Its file, or the name of one in memory.
        cams: Its CAMs, in float32.
    """

    image_path: str
    cams: CAMs

    @property
    def image_id(self) -> str:
        """Id of the image: its file name without suffix."""
        return Path(self.image_path).stem


def stream_cams(
    model: EncoderDecoder,
    dataset: Images,
    indices: Sequence[int],
    throughput: Throughput,
    show_progress: bool = True,
) -> Iterator[ImageCAMs | Unreadable]:
    """Compute the CAMs of images; under a launcher every rank those of its share.

    They are those of ``CAMTTAModel``. What makes it faster than one image and one view at a time:
    images of one size are one batch and so are a view and its mirror image; only the maps of
    present classes are resized; reading and computing overlap.

    No random number of the calling process is used up.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        dataset: Images with the pipeline that the model wants, in one view or several.
        indices: Which of them, the same on every rank.
        throughput: How they go through the network.
        show_progress: Whether the first rank shows a progress bar on standard error.

    Yields:
        CAMs an image, by size, or an image that could not be read.

    Raises:
        ValueError: If the pipeline loses image-level labels.
    """
    rank, ranks = get_dist_info()
    batches, unreadable = batch_by_size(dataset, indices, throughput.batch_size)
    mine, unreadable = batches[rank::ranks], unreadable[rank::ranks]
    shown = show_progress and rank == 0
    total = sum(map(len, mine)) + len(unreadable)
    progress = ProgressBar(total, file=sys.stderr if shown else io.StringIO())
    for fault in unreadable:
        progress.update()
        yield fault
    loader: DataLoader = DataLoader(
        ReadableImages(dataset),
        batch_sampler=mine,
        collate_fn=collate_readable,
        num_workers=throughput.num_workers,
        generator=torch.Generator(),
    )
    for batch, faults in loader:
        for fault in faults:
            progress.update()
            yield fault
        if batch is None:
            continue
        check_labels(dataset, batch)
        cams = compute_cams(model, batch, PRECISIONS[throughput.precision])
        for image_path, maps in zip(batch.image_paths, cams, strict=True):
            yield ImageCAMs(image_path, maps)
            progress.update()
    if shown:
        print(file=sys.stderr)
