"""Judging: CAMs at every background threshold, and label maps as they are."""

from mmdscnet.evaluation.cam_folder import sweep_cam_folder
from mmdscnet.evaluation.cam_iou_metric import CAMIoUMetric
from mmdscnet.evaluation.label_folder import LabelScores, judge_label_folder

__all__ = ['CAMIoUMetric', 'LabelScores', 'judge_label_folder', 'sweep_cam_folder']
