"""All maps of one image: what a row of the grid and an item of the report show."""

from typing import NamedTuple

import numpy as np

from mmdscnet.visualization.map_checks import check_cam_range, check_class_ids, check_photo


class CAMGridRow(NamedTuple):
    """What one row of the grid shows; all maps of one image, at the image's size.

    Attributes:
        image: RGB, uint8, shape (H, W, 3).
        cams: Class activation maps in [0, 1], zero for absent classes, shape (K, H, W).
        refined_cams: CAMs of the enriched features, likewise; None for a model without.
        pseudo_label: Class ids, 255 for void, shape (H, W).
        truth: Class ids, 255 for void, shape (H, W); None where unknown.
        title: Caption of the row and its name in errors, as the image's file name.
        groups: Pixel groups as class ids, 0 for the background's, shape (H, W); None for a model
            without.
    """

    image: np.ndarray
    cams: np.ndarray
    refined_cams: np.ndarray | None
    pseudo_label: np.ndarray
    truth: np.ndarray | None
    title: str
    groups: np.ndarray | None = None


def check_row(row: CAMGridRow, num_classes: int) -> None:
    """Refuse a row whose maps do not fit its image or the classes.

    Args:
        row: The row.
        num_classes: Number of classes, background included.

    Raises:
        ValueError: If a map has another size than the image, the CAMs are not one map a foreground
            class in [0, 1], or a label map has an id without class.
    """
    check_photo(row.image, f'{row.title}: image')
    size = row.image.shape[:2]
    for name, cams in (('cams', row.cams), ('refined_cams', row.refined_cams)):
        if cams is not None:
            _check_cams(cams, f'{row.title}: {name}', (num_classes - 1, *size))
    label_maps = {'groups': row.groups, 'pseudo_label': row.pseudo_label, 'truth': row.truth}
    for name, label_map in label_maps.items():
        if label_map is not None:
            _check_label_map(label_map, f'{row.title}: {name}', size, num_classes)


def _check_cams(cams: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if cams.shape != shape:
        raise ValueError(
            f'{name} has shape {cams.shape}, not {shape}; give one map a foreground class, resized '
            'to the image'
        )
    check_cam_range(cams, name)


def _check_label_map(
    label_map: np.ndarray, name: str, size: tuple[int, ...], num_classes: int
) -> None:
    if label_map.shape != size:
        raise ValueError(f'{name} has shape {label_map.shape}, the image {size}; resize it')
    check_class_ids(label_map, name, num_classes)
