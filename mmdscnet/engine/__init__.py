"""When things happen during training."""

from mmdscnet.engine.atomic_checkpoint_hook import AtomicCheckpointHook
from mmdscnet.engine.channels_last_hook import ChannelsLastHook
from mmdscnet.engine.contrast_warmup_hook import ContrastWarmupHook
from mmdscnet.engine.exact_resume_hook import ExactResumeHook
from mmdscnet.engine.image_scores_hook import ImageScoresHook
from mmdscnet.engine.missed_validation_hook import MissedValidationHook
from mmdscnet.engine.progress_hook import ProgressHook
from mmdscnet.engine.pseudo_label_hook import PseudoLabelHook
from mmdscnet.engine.rank_agreement_hook import RankAgreementHook

__all__ = [
    'AtomicCheckpointHook',
    'ChannelsLastHook',
    'ContrastWarmupHook',
    'ExactResumeHook',
    'ImageScoresHook',
    'MissedValidationHook',
    'ProgressHook',
    'PseudoLabelHook',
    'RankAgreementHook',
]
