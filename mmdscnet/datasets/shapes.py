"""Generated images with a known truth: a toy benchmark on which weak supervision is not trivial.

Each of five classes is told by a small mark alone. Its body, three to six times as large, comes in
two outlines and two colours, each of which it shares with another class. And 70 % of its images
have a background of its own. So a classifier does well on mark and background, and its class
activation maps cover those instead of the object, as they do on photographs.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmseg.registry import DATASETS
from PIL import Image

from mmdscnet.datasets.image_labels import write_image_labels
from mmdscnet.datasets.voc import VOCLayoutDataset, voc_palette

CLASSES = ('target', 'checker', 'cross', 'dots', 'zigzag')
DEFAULT_SPLITS: Mapping[str, int] = MappingProxyType({'train': 600, 'val': 150})
MARKER_FILE = 'shapes.json'
# Part of the settings that a folder records: raise it when the same seed draws other images.
GENERATOR_VERSION = 1

OWN_BACKGROUND_PROBABILITY = 0.7
NUM_OBJECTS_PROBABILITIES = (0.6, 0.3, 0.1)
MIN_VISIBLE_BODY = 0.3
MIN_VISIBLE_MARK = 0.5
MIN_AREA = 0.005

# One row a class, RGB; class k has body colour k or k + 1, so each colour serves two classes.
BODY_COLOURS = (
    (0.64, 0.36, 0.26),
    (0.70, 0.60, 0.42),
    (0.40, 0.52, 0.34),
    (0.36, 0.48, 0.58),
    (0.52, 0.40, 0.54),
)
# One row a class: the two colours of its mark, RGB.
MARK_COLOURS = (
    ((0.85, 0.12, 0.12), (0.95, 0.92, 0.90)),
    ((0.08, 0.08, 0.10), (0.95, 0.95, 0.92)),
    ((0.98, 0.85, 0.15), (0.15, 0.16, 0.50)),
    ((0.92, 0.25, 0.72), (0.20, 0.06, 0.22)),
    ((0.10, 0.85, 0.80), (0.90, 0.45, 0.08)),
)


class PlacedObject(NamedTuple):
    """An object of known place, before it is painted.

    Attributes:
        class_index: Foreground class, 0..K-1.
        centre: Column and row in pixels, shape (2,).
        radius: Half of the object's length, pixels.
        depth: Distance from the centre over that of the outline, body below 1, shape (H, W).
        body: Pixels of the object, mark included, bool, shape (H, W).
        mark: Pixels of the mark, bool, shape (H, W).
        mark_grid: Coordinates in the frame of the mark, unit disc, two arrays of shape (H, W).
    """

    class_index: int
    centre: np.ndarray
    radius: float
    depth: np.ndarray
    body: np.ndarray
    mark: np.ndarray
    mark_grid: tuple[np.ndarray, np.ndarray]


def generate_shapes(
    root: str | os.PathLike[str],
    splits: Mapping[str, int] = DEFAULT_SPLITS,
    image_size: int = 128,
    seed: int = 0,
) -> None:
    """Write the data set in VOC layout, or return at once where it already is.

    The folder appears whole or not at all: it is built beside its place and renamed, so that
    several processes may call this together. A pixel depends on the seed, the split's name and the
    image's index only, and the same settings give the same bytes.

    Args:
        root: Folder to make: JPEGImages, SegmentationClass, ImageSets/Segmentation,
            image_labels.json, and shapes.json with the settings.
        splits: Number of images of each split.
        image_size: Side of the square images, pixels, at least 32.
        seed: Non-negative random seed.

    Raises:
        ValueError: If a setting is out of range, or ``root`` holds shapes of other settings.
        FileExistsError: If ``root`` holds something else.
    """
    settings = _check_settings(splits, image_size, seed)
    target = Path(root).resolve()
    if _holds_shapes(target, settings):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as workshop:
        built = Path(workshop) / target.name
        _write_folder(built, settings)
        try:
            built.rename(target)
        except OSError:
            # Another process was faster. Its folder is as good as this one, or the check says why
            # it is not.
            if not _holds_shapes(target, settings):
                raise


def draw_shapes_image(
    seed: int, split: str, index: int, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image and its truth.

    Args:
        seed: Non-negative random seed of the data set.
        split: Name of the split.
        index: Index of the image in its split.
        image_size: Side of the square image, pixels.

    Returns:
        The RGB image, uint8, shape (H, W, 3), and the class of each pixel, 0 = background,
        uint8, shape (H, W).
    """
    # A checksum, because Python's own hash of a string differs from process to process.
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    num_objects = 1 + rng.choice(len(NUM_OBJECTS_PROBABILITIES), p=NUM_OBJECTS_PROBABILITIES)
    classes = rng.choice(len(CLASSES), size=num_objects, replace=False)
    image = _draw_scenery(rng, int(classes[0]), image_size)
    seg_map = np.zeros((image_size, image_size), dtype=np.uint8)
    for placed in _place_objects(rng, classes, image_size):
        image = _paint_object(rng, image, placed)
        seg_map[placed.body] = placed.class_index + 1
    return _light(rng, image), seg_map


