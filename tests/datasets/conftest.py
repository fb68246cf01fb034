"""A small data set in VOC layout, written once a test."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LABELS = {'a_1': ['cat'], 'a_2': ['cat', 'dog'], 'a_3': []}


def _write_jpeg(path: Path, size: tuple[int, int] = (24, 32)) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def _write_mask(path: Path, values: np.ndarray) -> None:
    mask = Image.fromarray(values.astype(np.uint8), mode='P')
    mask.putpalette(list(range(256)) * 3)
    mask.save(path)


@pytest.fixture
def write_jpeg() -> Callable[..., None]:
    """Write a JPEG of noise of a size (height, width)."""
    return _write_jpeg


@pytest.fixture
def write_mask() -> Callable[[Path, np.ndarray], None]:
    """Write class ids as a palette PNG."""
    return _write_mask


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """Three images of 24x32 pixels with masks and a JSON of labels; a_3 shows no class."""
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets'):
        (tmp_path / name).mkdir()
    (tmp_path / 'ImageSets/train.txt').write_text(''.join(f'{i}\n' for i in LABELS))
    (tmp_path / 'image_labels.json').write_text(
        json.dumps({'classes': ['cat', 'dog'], 'labels': LABELS})
    )
    for image_id, names in LABELS.items():
        _write_jpeg(tmp_path / f'JPEGImages/{image_id}.jpg')
        mask = np.zeros((24, 32))
        for index, name in enumerate(('cat', 'dog'), start=1):
            mask[4 * index : 4 * index + 4] = index if name in names else 0
        mask[0] = 255
        _write_mask(tmp_path / f'SegmentationClass/{image_id}.png', mask)
    return tmp_path
