import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from mmdscnet.apis.study_run import RunFailure, RunResult, write_failure

RESULT = RunResult(0.3, 40.0, None, None, None, None, 3.0, 2.0, False, 1, '0', None, '2', 'm', 'd')


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/ablation.py')


@pytest.fixture
def write_study(tiny_base, tmp_path):
    """Write a study of parts, each the usual one with changes."""

    def write(epochs=1, **parts):
        usual = dict(title='T', base=str(tiny_base), seeds=[0, 1], judge='train')
        usual['options'] = {'train_cfg.max_epochs': epochs}
        content = {name: {**usual, **changes} for name, changes in parts.items()}
        path = tmp_path / 'study.py'
        path.write_text(f'parts = {content!r}\n')
        return path

    return write


@pytest.fixture
def call(tool, tmp_path, monkeypatch):
    """Call the tool in this process."""

    def run(study, *options):
        argv = ['ablation.py', str(study), '--work-dir', str(tmp_path / 'w'), '--jobs', '0']
        monkeypatch.setattr(sys, 'argv', [*argv, *options])
        tool.main()

    return run


@pytest.fixture
def ran(tool, monkeypatch):
    """Record the runs and give results instead of training; a learning rate of 13 fails."""
    tasks = []

    def run_tasks(todo, jobs):
        for task in todo:
            tasks.append(task)
            task.folder.mkdir(parents=True, exist_ok=True)
            if task.cfg['optim_wrapper']['optimizer']['lr'] == 13:
                yield task, write_failure(task.folder, 'Traceback\nKeyError: 13')
                continue
            scores = (50.0, 51.0, 30.0, 31.0) if task.is_judged else (None,) * 4
            result = RunResult(*RESULT[:2], *scores, *RESULT[6:])
            from mmdscnet.apis.study_run import _write_json

            _write_json(task.folder / 'result.json', result._asdict())
            yield task, result

    monkeypatch.setattr(tool, 'run_tasks', run_tasks)
    return tasks


def arms(*rates):
    return {f'lr{rate}': {'optim_wrapper.optimizer.lr': rate} for rate in rates}


def test_runs_that_are_done_are_not_run_again(call, write_study, ran, capsys):
    study = write_study(a=dict(arms=arms(1, 2)))
    call(study)
    assert len(ran) == 4
    assert '[4/4] a/lr2/seed_1: best threshold 40.00 (3 + 2 s)' in capsys.readouterr().out
    call(study)
    assert len(ran) == 4
    assert '4 runs are done, 0 to do' in capsys.readouterr().out


def test_added_seed_and_arm_alone_are_run(call, write_study, ran):
    call(write_study(a=dict(arms=arms(1))))
    call(write_study(a=dict(arms=arms(1, 2), seeds=[0, 1, 2])))
    rates = [(t.cfg['optim_wrapper']['optimizer']['lr'], t.cfg['randomness']['seed']) for t in ran]
    assert rates == [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2), (2, 2)]


def test_equal_configs_of_two_parts_are_run_once_for_both(call, write_study, ran, tmp_path):
    parts = dict(
        a=dict(arms=arms(1, 2)),
        b=dict(arms=dict(plain=arms(1)['lr1']), judge='val'),
    )
    call(write_study(**parts))
    assert len(ran) == 4
    # Judged as b wants it, and kept as b wants it.
    assert [task.is_judged for task in ran] == [True, False, True, False]
    assert [task.keeps_checkpoint for task in ran] == [True, True, True, False]
    text = (tmp_path / 'w' / 'tables.md').read_text()
    assert '| plain | 50.00 ± 0.00 |' in text
    assert '| lr2 | 40.00 ± 0.00 | +0.00 [+0.00, +0.00] | 2/2 |' in text


def test_result_of_train_is_judged_when_val_asks_for_it(call, write_study, ran):
    part = dict(arms=arms(1))
    call(write_study(a=part))
    call(write_study(a=part, b={**part, 'judge': 'val'}))
    assert [task.is_judged for task in ran] == [False, False, True, True]
    call(write_study(a=part, b={**part, 'judge': 'val'}))
    assert len(ran) == 4


def test_weights_are_trained_before_they_are_judged_otherwise(call, write_study, ran, tmp_path):
    judged = {'weights_of': 'lr2', 'optim_wrapper.optimizer.lr': 3}
    call(write_study(a=dict(arms={'judged': judged, **arms(1, 2)}, keep_checkpoints='none')))
    rates = [task.cfg['optim_wrapper']['optimizer']['lr'] for task in ran]
    assert rates == [1, 2, 1, 2, 3, 3]
    assert [task.weights for task in ran] == [None] * 4 + [ran[1].folder, ran[3].folder]
    # Only what is judged again is kept.
    assert [task.keeps_checkpoint for task in ran] == [False, True, False, True, False, False]


