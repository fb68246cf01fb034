import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mmdscnet.visualization.line_chart import BOTTOM, LEFT, LINE, RIGHT, TOP, Line, draw_line_chart

SIZE = (300, 200)


def draw(*lines, **options):
    """Draw and parse: what is not XML fails."""
    svg = draw_line_chart(lines, 'a chart', 'step', 'loss', SIZE, **options)
    return ElementTree.fromstring(svg)


def points(element):
    return np.array([pair.split(',') for pair in element.get('points').split()], dtype=float)


def test_line_spans_the_axes():
    chart = draw(Line(0, np.array([0.0, 5, 10]), np.array([0.0, 1, 2])))
    (line,) = chart.iter('polyline')
    xs, ys = points(line).T
    np.testing.assert_allclose(xs, np.linspace(LEFT, SIZE[0] - RIGHT, 3), atol=0.1)
    assert ys[0] == SIZE[1] - BOTTOM
    assert TOP + LINE < ys[2] < ys[1] < ys[0]
    np.testing.assert_allclose(ys[1], (ys[0] + ys[2]) / 2, atol=0.1)


def test_larger_values_stay_within_their_margins():
    values = np.random.default_rng(0).normal(0, 1e6, 50)
    chart = draw(Line(0, np.arange(50.0), values), Line(1, np.arange(20.0), values[:20] / 2))
    for line in chart.iter('polyline'):
        xs, ys = points(line).T
        assert xs.min() >= LEFT
        assert xs.max() <= SIZE[0] - RIGHT
        assert ys.min() >= TOP + LINE
        assert ys.max() <= SIZE[1] - BOTTOM


def test_values_that_are_not_finite_are_gaps():
    values = np.array([3, 2, np.nan, 1, np.inf, 2, 3, 4, -np.inf])
    chart = draw(Line(1, np.arange(9.0), values))
    assert [len(points(line)) for line in chart.iter('polyline')] == [2, 3]
    # A value alone is a dot.
    (dot,) = chart.iter('circle')
    assert dot.get('class') == 'dot run1'


def test_no_finite_value_is_said():
    chart = draw(Line(0, np.arange(3.0), np.full(3, np.nan)))
    assert 'no finite value' in [text.text for text in chart.iter('text')]
    assert list(chart.iter('polyline')) == []


@pytest.mark.parametrize('value', [0.0, 3.0, -1e-4])
def test_flat_line_and_single_point_are_drawn(value):
    draw(Line(0, np.array([1.0, 2]), np.full(2, value)))
    chart = draw(Line(0, np.array([7.0]), np.array([value])))
    (dot,) = chart.iter('circle')
    assert 0 < float(dot.get('cy')) < SIZE[1]


def test_axis_from_zero_holds_zero():
    line = Line(0, np.arange(3.0), np.array([50.0, 55, 60]))
    ticks = [text.text for text in draw(line, from_zero=True).iter('text')]
    assert {'0', '20', '40', '60'} < set(ticks)
    assert '0' not in [t.text for t in draw(line._replace(x=np.arange(3.0) + 1)).iter('text')]


@pytest.mark.parametrize('scale', [1e-5, 1e-3, 1.0, 2.4e4, 5e6])
def test_tick_labels_are_short(scale):
    values = np.array([0, 1, 2.9]) * scale
    texts = [text.text for text in draw(Line(0, values, values)).iter('text')]
    assert max(map(len, texts)) <= 6
    assert len(texts) >= 2 + 2 * 3


def test_marks_lie_on_their_line():
    line = Line(0, np.array([0.0, 1]), np.array([0.0, 10]), best=1.0, chosen=0.5)
    chart = draw(line)
    (dot,), (square,) = chart.iter('circle'), chart.iter('rect')
    first, last = points(next(chart.iter('polyline')))
    np.testing.assert_allclose([float(dot.get('cx')), float(dot.get('cy'))], last)
    centre = [float(square.get(key)) + 5 for key in 'xy']
    np.testing.assert_allclose(centre, (first + last) / 2, atol=0.1)


def test_text_is_escaped():
    svg = draw_line_chart([Line(0, np.arange(2), np.arange(2))], '<&">', '<x>', '<y>', SIZE)
    root = ElementTree.fromstring(svg)
    assert root.get('aria-label') == '<&">'
    assert {'<x>', '<y>'} <= {text.text for text in root.iter('text')}


def test_colours_are_left_to_the_page():
    line = Line(0, np.arange(3.0), np.arange(3.0), best=1.0, chosen=1.0)
    svg = draw_line_chart([line], '', '', '', SIZE)
    assert not re.search('#|rgb|style', svg)
