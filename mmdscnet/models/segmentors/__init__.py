"""Segmentors; plain DSCNet needs none but mmseg's own EncoderDecoder."""

from mmdscnet.models.segmentors.cam_tta_model import CAMTTAModel
from mmdscnet.models.segmentors.probability_tta_model import ProbabilityTTAModel
from mmdscnet.models.segmentors.seam import SEAM

__all__ = ['SEAM', 'CAMTTAModel', 'ProbabilityTTAModel']
