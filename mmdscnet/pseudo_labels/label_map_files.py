"""Label maps that are already on disk: are all there, and is each one a map of class ids."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def find_label_maps(
    folder: str | os.PathLike[str], image_ids: Sequence[str], mend: str
) -> list[Path]:
    """Find the label map of every image of a list.

    Args:
        folder: Folder of ``<image id>.png`` files.
        image_ids: Images that must have one, at least one, each named once.
        mend: What to do where files are missing, for the error.

    Returns:
        The paths, in the order of ``image_ids``.

    Raises:
        FileNotFoundError: If there is no such folder or a file is missing.
        ValueError: If ``image_ids`` is empty or names an image twice.
    """
    if not image_ids or len(set(image_ids)) < len(image_ids):
        raise ValueError(
            f'image_ids names {len(set(image_ids))} images by {len(image_ids)} ids: name at least '
            'one image, and each once'
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'folder {folder} of label maps does not exist: {mend}')
    paths = [Path(folder, f'{image_id}.png') for image_id in image_ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(paths)} images have no label map in {folder}, the first is '
            f'{missing[0].name}: {mend}'
        )
    return paths


def open_label_map(path: str | os.PathLike[str]) -> Image.Image:
    """Open a label map and decode it to its end.

    Args:
        path: A PNG whose values are class ids: with palette (mode P), or grey (mode L).

    Returns:
        The decoded image.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be decoded, or its values are no class ids.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f'label map {path} is truncated or no image: {error}. Delete it and write it again'
        ) from error
    if image.mode not in ('L', 'P'):
        raise ValueError(
            f'label map {path} has mode {image.mode!r}: give palette or grey PNGs of 8 bits whose '
            'values are class ids, not colours'
        )
    return image
