"""Checks of image and mask files: complete, of one size, only known class ids.

The data set runs them over a whole split before training; the loading transforms run them on each
file that they read.
"""

import struct
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image

Item = TypeVar('Item')

# First and last bytes of a complete file of the two formats in use.
END_MARKERS = {b'\xff\xd8': b'\xff\xd9', b'\x89PNG': b'IEND\xaeB`\x82'}
READER_THREADS = 8


def check_image_complete(file: BinaryIO, path: str | Path) -> None:
    """Refuse a truncated or unreadable image.

    OpenCV fills the missing part of a truncated JPEG with grey and says nothing. A file that ends
    with its format's end marker passes at once; of any other file (some cameras append bytes) a
    full decoding decides. Damage in the middle of a file with an intact end is not found.

    Args:
        file: The opened image file, or its bytes in a ``BytesIO``.
        path: Where it came from, for the message.

    Raises:
        ValueError: If the image cannot be decoded to its end.
    """
    if _has_end_marker(file):
        return
    file.seek(0)
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f'image {path} is truncated or no image: {error}. Copy the file again, or take its id '
            'out of the split file.'
        ) from error


def _has_end_marker(file: BinaryIO) -> bool:
    file.seek(0)
    head = file.read(4)
    longest = max(map(len, END_MARKERS.values()))
    file.seek(0, 2)
    file.seek(max(0, file.tell() - longest))
    tail = file.read(longest)
    return any(head.startswith(start) and tail.endswith(end) for start, end in END_MARKERS.items())


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Read the size of an image from its header, and check that the file is complete.

    Args:
        path: The image file.

    Returns:
        Height and width in pixels as the image is shown, that is after the EXIF rotation which
        OpenCV applies on reading.

    Raises:
        ValueError: If the file is truncated or no image.
    """
    with open(path, 'rb') as file:
        check_image_complete(file, path)
        file.seek(0)
        try:
            with Image.open(file) as image:
                width, height = image.size
                rotated = _is_rotated(image)
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f'image {path} has no readable header: {error}. Copy the file again, or take its '
                'id out of the split file.'
            ) from error
    return (width, height) if rotated else (height, width)


def _is_rotated(image: Image.Image) -> bool:
    try:
        # Orientations 5 to 8 are the four that exchange rows and columns.
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    # Damaged EXIF does not make an image unreadable: OpenCV ignores it too.
    except (SyntaxError, ValueError, struct.error):
        return False


def read_mask_ids(path: str | Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Read which ids a mask holds, and its size.

    Args:
        path: The mask, a palette or grey PNG of 8 bits whose values are class ids.

    Returns:
        The ids that occur, ascending, in [0, 255], shape (number of ids,), and (height, width).

    Raises:
        ValueError: If the file cannot be decoded or is not an index image.
    """
    try:
        with Image.open(path) as mask:
            mode, (width, height) = mask.mode, mask.size
            histogram = mask.histogram() if mode in ('L', 'P') else []
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f'mask {path} is truncated or no image: {error}. Copy the file again.'
        ) from error
    if not histogram:
        raise ValueError(
            f'mask {path} has mode {mode!r}; masks are palette or grey PNGs of 8 bits whose values '
            'are class ids. Convert colours to ids first.'
        )
    return np.flatnonzero(histogram), (height, width)


def check_mask(
    path: str | Path, image_path: str | Path, image_size: tuple[int, int], allowed: Collection[int]
) -> None:
    """Refuse a mask of another size than its image or with ids outside the classes.

    Args:
        path: The mask.
        image_path: Its image, for the message.
        image_size: Height and width of the image in pixels.
        allowed: The ids that may occur, the ignored one included.

    Raises:
        ValueError: If the mask is unreadable, of another size, or holds another id.
    """
    ids, size = read_mask_ids(path)
    if size != image_size:
        raise ValueError(
            f'mask {path} is {size[0]}x{size[1]} pixels (height x width) but its image '
            f'{image_path} is {image_size[0]}x{image_size[1]}. Resize the mask with nearest '
            'neighbour, or pair the right files.'
        )
    unknown = sorted(set(ids.tolist()) - set(allowed))
    if unknown:
        raise ValueError(
            f'mask {path} holds the ids {unknown} outside the classes; allowed are '
            f'{sorted(allowed)}. Give all classes in metainfo, or correct the mask.'
        )


def check_image_ids(image_ids: Iterable[str], path: str | Path) -> None:
    """Refuse a split whose lines are more than an id, as lists of pairs of files in circulation.

    Args:
        image_ids: Lines of the split.
        path: The split, for the message.

    Raises:
        ValueError: If a line has white space in it or begins with a slash.
    """
    for image_id in image_ids:
        if image_id.startswith('/') or len(image_id.split()) != 1:
            raise ValueError(
                f'split file {path} has the line {image_id!r}, which is no image id. Keep the name '
                'of the image without folder and suffix alone on each line, such as 2007_000032.'
            )


def check_all(check: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Run a check over many files in threads and report the first failure and their number.

    Args:
        check: Raises ``ValueError`` for a bad item.
        items: What to check, in the order in which failures are reported.

    Raises:
        ValueError: If any item fails.
    """

    def problem(item: Item) -> str | None:
        try:
            check(item)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READER_THREADS) as pool:
        problems = [text for text in pool.map(problem, items) if text]
    if problems:
        more = f' ({len(problems) - 1} more files have a fault.)' if len(problems) > 1 else ''
        raise ValueError(problems[0] + more)
