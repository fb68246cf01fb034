"""Figures: what a run has learned, to look at."""

from mmdscnet.visualization.cam_grid import CAMGridRow, draw_cam_grid
from mmdscnet.visualization.threshold_curve import draw_threshold_curve

__all__ = ['CAMGridRow', 'draw_cam_grid', 'draw_threshold_curve']
