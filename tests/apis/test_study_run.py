"""A small CAM network on a few shapes, trained in a second."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdscnet.apis import study_run as module
from mmdscnet.apis.study import spell_config
from mmdscnet.apis.study_run import RunFailure, RunResult, RunTask, read_outcome, run_once

CODE = dict(mmdscnet='1.2', commit='abc')


@pytest.fixture
def make_task(tiny_base, tmp_path):
    def make(name='run', is_judged=False, keeps_checkpoint=True, **options):
        cfg = Config.fromfile(tiny_base)
        cfg.merge_from_dict(options)
        content = cfg.to_dict()
        text = spell_config(content)
        return RunTask(tmp_path / name, content, text, is_judged, keeps_checkpoint, CODE)

    return make


def stop_at_epoch(monkeypatch, epoch):
    """Interrupt a training when an epoch is to begin."""
    call_hook = Runner.call_hook

    def call(runner, name, **kwargs):
        if name == 'before_train_epoch' and runner.epoch == epoch:
            raise KeyboardInterrupt
        call_hook(runner, name, **kwargs)

    monkeypatch.setattr(Runner, 'call_hook', call)


def forbid_training(monkeypatch):
    call_hook = Runner.call_hook

    def call(runner, name, **kwargs):
        assert name != 'before_train_iter'
        call_hook(runner, name, **kwargs)

    monkeypatch.setattr(Runner, 'call_hook', call)


def without_times(result):
    return result._replace(seconds_training=0, seconds_judging=0, date='', resumed=False)


def test_train_looks_at_no_image_of_test(make_task):
    task = make_task(**{'test_dataloader.dataset.ann_file': 'no.txt'})
    result = run_once(task)
    assert isinstance(result, RunResult)
    assert 0 < result.chosen_on < 100
    assert 0 <= result.bg_thr < 1
    assert result[2:6] == (None,) * 4
    assert (result.mmdscnet, result.commit, result.torch) == ('1.2', 'abc', torch.__version__)
    assert result.seconds_training > 0
    assert result.seconds_judging > 0
    assert read_outcome(task.folder) == result


def test_val_judges_one_model_at_one_threshold_with_labels_and_without(make_task, monkeypatch):
    judged, judge_at = [], module.judge_at

    def record(*args):
        judged.append(judge_at(*args))
        return judged[-1]

    monkeypatch.setattr(module, 'judge_at', record)
    result = run_once(make_task(is_judged=True))
    given, predicted = judged
    assert (given.labels, predicted.labels) == ('labels_given', 'labels_predicted')
    assert given[:2] == predicted[:2] == result[:2]
    assert (result.labels_given, result.labels_given_best) == (given.judged, given.best)
    assert (result.labels_predicted, result.labels_predicted_best) == predicted[2:4]
    assert result.labels_given != result.labels_predicted


def test_images_without_labels_cannot_be_judged_with_them(make_task):
    task = make_task(is_judged=True, **{'test_dataloader.dataset.image_labels': None})
    assert 'no labels to give: name image_labels' in run_once(task).error


def test_text_of_the_config_lies_beside_the_result(make_task):
    task = make_task()
    run_once(task)
    assert (task.folder / 'config.txt').read_text() == task.text
    assert json.loads((task.folder / 'result.json').read_text())['commit'] == 'abc'


def test_what_a_run_prints_goes_to_its_own_files(make_task, capsys):
    for name in ('a', 'b'):
        task = make_task(name)
        run_once(task)
        assert 'best_mIoU' in (task.folder / 'output.txt').read_text()
        # Without an end to mmengine's instances all scalars go to the folder of the first run.
        assert list(task.folder.glob('*/vis_data/scalars.json'))
    printed = capsys.readouterr()
    assert printed.out == printed.err == ''


def test_failed_run_leaves_the_end_of_its_traceback(make_task):
    task = make_task(**{'model.decode_head.type': 'NoHead'})
    failure = run_once(task)
    assert isinstance(failure, RunFailure)
    assert 'NoHead is not in the mmseg::model registry' in failure.error.splitlines()[-1]
    assert len(failure.error.splitlines()) <= module.TRACEBACK_LINES
    assert read_outcome(task.folder) == failure


def test_success_takes_an_earlier_failure_away(make_task):
    task = make_task()
    module.write_failure(task.folder, 'no space')
    assert read_outcome(task.folder).error == 'no space'
    result = run_once(task)
    assert read_outcome(task.folder) == result
    assert not (task.folder / 'failure.json').exists()


def test_interrupted_run_leaves_no_outcome_and_goes_on(make_task, monkeypatch):
    options = {'train_cfg.max_epochs': 3}
    whole = run_once(make_task('whole', **options))
    task = make_task('interrupted', **options)
    with monkeypatch.context() as patch:
        stop_at_epoch(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_once(task)
    assert read_outcome(task.folder) is None
    result = run_once(task)
    assert result.resumed
    assert not whole.resumed
    assert without_times(result) == without_times(whole)
    weights = [
        torch.load(folder / 'epoch_3.pth')['state_dict']
        for folder in (task.folder, task.folder.with_name('whole'))
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_resumed_run_does_not_begin_with_the_weights_of_load_from(make_task, monkeypatch):
    run_once(make_task('start'))
    start = str(make_task('start').folder / 'epoch_1.pth')
    task = make_task(**{'train_cfg.max_epochs': 2, 'load_from': start})
    with monkeypatch.context() as patch:
        stop_at_epoch(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run_once(task)
    assert run_once(task).resumed
    assert 'resumed epoch: 1' in (task.folder / 'output.txt').read_text()


def test_run_that_is_trained_is_judged_without_another_training(make_task, monkeypatch):
    trained = run_once(make_task())
    forbid_training(monkeypatch)
    judged = run_once(make_task(is_judged=True))
    assert judged.labels_given is not None
    assert judged[:2] == trained[:2]
    assert (judged.seconds_training, judged.resumed) == (trained.seconds_training, False)


def test_only_the_last_checkpoint_stays(make_task):
    task = make_task(**{'train_cfg.max_epochs': 2})
    run_once(task)
    assert [path.name for path in task.folder.glob('*.pth')] == ['epoch_2.pth']


def test_run_may_keep_no_checkpoint_and_is_then_trained_anew(make_task):
    task = make_task(keeps_checkpoint=False)
    first = run_once(task)
    assert not list(task.folder.glob('*.pth'))
    assert not (task.folder / 'last_checkpoint').exists()
    assert without_times(run_once(task)) == without_times(first)


def test_nothing_is_read_from_a_folder_that_is_not_there(tmp_path):
    assert read_outcome(Path(tmp_path, 'no')) is None


def test_weights_of_another_run_are_judged_without_a_training(make_task, monkeypatch):
    source = make_task('source')
    trained = run_once(source)
    forbid_training(monkeypatch)
    task = make_task('judged', **{'model.test_cfg.refine': False})._replace(weights=source.folder)
    result = run_once(task)
    assert isinstance(result, RunResult), result
    assert result.chosen_on == trained.chosen_on
    assert not list(task.folder.glob('*.pth'))


def test_weights_of_a_run_that_is_not_done_are_refused(make_task):
    task = make_task('judged')._replace(weights=make_task('source').folder)
    failure = run_once(task)
    assert isinstance(failure, RunFailure)
    assert 'is not done: run it first' in failure.error
