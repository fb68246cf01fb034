import numpy as np
import pytest
from PIL import Image

from mmdscnet.visualization import change_sheet
from mmdscnet.visualization.change_sheet import (
    CHANGE_COLOURS,
    HEADERS,
    ChangeRow,
    draw_change_sheet,
)

CLASSES = ('background', 'cat')
PALETTE = [(0, 0, 0), (200, 0, 0)]


def make_row(**kwargs):
    ids = np.zeros((4, 6), dtype=np.uint8)
    ids[:, 3:] = 1
    maps = dict(truth=ids, groups=ids, plain=ids, refined=ids, changes=np.zeros_like(ids))
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    return ChangeRow(**(dict(title='a.jpg', image=image, note='IoU 1 % to 2 %') | maps | kwargs))


@pytest.fixture
def sheets(monkeypatch):
    """What is pasted: panels and headers."""
    pasted = []
    paste = change_sheet.paste_sheet

    def keep(panels, headers):
        pasted.append((panels, headers))
        return paste(panels, headers)

    monkeypatch.setattr(change_sheet, 'paste_sheet', keep)
    return pasted


def test_rows_show_all_maps(sheets, tmp_path):
    draw_change_sheet(tmp_path / 'new' / 'sheet.png', [make_row(), make_row()], PALETTE, CLASSES)
    ((panels, headers),) = sheets
    assert headers == list(HEADERS)
    assert [panel.caption for panel in panels[0]] == ['a.jpg', *['cat'] * 4, 'IoU 1 % to 2 %']
    assert {panel.picture.size for panel in panels[0]} == {(240, 160)}
    with Image.open(tmp_path / 'new' / 'sheet.png') as sheet:
        assert sheet.width > 6 * 240


@pytest.mark.parametrize('kind', [1, 2, 3])
def test_changes_have_their_colours(kind, sheets, tmp_path):
    changes = np.zeros((4, 6), dtype=np.uint8)
    changes[:, :2] = kind
    draw_change_sheet(tmp_path / 'a.png', [make_row(changes=changes)], PALETTE, CLASSES)
    picture = np.asarray(sheets[0][0][0][-1].picture).astype(int)
    expected = 0.62 * np.array(CHANGE_COLOURS[kind - 1]) + 0.38 * 128
    np.testing.assert_allclose(picture[80, 40], expected, atol=1)
    np.testing.assert_array_equal(picture[80, 200], [128] * 3)


def test_head_that_does_not_refine_has_fewer_columns(sheets, tmp_path):
    draw_change_sheet(tmp_path / 'a.png', [make_row(refined=None, changes=None)], PALETTE, CLASSES)
    assert sheets[0][1] == list(HEADERS[:4])


def test_void_is_shown(sheets, tmp_path):
    truth = np.full((4, 6), 255, dtype=np.uint8)
    draw_change_sheet(tmp_path / 'a.png', [make_row(truth=truth)], PALETTE, CLASSES)
    assert sheets[0][0][0][1].caption == 'background'


def test_faults_are_named(tmp_path):
    path = tmp_path / 'a.png'
    with pytest.raises(ValueError, match='rows is empty'):
        draw_change_sheet(path, [], PALETTE, CLASSES)
    with pytest.raises(ValueError, match='palette has 1 colours for 2 classes'):
        draw_change_sheet(path, [make_row()], PALETTE[:1], CLASSES)
    with pytest.raises(ValueError, match=r'a\.jpg: plain has ids \[2\]'):
        draw_change_sheet(path, [make_row(plain=np.full((4, 6), 2))], PALETTE, CLASSES)
    with pytest.raises(ValueError, match=r'a\.jpg: image is float64'):
        draw_change_sheet(path, [make_row(image=np.zeros((4, 6, 3)))], PALETTE, CLASSES)
    assert not path.exists()
