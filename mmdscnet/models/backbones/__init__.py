"""Backbones that mmseg does not have."""

from mmdscnet.models.backbones.contracted_mobilenet_v2 import ContractedMobileNetV2

__all__ = ['ContractedMobileNetV2']
