"""Pictures of one image's maps: the photo, CAMs as heat on it, label maps as colours on it.

Grid, report and overlays are made of these; a photo's size is that of its panels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmdscnet.visualization.grid_row import CAMGridRow

HEADERS = ('image', 'CAM', 'refined CAM', 'groups', 'pseudo label', 'truth')


class Panel(NamedTuple):
    """One picture of a row.

    Attributes:
        caption: What the picture shows, such as the classes in it.
        picture: The picture; None where the row has no such map.
    """

    caption: str
    picture: Image.Image | None


def draw_panels(
    row: CAMGridRow, colours: np.ndarray, classes: Sequence[str], longest: int
) -> list[Panel]:
    """Draw the panels of a row.

    CAMs are those of the class that covers most of the CAM (of the refined one where the plain one
    is empty), the same class in both panels, so that the two can be compared.

    Args:
        row: A checked row.
        colours: Colour of each id, uint8, shape (256, 3).
        classes: Names of the classes, background first.
        longest: Longest side of a panel, in pixels.

    Returns:
        One panel a header of ``HEADERS``.
    """
    photo = fit_photo(row.image, longest)
    shown = strongest_class(row.cams)
    if shown is None and row.refined_cams is not None:
        shown = strongest_class(row.refined_cams)
    name = 'no class' if shown is None else classes[shown + 1]
    return [
        Panel(row.title, photo),
        *(_heat_panel(photo, cams, shown, name) for cams in (row.cams, row.refined_cams)),
        *(
            _label_panel(photo, label_map, colours, classes)
            for label_map in (row.groups, row.pseudo_label, row.truth)
        ),
    ]


def fit_photo(image: np.ndarray, longest: int) -> Image.Image:
    """Resize a photo.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        longest: Longest side of the result, in pixels.

    Returns:
        The photo, at least one pixel wide and high.
    """
    photo = Image.fromarray(image)
    scale = longest / max(photo.size)
    return photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))


def strongest_class(cams: np.ndarray) -> int | None:
    """Find the class that covers most of the CAM.

    Args:
        cams: Class activation maps in [0, 1], shape (K, H, W).

    Returns:
        Channel of the class, or None where all maps are zero.
    """
    # The sum, not the maximum: that is 1 for every present class. Half precision would overflow.
    strength = cams.sum(axis=(1, 2), dtype=np.float64)
    return int(strength.argmax()) if strength.max() > 0 else None


def blend_heat(photo: Image.Image, cam: np.ndarray) -> Image.Image:
    """Lay a CAM as heat over the grey photo.

    Args:
        photo: RGB photo.
        cam: Class activation map in [0, 1], resized to the photo, shape (H, W).

    Returns:
        Picture of the photo's size.
    """
    fitted = Image.fromarray(cam.clip(0, 1).astype(np.float32))
    strength = np.asarray(fitted.resize(photo.size, Image.Resampling.BILINEAR))[..., None]
    # A grey photo keeps its colours from being read as heat.
    grey = np.asarray(photo.convert('L'), dtype=np.float32)[..., None]
    opacity = 0.45 + 0.3 * strength
    blended = (1 - opacity) * grey + opacity * heat_colours(strength[..., 0])
    return Image.fromarray(blended.round().astype(np.uint8))


def heat_colours(strength: np.ndarray) -> np.ndarray:
    """Give the colours of heat.

    Args:
        strength: Values in [0, 1], any shape.

    Returns:
        Red, green and blue in 0..255, float, in a last axis more.
    """
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib import colormaps

    return 255 * colormaps['inferno'](strength)[..., :3]


def blend_labels(photo: Image.Image, label_map: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Lay the classes of a label map as colours over the photo; background is the bare photo.

    Args:
        photo: RGB photo.
        label_map: Class ids, 255 for void, resized to the photo, shape (H, W).
        colours: Colour of each id, uint8, shape (256, 3).

    Returns:
        Picture of the photo's size.
    """
    fitted = Image.fromarray(label_map.astype(np.uint8))
    ids = np.asarray(fitted.resize(photo.size, Image.Resampling.NEAREST))
    opacity = np.where(ids > 0, 0.62, 0.0)[..., None]
    opacity[_outline(ids)] = 1.0
    blended = (1 - opacity) * np.asarray(photo, dtype=np.float32) + opacity * colours[ids]
    return Image.fromarray(blended.round().astype(np.uint8))


def _outline(ids: np.ndarray) -> np.ndarray:
    """Find the pixels of a class that touch another id, two pixels deep."""
    edge = np.zeros(ids.shape, dtype=bool)
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            size = ids.shape[axis]
            neighbour = (np.arange(size) + shift).clip(0, size - 1)
            edge |= ids != ids.take(neighbour, axis=axis)
    return edge & (ids > 0)


def _heat_panel(photo: Image.Image, cams: np.ndarray | None, shown: int | None, name: str) -> Panel:
    if cams is None:
        return Panel('', None)
    cam = np.zeros(cams.shape[1:]) if shown is None else cams[shown]
    return Panel(name, blend_heat(photo, cam))


def _label_panel(
    photo: Image.Image, label_map: np.ndarray | None, colours: np.ndarray, classes: Sequence[str]
) -> Panel:
    if label_map is None:
        return Panel('', None)
    names = [classes[i] for i in np.unique(label_map) if 0 < i < len(classes)]
    return Panel(', '.join(names) or classes[0], blend_labels(photo, label_map, colours))
