"""When things happen during training."""

from mmdscnet.engine.contrast_warmup_hook import ContrastWarmupHook
from mmdscnet.engine.image_scores_hook import ImageScoresHook
from mmdscnet.engine.progress_hook import ProgressHook
from mmdscnet.engine.pseudo_label_hook import PseudoLabelHook

__all__ = ['ContrastWarmupHook', 'ImageScoresHook', 'ProgressHook', 'PseudoLabelHook']
