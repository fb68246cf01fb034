"""What a data set says of its images, so that two lists of images can be compared."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# What a data info says of an image, beside where the pipeline finds it.
DESCRIBING = ('img_path', 'seg_map_path', 'cam_path', 'gt_image_label')


def describe_images(dataset: Any) -> dict[str, str]:
    """Describe the images of a data set, and what is known of each.

    Args:
        dataset: Data set; without ``get_data_info`` only its length is known.

    Returns:
        Text by place in the data set.
    """
    if not hasattr(dataset, 'get_data_info'):
        return {'number of images': str(len(dataset))}
    roots = sorted(find_roots(dataset), key=len, reverse=True)
    infos = map(dataset.get_data_info, range(len(dataset)))
    return {f'image {index}': _describe(info, roots) for index, info in enumerate(infos)}


def find_roots(dataset: Any) -> set[str]:
    """Find the folders that a data set, and those that it wraps, call their root.

    Args:
        dataset: The data set.

    Returns:
        The folders, each with a separator at its end.
    """
    root = getattr(dataset, 'data_root', None)
    roots = {os.path.join(root, '')} if root else set()
    wrapped = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    return roots.union(*(find_roots(part) for part in wrapped if part is not None))


def _describe(info: Mapping[str, Any], roots: Sequence[str]) -> str:
    texts = []
    for value in (info[key] for key in DESCRIBING if info.get(key) is not None):
        if isinstance(value, str):
            root = next((root for root in roots if value.startswith(root)), '')
            value = value.removeprefix(root)
        # Not as an array, which is shortened when it is long.
        texts.append(str(np.asarray(value).tolist()))
    return ' '.join(texts)


def hash_images(dataset: Any) -> str:
    """Identify the images of a data set, in their order, and what is known of each.

    Args:
        dataset: As for :func:`describe_images`.

    Returns:
        SHA-256, hexadecimal; the same for copies of the data in other folders.
    """
    text = '\n'.join(f'{name}: {text}' for name, text in describe_images(dataset).items())
    return hashlib.sha256(text.encode()).hexdigest()
