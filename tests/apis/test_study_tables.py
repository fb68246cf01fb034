import csv
import math

import pytest

from mmdscnet.apis.study import GridAxis, Part, StudyRun
from mmdscnet.apis.study_run import RunFailure, RunResult
from mmdscnet.apis.study_tables import (
    compare_arms,
    read_outcomes,
    run_folder,
    values_by_seed,
    write_study,
)

RESULT = RunResult(
    bg_thr=0.3,
    chosen_on=40.0,
    labels_given=None,
    labels_given_best=None,
    labels_predicted=None,
    labels_predicted_best=None,
    seconds_training=31.4,
    seconds_judging=2.0,
    resumed=False,
    threads=1,
    mmdscnet='0.1',
    commit='abc',
    torch='2.13',
    machine='here',
    date='2026-11-25T10:00:00+00:00',
)


def make_part(arms=('M0', 'M1'), seeds=(0, 1), judge='train', grid=None, name='p'):
    runs = [StudyRun(name, arm, seed, {}, f'{arm} {seed}', False) for seed in seeds for arm in arms]
    options = {'train_cfg.max_epochs': 3}
    changes = {arm: {} for arm in arms}
    return Part(name, 'A title', 'b.py', judge, list(seeds), options, changes, grid, runs)


@pytest.fixture
def fill(tmp_path):
    """Write results, given as values of ``chosen_on`` by arm and seed, or as a failure."""

    def write(part, outcomes):
        from mmdscnet.apis.study_run import _write_json

        for run in part.runs:
            outcome = outcomes.get((run.arm, run.seed))
            if isinstance(outcome, float):
                outcome = RESULT._replace(chosen_on=outcome)
            if outcome is not None:
                name = 'failure' if isinstance(outcome, RunFailure) else 'result'
                _write_json(run_folder(tmp_path, run) / f'{name}.json', outcome._asdict())

    return write


def read_rows(tmp_path):
    text = (tmp_path / 'tables.md').read_text(encoding='utf-8')
    rows = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def test_row_by_hand(tmp_path, fill):
    part = make_part()
    fill(part, {('M0', 0): 40.0, ('M0', 1): 41.0, ('M1', 0): 42.0, ('M1', 1): 44.0})
    write_study([part], tmp_path, 'python ablation.py')
    header, _, first, second = read_rows(tmp_path)[:4]
    assert header[2] == 'minus M0 [95 %]'
    assert first == ['M0', '40.50 ± 0.71', '', '2/2', '40.00, 41.00', '0.30, 0.30', '31, 31']
    # Differences 2 and 3: standard error 0.5, t = 12.706.
    assert second[:3] == ['M1', '43.00 ± 1.41', '+2.50 [-3.85, +8.85]']
    assert (tmp_path / 'p_chosen_on.png').is_file()
    text = (tmp_path / 'tables.md').read_text()
    assert '`python ablation.py`' in text
    assert '4 of 4 different runs are done' in text
    assert '`train_cfg.max_epochs=3` for all arms' in text
    assert '| 0.1 | abc | 2.13 | here | 1 | 4 | 2026-11-25T10:00' in text


def test_half_done_study_can_be_read(tmp_path, fill):
    part = make_part(arms=('M0', 'M1', 'M2'), seeds=(0, 1, 2))
    failure = RunFailure('Traceback\nKeyError: x', 'now')
    fill(part, {('M0', 0): 40.0, ('M0', 2): 41.0, ('M1', 2): 44.0, ('M1', 1): failure})
    write_study([part], tmp_path, '')
    first, second, third = read_rows(tmp_path)[2:5]
    assert first[1:5] == ['40.50 ± 0.71', '', '2/3', '40.00, -, 41.00']
    # One seed in common has no interval.
    assert second[1:5] == ['44.00', '', '1/3, 1 failed', '-, -, 44.00']
    assert third[1:5] == ['', '', '0/3', '-, -, -']
    text = (tmp_path / 'tables.md').read_text()
    assert '3 of 9 different runs are done, 1 failed, 5 are missing' in text
    assert 'KeyError: x' in text
    assert not list(tmp_path.glob('*.png'))


