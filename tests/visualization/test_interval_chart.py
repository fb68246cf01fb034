import math
import os

import pytest

from mmdscnet.visualization.interval_chart import ArmInterval, draw_interval_chart

ARMS = [ArmInterval('M1', 1.5, 0.5, 2.5, [1.0, 2.0]), ArmInterval('M2', -0.5, -2.0, 1.0)]


@pytest.fixture
def axes(tmp_path, monkeypatch):
    """Axes of the chart of ``ARMS``."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, *a, **k: (saved.append(self), save(self, *a, **k))
    )
    draw_interval_chart(tmp_path / 'a.png', ARMS, 'minus M0', 'Modules')
    assert os.listdir(tmp_path) == ['a.png']
    return saved[0].axes[0]


def test_rows_go_from_the_top_under_their_names(axes):
    assert [label.get_text() for label in axes.get_yticklabels()] == ['M1', 'M2']
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert (axes.get_xlabel(), axes.get_title(loc='left')) == ('minus M0', 'Modules')


def test_row_shows_interval_mean_and_each_difference(axes):
    first = [line for line in axes.lines if set(line.get_ydata()) == {0}]
    drawn = [list(line.get_xdata()) for line in first]
    assert drawn == [[0.5, 2.5], [0.5, 2.5], [1.0, 2.0], [1.5]]
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == '+1.50  [+0.50, +2.50]'
    assert texts[1] == '\N{MINUS SIGN}0.50  [\N{MINUS SIGN}2.00, +1.00]'


def test_zero_has_a_line_and_tells_filled_from_hollow(axes):
    assert any(list(line.get_xdata()) == [0, 0] for line in axes.lines)
    dots = [line for line in axes.lines if line.get_marker() == 'o']
    assert dots[0].get_markerfacecolor() == dots[0].get_color()
    assert dots[1].get_markerfacecolor() == 'white'


def test_no_row_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='intervals is empty: give at least one row'):
        draw_interval_chart(tmp_path / 'a.png', [], 'x')


@pytest.mark.parametrize(
    'arm',
    [
        ArmInterval('M1', math.nan, 0, 1),
        ArmInterval('M1', 2, 0, 1),
        ArmInterval('M1', 0, -math.inf, 1),
        ArmInterval('M1', 0.5, 0, 1, [math.nan]),
    ],
)
def test_row_that_cannot_be_drawn_is_named(tmp_path, arm):
    with pytest.raises(ValueError, match='M1 runs from .*give finite numbers in this order'):
        draw_interval_chart(tmp_path / 'a.png', [arm], 'x')
    assert os.listdir(tmp_path) == []
