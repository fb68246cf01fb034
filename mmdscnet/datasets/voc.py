"""Data sets in the folder layout of PASCAL VOC, with image-level labels."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmdscnet.datasets.file_checks import (
    check_all,
    check_image_ids,
    check_mask,
    read_image_size,
)
from mmdscnet.datasets.image_labels import (
    ImageLabels,
    read_image_labels,
    read_label_classes,
    to_multi_hot,
)
from mmdscnet.pseudo_labels.store import MANIFEST_FILE, read_version

MEND_EXPORT = (
    'Run the export that writes them; if it was interrupted, run it again, it goes on where it '
    'stopped.'
)


def voc_palette(num_classes: int) -> list[list[int]]:
    """Make the colours of VOC's palette PNGs.

    The bits of the class id are dealt in turn to red, green and blue, from the highest bit down.
    Source: the colormap of the PASCAL VOC development kit.

    Args:
        num_classes: Number of colours, in [1, 256].

    Returns:
        One [red, green, blue] in [0, 255] a class; background is black.

    Raises:
        ValueError: If ``num_classes`` is out of range.

    Example:
        >>> voc_palette(4)
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    if not 1 <= num_classes <= 256:
        raise ValueError(f'num_classes={num_classes} must be in [1, 256], the size of a palette.')
    return [
        [
            sum((index >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
            for channel in range(3)
        ]
        for index in range(num_classes)
    ]


@DATASETS.register_module()
class VOCLayoutDataset(BaseSegDataset):
    """Any class list in VOC's folder layout, with labels for whole images.

    An image's data info holds mmseg's keys and, with ``image_labels``, ``gt_image_label``: float32
    in {0, 1}, shape (K,), all zero for an image with no class. Before training it is checked that
    images and labels are there and of known classes and, in test mode or with a
    ``pseudo_label_folder``, that the masks are there and fit. Otherwise masks are not opened.

    Args:
        data_root: Folder of the data set.
        ann_file: Split file, relative to ``data_root``: an image id a line.
        image_labels: Label source of :func:`read_image_labels`, relative to ``data_root``; None
            for no image-level labels.
        metainfo: ``classes`` with ``'background'`` first, and ``palette`` (VOC's without it). The
            classes may come from a JSON label source instead.
        data_prefix: Folders ``img_path`` and ``seg_map_path``, relative to ``data_root`` or
            absolute; without the latter the data set has no masks. None means VOC's folders.
        allow_extra_labels: Whether the label source may name images that are not in the folder.
        check_files: Whether to check the image and mask files; they must then be local.
        pseudo_label_folder: Folder of label maps, seen from the current folder as the tools write
            them, that stand in for the masks; every image must have one. Where it is a version of
            a store, its classes must be those of the data set and its files those of its manifest.
        cam_folder: Folder of exported CAMs, seen from the current folder, whose files become
            ``cam_path`` of the data infos; every image must have one.
        **kwargs: Arguments of ``BaseSegDataset``.

    Raises:
        FileNotFoundError: If the split, an image, the label source or a mask is missing.
        ValueError: If classes, labels, images or masks contradict each other.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        image_labels: str | None = None,
        metainfo: Mapping[str, Any] | None = None,
        data_prefix: dict[str, str] | None = None,
        allow_extra_labels: bool = False,
        check_files: bool = True,
        pseudo_label_folder: str | None = None,
        cam_folder: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_labels = None if image_labels is None else os.path.join(data_root, image_labels)
        self.allow_extra_labels = allow_extra_labels
        self.check_files = check_files
        self.need_masks = pseudo_label_folder is not None
        folders = {'img_path': 'JPEGImages', 'seg_map_path': 'SegmentationClass'}
        folders = folders if data_prefix is None else dict(data_prefix)
        # Absolute, because what is relative is seen from data_root.
        if pseudo_label_folder is not None:
            # And without links, so that a newer version does not come in while this one is in use.
            folders['seg_map_path'] = os.path.realpath(pseudo_label_folder)
        self.reads_store = (
            self.need_masks and Path(folders['seg_map_path'], MANIFEST_FILE).is_file()
        )
        if cam_folder is not None:
            folders['cam_path'] = os.path.abspath(cam_folder)
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            metainfo=self._complete_metainfo(metainfo),
            data_prefix=folders,
            **kwargs,
        )

    @property
    def foreground_classes(self) -> tuple[str, ...]:
        """Names of the K classes of ``gt_image_label``, in its order."""
        return self._metainfo['classes'][1:]

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read split and labels, and check the files.

        Returns:
            The data info of each image, in the order of the split.

        Raises:
            FileNotFoundError: If the split, an image, the label source or a mask is missing.
            ValueError: If the split is empty, an image has no label, a label has no image, or a
                file is unfit.
        """
        image_ids = self._read_split()
        data_list = [self._data_info(image_id) for image_id in image_ids]
        if self.check_files:
            self._check_present(data_list, 'img_path')
        if self.image_labels is not None:
            labels = self._read_labels(image_ids)
            for info, image_id in zip(data_list, image_ids, strict=True):
                kept = set(labels[image_id]) & set(self.foreground_classes)
                info['gt_image_label'] = to_multi_hot(kept, self.foreground_classes)
        if self.check_files:
            self._check_files(data_list)
        return data_list

    def get_image_labels(self) -> np.ndarray:
        """Gather the labels of all images of the data set, as its subset stands.

        Returns:
            Multi-hot labels, float32 in {0, 1}, shape (len(self), K).

        Raises:
            ValueError: If the data set was made without ``image_labels``.
        """
        if self.image_labels is None:
            raise ValueError(
                'image_labels=None: the data set has no image-level labels. Name a label source.'
            )
        labels = [self.get_data_info(index)['gt_image_label'] for index in range(len(self))]
        return np.stack(labels)

    def _complete_metainfo(self, metainfo: Mapping[str, Any] | None) -> dict[str, Any]:
        complete = self._load_metainfo(metainfo)
        if 'classes' not in complete:
            found = None if self.image_labels is None else read_label_classes(self.image_labels)
            if found is None:
                raise ValueError(
                    f'metainfo={metainfo} has no classes and image_labels={self.image_labels} is '
                    'no JSON with a class list. Give '
                    "metainfo=dict(classes=('background', ...))."
                )
            complete['classes'] = ('background', *found)
        classes = complete['classes'] = tuple(complete['classes'])
        if len(classes) < 2 or classes[0] != 'background' or len(set(classes)) < len(classes):
            raise ValueError(
                f"metainfo classes={classes} must be 'background', then at least one foreground "
                'class, all different.'
            )
        complete.setdefault('palette', voc_palette(len(classes)))
        return complete

    def _source_classes(self) -> Sequence[str]:
        # A choice among METAINFO's classes leaves label sources and masks with all of them.
        return self.METAINFO.get('classes', self._metainfo['classes'])

    def _data_info(self, image_id: str) -> dict[str, Any]:
        # What is written of an image is named by its file alone.
        written_id = os.path.basename(image_id)
        info = {
            'img_path': os.path.join(self.data_prefix['img_path'], image_id + self.img_suffix),
            # A store has the classes of the data set, masks may have more.
            'label_map': None if self.reads_store else self.label_map,
            'reduce_zero_label': self.reduce_zero_label,
            'seg_fields': [],
        }
        if 'seg_map_path' in self.data_prefix:
            info['seg_map_path'] = os.path.join(
                self.data_prefix['seg_map_path'],
                (written_id if self.need_masks else image_id) + self.seg_map_suffix,
            )
        if 'cam_path' in self.data_prefix:
            info['cam_path'] = os.path.join(self.data_prefix['cam_path'], f'{written_id}.npz')
        return info

    def _read_split(self) -> list[str]:
        try:
            lines = mmengine.list_from_file(self.ann_file, backend_args=self.backend_args)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileNotFoundError(
                f'split file {self.ann_file!r} does not exist. Set ann_file to a text file with an '
                'image id a line.'
            ) from error
        image_ids = [line.strip() for line in lines if line.strip()]
        if not image_ids:
            raise ValueError(
                f'split file {self.ann_file} is empty. Write an image id a line, or name another '
                'split in ann_file.'
            )
        check_image_ids(image_ids, self.ann_file)
        return image_ids

    def _read_labels(self, image_ids: list[str]) -> ImageLabels:
        source = str(self.image_labels)
        labels = read_image_labels(source, self._source_classes()[1:], image_ids)
        unlabelled = [image_id for image_id in image_ids if image_id not in labels]
        if unlabelled:
            raise ValueError(
                f'{len(unlabelled)} of {len(image_ids)} images of {self.ann_file} have no label in '
                f'{source}, the first is {unlabelled[0]!r}. Add them (with no class names for an '
                'image with no class), or take them out of the split.'
            )
        if self.check_files and not self.allow_extra_labels:
            self._check_labels_have_images(labels)
        return labels

    def _check_labels_have_images(self, labels: ImageLabels) -> None:
        paths = {i: self._data_info(i)['img_path'] for i in labels}
        present = _list_files(paths.values())
        missing = [image_id for image_id, path in paths.items() if path not in present]
        if missing:
            raise ValueError(
                f'{self.image_labels} labels {len(missing)} images that are not in '
                f'{self.data_prefix["img_path"]}, the first is {missing[0]!r}. Add the images, '
                'correct the ids (file names without suffix), or set allow_extra_labels=True.'
            )

    def _check_present(self, data_list: list[dict[str, Any]], key: str) -> None:
        present = _list_files(info[key] for info in data_list)
        missing = [info[key] for info in data_list if info[key] not in present]
        if not missing:
            return
        kind, mend = {
            'img_path': ('images', 'Add the files, or correct the split (ids without suffix).'),
            'seg_map_path': ('masks', 'Add them, or leave seg_map_path out of data_prefix.'),
            'cam_path': ('CAM files', MEND_EXPORT),
        }[key]
        if key == 'seg_map_path' and self.need_masks:
            mend = MEND_EXPORT
        raise FileNotFoundError(
            f'{len(missing)} of {len(data_list)} {kind} of {self.ann_file} are missing, the first '
            f'is {missing[0]}. {mend}'
        )

    def _check_files(self, data_list: list[dict[str, Any]]) -> None:
        if self.reads_store:
            version = read_version(self.data_prefix['seg_map_path'])
            version.check_classes(self._metainfo['classes'])
            version.verify()
        with_masks = self.need_masks or (self.test_mode and 'seg_map_path' in self.data_prefix)
        if with_masks:
            self._check_present(data_list, 'seg_map_path')
        if 'cam_path' in self.data_prefix:
            self._check_present(data_list, 'cam_path')
        classes = self._metainfo['classes'] if self.reads_store else self._source_classes()
        allowed = {*range(len(classes)), self.ignore_index}

        def check(info: dict[str, Any]) -> None:
            size = read_image_size(info['img_path'])
            if with_masks:
                check_mask(info['seg_map_path'], info['img_path'], size, allowed)

        check_all(check, data_list)


def _list_files(paths: Iterable[str]) -> set[str]:
    """List the folders of the paths once each, instead of asking for every file."""
    folders = {os.path.dirname(path) for path in paths}
    return {
        os.path.join(folder, name)
        for folder in folders
        if Path(folder).is_dir()
        for name in os.listdir(folder)
    }


@DATASETS.register_module()
class VOC2012Dataset(VOCLayoutDataset):
    """PASCAL VOC 2012 with its 20 classes and background."""

    METAINFO = {
        'classes': (
            'background',
            'aeroplane',
            'bicycle',
            'bird',
            'boat',
            'bottle',
            'bus',
            'car',
            'cat',
            'chair',
            'cow',
            'diningtable',
            'dog',
            'horse',
            'motorbike',
            'person',
            'pottedplant',
            'sheep',
            'sofa',
            'train',
            'tvmonitor',
        ),
        'palette': voc_palette(21),
    }
