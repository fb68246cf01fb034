"""Figures: what a run has learned, to look at."""

from mmdscnet.visualization.cam_grid import draw_cam_grid
from mmdscnet.visualization.grid_row import CAMGridRow
from mmdscnet.visualization.heat_map import draw_heat_map
from mmdscnet.visualization.interval_chart import ArmInterval, draw_interval_chart
from mmdscnet.visualization.overlay import draw_label_overlay, draw_overlay
from mmdscnet.visualization.report import write_report
from mmdscnet.visualization.report_gallery import GalleryItem
from mmdscnet.visualization.report_run import ReportRun
from mmdscnet.visualization.threshold_curve import draw_threshold_curve

__all__ = [
    'CAMGridRow',
    'draw_cam_grid',
    'draw_heat_map',
    'ArmInterval',
    'draw_interval_chart',
    'draw_threshold_curve',
    'draw_overlay',
    'draw_label_overlay',
    'GalleryItem',
    'ReportRun',
    'write_report',
]
