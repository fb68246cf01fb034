"""Images of one's own, without a data set: files and arrays with the pipeline of a config."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose

from mmdscnet.datasets.image_labels import IMAGE_SUFFIXES, read_image_labels, to_multi_hot

IMAGE_LOADERS = ('LoadCheckedImage', 'LoadImageFromFile')
ANNOTATION_LOADERS = ('LoadAnnotations', 'LoadCheckedMask')


class ImageList:
    """Images as :func:`stream_cams` and :func:`label_images` want them.

    Annotations that the pipeline would load are left out. Where an image is in memory, the image
    loader makes place for ``LoadImageFromNDArray``. The default scope of mmengine must be that of
    the config, as :func:`mmdscnet.apis.load_model` sets it.

    Args:
        infos: For each image ``img_path``, its file or the name of one in memory; for one in memory
            ``img``, BGR as mmcv reads it, uint8, shape (H, W, 3); and, for all images or none,
            ``gt_image_label``, float32 in {0, 1}, shape (K,).
        pipeline: Test pipeline of a config, in one view or several.
        metainfo: ``classes``, background first, and ``palette``.

    Raises:
        ValueError: If some images have labels and others none, or an image is in memory and the
            pipeline has no image loader.
    """

    def __init__(
        self,
        infos: Sequence[Mapping[str, Any]],
        pipeline: Sequence[Mapping[str, Any]],
        metainfo: Mapping[str, Any],
    ) -> None:
        labelled = ['gt_image_label' in info for info in infos]
        if any(labelled) and not all(labelled):
            unlabelled = infos[labelled.index(False)]['img_path']
            raise ValueError(
                f'{unlabelled} has no gt_image_label and other images have one: give labels for '
                'all images, or for none to have them predicted'
            )
        self.metainfo: dict[str, Any] = dict(metainfo)
        self.infos = [dict(info) for info in infos]
        steps = drop_annotation_loaders(pipeline)
        self._from_file = Compose(steps)
        in_memory = any('img' in info for info in infos)
        self._from_array = Compose(take_arrays(steps)) if in_memory else None

    @property
    def image_labels(self) -> np.ndarray | None:
        """Image-level labels in {0, 1}, shape (N, K); None where they are to be predicted."""
        if not self.infos or 'gt_image_label' not in self.infos[0]:
            return None
        return np.stack([info['gt_image_label'] for info in self.infos])

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read an image in all its views."""
        info = self.get_data_info(index)
        if self._from_array is None or 'img' not in info:
            return self._from_file(info)
        item = self._from_array(info)
        samples = item['data_samples']
        # LoadImageFromNDArray forgets the name.
        for sample in samples if isinstance(samples, list) else [samples]:
            sample.set_metainfo(dict(img_path=self.infos[index]['img_path']))
        return item

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Give what is known of an image before it is read.

        Args:
            index: Place of the image.

        Returns:
            A copy of its info.
        """
        return dict(self.infos[index])


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the images of a folder and of the folders in it; hidden files are none.

    Args:
        folder: The folder.

    Returns:
        Files that end like images, in the order of their paths.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'{folder} is not a folder: give the folder of the images')
    paths = sorted(
        path
        for path in Path(folder).rglob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')
    )
    if not paths:
        raise FileNotFoundError(
            f'folder {folder} has no images, which are files that end in one of '
            f'{", ".join(IMAGE_SUFFIXES)}: give another folder'
        )
    return paths


def add_image_labels(
    infos: Sequence[dict[str, Any]], source: str | os.PathLike[str], classes: Sequence[str]
) -> None:
    """Add the image-level labels of a file to images.

    Args:
        infos: Infos with ``img_path``; ``gt_image_label`` is added in place.
        source: Label source of :func:`read_image_labels`, whose ids are file names without suffix.
        classes: Foreground names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is malformed, names an unknown class or an image that is not there, or
            lacks an image.
    """
    ids = [Path(info['img_path']).stem for info in infos]
    labels = read_image_labels(Path(source), classes)
    extra = sorted(labels.keys() - set(ids))
    if extra:
        raise ValueError(
            f'{source} has tags for {len(extra)} images that are not among the {len(ids)} images, '
            f'the first is {extra[0]!r}. Add the images, or correct the ids (file names without '
            'suffix)'
        )
    missing = [image_id for image_id in ids if image_id not in labels]
    if missing:
        raise ValueError(
            f'{len(missing)} of {len(ids)} images have no tags in {source}, the first is '
            f'{missing[0]!r}. Add a row for each; an id alone is an image with no class'
        )
    for info, image_id in zip(infos, ids, strict=True):
        info['gt_image_label'] = to_multi_hot(labels[image_id], classes)


def drop_annotation_loaders(transforms: Sequence[Any]) -> list[Any]:
    """Take the loaders of annotations out of a pipeline, also out of ``TestTimeAug``.

    Args:
        transforms: Configs of transforms, or the groups of them in ``TestTimeAug``.

    Returns:
        Those that are left, without groups that would be empty.
    """
    kept: list[Any] = []
    for transform in transforms:
        if not isinstance(transform, Mapping):
            group = drop_annotation_loaders(transform)
            kept += [group] if group else []
        elif _type_name(transform) not in ANNOTATION_LOADERS:
            inner = transform.get('transforms')
            changed = {} if inner is None else dict(transforms=drop_annotation_loaders(inner))
            kept.append({**transform, **changed})
    return kept


def take_arrays(transforms: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Let a pipeline begin with an image in memory.

    Args:
        transforms: Configs of transforms.

    Returns:
        The same with ``LoadImageFromNDArray`` in place of the first loader of an image file.

    Raises:
        ValueError: If there is no such loader.
    """
    names = [_type_name(transform) for transform in transforms]
    place = next((i for i, name in enumerate(names) if name in IMAGE_LOADERS), None)
    if place is None:
        raise ValueError(
            f'the pipeline {names} loads no image by {" or ".join(IMAGE_LOADERS)}, in whose place '
            'an array could come: give image files, or begin the pipeline with one of them'
        )
    loader = dict(
        type='LoadImageFromNDArray', to_float32=transforms[place].get('to_float32', False)
    )
    return [*transforms[:place], loader, *transforms[place + 1 :]]


def _type_name(transform: Mapping[str, Any]) -> str:
    kind = transform['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
