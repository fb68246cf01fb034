"""Heads for mmseg's EncoderDecoder that train on image-level labels."""

from mmdscnet.models.decode_heads.cam_head import CAMHead
from mmdscnet.models.decode_heads.dsc_head import DSCHead

__all__ = ['CAMHead', 'DSCHead']
