"""Backbones that mmseg does not have."""

from mmdscnet.models.backbones.contracted_mobilenet_v2 import ContractedMobileNetV2
from mmdscnet.models.backbones.resnet38d import ResNet38d

__all__ = ['ContractedMobileNetV2', 'ResNet38d']
