import numpy as np
import pytest
from PIL import Image

from mmdscnet.visualization import diagnosis_figures
from mmdscnet.visualization.diagnosis_figures import (
    CURVES,
    KINDS,
    draw_curves,
    draw_places,
    draw_similarities,
)

EDGES = [-1.0, 0.0, 1.0]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, to be read."""
    drawn = []
    make = diagnosis_figures._make_figure

    def keep(size):
        drawn.append(make(size))
        return drawn[-1]

    monkeypatch.setattr(diagnosis_figures, '_make_figure', keep)
    return drawn


def make_pairs(**histograms):
    kinds = {kind: [0, 0] for kind in KINDS} | histograms
    return {kind: {'histogram': counts, 'mean': 0.5} for kind, counts in kinds.items()}


def test_curves_go_through_the_numbers(make_diagnosis, figures, tmp_path):
    numbers = {'epoch_1': make_diagnosis(0.25), 'epoch_2': make_diagnosis(0.75)}
    numbers['epoch_1']['leakage'] = None
    draw_curves(tmp_path / 'new' / 'curves.png', numbers)
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels] == list(CURVES)
    for axes, lines in zip(panels, CURVES.values(), strict=True):
        assert [line.get_label() for line in axes.lines] == list(lines)
        start = np.nan if axes is panels[-1] else 0.25
        for line in axes.lines:
            np.testing.assert_array_equal(line.get_ydata(), [start, 0.75])
    assert Image.open(tmp_path / 'new' / 'curves.png').width == 1430


def test_panel_without_numbers_says_so(make_diagnosis, figures, tmp_path):
    numbers = make_diagnosis(0.25)
    numbers.update(enriched=None, leakage=None)
    draw_curves(tmp_path / 'curves.png', {'m1': numbers})
    texts = [[text.get_text() for text in axes.texts] for axes in figures[0].axes]
    assert texts == [[], [], [], ['no value'], [], ['no value']]


def test_histograms_are_densities(figures, tmp_path):
    similarity = {
        'groups': make_pairs(positives=[1, 3], negatives=[4, 0]),
        'nodes': make_pairs(own=[0, 2]),
    }
    draw_similarities(tmp_path / 'similarities.png', similarity, EDGES)
    groups, nodes = figures[0].axes
    drawn = {patch.get_label(): patch.get_data().values.tolist() for patch in groups.patches}
    assert drawn == {
        'positives: mean 0.50 of 4': [0.25, 0.75],
        'negatives: mean 0.50 of 4': [1, 0],
    }
    assert len(nodes.patches) == 1
    assert (tmp_path / 'similarities.png').is_file()


def test_places_are_drawn_with_gaps(figures, tmp_path):
    place = dict(
        mask_by_row=[0.1, None], groups_by_row=[0.5, 0.6], mask_by_column=[1], groups_by_column=[0]
    )
    draw_places(tmp_path / 'places.png', place)
    rows, columns = figures[0].axes
    drawn = {line.get_label(): line.get_ydata() for line in rows.lines}
    np.testing.assert_array_equal(drawn['mask'], [0.1, np.nan])
    np.testing.assert_array_equal(drawn['groups'], [0.5, 0.6])
    assert [line.get_ydata().tolist() for line in columns.lines] == [[1], [0]]
    assert (tmp_path / 'places.png').is_file()


def test_histogram_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match='groups positives has 3 bins for 3 edges'):
        draw_similarities(tmp_path / 'a.png', {'groups': make_pairs(positives=[1, 2, 3])}, EDGES)
    assert not (tmp_path / 'a.png').exists()


def test_no_diagnosis_is_refused(tmp_path):
    with pytest.raises(ValueError, match='diagnoses is empty'):
        draw_curves(tmp_path / 'a.png', {})
