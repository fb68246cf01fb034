"""Augmentation of SEAM's and PSA's recipes: colour jitter, and a crop or a padded canvas.

Both draw from ``np.random``, which mmengine seeds in every worker.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomColorJitter(BaseTransform):
    """Change brightness, contrast, saturation and hue at random, in random order.

    A factor blends the image with what lacks the property: black for brightness, the image's mean
    grey for contrast, its grey copy for saturation. Factors are uniform in
    [max(0, 1 - x), 1 + x], the shift of the hue is uniform in [-x, x] of the hue circle, and a
    property with x = 0 is left out. The same distribution and meaning as torchvision's
    ``ColorJitter``, which the recipes of PSA (CVPR 2018) and SEAM (CVPR 2020) use; pixels differ
    by rounding.

    Args:
        brightness: x of the brightness, at least 0.
        contrast: x of the contrast, at least 0.
        saturation: x of the saturation, at least 0.
        hue: x of the hue, in [0, 0.5].

    Raises:
        ValueError: If a range is negative, not finite or, of the hue, above 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.3,
        contrast: float = 0.3,
        saturation: float = 0.3,
        hue: float = 0.1,
    ) -> None:
        reaches = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation}
        for name, reach in {**reaches, 'hue': hue}.items():
            largest = 0.5 if name == 'hue' else np.inf
            if not (0 <= reach <= largest and np.isfinite(reach)):
                bound = 'in [0, 0.5]' if name == 'hue' else 'a finite number of at least 0'
                raise ValueError(f'{name}={reach} must be {bound}; 0 leaves the property as it is.')
        self.ranges = {name: (max(0.0, 1 - x), 1 + x) for name, x in reaches.items() if x > 0}
        if hue > 0:
            self.ranges['hue'] = (-hue, hue)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Jitter ``img``.

        Args:
            results: Output of an image loader, with ``img``: BGR, uint8, shape (H, W, 3).

        Returns:
            The same dict with another ``img`` of the same type and shape.

        Raises:
            TypeError: If ``img`` is not uint8.
        """
        image = results['img']
        if image.dtype != np.uint8:
            raise TypeError(
                f'img is {image.dtype}, RandomColorJitter needs uint8: place it before the '
                'transforms that convert to float, and load the image with to_float32=False.'
            )
        for name, amount in self._draw():
            image = ADJUSTMENTS[name](image, amount)
        results['img'] = image
        return results

    @cache_randomness
    def _draw(self) -> list[tuple[str, float]]:
        """Properties in the order of their change, with factor or shift."""
        names = list(self.ranges)
        order = np.random.permutation(len(names))
        return [(names[i], np.random.uniform(*self.ranges[names[i]])) for i in order]


@TRANSFORMS.register_module()
class RandomCropOrPad(BaseTransform):
    """Cut a random window out of an image or, where it is smaller, place it at random on a canvas.

    Height and width are treated apart, so that an image may be cut in one and padded in the other.
    With the mean of the data preprocessor as ``pad_value`` the padding is exactly zero *after*
    normalisation, which is what the data pipelines of PSA (CVPR 2018) and SEAM (CVPR 2020) pad
    with. Place it last before packing: its images are float32, so that the mean is not rounded.

    Args:
        crop_size: Height and width of the result in pixels.
        pad_value: Colour of the canvas in the order of the image's channels, which is BGR: the
            reverse of a mean given in RGB.
        seg_pad_value: Class id of the canvas in masks.

    Raises:
        ValueError: If ``crop_size`` is not two positive integers or ``pad_value`` is not a
            finite number a channel.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad_value: Sequence[float],
        seg_pad_value: int = 255,
    ) -> None:
        if not _is_size(crop_size):
            raise ValueError(
                f'crop_size={crop_size!r} must be two positive integers, (height, width).'
            )
        if np.ndim(pad_value) != 1 or not np.isfinite(pad_value).all():
            raise ValueError(
                f'pad_value={pad_value!r} must be a list of one finite number a channel, such as '
                'the mean of the data preprocessor, in BGR.'
            )
        self.crop_size = tuple(crop_size)
        self.pad_value = np.asarray(pad_value, np.float32)
        self.seg_pad_value = seg_pad_value

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Cut or pad ``img`` and the masks of ``seg_fields`` alike.

        Args:
            results: Output of a pipeline, with ``img`` of shape (H, W, C) and masks of (H, W).

        Returns:
            The same dict with ``img``, float32, shape (*crop_size, C), masks of shape
            ``crop_size``, and ``img_shape`` and ``pad_shape``.

        Raises:
            ValueError: If ``pad_value`` has another number of channels than the image, or a mask
                is of another size.
        """
        image = results['img']
        if image.shape[2:] != self.pad_value.shape:
            raise ValueError(
                f'pad_value={self.pad_value.tolist()} has {len(self.pad_value)} values but the '
                f'image has the shape {image.shape}. Give one value a channel.'
            )
        size = image.shape[:2]
        offsets = self._draw(size)
        canvas = np.empty((*self.crop_size, len(self.pad_value)), np.float32)
        canvas[:] = self.pad_value
        results['img'] = self._place(image, canvas, offsets)
        for key in results.get('seg_fields', []):
            mask = results[key]
            if mask.shape != size:
                raise ValueError(
                    f'{key} has the shape {mask.shape} but the image {size}: resize both.'
                )
            canvas = np.full(self.crop_size, self.seg_pad_value, mask.dtype)
            results[key] = self._place(mask, canvas, offsets)
        results['img_shape'] = results['pad_shape'] = self.crop_size
        return results

    @cache_randomness
    def _draw(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Where the image begins on the canvas, an axis; negative where it is cut."""
        gaps = np.subtract(self.crop_size, size)
        return tuple(int(np.sign(gap)) * np.random.randint(abs(gap) + 1) for gap in gaps)

    def _place(
        self, pixels: np.ndarray, canvas: np.ndarray, offsets: tuple[int, ...]
    ) -> np.ndarray:
        spans = list(zip(offsets, pixels.shape[:2], self.crop_size, strict=True))
        taken = tuple(slice(max(0, -at), min(length, side - at)) for at, length, side in spans)
        given = tuple(slice(max(0, at), min(side, at + length)) for at, length, side in spans)
        canvas[given] = pixels[taken]
        return canvas


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
    )


def _adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return mmcv.adjust_brightness(image, factor, backend='cv2')


def _adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return mmcv.adjust_contrast(image, factor, backend='cv2')


def _adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return mmcv.adjust_color(image, factor, backend='cv2')


def _shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    # Not mmcv.adjust_hue: it casts a negative shift to uint8, which numpy 2 refuses.
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)


# The backend is named, because mmcv's default is a global that any other code may change.
ADJUSTMENTS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    'brightness': _adjust_brightness,
    'contrast': _adjust_contrast,
    'saturation': _adjust_saturation,
    'hue': _shift_hue,
}
