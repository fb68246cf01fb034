"""Sampler whose batches hold several images of one class."""

import math
from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


class ClassIndex(NamedTuple):
    """Image-level labels as two compressed tables: image to classes and class to images.

    A last, artificial class holds every image. It is the only class of an image that has no
    class, or none that another image has: such an image is followed by random images.

    Attributes:
        image_offsets: Where the entries of an image begin in ``image_classes``, shape (M + 1,).
        image_classes: Classes of image 0, of image 1, ..., shape (P,).
        image_ranks: Position of the image in the list of that class, shape (P,).
        class_offsets: Where the entries of a class begin in ``class_images``, shape (K + 2,).
        class_images: Images of class 0, of class 1, ..., shape (Q,).
    """

    image_offsets: np.ndarray
    image_classes: np.ndarray
    image_ranks: np.ndarray
    class_offsets: np.ndarray
    class_images: np.ndarray


def build_class_index(image_labels: np.ndarray) -> ClassIndex:
    """Invert multi-hot labels, so that a partner of an image is drawn in O(1).

    Args:
        image_labels: Image-level labels of M images, {0, 1}, shape (M, K).

    Returns:
        The index, in which every image has at least one class to draw from.
    """
    labels = image_labels > 0
    labels = labels & (labels.sum(axis=0) >= 2)
    alone = ~labels.any(axis=1, keepdims=True)
    choices = np.hstack([labels, alone])
    members = np.hstack([labels, np.ones_like(alone)])
    images, classes = np.nonzero(choices)
    ranks = members.cumsum(axis=0, dtype=np.int64)[images, classes] - 1
    return ClassIndex(
        image_offsets=_offsets(choices.sum(axis=1)),
        image_classes=classes,
        image_ranks=ranks,
        class_offsets=_offsets(members.sum(axis=0)),
        class_images=np.nonzero(members.T)[1],
    )


def draw_partners(
    index: ClassIndex, anchors: np.ndarray, num_partners: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw images that share a class with their anchor.

    One class an anchor, uniform over the anchor's classes that another image has too; its
    partners are independent and uniform over the other images of that class. A group of three or
    more may therefore hold a partner twice. Row i depends on the generator and on the rows before
    it only, so that more anchors prolong the result and change nothing of it.

    Args:
        index: Index of the labels.
        anchors: Image indices, shape (G,).
        num_partners: Partners an anchor, at least 1.
        rng: Source of the draw.

    Returns:
        Image indices, shape (G, num_partners).
    """
    uniform = rng.random((len(anchors), 1 + num_partners))
    begin, end = index.image_offsets[anchors], index.image_offsets[anchors + 1]
    entry = begin + (uniform[:, 0] * (end - begin)).astype(np.int64)
    classes = index.image_classes[entry]
    class_begin = index.class_offsets[classes][:, None]
    class_size = index.class_offsets[classes + 1][:, None] - class_begin
    # A step of 1 .. size - 1 round the list of the class never lands on the anchor itself.
    step = 1 + (uniform[:, 1:] * np.maximum(class_size - 1, 1)).astype(np.int64)
    position = (index.image_ranks[entry][:, None] + step) % class_size
    return index.class_images[class_begin + position]


@DATA_SAMPLERS.register_module()
class GroupSampler(Sampler):
    """Serve images in groups that share a class, the same sequence whatever the number of ranks.

    Contrast over the images of a batch needs images of one class, and a random batch rarely holds
    them. Here a sequence that is identical on every rank consists of groups: an anchor and
    ``group_size - 1`` partners, see :func:`draw_partners`. Rank r of R takes its elements
    r, r + R, ..., so that batch b of all ranks together is the same set of images for every R with
    the same total batch size; only a last, incomplete batch may differ. For whole groups in a
    batch, make the total batch size a multiple of ``group_size``.

    Anchors are segments of a random permutation, ceil(M / group_size) images an epoch, so that
    every one of the M images is an anchor once in ``group_size`` epochs (when M is not a multiple
    of ``group_size * R``, a few are so twice, to fill the last groups).

    The order is a function of seed and epoch alone. Training resumes exactly when the loop sets
    the epoch and skips what it has seen, as mmengine's loops do.

    Args:
        dataset: Data set with ``get_image_labels() -> array (M, K)``, such as
            :class:`VOCLayoutDataset`.
        group_size: Images a group, at least 2.
        seed: Non-negative seed; None draws one that all ranks share.

    Raises:
        TypeError: If ``dataset`` has no method ``get_image_labels``.
        ValueError: If ``group_size`` is not an integer of at least 2, ``dataset`` is empty, or its
            labels are not one row an image.
    """

    def __init__(self, dataset: Sized, group_size: int = 2, seed: int | None = None) -> None:
        if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2:
            raise ValueError(
                f'group_size must be an integer of at least 2, got {group_size!r}; for ungrouped '
                f"images use sampler=dict(type='DefaultSampler', shuffle=True)"
            )
        self.num_images = len(dataset)
        self.index = build_class_index(_read_image_labels(dataset))
        self.rank, self.world_size = get_dist_info()
        self.group_size = group_size
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        multiple = math.lcm(group_size, self.world_size)
        self.total_size = math.ceil(self.num_images / multiple) * multiple

    def __iter__(self) -> Iterator[int]:
        """Iterate over this rank's image indices of the current epoch."""
        return iter(self._global_indices()[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        """Number of images of this rank in an epoch."""
        return self.total_size // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves.

        Args:
            epoch: Epoch number, from 0.
        """
        self.epoch = epoch

    def _global_indices(self) -> np.ndarray:
        anchors = self._anchors()
        rng = np.random.default_rng([self.seed, 1, self.epoch])
        partners = draw_partners(self.index, anchors, self.group_size - 1, rng)
        return np.column_stack([anchors, partners]).ravel()

    def _anchors(self) -> np.ndarray:
        cycle, segment = divmod(self.epoch, self.group_size)
        permutation = np.random.default_rng([self.seed, 0, cycle]).permutation(self.num_images)
        # The stride knows nothing of the ranks: more of them only add to the end of an epoch.
        begin = segment * math.ceil(self.num_images / self.group_size)
        num_groups = self.total_size // self.group_size
        return permutation[(begin + np.arange(num_groups)) % self.num_images]


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _read_image_labels(dataset: Sized) -> np.ndarray:
    name = type(dataset).__name__
    if not hasattr(dataset, 'get_image_labels'):
        raise TypeError(
            f'GroupSampler needs a data set with get_image_labels(), {name} has none; give it '
            f'VOCLayoutDataset itself, without a wrapper such as RepeatDataset or ConcatDataset, '
            f"or use sampler=dict(type='InfiniteSampler', shuffle=True)"
        )
    if len(dataset) == 0:
        raise ValueError(f'dataset {name} is empty: nothing to sample; check its ann_file')
    image_labels = np.asarray(dataset.get_image_labels())
    if image_labels.ndim != 2 or len(image_labels) != len(dataset):
        raise ValueError(
            f'{name}.get_image_labels() must return an array of shape ({len(dataset)}, K), '
            f'one row an image, got shape {image_labels.shape}'
        )
    return image_labels