@DATASETS.register_module()
class ShapesDataset(VOCLayoutDataset):
    """The generated data set, drawn into ``data_root`` on first use.

    Args:
        data_root: Folder of the data set.
        splits: See :func:`generate_shapes`. All data sets of a folder need the same settings.
        image_size: Side of the square images, pixels.
        seed: Seed of the images.
        image_labels: Label source, relative to ``data_root``; None for no image-level labels.
        **kwargs: Arguments of :class:`VOCLayoutDataset`, of which ``ann_file`` chooses the split.

    Raises:
        ValueError: If ``data_root`` holds shapes of other settings.
        FileExistsError: If ``data_root`` holds something else.
    """

    METAINFO = dict(classes=('background', *CLASSES), palette=voc_palette(1 + len(CLASSES)))

    def __init__(
        self,
        data_root: str,
        splits: Mapping[str, int] = DEFAULT_SPLITS,
        image_size: int = 128,
        seed: int = 0,
        image_labels: str | None = 'image_labels.json',
        **kwargs: Any,
    ) -> None:
        generate_shapes(data_root, splits=splits, image_size=image_size, seed=seed)
        super().__init__(data_root=data_root, image_labels=image_labels, **kwargs)


def _check_settings(splits: Mapping[str, int], image_size: int, seed: int) -> dict[str, Any]:
    if not splits or any(count < 1 for count in splits.values()):
        raise ValueError(
            f'splits must give each split a number of images of at least 1, got {dict(splits)}; '
            f'use for example dict(train=600, val=150)'
        )
    if not isinstance(image_size, int) or image_size < 32:
        raise ValueError(
            f'image_size must be a number of pixels of at least 32, got {image_size!r}; use 128'
        )
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f'seed must be an integer of at least 0, got {seed!r}; use 0')
    return dict(
        version=GENERATOR_VERSION,
        splits=dict(sorted(splits.items())),
        image_size=image_size,
        seed=seed,
    )


def _holds_shapes(root: Path, settings: dict[str, Any]) -> bool:
    if not root.is_dir() or not any(root.iterdir()):
        return False
    marker = root / MARKER_FILE
    if not marker.is_file():
        raise FileExistsError(
            f'{root} holds something other than generated shapes (it has no {MARKER_FILE}); '
            f'choose a data_root that does not exist yet'
        )
    found = json.loads(marker.read_text())
    if found != settings:
        raise ValueError(
            f'{root} holds shapes of other settings: {found}, wanted {settings}; '
            'give all loaders (train, val, test) the same splits and image_size, and another '
            'data_root, or delete the folder to have it drawn anew'
        )
    return True


def _write_folder(root: Path, settings: dict[str, Any]) -> None:
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (root / name).mkdir(parents=True)
    palette = voc_palette(256)
    labels = {}
    for split, count in settings['splits'].items():
        names = [f'{split}_{index:05d}' for index in range(count)]
        (root / f'ImageSets/Segmentation/{split}.txt').write_text('\n'.join(names) + '\n')
        for index, name in enumerate(names):
            image, seg_map = draw_shapes_image(
                settings['seed'], split, index, settings['image_size']
            )
            Image.fromarray(image).save(root / f'JPEGImages/{name}.jpg', quality=90)
            truth = Image.fromarray(seg_map)
            truth.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())
            truth.save(root / f'SegmentationClass/{name}.png')
            labels[name] = [CLASSES[k - 1] for k in np.unique(seg_map) if k > 0]
    write_image_labels(root / 'image_labels.json', labels, CLASSES)
    (root / MARKER_FILE).write_text(json.dumps(settings, indent=1) + '\n')


