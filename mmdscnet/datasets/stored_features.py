"""Features of a frozen backbone, stored once and read in the place of the images.

A folder holds ``<image id>.npy`` an image, float16, shape (D, h, w), and where the features of the
mirror images were asked for, ``<image id>_flip.npy``. Where other levels of the backbone were asked
for, D counts their channels, too, which come first. ``index.json``, written last, says what made
the features and how large the photographs are. ``tools/store_features.py`` writes such folders.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmseg.registry import TRANSFORMS

from mmdscnet.atomic_write import atomic_path

INDEX_FILE = 'index.json'
FEATURES_SUFFIX = '.npy'
FLIP_SUFFIX = '_flip.npy'
MEND_STORE = 'store the features of this split with tools/store_features.py'


class FeatureIndex(NamedTuple):
    """What a folder of stored features holds.

    Attributes:
        settings: What made the features: config, weights, scale, stride, version of the package,
            and the index and channels of each of the levels, where there are some.
        sizes: Height and width of the photograph in pixels, by image id.
    """

    settings: dict[str, Any]
    sizes: dict[str, tuple[int, int]]


def write_feature_index(folder: str | os.PathLike[str], index: FeatureIndex) -> None:
    """Write the index of a folder, whole or not at all.

    Args:
        folder: The folder of the features.
        index: What it holds.
    """
    content = dict(settings=index.settings, sizes=index.sizes)
    with atomic_path(Path(folder, INDEX_FILE)) as temporary:
        temporary.write_text(json.dumps(content), encoding='utf-8')


def read_feature_index(folder: str | os.PathLike[str]) -> FeatureIndex:
    """Read the index of a folder.

    Args:
        folder: The folder of the features.

    Returns:
        What it holds.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it is damaged.
    """
    path = Path(folder, INDEX_FILE)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        sizes = {name: (int(h), int(w)) for name, (h, w) in content['sizes'].items()}
        return FeatureIndex(dict(content['settings']), sizes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f'{path} is missing: {MEND_STORE}, which writes it last; if that was interrupted, run '
            'the same command again'
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is no index of stored features ({error!r}): delete it and {MEND_STORE}, which '
            'keeps the features that are there'
        ) from error


@TRANSFORMS.register_module()
class LoadStoredFeatures(BaseTransform):
    """Load the stored features of an image as its ``img``. It takes the image loader's place.

    The size that an image is said to have is that of the photograph. So a head resizes its maps
    once, from the grid of the features to the photograph, and masks of the photograph fit.

    Features of a mirror image are marked as flipped: mmseg flips predictions back, and
    ``CAMTTAModel`` merges a view with ``flip_prob=0`` and one with ``flip_prob=1``. ``RandomFlip``
    mirrors the features themselves, which is a good augmentation but not a view of its own; do not
    use both, for it would overwrite the mark.

    Args:
        folder: Folder that ``tools/store_features.py`` wrote, seen from the current folder. It is
            first opened when an image is loaded.
        flip_prob: Probability of the features of the mirror image, in [0, 1].
        keep: Whether to keep all features that were read in memory. Worker processes would keep
            them once each: use it with ``num_workers=0``.

    Raises:
        ValueError: If ``flip_prob`` is not in [0, 1].
    """

    def __init__(self, folder: str, flip_prob: float = 0.0, keep: bool = False) -> None:
        if not 0 <= flip_prob <= 1:
            raise ValueError(f'flip_prob={flip_prob} must be a probability, in [0, 1]')
        self.folder = folder
        self.flip_prob = flip_prob
        self.keep = keep
        self._sizes: Mapping[str, tuple[int, int]] | None = None
        self._kept: dict[str, np.ndarray] = {}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read the features of ``img_path``, whose file is not opened.

        Args:
            results: Data info with ``img_path``.

        Returns:
            The same dict with ``img``, the features as mmcv's transforms want images, float16,
            shape (h, w, D); ``img_shape`` and ``ori_shape``, the height and width of the
            photograph; ``flip`` and ``flip_direction``.

        Raises:
            FileNotFoundError: If the folder has no index, or no features of the image.
            ValueError: If index or features are damaged.
        """
        image_id = Path(results['img_path']).stem
        size = self._find_size(image_id)
        flipped = self._draw()
        suffix = FLIP_SUFFIX if flipped else FEATURES_SUFFIX
        results['img'] = self._read(f'{image_id}{suffix}').transpose(1, 2, 0)
        results['img_shape'] = results['ori_shape'] = size
        results['flip'] = flipped
        results['flip_direction'] = 'horizontal' if flipped else None
        return results

    @cache_randomness
    def _draw(self) -> bool:
        # No draw where nothing is to be decided, so that judging uses no random number up.
        return self.flip_prob == 1 or (self.flip_prob > 0 and np.random.rand() < self.flip_prob)

    def _find_size(self, image_id: str) -> tuple[int, int]:
        if self._sizes is None:
            self._sizes = read_feature_index(self.folder).sizes
        if image_id not in self._sizes:
            raise FileNotFoundError(
                f'{self.folder} has no features of the image {image_id!r}: {MEND_STORE}, into the '
                'same folder'
            )
        return self._sizes[image_id]

    def _read(self, name: str) -> np.ndarray:
        if name in self._kept:
            return self._kept[name]
        feats = read_features(os.path.join(self.folder, name))
        if self.keep:
            self._kept[name] = feats
        return feats

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(folder={self.folder!r}, flip_prob={self.flip_prob}, '
            f'keep={self.keep})'
        )


