"""Data sets with image-level labels, their checks, transforms and sampler."""

from mmdscnet.datasets.augmentation import RandomColorJitter, RandomCropOrPad
from mmdscnet.datasets.group_sampler import GroupSampler
from mmdscnet.datasets.image_labels import (
    read_image_labels,
    read_label_classes,
    to_multi_hot,
    write_image_labels,
)
from mmdscnet.datasets.shapes import ShapesDataset
from mmdscnet.datasets.transforms import (
    LoadCAMs,
    LoadCheckedImage,
    LoadCheckedMask,
    PackWSSSInputs,
)
from mmdscnet.datasets.voc import VOC2012Dataset, VOCLayoutDataset, voc_palette

__all__ = [
    'GroupSampler',
    'LoadCAMs',
    'LoadCheckedImage',
    'LoadCheckedMask',
    'PackWSSSInputs',
    'RandomColorJitter',
    'RandomCropOrPad',
    'ShapesDataset',
    'VOC2012Dataset',
    'VOCLayoutDataset',
    'read_image_labels',
    'read_label_classes',
    'to_multi_hot',
    'voc_palette',
    'write_image_labels',
]
