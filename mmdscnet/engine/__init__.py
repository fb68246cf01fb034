"""When things happen during training."""

from mmdscnet.engine.contrast_warmup_hook import ContrastWarmupHook
from mmdscnet.engine.progress_hook import ProgressHook

__all__ = ['ContrastWarmupHook', 'ProgressHook']
