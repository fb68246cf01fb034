"""Label maps as palette PNGs, the format of VOC's masks: class ids to read, colours to look at."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmdscnet.atomic_write import atomic_path

VOID_ID = 255
VOID_COLOUR = (224, 224, 192)


def write_palette_png(
    path: str | os.PathLike[str], label_map: np.ndarray, palette: Sequence[Sequence[int]]
) -> None:
    """Write a label map as a PNG of mode P, whole or not at all.

    Args:
        path: File to write; missing parent folders are made.
        label_map: Class ids, 255 for void, uint8, shape (H, W).
        palette: As for :func:`fill_palette`, which gives the colours of the file.

    Raises:
        TypeError: If ``label_map`` is not a uint8 array.
        ValueError: If ``label_map`` is not (H, W) or has an id without colour, or ``palette`` is
            not a list of colours.
    """
    colours = fill_palette(palette)
    if not isinstance(label_map, np.ndarray) or label_map.dtype != np.uint8:
        kind = getattr(label_map, 'dtype', type(label_map).__name__)
        raise TypeError(f'{path}: label_map is {kind}, not a numpy array of uint8; convert it')
    if label_map.ndim != 2 or label_map.size == 0:
        raise ValueError(
            f'{path}: label_map has shape {label_map.shape}, not (H, W); give one image, squeezed'
        )
    ids = np.unique(label_map)
    without_colour = ids[(ids >= len(palette)) & (ids != VOID_ID)]
    if without_colour.size:
        raise ValueError(
            f'{path}: ids {without_colour.tolist()} have no colour in a palette of '
            f'{len(palette)}; give one colour a class, background included'
        )
    image = Image.fromarray(label_map)
    image.putpalette(colours.tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format='PNG')


def fill_palette(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Give every id of a byte a colour: black without a class, and 255 VOC's void colour.

    Args:
        palette: One (red, green, blue) in 0..255 a class, at most 256.

    Returns:
        Colour of each id, uint8, shape (256, 3).

    Raises:
        ValueError: If ``palette`` is not a list of colours.
    """
    colours = np.asarray(palette)
    if colours.ndim != 2 or colours.shape[1] != 3 or len(colours) > 256:
        raise ValueError(
            f'palette has shape {colours.shape}, not (number of classes up to 256, 3); give one '
            '[red, green, blue] a class'
        )
    if not np.issubdtype(colours.dtype, np.integer) or colours.min() < 0 or colours.max() > 255:
        raise ValueError(f'palette has values that are not integers in 0..255: {palette}')
    filled = np.zeros((256, 3), dtype=np.uint8)
    filled[VOID_ID] = VOID_COLOUR
    filled[: len(colours)] = colours
    return filled
