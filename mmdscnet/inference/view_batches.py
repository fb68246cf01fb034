"""Images in all their views, in batches of one size."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torch.utils.data import Dataset

from mmdscnet.datasets.file_checks import read_image_size
from mmdscnet.random_draws import kept_random_state

# Axes of maps of shape (N, P, H, W), by the direction in which their images were flipped.
FLIP_AXES = {'horizontal': 3, 'vertical': 2}


class Images(Protocol):
    """What is needed of a data set of images; mmseg's are of this kind."""

    metainfo: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Give ``img_path`` of an image, and ``img`` where it is in memory."""


class CAMBatch(NamedTuple):
    """Images of one size, in all their views.

    Attributes:
        inputs: For each view the images, each of shape (3, H, W).
        flip_axes: For each view the axis of its maps that is flipped; None for none.
        image_paths: File of each image, or the name of one in memory.
        image_labels: Image-level labels in {0, 1}, shape (N, K); None where there are none.
        size: Height and width of the original images in pixels.
    """

    inputs: list[list[Tensor]]
    flip_axes: list[int | None]
    image_paths: list[str]
    image_labels: Tensor | None
    size: tuple[int, int]

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images: their file names without suffix."""
        return [Path(path).stem for path in self.image_paths]


class Unreadable(NamedTuple):
    """An image that could not be read.

    Attributes:
        image_path: Its file.
        reason: What is wrong with it, and the mend.
    """

    image_path: str
    reason: str

    @property
    def image_id(self) -> str:
        """Id of the image: its file name without suffix."""
        return Path(self.image_path).stem


class ReadableImages(Dataset):
    """A data set whose unreadable images come as :class:`Unreadable` instead of an exception.

    An exception in a process that reads images would reach the caller as a text without its kind.
    No random number is used up: ``RandomFlip`` draws one even if it always, or never, flips.

    Args:
        dataset: The images.
    """

    def __init__(self, dataset: Images) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any] | Unreadable:
        """Read an image in all its views."""
        info = self.dataset.get_data_info(index)
        try:
            find_image_size(info)
            with kept_random_state():
                return self.dataset[index]
        # AssertionError: of mmcv, for a file that OpenCV cannot decode.
        except (AssertionError, OSError, ValueError) as error:
            return Unreadable(info['img_path'], str(error))


def find_image_size(info: Mapping[str, Any]) -> tuple[int, int]:
    """Find the size of an image without decoding it.

    Args:
        info: Data info with ``img_path``, and ``img`` where the image is in memory.

    Returns:
        Height and width in pixels.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is truncated or no image.
    """
    return info['img'].shape[:2] if 'img' in info else read_image_size(info['img_path'])


def batch_by_size(
    dataset: Images, indices: Sequence[int], batch_size: int
) -> tuple[list[list[int]], list[Unreadable]]:
    """Put images of one size together.

    Args:
        dataset: The images.
        indices: Which of them.
        batch_size: Images a batch, at most.

    Returns:
        Batches of indices; the largest images come first, so that memory fails early if at all. And
        the images whose files are missing or damaged.

    Raises:
        ValueError: If ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1 image')
    by_size = defaultdict(list)
    unreadable = []
    for index in indices:
        info = dataset.get_data_info(index)
        try:
            by_size[find_image_size(info)].append(index)
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable(info['img_path'], str(error)))
    sizes = sorted(by_size, key=lambda size: (-size[0] * size[1], size))
    batches = [
        by_size[size][start : start + batch_size]
        for size in sizes
        for start in range(0, len(by_size[size]), batch_size)
    ]
    return batches, unreadable


def collate_readable(
    items: list[dict[str, Any] | Unreadable],
) -> tuple[CAMBatch | None, list[Unreadable]]:
    """Join images of one size, those that could be read.

    Args:
        items: Items of :class:`ReadableImages`.

    Returns:
        The batch, or None if no image could be read, and the images that could not.
    """
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    readable = [item for item in items if not isinstance(item, Unreadable)]
    return collate_views(readable) if readable else None, unreadable


def collate_views(items: list[dict[str, Any]]) -> CAMBatch:
    """Join what a pipeline makes of images of one size.

    Args:
        items: Items of a data set: ``inputs`` and ``data_samples``, a list of views each after
            ``TestTimeAug``, else of a single view.

    Returns:
        The batch.
    """
    data = pseudo_collate([as_views(item) for item in items])
    first_view = data['data_samples'][0]
    labels = [sample.metainfo.get('gt_image_label') for sample in first_view]
    return CAMBatch(
        inputs=data['inputs'],
        flip_axes=[find_flip_axis(view[0].metainfo) for view in data['data_samples']],
        image_paths=[sample.img_path for sample in first_view],
        image_labels=None if labels[0] is None else torch.from_numpy(np.stack(labels)),
        size=tuple(first_view[0].ori_shape),
    )


def as_views(item: dict[str, Any]) -> dict[str, Any]:
    """Make a list of views also of an image in a single one."""
    if isinstance(item['inputs'], list):
        return item
    return {key: [value] for key, value in item.items()}


def find_flip_axis(meta: Mapping[str, Any]) -> int | None:
    """Find how to turn the maps of a view upright.

    Args:
        meta: Meta information of an image of the view.

    Returns:
        Axis of maps of shape (N, P, H, W); None for a view that is not flipped.

    Raises:
        ValueError: If the view is flipped in a way that mmseg cannot undo either.
    """
    if not meta.get('flip'):
        return None
    direction = meta.get('flip_direction')
    if direction not in FLIP_AXES:
        raise ValueError(
            f'a view is flipped in flip_direction={direction!r}: let RandomFlip of the '
            f'tta_pipeline take one of {list(FLIP_AXES)}'
        )
    return FLIP_AXES[direction]


def group_views(inputs: list[list[Tensor]]) -> Iterator[list[int]]:
    """Find the views that can go through the network together.

    Args:
        inputs: For each view the images, each of shape (3, H, W).

    Yields:
        Indices of views of one size, such as a scale and its mirror image.
    """
    by_size = defaultdict(list)
    for view, images in enumerate(inputs):
        by_size[images[0].shape].append(view)
    yield from by_size.values()
