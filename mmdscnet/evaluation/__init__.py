"""Judging: how good are the CAMs, and at which background threshold."""

from mmdscnet.evaluation.cam_iou_metric import CAMIoUMetric

__all__ = ['CAMIoUMetric']
