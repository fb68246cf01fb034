import base64
import re

import pytest
from PIL import Image

from mmdscnet.visualization.diagnosis_page import write_diagnosis_page
from mmdscnet.visualization.diagnosis_tables import Table

TABLE = Table('Groups', 'A note.', ['measure', 'epoch_1'], [['purity', '0.5']])


def test_page_holds_figures_tables_and_facts(tmp_path):
    figure = tmp_path / 'a.png'
    Image.new('RGB', (3, 2), (255, 0, 0)).save(figure)
    page = tmp_path / 'new' / 'page.html'
    write_diagnosis_page(page, 'A <title>', {'config': 'a & b'}, [TABLE], {'Curves': figure})
    text = page.read_text()
    (content,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(content) == figure.read_bytes()
    assert '<td>purity</td><td>0.5</td>' in text
    assert '<th>config</th><td>a &amp; b</td>' in text
    assert 'A &lt;title&gt;' in text
    links = re.findall('<a href="#(.*?)">(.*?)</a>', text)
    assert links == [('figure0', 'Curves'), ('table0', 'Groups')]


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in 'ab':
        write_diagnosis_page(tmp_path / name, 'Title', {}, [TABLE], {})
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_missing_figure_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.png.*are not there: draw them'):
        write_diagnosis_page(tmp_path / 'a', 'Title', {}, [], {'Curves': tmp_path / 'none.png'})
    assert not (tmp_path / 'a').exists()
