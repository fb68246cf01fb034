import os

import numpy as np
import pytest
from PIL import Image

from mmdscnet.visualization.threshold_curve import draw_threshold_curve

THRESHOLDS = np.arange(100) / 100


def hump(best):
    return 50 * np.exp(-(((THRESHOLDS - best) / 0.3) ** 2))


def colour_share(path, colour):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(int)
    return (np.abs(pixels - colour).sum(axis=-1) < 30).mean()


def test_every_run_gets_a_line_of_its_colour(tmp_path):
    draw_threshold_curve(tmp_path / 'a.png', {'M0': hump(0.2)}, THRESHOLDS)
    draw_threshold_curve(tmp_path / 'b.png', {'M0': hump(0.2), 'M4': hump(0.4)}, THRESHOLDS)
    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    assert colour_share(tmp_path / 'a.png', blue) > 1e-3
    assert colour_share(tmp_path / 'a.png', orange) == 0
    assert colour_share(tmp_path / 'b.png', orange) > 1e-3
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'b.png']


def test_legend_names_best_and_given_threshold(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    values = np.linspace(0, 10, 100)
    values[20] = 42.125
    curves = {'M0': values.tolist(), 'M4': hump(0.5)}
    draw_threshold_curve(tmp_path / 'a.png', curves, THRESHOLDS.tolist(), {'M0': 0.99})
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert texts == ['M0: best 42.12 at 0.20, 10.00 at given 0.99', 'M4: best 50.00 at 0.50']


def test_no_curve_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='curves is empty'):
        draw_threshold_curve(tmp_path / 'a.png', {}, THRESHOLDS)


def test_curve_of_another_length_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'M4' has shape \(99,\), thresholds \(100,\)"):
        draw_threshold_curve(tmp_path / 'a.png', {'M4': np.zeros(99)}, THRESHOLDS)


def test_curve_with_nan_is_named(tmp_path):
    with pytest.raises(ValueError, match="'M4' has values that are not finite"):
        draw_threshold_curve(tmp_path / 'a.png', {'M4': np.full(100, np.nan)}, THRESHOLDS)


def test_threshold_of_an_unknown_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"chosen names \['M3'\].*\['M0'\]"):
        draw_threshold_curve(tmp_path / 'a.png', {'M0': hump(0.2)}, THRESHOLDS, {'M3': 0.2})
    assert os.listdir(tmp_path) == []
