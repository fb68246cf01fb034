"""CAMs of an image as a file: the present classes only, in half precision."""

import os
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.palette_png import VOID_ID


class CAMs(NamedTuple):
    """The CAMs of the k classes that an image has.

    Attributes:
        cams: CAMs in [0, 1], float32 as computed and float16 as read from a file, shape (k, H, W);
            k is 0 for an image with no class.
        class_ids: Their class ids, background being 0 and not among them, uint8, shape (k,).
    """

    cams: np.ndarray
    class_ids: np.ndarray


def write_cams(path: str | os.PathLike[str], cams: np.ndarray, class_ids: np.ndarray) -> None:
    """Write the CAMs of an image as an ``.npz`` file, whole or not at all.

    A file takes 2 bytes a pixel and present class: 0.58 MB for an image of 500x375 pixels at the
    1.555 classes an image that VOC's train_aug has. Half precision moves a value by at most
    0.00025, a fortieth of the step between two thresholds of an evaluation.

    Args:
        path: File to write; missing parent folders are made.
        cams: CAMs of the present classes, in [0, 1], floating, shape (k, H, W); k may be 0.
        class_ids: Their class ids, all different and in 1..254, integers, shape (k,).

    Raises:
        TypeError: If ``cams`` is not floating or ``class_ids`` not integer.
        ValueError: If the shapes do not fit, or a value is out of range or NaN.
    """
    _check_shapes(path, cams, class_ids)
    if not np.issubdtype(cams.dtype, np.floating):
        raise TypeError(f'{path}: cams is {cams.dtype}, not floating: give CAMs in [0, 1]')
    # An empty list becomes a floating array.
    if class_ids.size and not np.issubdtype(class_ids.dtype, np.integer):
        raise TypeError(f'{path}: class_ids is {class_ids.dtype}, not integer: give class ids')
    ids = class_ids.tolist()
    if len(set(ids)) < len(ids) or not all(0 < class_id < VOID_ID for class_id in ids):
        raise ValueError(
            f'{path}: class_ids={ids} must be all different and in 1..{VOID_ID - 1}: background '
            f'(0) and void ({VOID_ID}) have no CAM'
        )
    # Written so that NaN fails too.
    if cams.size and not (cams.min() >= 0 and cams.max() <= 1):
        raise ValueError(
            f'{path}: cams run from {cams.min():.4g} to {cams.max():.4g}, not within [0, 1]: '
            'normalise them first (if NaN: training has diverged)'
        )
    with atomic_path(path) as temporary, temporary.open('wb') as file:
        np.savez(file, cams=cams.astype(np.float16), class_ids=class_ids.astype(np.uint8))


def read_cams(path: str | os.PathLike[str]) -> CAMs:
    """Read the CAMs of an image.

    Args:
        path: File that :func:`write_cams` wrote.

    Returns:
        The CAMs of the present classes and their ids.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or not one of :func:`write_cams`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            read = CAMs(file['cams'], file['class_ids'])
    except FileNotFoundError as error:
        raise FileNotFoundError(f'CAM file {path} does not exist: export the CAMs first') from error
    # AttributeError and TypeError: a file of a single array is no context manager.
    except (
        AttributeError,
        BadZipFile,
        EOFError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f'{path} is truncated or no CAM file: {error}. Delete it and export the CAMs again'
        ) from error
    if read.cams.dtype != np.float16 or read.class_ids.dtype != np.uint8:
        raise ValueError(
            f'{path} holds {read.cams.dtype} and {read.class_ids.dtype}, not float16 CAMs and '
            'uint8 class ids: it is no CAM file of this package; export the CAMs again'
        )
    _check_shapes(path, read.cams, read.class_ids)
    return read


def _check_shapes(path: str | os.PathLike[str], cams: np.ndarray, class_ids: np.ndarray) -> None:
    if cams.ndim != 3 or class_ids.shape != cams.shape[:1] or 0 in cams.shape[1:]:
        raise ValueError(
            f'{path}: cams of shape {cams.shape} and class_ids of shape {class_ids.shape} do not '
            'fit: (k, H, W) and (k,) are needed, the present classes of one image'
        )
