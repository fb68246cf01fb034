"""The two contrasts as loss modules: tensors in, weighted scalar out."""

from mmdscnet.models.losses.pgcl_loss import PGCLLoss
from mmdscnet.models.losses.sgcl_loss import SGCLLoss

__all__ = ['PGCLLoss', 'SGCLLoss']
