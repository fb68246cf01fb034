"""Judging: CAMs at every background threshold, label maps as they are, the classifier."""

from mmdscnet.evaluation.cam_folder import SweepScores, sweep_cam_folder
from mmdscnet.evaluation.cam_iou_metric import CAMIoUMetric
from mmdscnet.evaluation.label_folder import (
    LabelScores,
    count_label_folder,
    count_labels,
    judge_label_folder,
    score_labels,
)
from mmdscnet.evaluation.multi_label_map_metric import MultiLabelMAPMetric
from mmdscnet.evaluation.pseudo_label_metric import PseudoLabelMetric

__all__ = [
    'CAMIoUMetric',
    'LabelScores',
    'MultiLabelMAPMetric',
    'PseudoLabelMetric',
    'SweepScores',
    'count_label_folder',
    'count_labels',
    'judge_label_folder',
    'score_labels',
    'sweep_cam_folder',
]
