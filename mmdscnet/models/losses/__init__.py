"""The terms of the objectives as modules: tensors in, weighted scalar out."""

from mmdscnet.models.losses.equivariance_loss import EquivarianceLoss
from mmdscnet.models.losses.equivariant_cross_loss import EquivariantCrossLoss
from mmdscnet.models.losses.min_pooling_loss import MinPoolingLoss
from mmdscnet.models.losses.pgcl_loss import PGCLLoss
from mmdscnet.models.losses.pixel_contrast_loss import PixelContrastLoss
from mmdscnet.models.losses.pixel_prototype_loss import PixelPrototypeLoss
from mmdscnet.models.losses.pseudo_label_loss import PseudoLabelLoss
from mmdscnet.models.losses.sgcl_loss import SGCLLoss

__all__ = [
    'EquivarianceLoss',
    'EquivariantCrossLoss',
    'MinPoolingLoss',
    'PGCLLoss',
    'PixelContrastLoss',
    'PixelPrototypeLoss',
    'PseudoLabelLoss',
    'SGCLLoss',
]
