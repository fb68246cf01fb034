import multiprocessing

import pytest
from mmengine.config import Config

from mmdscnet.apis import study_processes as module
from mmdscnet.apis.study import spell_config
from mmdscnet.apis.study_processes import run_tasks
from mmdscnet.apis.study_run import RunFailure, RunResult, RunTask, read_outcome


@pytest.fixture
def make_task(tiny_base, tmp_path):
    def make(name, **options):
        cfg = Config.fromfile(tiny_base)
        cfg.merge_from_dict(options)
        content = cfg.to_dict()
        code = dict(mmdscnet='1', commit=None)
        return RunTask(tmp_path / name, content, spell_config(content), False, False, code)

    return make


def test_without_processes_runs_keep_their_order(make_task, monkeypatch):
    tasks = [make_task(name) for name in 'abc']
    monkeypatch.setattr(module, 'run_once', lambda task: task.folder.name)
    assert list(run_tasks(tasks, 0)) == list(zip(tasks, 'abc', strict=True))


def test_nothing_to_do_starts_no_process():
    assert list(run_tasks([], 2)) == []


def test_negative_number_of_processes_is_an_error(make_task):
    with pytest.raises(ValueError, match='num_processes=-1 is negative: give 0'):
        next(run_tasks([make_task('a')], -1))


@pytest.mark.slow
def test_process_that_dies_fails_its_run_alone(make_task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'deadly.py').write_text('import os\n\nos._exit(3)\n')
    # Sees a module of this name in the other process only.
    dying = make_task('dying', custom_imports=dict(imports=['deadly']))
    tasks = [dying, make_task('a'), make_task('b')]
    outcomes = {task.folder.name: outcome for task, outcome in run_tasks(tasks, 1)}
    assert isinstance(outcomes['dying'], RunFailure)
    assert 'the process of the run died' in read_outcome(dying.folder).error
    assert isinstance(outcomes['a'], RunResult)
    assert outcomes['a'].threads == 1
    # One process trained both, and tells the seeds of one config nothing of another.
    assert outcomes['a'].chosen_on == outcomes['b'].chosen_on
    assert multiprocessing.active_children() == []
