"""Backbones that mmseg does not have, and what stands in for a frozen one."""

from mmdscnet.models.backbones.contracted_mobilenet_v2 import ContractedMobileNetV2
from mmdscnet.models.backbones.feature_adaptor import FeatureAdaptor
from mmdscnet.models.backbones.resnet38d import ResNet38d

__all__ = ['ContractedMobileNetV2', 'FeatureAdaptor', 'ResNet38d']
