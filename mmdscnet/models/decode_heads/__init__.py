"""Heads for mmseg's EncoderDecoder, and what revises their CAMs."""

from mmdscnet.models.decode_heads.affinity_head import AffinityHead
from mmdscnet.models.decode_heads.cam_head import CAMHead
from mmdscnet.models.decode_heads.dsc_head import DSCHead
from mmdscnet.models.decode_heads.large_fov_head import LargeFOVHead
from mmdscnet.models.decode_heads.pixel_correlation_module import PixelCorrelationModule

__all__ = ['AffinityHead', 'CAMHead', 'DSCHead', 'LargeFOVHead', 'PixelCorrelationModule']
