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
from mmdscnet.datasets.stored_features import (
    CropFeatures,
    FeatureIndex,
    LoadStoredFeatures,
    read_feature_index,
    write_feature_index,
)
from mmdscnet.datasets.stored_labels import LoadStoredLabels, StoredVersion, find_stored_labels
from mmdscnet.datasets.transforms import (
    LoadCAMs,
    LoadCheckedImage,
    LoadCheckedMask,
    PackWSSSInputs,
)
from mmdscnet.datasets.voc import VOC2012Dataset, VOCLayoutDataset, voc_palette

__all__ = [
    'CropFeatures',
    'FeatureIndex',
    'GroupSampler',
    'LoadCAMs',
    'LoadCheckedImage',
    'LoadCheckedMask',
    'LoadStoredFeatures',
    'LoadStoredLabels',
    'PackWSSSInputs',
    'RandomColorJitter',
    'RandomCropOrPad',
    'ShapesDataset',
    'StoredVersion',
    'VOC2012Dataset',
    'VOCLayoutDataset',
    'find_stored_labels',
    'read_feature_index',
    'read_image_labels',
    'read_label_classes',
    'to_multi_hot',
    'voc_palette',
    'write_feature_index',
    'write_image_labels',
]
