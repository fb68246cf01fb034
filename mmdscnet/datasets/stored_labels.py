"""Pseudo labels that training reads from a store, whose version changes while workers read."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from mmdscnet.pseudo_labels import PseudoLabelStore, open_label_map
from mmdscnet.pseudo_labels.palette_png import VOID_ID


class StoredVersion:
    """Number of the version that all readers of a store use; 0 where there is none yet.

    It lies in shared memory: worker processes that a ``DataLoader`` started before, by fork or by
    spawn, see what the main process sets. Copies, deep ones too, are the same number.

    Note:
        Only torch's multiprocessing, which ``DataLoader`` uses, hands the memory itself to another
        process. A plain ``pickle`` of it is a number of its own.
    """

    def __init__(self) -> None:
        self._number = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo: dict[int, Any]) -> 'StoredVersion':
        return self

    def get(self) -> int:
        """Read the number."""
        return int(self._number)

    def set(self, number: int) -> None:
        """Let all readers use another version.

        Args:
            number: Its number; 0 for none.

        Raises:
            ValueError: If it is negative.
        """
        if number < 0:
            raise ValueError(f'number={number} is no version: they count from 1, and 0 is none')
        self._number.fill_(number)


@TRANSFORMS.register_module()
class LoadStoredLabels(BaseTransform):
    """Load the pseudo label of an image from a store, as its mask. Place it after the image.

    The label map is ``<folder>/v<version>/<image id>.png``, the version with four digits. As long
    as there is no version every pixel is void. ``PseudoLabelHook`` says which version it is.

    Args:
        folder: Folder of the store; None where a hook sets the attribute, which it must do before
            worker processes start.

    Attributes:
        folder: The folder.
        version: The version that is read.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.version = StoredVersion()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read the label map of the image.

        Args:
            results: Output of the image loader.

        Returns:
            The same dict with ``gt_seg_map``, class ids and 255 for void, uint8, shape (H, W),
            which ``seg_fields`` names.

        Raises:
            FileNotFoundError: If the version has no label map of the image.
            ValueError: If there is a mask already, no folder, or a label map that is damaged, holds
                no class ids or is of another size than the image.
        """
        if 'gt_seg_map' in results:
            raise ValueError(
                f'{results["img_path"]} has a mask already: take the transform that loads masks '
                'out of the pipeline, training from pseudo labels needs none'
            )
        size = results['img'].shape[:2]
        number = self.version.get()
        if number == 0:
            label_map = np.full(size, VOID_ID, dtype=np.uint8)
        else:
            label_map = self._read(results['img_path'], number, size)
        results['gt_seg_map'] = label_map
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _read(self, image_path: str, number: int, size: tuple[int, int]) -> np.ndarray:
        if self.folder is None:
            raise ValueError(
                f'LoadStoredLabels(folder=None) is to read version {number}: name the folder of '
                "the store, or let PseudoLabelHook(target='stored') do so"
            )
        folder = PseudoLabelStore(self.folder).version_folder(number)
        path = folder / f'{Path(image_path).stem}.png'
        try:
            label_map = np.array(open_label_map(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{path} is missing: version {number} of the store lacks the image {image_path}. '
                'Label the images again, this one among them, or take it out of the split file'
            ) from error
        if label_map.shape != size:
            raise ValueError(
                f'{path} has the shape {label_map.shape} but its image {image_path} has {size} '
                '(height, width). Place LoadStoredLabels right after the image loader; if it is '
                'there, label the images again'
            )
        return label_map

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folder={self.folder!r}, version={self.version.get()})'


def find_stored_labels(dataset: Any) -> list[LoadStoredLabels]:
    """Find the transforms of a data set that read stored pseudo labels.

    Args:
        dataset: A data set with a ``pipeline``, or one that wraps others.

    Returns:
        The transforms, also those within wrappers of data sets and of transforms.
    """
    if isinstance(dataset, LoadStoredLabels):
        return [dataset]
    if isinstance(dataset, (list, tuple)):
        parts = list(dataset)
    else:
        names = ('dataset', 'datasets', 'pipeline', 'transforms')
        parts = [getattr(dataset, name) for name in names if hasattr(dataset, name)]
    return [found for part in parts for found in find_stored_labels(part)]
