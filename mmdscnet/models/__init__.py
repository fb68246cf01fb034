"""Networks: thin registered shells over :mod:`mmdscnet.functional`."""

from mmdscnet.models.backbones import ContractedMobileNetV2
from mmdscnet.models.decode_heads import CAMHead, DSCHead
from mmdscnet.models.losses import PGCLLoss, SGCLLoss
from mmdscnet.models.segmentors import CAMTTAModel

__all__ = ['CAMHead', 'CAMTTAModel', 'ContractedMobileNetV2', 'DSCHead', 'PGCLLoss', 'SGCLLoss']
