"""Networks: thin registered shells over :mod:`mmdscnet.functional`."""

from mmdscnet.models.backbones import ContractedMobileNetV2, ResNet38d
from mmdscnet.models.decode_heads import (
    AffinityHead,
    CAMHead,
    DSCHead,
    LargeFOVHead,
    PixelCorrelationModule,
)
from mmdscnet.models.losses import (
    EquivarianceLoss,
    EquivariantCrossLoss,
    MinPoolingLoss,
    PGCLLoss,
    PseudoLabelLoss,
    SGCLLoss,
)
from mmdscnet.models.segmentors import SEAM, CAMTTAModel, ProbabilityTTAModel

__all__ = [
    'AffinityHead',
    'CAMHead',
    'CAMTTAModel',
    'ContractedMobileNetV2',
    'DSCHead',
    'EquivarianceLoss',
    'EquivariantCrossLoss',
    'LargeFOVHead',
    'MinPoolingLoss',
    'PGCLLoss',
    'PixelCorrelationModule',
    'ProbabilityTTAModel',
    'PseudoLabelLoss',
    'ResNet38d',
    'SEAM',
    'SGCLLoss',
]