def _noise(rng: np.random.Generator, size: int, cell: float, stretch: float = 1) -> np.ndarray:
    """Smooth noise of mean 0 and deviation about 1; a cell is wide as given, high times stretch."""
    columns, rows = max(2, round(size / cell)), max(2, round(size / (cell * stretch)))
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _shade(brightness: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return brightness[..., None] * np.asarray(colour, dtype=np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    return columns, rows


def _grass(rng: np.random.Generator, size: int) -> np.ndarray:
    blades = _noise(rng, size, 1.5, stretch=5)
    return _shade(0.85 + 0.2 * blades + 0.1 * _noise(rng, size, 24), (0.36, 0.56, 0.22))


def _water(rng: np.random.Generator, size: int) -> np.ndarray:
    columns, rows = _grid(size)
    slope, period = rng.uniform(-0.2, 0.2), rng.uniform(7, 12)
    bend = 1.2 * _noise(rng, size, 20)
    waves = np.sin(2 * np.pi * (rows + slope * columns) / period + bend)
    return _shade(0.9 + 0.16 * waves + 0.06 * _noise(rng, size, 3), (0.26, 0.50, 0.70))


def _brick(rng: np.random.Generator, size: int) -> np.ndarray:
    columns, rows = _grid(size)
    height = rng.uniform(9, 14)
    width, shift = 2.2 * height, rng.uniform(0, 100, size=2)
    row = np.floor((rows + shift[0]) / height)
    across = (columns + shift[1]) / width + 0.5 * (row % 2)
    mortar = ((rows + shift[0]) % height < 1.6) | (across % 1 * width < 1.6)
    tones = rng.uniform(0.8, 1.15, size=(64, 64)).astype(np.float32)
    tone = tones[row.astype(int) % 64, np.floor(across).astype(int) % 64]
    wall = _shade(tone + 0.07 * _noise(rng, size, 2), (0.66, 0.34, 0.26))
    wall[mortar] = (0.72, 0.69, 0.64)
    return wall


def _sand(rng: np.random.Generator, size: int) -> np.ndarray:
    grain = rng.standard_normal((size, size)).astype(np.float32)
    return _shade(0.95 + 0.08 * grain + 0.08 * _noise(rng, size, 30), (0.82, 0.71, 0.50))


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    columns, rows = _grid(size)
    angle, period = rng.uniform(0.5, 1.1), rng.uniform(10, 16)
    phase = (columns * np.cos(angle) + rows * np.sin(angle)) / period + rng.random()
    bands = np.tanh(4 * np.sin(2 * np.pi * phase))
    return _shade(0.85 + 0.18 * bands + 0.06 * _noise(rng, size, 4), (0.58, 0.52, 0.62))


# Background k is the own one of class k.
BACKGROUNDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _grass,
    _water,
    _brick,
    _sand,
    _stripes,
)


def _draw_scenery(rng: np.random.Generator, first_class: int, size: int) -> np.ndarray:
    """Background of the first object's class or another, with patches of the other ones on it."""
    kinds = np.roll(np.arange(len(BACKGROUNDS)), -first_class)
    if rng.random() >= OWN_BACKGROUND_PROBABILITY:
        kinds = np.roll(kinds, -rng.integers(1, len(kinds)))
    image = BACKGROUNDS[kinds[0]](rng, size)
    for _ in range(rng.integers(0, 4)):
        radius = size * rng.uniform(0.06, 0.16)
        depth, _ = _outline_depth(rng, 3, rng.uniform(0, size, size=2), radius, size)
        patch = BACKGROUNDS[rng.choice(kinds[1:])](rng, size)
        image = _blend(image, patch * rng.uniform(0.7, 1.1), depth < 1)
    return image


def _outline_radius(rng: np.random.Generator, family: int, theta: np.ndarray) -> np.ndarray:
    """Distance of the outline from the centre in each direction, at most 1.

    Families: 0 ellipse, 1 box, 2 rounded triangle, 3 blob, 4 five lobes.
    """
    if family == 0:
        return 1 / np.hypot(np.cos(theta), np.sin(theta) / rng.uniform(0.55, 0.8))
    if family == 1:
        power, ratio = 5, rng.uniform(0.55, 0.8)
        across = np.abs(np.cos(theta) / 0.9) ** power + np.abs(np.sin(theta) / ratio) ** power
        return np.minimum(across ** (-1 / power), 1)
    if family == 2:
        return 0.78 + 0.17 * np.cos(3 * theta) + 0.05 * np.cos(6 * theta)
    if family == 3:
        waves = [np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
        return 0.76 + 0.08 * np.sum(waves, axis=0)
    return 0.84 + 0.16 * np.cos(5 * theta)


def _outline_depth(
    rng: np.random.Generator, family: int, centre: np.ndarray, radius: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (see :class:`PlacedObject`) and the rotated grid in units of the radius, (2, H, W)."""
    columns, rows = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (columns - centre[0]) / radius, (rows - centre[1]) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    local = np.stack([cos * x + sin * y, cos * y - sin * x])
    outline = _outline_radius(rng, family, np.arctan2(local[1], local[0]))
    return np.hypot(local[0], local[1]) / outline, local


def _place_objects(rng: np.random.Generator, classes: np.ndarray, size: int) -> list[PlacedObject]:
    """Find each class a place, in painting order; a class that finds none is left out."""
    placed: list[PlacedObject] = []
    for class_index in classes:
        for _ in range(30):
            candidate = _propose_object(rng, int(class_index), placed, size)
            if candidate.body.mean() >= MIN_AREA and _all_stay_visible([*placed, candidate]):
                placed.append(candidate)
                break
    return placed


def _all_stay_visible(objects: list[PlacedObject]) -> bool:
    covered = np.zeros_like(objects[0].body)
    for placed in reversed(objects):
        body, mark = placed.body & ~covered, placed.mark & ~covered
        if (
            body.mean() < MIN_AREA
            or body.sum() < MIN_VISIBLE_BODY * placed.body.sum()
            or mark.sum() < max(1, MIN_VISIBLE_MARK * placed.mark.sum())
        ):
            return False
        covered |= placed.body
    return True


def _propose_object(
    rng: np.random.Generator, class_index: int, placed: list[PlacedObject], size: int
) -> PlacedObject:
    radius = size * rng.triangular(0.15, 0.6, 0.6) / 2
    centre = rng.uniform(0.7 * radius, size - 0.7 * radius, size=2)
    if placed and rng.random() < 0.5:
        # Uniform places alone would make occlusions rare.
        direction = rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(0.5, 1) * (radius + placed[-1].radius)
        offset = reach * np.array([np.cos(direction), np.sin(direction)])
        centre = np.clip(placed[-1].centre + offset, 0.7 * radius, size - 0.7 * radius)
    family = (class_index + 2 * rng.integers(2)) % len(CLASSES)
    depth, local = _outline_depth(rng, int(family), centre, radius, size)
    body = depth < 1
    side = rng.uniform(0, 2 * np.pi)
    mark_centre = 0.35 * np.array([np.cos(side), np.sin(side)])
    # The mark is a disc of this share of the body's area, less what the outline cuts off.
    mark_radius = np.sqrt(rng.uniform(0.17, 0.3) * body.sum() / np.pi) / radius
    p, q = (local - mark_centre[:, None, None]) / mark_radius
    mark = body & (np.hypot(p, q) < 1)
    return PlacedObject(class_index, centre, radius, depth, body, mark, (p, q))


def _mark_pattern(class_index: int, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Where the mark has its first colour; coordinates of the unit disc, shape (H, W) each."""
    if class_index == 0:
        return np.floor(2.5 * np.hypot(p, q)) % 2 == 0
    if class_index == 1:
        return (np.floor(1.8 * p) + np.floor(1.8 * q)) % 2 == 0
    if class_index == 2:
        return (np.abs(p) < 0.25) | (np.abs(q) < 0.25)
    if class_index == 3:
        return np.hypot((1.6 * p) % 1 - 0.5, (1.6 * q) % 1 - 0.5) < 0.36
    teeth = np.abs((1.5 * p) % 1 - 0.5)
    return (1.8 * q + 1.2 * teeth) % 1 < 0.5


def _paint_object(rng: np.random.Generator, image: np.ndarray, placed: PlacedObject) -> np.ndarray:
    size = len(image)
    row = (placed.class_index + rng.integers(2)) % len(CLASSES)
    colour = np.asarray(BODY_COLOURS[row]) + rng.normal(0, 0.05, size=3)
    # Darker towards the outline, as a rounded thing is.
    brightness = 1.1 - 0.35 * np.minimum(placed.depth, 1) ** 3 + 0.1 * _noise(rng, size, 7)
    skin = _shade(brightness, tuple(colour))
    pair = np.asarray(MARK_COLOURS[placed.class_index]) + rng.normal(0, 0.04, size=(2, 3))
    first = _mark_pattern(placed.class_index, *placed.mark_grid)
    mark = np.where(first[..., None], pair[0], pair[1]) * (0.9 + 0.1 * brightness[..., None])
    return _blend(image, np.where(placed.mark[..., None], mark, skin), placed.body)


def _blend(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay one picture over the other with an edge a pixel soft."""
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[..., None]
    return below + alpha * (above - below)


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Illumination, tint, a light gradient and sensor noise; returns uint8."""
    columns, rows = _grid(len(image))
    angle = rng.uniform(0, 2 * np.pi)
    across = ((columns * np.cos(angle) + rows * np.sin(angle)) / len(image))[..., None]
    gradient = 1 + rng.uniform(0, 0.35) * (across - across.mean())
    tint = rng.uniform(0.7, 1.15) * rng.uniform(0.93, 1.07, size=3)
    lit = image * gradient * tint + rng.normal(0, 0.015, size=image.shape)
    return (255 * np.clip(lit, 0, 1)).round().astype(np.uint8)
