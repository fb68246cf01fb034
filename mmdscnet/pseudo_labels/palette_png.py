"""Label maps as palette PNGs, the format of VOC's masks: class ids to read, colours to look at."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

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
        palette: One (red, green, blue) in 0..255 a class, at most 256. Filled up to 256 with
            black, and 255 with VOC's void colour.

    Raises:
        TypeError: If ``label_map`` is not a uint8 array.
        ValueError: If ``label_map`` is not (H, W) or has an id without colour, or ``palette`` is
            not a list of colours.
    """
    colours = _filled_palette(palette)
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
    image.putpalette(colours)
    with atomic_path(path) as temporary:
        image.save(temporary, format='PNG')


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the class ids of a palette or grey PNG.

    Args:
        path: PNG of mode P or L.

    Returns:
        Class ids, uint8, shape (H, W).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds colours instead of ids.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path}: no such label map; check the folder and the suffix')
    try:
        with Image.open(path) as image:
            image.load()
            mode, label_map = image.mode, np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f'{path}: not a readable image ({error}); write or download it again'
        ) from error
    if mode not in ('P', 'L'):
        raise ValueError(
            f'{path}: an image of mode {mode}, not of class ids; save it as a palette (P) or grey '
            '(L) PNG whose values are the ids'
        )
    return label_map


def _filled_palette(palette: Sequence[Sequence[int]]) -> list[int]:
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
    return filled.flatten().tolist()
