"""What a figure asks of the arrays it draws; each check names the array and the mend."""

from collections.abc import Sequence

import numpy as np

from mmdscnet.pseudo_labels.palette_png import VOID_ID


def check_photo(image: np.ndarray, name: str) -> None:
    """Refuse what is not an RGB photo.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        name: How to call it in the error.

    Raises:
        ValueError: If it is of another type or shape, or empty.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f'{name} is {image.dtype} of shape {image.shape}; give RGB uint8 (H, W, 3)'
        )


def check_cam_range(cams: np.ndarray, name: str) -> None:
    """Refuse CAMs that are not normalised.

    Args:
        cams: Class activation maps in [0, 1], any shape but empty.
        name: How to call them in the error.

    Raises:
        ValueError: If a value is outside [0, 1] or not a number.
    """
    # Written so that NaN fails too; the slack is for maps resized in low precision.
    if not (cams.min() >= -1e-3 and cams.max() <= 1 + 1e-3):
        raise ValueError(
            f'{name} runs from {cams.min():.4g} to {cams.max():.4g}, not within [0, 1]; normalise '
            'it first'
        )


def check_class_ids(label_map: np.ndarray, name: str, num_classes: int) -> None:
    """Refuse ids that are neither a class nor void.

    Args:
        label_map: Class ids, 255 for void, any shape.
        name: How to call it in the error.
        num_classes: Number of classes, background included.

    Raises:
        ValueError: If there is another id.
    """
    ids = np.unique(label_map)
    outside = ids[((ids < 0) | (ids >= num_classes)) & (ids != VOID_ID)]
    if outside.size:
        raise ValueError(
            f'{name} has ids {outside.tolist()} outside the {num_classes} classes; give the '
            'classes it was made with'
        )


def check_palette(palette: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Refuse a palette of another length than the classes.

    Args:
        palette: One (red, green, blue) a class.
        classes: Names of the classes, background first.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(palette) != len(classes):
        raise ValueError(
            f'palette has {len(palette)} colours for {len(classes)} classes; give one colour a '
            'class, background included'
        )
