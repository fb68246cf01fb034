"""What the tests of the figures draw."""

from collections.abc import Callable
from typing import Any

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


@pytest.fixture
def make_diagnosis() -> Callable[[float], dict[str, Any]]:
    """Make the numbers of a diagnosis, all of them equal."""

    def make(value: float) -> dict[str, Any]:
        by_class = {
            name: dict(slots=3, purity=value, agreement=value, empty=value, iou=value)
            for name in ('background', 'cat')
        }
        sides = dict(background=value, foreground=value)
        slots = dict(miou=value, purity=sides, agreement=sides, by_class=by_class)
        pairs = {kind: dict(mean=value) for kind in ('positives', 'own', 'negatives', 'background')}
        names = ('gained_right', 'gained_wrong', 'lost_right', 'lost_wrong')
        changes = dict.fromkeys(names, value)
        told = ('present_told', 'present_untold', 'absent_told', 'absent_untold')
        losses = ('cls', 'refined_given', 'refined_predicted', 'refined_permuted')
        judged = dict(miou=value, bg_thr=value)
        cams = ('plain', 'refined', 'feature_part', 'enriched_part')
        return dict(
            groups=slots,
            pseudo_labels=slots,
            place=dict(share=value),
            similarity=dict(groups=pairs, nodes=pairs),
            enriched=dict(
                std_ratio=value,
                mean_ratio=value,
                location=dict.fromkeys(('plain', 'refined', 'feature', 'enriched'), value),
            ),
            attention=dict(slots, entropy=value),
            leakage={
                **{f'loss_{name}': value for name in losses},
                **{
                    f'scores_{name}': dict.fromkeys(told, value)
                    for name in ('plain', 'given', 'predicted', 'permuted')
                },
            },
            areas=dict(
                **dict.fromkeys(cams, judged),
                mended=value,
                spoiled=value,
                foreground=changes,
                by_class=dict(background=changes, cat=changes),
            ),
        )

    return make
