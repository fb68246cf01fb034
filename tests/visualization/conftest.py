"""What the tests of the figures draw."""

from collections.abc import Callable

import numpy as np
import pytest

from mmdscnet.visualization import CAMGridRow, ReportRun


@pytest.fixture
def classes() -> tuple[str, ...]:
    return ('background', 'cat', 'dog')


@pytest.fixture
def palette() -> list[list[int]]:
    return [[0, 0, 0], [200, 0, 0], [0, 0, 200]]


@pytest.fixture
def make_row() -> Callable[..., CAMGridRow]:
    """Make a grey photo whose upper half is a cat, with the truth upside down."""

    def make(height: int = 30, width: int = 40, **changes: object) -> CAMGridRow:
        cams = np.zeros((2, height, width), dtype=np.float32)
        cams[0, : height // 2] = 1
        label_map = np.zeros((height, width), dtype=np.uint8)
        label_map[: height // 2] = 1
        row = CAMGridRow(
            image=np.full((height, width, 3), 128, dtype=np.uint8),
            cams=cams,
            refined_cams=cams * 0.5,
            pseudo_label=label_map,
            truth=label_map[::-1],
            title='cow.jpg',
        )
        return row._replace(**changes)

    return make


@pytest.fixture
def make_run() -> Callable[..., ReportRun]:
    """Make a run whose best threshold is 0.4, judged at 0.3."""

    def make(name: str = 'M4', **changes: object) -> ReportRun:
        steps, thresholds = np.arange(0, 500, 10), np.arange(100) / 100
        run = ReportRun(
            name=name,
            facts={'config': 'configs/dscnet/shapes.py', 'labels': 'given'},
            losses={'loss_cls': (steps.tolist(), np.exp(-steps / 200))},
            thresholds=thresholds,
            mean_iou=50 * np.exp(-(((thresholds - 0.4) / 0.3) ** 2)),
            chosen_thr=0.3,
            iou=[80, 40, 5],
        )
        return run._replace(**changes)

    return make


@pytest.fixture
def errors() -> dict[str, list[float]]:
    """Shares of error that fit the run."""
    return {'false_positive': [10, 30, 0], 'false_negative': [10, 30, 95]}
