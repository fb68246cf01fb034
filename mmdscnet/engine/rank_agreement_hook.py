"""Processes that were not started alike are told so, instead of waiting for each other."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmdscnet.launch import check_same_config
from mmdscnet.ranks import check_ranks_agree

# What a data info says of an image, beside where the pipeline finds it.
DESCRIBING = ('img_path', 'seg_map_path', 'cam_path', 'gt_image_label')


@HOOKS.register_module()
class RankAgreementHook(Hook):
    """Check at the start that all ranks have the same config and the same list of images.

    A node with an old copy of the code, another split file or other image-level labels would train
    on something else without a word, or wait for ever where lengths differ. Paths are compared
    from ``data_root`` on, so that each node may have its own copy of the images. Costs less than a
    second for 10,000 images, and nothing on a single process.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Compare the ranks.

        Args:
            runner: The runner.

        Raises:
            ValueError: On every rank, if two differ.
        """
        if get_world_size() == 1:
            return
        check_same_config(runner.cfg)
        check_ranks_agree('training images', describe_images(runner.train_dataloader.dataset))


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