def test_failed_run_does_not_stop_the_study_and_is_tried_again(call, write_study, ran, tmp_path):
    study = write_study(a=dict(arms=arms(1, 13)))
    message = '2 runs failed:\na/lr13/seed_0: KeyError: 13\na/lr13/seed_1: KeyError: 13'
    # A text is printed to stderr, and the status is 1.
    with pytest.raises(SystemExit, match=message):
        call(study)
    assert len(ran) == 4
    assert '0/2, 2 failed' in (tmp_path / 'w' / 'tables.md').read_text()
    with pytest.raises(SystemExit):
        call(study)
    assert len(ran) == 6


def test_only_runs_the_named_parts_and_tells_of_all(call, write_study, ran, tmp_path):
    call(write_study(a=dict(arms=arms(1)), b=dict(arms=arms(2))), '--only', 'b')
    assert len(ran) == 2
    text = (tmp_path / 'w' / 'tables.md').read_text()
    assert '## a: ' in text
    assert 'No run yet.' in text
    assert '| lr2 | 40.00 ± 0.00 |  | 2/2 |' in text


def test_only_keeps_the_checkpoints_that_another_part_wants(call, write_study, ran):
    a, b = dict(arms=arms(1)), dict(arms=arms(1, 2), judge='val')
    call(write_study(a=a, b=b), '--only', 'a')
    assert [task.is_judged for task in ran] == [False, False]
    assert [task.keeps_checkpoint for task in ran] == [True, True]


def test_tables_only_runs_nothing(call, write_study, ran, tmp_path):
    call(write_study(a=dict(arms=arms(1))), '--tables-only')
    assert ran == []
    assert '0 of 2 different runs are done' in (tmp_path / 'w' / 'tables.md').read_text()
    assert not (tmp_path / 'w' / 'a').exists()


def test_another_config_is_refused_before_anything_runs(call, write_study, ran, tmp_path):
    call(write_study(a=dict(arms=arms(1))))
    changed = write_study(b=dict(arms=arms(3)), a=dict(arms=dict(lr1=arms(2)['lr2'])))
    place = 'w/a/lr1/seed_0'
    with pytest.raises(ValueError, match=f'{place}/config.txt is another config.* delete the fol'):
        call(changed)
    assert len(ran) == 2
    for folder in (tmp_path / 'w' / 'a' / 'lr1').iterdir():
        shutil.rmtree(folder)
    call(changed)
    assert len(ran) == 6


def test_work_dir_that_is_in_use_is_refused(call, write_study, ran, tmp_path):
    study = write_study(a=dict(arms=arms(1)))
    (tmp_path / 'w').mkdir()
    with FileLock(tmp_path / 'w' / '.lock'):
        with pytest.raises(ValueError, match='is being worked in by another ablation.py'):
            call(study)
        # Reading disturbs nobody.
        call(study, '--tables-only')
    assert ran == []


def test_last_line_of_a_failure_is_told(tool, tmp_path):
    task = tool.RunTask(tmp_path, {}, '', False, False, {})
    failure = RunFailure('Traceback\nKeyError: 1', 'now')
    assert tool.tell(task, failure).startswith('failed, KeyError: 1 (see')


def children_of(pid):
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    return False


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)


def heed_interrupts():
    """Let Ctrl-C end the process also where the tests run in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads processes from /proc')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_ended_study_leaves_whole_results_and_goes_on(
    number, call, write_study, repository, tmp_path
):
    study = write_study(epochs=40, a=dict(arms=dict(M0=dict())))
    tool, work_dir = repository / 'tools' / 'analysis_tools' / 'ablation.py', tmp_path / 'w'
    command = [sys.executable, tool, study, '--work-dir', work_dir, '--jobs', '1']
    environment = {**os.environ, 'PYTHONPATH': str(repository)}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts
    )
    wait_until(lambda: list(work_dir.glob('runs/*/last_checkpoint')))
    children = children_of(process.pid)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert children
    wait_until(lambda: not any(map(is_alive, children)), 60)
    assert not list(work_dir.glob('runs/*/result.json'))
    assert not list(work_dir.glob('runs/*/failure.json'))
    call(study)
    outputs = [path.read_text() for path in work_dir.glob('runs/*/output.txt')]
    assert len(outputs) == 2
    assert sum('resumed epoch' in output for output in outputs) == 1
    assert '| M0 |' in (work_dir / 'tables.md').read_text()
