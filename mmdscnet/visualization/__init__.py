"""Figures: what a run has learned, to look at."""

from mmdscnet.visualization.cam_grid import draw_cam_grid
from mmdscnet.visualization.grid_row import CAMGridRow
from mmdscnet.visualization.overlay import draw_label_overlay, draw_overlay
from mmdscnet.visualization.report import write_report
from mmdscnet.visualization.report_gallery import GalleryItem
from mmdscnet.visualization.report_run import ReportRun
from mmdscnet.visualization.threshold_curve import draw_threshold_curve

__all__ = [
    'CAMGridRow',
    'draw_cam_grid',
    'draw_threshold_curve',
    'draw_overlay',
    'draw_label_overlay',
    'GalleryItem',
    'ReportRun',
    'write_report',
]
