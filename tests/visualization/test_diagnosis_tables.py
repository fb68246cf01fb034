import re

import pytest

from mmdscnet.visualization.diagnosis_tables import (
    UNKNOWN,
    Table,
    as_html,
    as_markdown,
    look_up,
    tabulate,
)


@pytest.fixture
def first(make_diagnosis):
    return make_diagnosis(0.25)


@pytest.fixture
def second(make_diagnosis):
    return make_diagnosis(0.75)


def test_every_checkpoint_has_a_column_and_every_number_a_sentence(first, second):
    tables = tabulate({'epoch_1': first, 'epoch_2': second})
    overviews = [table for table in tables if table.columns[0] == 'measure']
    assert len(overviews) == 5
    for table in overviews:
        assert table.columns == ['measure', 'epoch_1', 'epoch_2', 'how to read it']
        for name, *values, reading in table.rows:
            assert values[0].startswith('0.25'), name
            assert values[1].startswith('0.75'), name
            assert reading.endswith('.')


def test_classes_are_those_of_the_last_checkpoint(first, second):
    groups, changes = tabulate({'epoch_1': first, 'epoch_2': second})[-2:]
    assert groups.rows[1] == ['cat', '3', '0.750', '0.750', '0.750', '0.8', '0.8']
    assert changes.rows[0] == ['background', '0.750', '0.750', '0.750', '0.750']
    assert 'epoch_2' in groups.note
    assert 'epoch_2' in changes.note


def test_head_without_dual_stream_has_fewer_tables(first):
    first.update(enriched=None, attention=None, leakage=None)
    first['areas'] = {'plain': first['areas']['plain']}
    headings = [table.heading for table in tabulate({'m1': first})]
    assert headings == [
        'Groups against masks',
        'Similarity of pairs',
        'Gains and losses of area',
        'Groups by class',
    ]


def test_what_one_checkpoint_lacks_is_a_dash(first, second):
    first['enriched'] = None
    tables = {table.heading: table for table in tabulate({'m3': first, 'm4': second})}
    assert tables['Use of the enriched features'].rows[0][1:3] == [UNKNOWN, '0.750']


def test_markdown_has_one_line_a_row():
    text = as_markdown(Table('Head', 'Note.', ['a', 'b'], [['x|y', '1'], ['z', '2']]))
    assert text.splitlines() == [
        '## Head', '', 'Note.', '', '| a | b |', '| --- | --- |', '| x\\|y | 1 |', '| z | 2 |'
    ]  # fmt: skip


def test_html_is_escaped():
    text = as_html(Table('Head', 'a & b', ['<i>'], [['x < y']]))
    assert re.findall('<t[hd]>(.*?)</t[hd]>', text) == ['&lt;i&gt;', 'x &lt; y']
    assert 'a &amp; b' in text


def test_numbers_are_found_by_their_path(first):
    assert look_up(first, 'groups.purity.foreground') == 0.25
    assert look_up({'enriched': None}, 'enriched.location.plain') is None
    assert look_up({}, 'enriched.location.plain') is None


def test_no_diagnosis_is_refused():
    with pytest.raises(ValueError, match='diagnoses is empty'):
        tabulate({})
