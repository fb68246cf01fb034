"""One photo with its CAMs or its label map on it, as an array: what a logger shows."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmdscnet.pseudo_labels.palette_png import fill_palette
from mmdscnet.visualization.map_checks import check_cam_range, check_class_ids, check_photo
from mmdscnet.visualization.panels import blend_heat, blend_labels, fit_photo, strongest_class


def draw_overlay(image: np.ndarray, cams: np.ndarray, longest: int | None = None) -> np.ndarray:
    """Lay the CAM of the class that covers most of the CAM as heat over the grey photo.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        cams: Class activation maps in [0, 1], zero for absent classes, at any size, shape
            (K, h, w). Give the map of one class as (1, h, w).
        longest: Longest side of the result, in pixels; None for that of the image.

    Returns:
        RGB picture with the proportions of the image, uint8.

    Raises:
        ValueError: If ``image`` is not RGB uint8, ``cams`` are not (K, h, w) in [0, 1], or
            ``longest`` is not positive.
    """
    photo = _checked_photo(image, longest)
    if cams.ndim != 3 or cams.size == 0:
        raise ValueError(f'cams has shape {cams.shape}; give (K, h, w), one map a foreground class')
    check_cam_range(cams, 'cams')
    shown = strongest_class(cams)
    cam = np.zeros(cams.shape[1:]) if shown is None else cams[shown]
    return np.array(blend_heat(photo, cam))


def draw_label_overlay(
    image: np.ndarray,
    label_map: np.ndarray,
    palette: Sequence[Sequence[int]],
    longest: int | None = None,
) -> np.ndarray:
    """Lay the classes of a label map as colours over the photo; background is the bare photo.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        label_map: Class ids, 255 for void, at any size, shape (h, w).
        palette: One (red, green, blue) in 0..255 a class, background included.
        longest: Longest side of the result, in pixels; None for that of the image.

    Returns:
        RGB picture with the proportions of the image, uint8.

    Raises:
        ValueError: If ``image`` is not RGB uint8, ``label_map`` is not (h, w) or has an id without
            colour, ``palette`` is not a list of colours, or ``longest`` is not positive.
    """
    photo = _checked_photo(image, longest)
    if label_map.ndim != 2 or label_map.size == 0:
        raise ValueError(f'label_map has shape {label_map.shape}; give (h, w), one image, squeezed')
    colours = fill_palette(palette)
    check_class_ids(label_map, 'label_map', len(palette))
    return np.array(blend_labels(photo, label_map, colours))


def _checked_photo(image: np.ndarray, longest: int | None) -> Image.Image:
    check_photo(image, 'image')
    if longest is None:
        return Image.fromarray(image)
    if longest < 1:
        raise ValueError(f'longest is {longest}; give the pixels of the longest side, at least 1')
    return fit_photo(image, longest)
