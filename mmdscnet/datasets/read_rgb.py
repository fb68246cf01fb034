"""Read an image as a person sees it."""

import os

import numpy as np
from PIL import Image, ImageOps


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as it is shown, that is after its EXIF rotation.

    Args:
        path: The image file.

    Returns:
        RGB in 0..255, uint8, shape (H, W, 3).

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'image {path} is missing: give the folder of the images whose CAMs were exported'
        ) from error
