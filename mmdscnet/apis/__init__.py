"""Whole jobs in one call."""

from mmdscnet.apis.affinity_labels import make_affinity_labels
from mmdscnet.apis.cam_export import export_cams
from mmdscnet.apis.export_start import describe_export, start_export
from mmdscnet.apis.inferencer import InferenceResult, PseudoLabelInferencer
from mmdscnet.apis.judgement import Judgement, judge, train_and_judge
from mmdscnet.apis.label_export import export_labels
from mmdscnet.apis.mmseg_model import init_model
from mmdscnet.apis.model_loading import (
    build_split,
    drop_masks,
    load_model,
)

__all__ = [
    'InferenceResult',
    'Judgement',
    'PseudoLabelInferencer',
    'build_split',
    'describe_export',
    'drop_masks',
    'export_cams',
    'export_labels',
    'init_model',
    'judge',
    'load_model',
    'make_affinity_labels',
    'start_export',
    'train_and_judge',
]
