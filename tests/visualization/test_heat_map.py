import os

import numpy as np
import pytest
from PIL import Image

from mmdscnet.visualization.heat_map import draw_heat_map

X, Y = ('alpha', ['0', '0.5', '1']), ('beta', ['low', 'high'])
VALUES = [[1.0, 2.0, 3.0], [4.0, 9.0, np.nan]]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, *a, **k: (saved.append(self), save(self, *a, **k))
    )
    return saved


def texts(figure):
    return {text.get_text(): text.get_position() for text in figure.axes[0].texts}


def test_every_cell_has_its_number_in_its_place(tmp_path, figures):
    draw_heat_map(tmp_path / 'a.png', VALUES, X, Y, 'mIoU (%)', 'Weights')
    assert texts(figures[0]) == {
        '1.00': (0, 0),
        '2.00': (1, 0),
        '3.00': (2, 0),
        '4.00': (0, 1),
        '9.00': (1, 1),
    }
    axes, bar = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == X[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == Y[1]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ('alpha', 'beta', 'Weights')
    assert bar.get_ylabel() == 'mIoU (%)'
    # The first row is the lowest.
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    with Image.open(tmp_path / 'a.png') as image:
        assert image.format == 'PNG'


def test_best_cell_is_framed_and_the_missing_one_hatched(tmp_path, figures):
    draw_heat_map(tmp_path / 'a.png', VALUES, X, Y, 'mIoU')
    boxes = figures[0].axes[0].patches
    hatched = [box.get_xy() for box in boxes if box.get_hatch()]
    framed = {box.get_xy() for box in boxes if not box.get_hatch()}
    assert hatched == [(1.5, 0.5)]
    assert framed == {(0.5, 0.5)}


def test_deviation_stands_below_its_value_where_there_is_one(tmp_path, figures):
    deviations = [[0.5, np.nan, np.nan], [np.nan, np.nan, 7]]
    draw_heat_map(tmp_path / 'a.png', VALUES, X, Y, 'mIoU', deviations=deviations)
    places = texts(figures[0])
    assert [text for text in places if '±' in text] == ['± 0.50']
    assert places['± 0.50'][1] < 0 < places['1.00'][1]
    assert places['2.00'][1] == 0


def test_numbers_are_told_from_the_ramp(tmp_path, figures):
    draw_heat_map(tmp_path / 'a.png', VALUES, X, Y, 'mIoU')
    colours = {text.get_text(): text.get_color() for text in figures[0].axes[0].texts}
    assert colours['1.00'] == 'white'
    assert colours['9.00'] == 'black'


def test_equal_values_are_drawn(tmp_path):
    draw_heat_map(tmp_path / 'a.png', [[5.0]], ('x', ['1']), ('y', ['1']), 'mIoU')
    assert os.listdir(tmp_path) == ['a.png']


@pytest.mark.parametrize(
    ('values', 'deviations', 'message'),
    [
        (np.zeros((3, 2)), None, r'values of shape \(3, 2\) do not fit 2 rows and 3 columns'),
        (VALUES, [1.0], r'deviations of shape \(1,\) do not fit'),
        (np.full((2, 3), np.nan), None, 'values has no finite value'),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, values, deviations, message):
    with pytest.raises(ValueError, match=message):
        draw_heat_map(tmp_path / 'a.png', values, X, Y, 'mIoU', deviations=deviations)
    assert os.listdir(tmp_path) == []
