"""Segmentors; plain DSCNet needs none but mmseg's own EncoderDecoder."""

from mmdscnet.models.segmentors.cam_tta_model import CAMTTAModel

__all__ = ['CAMTTAModel']