def test_empty_study_can_be_read(tmp_path):
    write_study([make_part()], tmp_path, '')
    text = (tmp_path / 'tables.md').read_text()
    assert '0 of 4 different runs are done' in text
    assert '## p: A title' in text
    assert 'No run yet.' in text
    assert '| M0 |' not in text


def test_seeds_are_paired_and_not_places():
    difference = compare_arms({1: 5.0, 2: 7.0, 3: 0.0}, {2: 6.0, 1: 4.0, 9: 0.0})
    assert difference == pytest.approx((1, 1, 1))
    assert compare_arms({1: 5.0}, {1: 4.0}) is None


def test_val_has_a_table_and_a_figure_each_protocol(tmp_path, fill):
    part = make_part(judge='val')
    judged = {
        (arm, seed): RESULT._replace(labels_given=50.0 + seed, labels_predicted=30.0 + seed)
        for arm in part.arms
        for seed in part.seeds
    }
    fill(part, judged)
    write_study([part], tmp_path, '')
    rows = [row for row in read_rows(tmp_path) if row[0] == 'M0']
    assert [row[1] for row in rows] == ['50.50 ± 0.71', '30.50 ± 0.71']
    names = sorted(path.name for path in tmp_path.glob('*.png'))
    assert names == ['p_labels_given.png', 'p_labels_predicted.png']
    for name in names:
        assert f'({name})' in (tmp_path / 'tables.md').read_text()


def test_result_of_train_is_none_for_val(tmp_path, fill):
    part = make_part(judge='val')
    fill(part, {('M0', 0): 40.0})
    outcomes = read_outcomes([part], tmp_path)
    assert values_by_seed(part, 'M0', 'labels_given', outcomes) == {}
    assert values_by_seed(part, 'M0', 'chosen_on', outcomes) == {0: 40.0}


def test_grid_is_drawn_with_x_along_the_columns(tmp_path, fill, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        'mmdscnet.apis.study_tables.draw_heat_map', lambda *args: drawn.append(args)
    )
    grid = (GridAxis('alpha', 'a', [0.0, 0.5, 1.0]), GridAxis('beta', 'b', [0, 1]))
    arms = [f'x={a},y={b}' for b in (0, 1) for a in (0.0, 0.5, 1.0)]
    part = make_part(arms=arms, grid=grid)
    values = {(arm, seed): 10.0 * place + seed for place, arm in enumerate(arms) for seed in (0, 1)}
    del values['x=1.0,y=1', 0], values['x=1.0,y=1', 1], values['x=0.5,y=1', 0]
    fill(part, values)
    write_study([part], tmp_path, '')
    ((path, means, x, y, _, title, deviations),) = drawn
    assert path == tmp_path / 'p_chosen_on.png'
    assert means.tolist()[0] == [0.5, 10.5, 20.5]
    assert means.tolist()[1][:2] == [30.5, 41.0]
    assert math.isnan(means[1, 2])
    assert deviations[0, 0] == pytest.approx(0.5**0.5)
    assert math.isnan(deviations[1, 1])
    assert x == ('alpha', ['0.0', '0.5', '1.0'])
    assert y == ('beta', ['0', '1'])
    assert title == 'A title'


def test_csv_has_a_row_a_run(tmp_path, fill):
    part = make_part()
    fill(part, {('M0', 0): 40.0, ('M1', 0): RunFailure('Traceback\nKeyError: x', 'now')})
    write_study([part, make_part(name='q')], tmp_path, '')
    with open(tmp_path / 'results.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['status'] for row in rows] == ['done', 'failed', 'missing', 'missing'] * 2
    assert rows[0]['chosen_on'] == '40.0'
    assert rows[0]['commit'] == 'abc'
    assert rows[1]['error'] == 'Traceback\nKeyError: x'
    assert [row['part'] for row in rows] == ['p'] * 4 + ['q'] * 4
    # Equal configs of two parts are one run.
    assert rows[0]['run'] == rows[4]['run'] == part.runs[0].name