def read_features(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the features of an image.

    Args:
        path: The file.

    Returns:
        Features of a floating type, shape (D, h, w).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    try:
        feats = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        option = ' --flip' if str(path).endswith(FLIP_SUFFIX) else ''
        raise FileNotFoundError(
            f'{path} is missing: {MEND_STORE}{option}, into the same folder'
        ) from error
    # EOFError: of a file without content.
    except (EOFError, ValueError) as error:
        raise ValueError(f'{path} is damaged ({error}): delete it and {MEND_STORE}') from error
    if feats.ndim != 3 or not np.issubdtype(feats.dtype, np.floating) or 0 in feats.shape:
        raise ValueError(
            f'{path} holds {feats.dtype} of shape {feats.shape}, features are floats of the shape '
            f'(channels, height, width): delete it and {MEND_STORE}'
        )
    return feats


@TRANSFORMS.register_module()
class CropFeatures(BaseTransform):
    """Cut a random window out of stored features, and keep every ``step``-th of its cells.

    A backbone like ``ContractedMobileNetV2`` at output stride 16 gives the features of stride 32,
    computed more densely: with a step of 2, and a random cell to begin with, a crop of them is one
    of the stride-32 features of the photograph in one of four positions. For training only: the
    size of the photograph is no longer that of what is left.

    Args:
        size: Height and width of the result in cells, at least 1.
        step: Distance in cells between those that are kept, at least 1. The window has
            ``size * step`` cells a side.

    Raises:
        ValueError: If one of them is no positive integer.
    """

    def __init__(self, size: int, step: int = 1) -> None:
        for name, value in (('size', size), ('step', step)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{name}={value!r} must be a positive integer')
        self.size = size
        self.step = step

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Cut ``img``.

        Args:
            results: Output of :class:`LoadStoredFeatures`, with ``img`` of shape (h, w, D).

        Returns:
            The same dict with ``img`` of shape (size, size, D), and ``img_shape``.

        Raises:
            ValueError: If the features are smaller than the window, or there are masks, which this
                does not cut.
        """
        feats = results['img']
        if results.get('seg_fields'):
            raise ValueError(
                f'{results["img_path"]} has the masks {results["seg_fields"]}, which CropFeatures '
                'cannot cut: take their loader out of the training pipeline'
            )
        height, width = feats.shape[:2]
        window = self.size * self.step
        if min(height, width) < window:
            raise ValueError(
                f'the features of {results["img_path"]} are {height}x{width} cells, fewer than '
                f'size * step = {window} a side: crop less, or store them with '
                f'tools/store_features.py --short-side {window} * (output stride of the backbone)'
            )
        rows, columns = (self._slice(begin) for begin in self._draw(height, width))
        results['img'] = feats[rows, columns]
        results['img_shape'] = (self.size, self.size)
        return results

    @cache_randomness
    def _draw(self, height: int, width: int) -> tuple[int, int]:
        """First cell of an axis: where the window begins, and a phase within it."""
        window = self.size * self.step
        row, column = (
            np.random.randint(length - window + 1) + np.random.randint(self.step)
            for length in (height, width)
        )
        return row, column

    def _slice(self, begin: int) -> slice:
        return slice(begin, begin + (self.size - 1) * self.step + 1, self.step)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, step={self.step})'
