"""Results for the test server of PASCAL VOC."""

import gzip
import os
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.label_map_files import find_label_maps, open_label_map

NUM_CLASSES = 21
COMPETITIONS = ('comp5', 'comp6')


def write_voc_archive(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    image_ids: Sequence[str],
    palette: Sequence[Sequence[int]],
    competition: str = 'comp6',
) -> None:
    """Pack label maps as the ``.tar.gz`` that VOC's test server takes, whole or not at all.

    The same label maps make the same bytes, whenever and by whomever they are packed. That a map
    has the size of its image is not checked: the images are not needed.

    Source: section "Submission of Results" of the PASCAL VOC 2012 development kit.

    Args:
        path: File to write; missing parent folders are made.
        folder: Folder of palette PNGs of class ids, ``<image id>.png``.
        image_ids: All images of the server's test split.
        palette: VOC's colours, one [red, green, blue] a class, as ``voc_palette(21)`` gives them.
        competition: 'comp6' for models that saw other data than VOC, 'comp5' for the others.

    Raises:
        FileNotFoundError: If a label map is missing.
        ValueError: If a label map is no palette PNG, has other colours, or has an id that is no
            class, void (255) included; or if an argument is not as described.
    """
    if competition not in COMPETITIONS:
        raise ValueError(f'competition={competition!r} must be one of {COMPETITIONS}')
    colours = np.asarray(palette)
    if colours.shape != (NUM_CLASSES, 3):
        raise ValueError(
            f'palette has shape {colours.shape}, not ({NUM_CLASSES}, 3): give voc_palette(21)'
        )
    maps = find_label_maps(folder, sorted(image_ids), 'predict the whole test split first')
    inside = f'results/VOC2012/Segmentation/{competition}_test_cls'
    with (
        atomic_path(path) as temporary,
        temporary.open('wb') as raw,
        # Without name and time the header is the same for the same content.
        gzip.GzipFile(filename='', mode='wb', fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode='w') as archive,
    ):
        for label_map in maps:
            _check_label_map(label_map, colours)
            content = label_map.read_bytes()
            # Time and owner of a TarInfo are 0 and nobody unless set.
            member = tarfile.TarInfo(f'{inside}/{label_map.name}')
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def _check_label_map(path: Path, colours: np.ndarray) -> None:
    image = open_label_map(path)
    if (image.getpalette() or [])[: colours.size] != colours.flatten().tolist():
        raise ValueError(
            f"{path} has no palette of VOC's colours (mode {image.mode}): write it with "
            'write_palette_png and voc_palette'
        )
    outside = np.flatnonzero(image.histogram()[NUM_CLASSES:]) + NUM_CLASSES
    if outside.size:
        raise ValueError(
            f'{path} has the ids {outside.tolist()}, but the server takes 0..{NUM_CLASSES - 1} '
            'and no void: predict a class for every pixel'
        )
