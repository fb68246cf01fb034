import sys
from types import SimpleNamespace

import pytest
import torch
from mmseg.registry import HOOKS

from mmdscnet.engine import progress_hook


@pytest.fixture
def train(monkeypatch, capsys):
    """Run the hook through a training of one step a second, and give what it wrote."""

    def run(max_iters, terminal, start=0):
        clock = [0.0]
        monkeypatch.setattr(progress_hook.time, 'monotonic', lambda: clock[0])
        monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal, raising=False)
        hook = HOOKS.build(dict(type='ProgressHook', name='M4'))
        runner = SimpleNamespace(max_iters=max_iters, iter=start)
        hook.before_train(runner)
        for runner.iter in range(start, max_iters):
            clock[0] += 1
            losses = dict(loss=torch.tensor(float(runner.iter)))
            hook.after_train_iter(runner, batch_idx=0, outputs=losses)
        return capsys.readouterr().err

    return run


def test_a_terminal_gets_one_line_that_is_written_over(train):
    lines = train(4, terminal=True)
    assert lines.count('\n') == 1
    assert lines.endswith('\n')
    assert lines.count('\r') == 3
    # Each line covers the one before.
    assert {len(line) for line in lines.rstrip('\n').split('\r')} == {79}


def test_line_tells_name_share_loss_and_time_left(train):
    first, second, *_ = train(4, terminal=True).split('\r')
    assert first.rstrip() == 'M4 [#####               ] 1/4 steps, loss 0.000, 3 s left'
    assert second.rstrip() == 'M4 [##########          ] 2/4 steps, loss 1.000, 2 s left'


def test_time_left_of_a_resumed_training_comes_from_its_own_steps(train):
    first, second, *_ = train(10, terminal=True, start=6).split('\r')
    assert first.rstrip() == 'M4 [##############      ] 7/10 steps, loss 6.000, 3 s left'
    assert second.rstrip() == 'M4 [################    ] 8/10 steps, loss 7.000, 2 s left'


@pytest.mark.parametrize(('steps', 'lines'), [(200, 10), (4, 4), (1, 1)])
def test_a_file_gets_at_most_ten_lines(train, steps, lines):
    written = train(steps, terminal=False).splitlines()
    assert len(written) == lines
    assert f'{steps}/{steps} steps' in written[-1]
    assert written[-1].rstrip().endswith('0 s left')


def test_missing_losses_do_not_stop_the_training(monkeypatch, capsys):
    hook = HOOKS.build(dict(type='ProgressHook', name='M0'))
    hook.before_train(SimpleNamespace(iter=0))
    hook.after_train_iter(SimpleNamespace(iter=0, max_iters=1), batch_idx=0)
    assert '1/1 steps, loss nan' in capsys.readouterr().err
