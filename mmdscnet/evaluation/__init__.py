"""Judging: CAMs at every background threshold, and label maps as they are."""

from mmdscnet.evaluation.cam_folder import SweepScores, sweep_cam_folder
from mmdscnet.evaluation.cam_iou_metric import CAMIoUMetric
from mmdscnet.evaluation.label_folder import (
    LabelScores,
    count_label_folder,
    count_labels,
    judge_label_folder,
    score_labels,
)
from mmdscnet.evaluation.pseudo_label_metric import PseudoLabelMetric

__all__ = [
    'CAMIoUMetric',
    'LabelScores',
    'PseudoLabelMetric',
    'SweepScores',
    'count_label_folder',
    'count_labels',
    'judge_label_folder',
    'score_labels',
    'sweep_cam_folder',
]
