"""Trainings that are killed again and again, on one process and on two."""

import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmdscnet.launch import prepare_cpu_launch

KILLS = 20
# Longer than a training takes on a busy machine.
PATIENCE = 120


def fork(function):
    """Run a function in a new process, the head of a process group of its own."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        function()
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill(pids):
    """Kill processes and all that they started."""
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)


def wait(pids, seconds):
    """Wait until processes have ended: their exit codes, or None for those that have not."""
    end, codes = time.monotonic() + seconds, dict.fromkeys(pids)
    while None in codes.values() and time.monotonic() < end:
        for pid in [pid for pid, code in codes.items() if code is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return list(codes.values())


def start(make_config, work_dir, ranks, log):
    """Start a training, as one process or as ranks of one."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]

    def train(rank):
        sys.stdout = sys.stderr = open(log, 'a', buffering=1)  # noqa: SIM115
        if ranks > 1:
            environment = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, MASTER_PORT=port)
            os.environ.update({key: str(value) for key, value in environment.items()})
            os.environ['MASTER_ADDR'] = '127.0.0.1'
        cfg = make_config(work_dir)
        cfg.launcher = 'pytorch' if ranks > 1 else 'none'
        cfg.resume = True
        cfg.train_dataloader.batch_size //= ranks
        prepare_cpu_launch(cfg)
        Runner.from_cfg(cfg).train()
        if ranks > 1:
            torch.distributed.barrier()

    return [fork(lambda rank=rank: train(rank)) for rank in range(ranks)]


@pytest.fixture
def make_config(resumable_config):
    """A training that forgets much if it may: dropout, EMA, class memory, its own labels."""

    def make(work_dir):
        cfg = resumable_config(work_dir, epochs=4)
        cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='LoadStoredLabels'))
        cfg.model.decode_head.pseudo_label = dict(type='PseudoLabelLoss')
        labels = dict(type='PseudoLabelHook', target='stored', begin=1, interval=2, overlays=0)
        cfg.custom_hooks.append(dict(labels, throughput=dict(num_workers=0)))
        cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1)
        return cfg

    return make


def read_result(work_dir):
    checkpoint = torch.load(Path(work_dir, 'last_checkpoint').read_text(), weights_only=True)
    tensors = dict(checkpoint['state_dict'])
    tensors |= {f'ema.{key}': value for key, value in checkpoint['ema_state_dict'].items()}
    for number, state in checkpoint['optimizer']['state'].items():
        tensors |= {f'{number}.{key}': value for key, value in state.items()}
    return checkpoint['meta']['iter'], tensors


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
def test_other_number_of_processes_resumes_with_a_warning(make_config, tmp_path):
    log = tmp_path / 'log'

    def shorter(work_dir):
        cfg = make_config(work_dir)
        cfg.train_cfg.max_epochs = 2
        return cfg

    assert wait(start(shorter, 'run', 2, log), PATIENCE) == [0, 0], log.read_text()
    assert wait(start(make_config, 'run', 1, log), PATIENCE) == [0], log.read_text()
    assert read_result(tmp_path / 'run')[0] == 12
    text = ''.join(path.read_text() for path in (tmp_path / 'run').rglob('*.log'))
    assert 'trained by 2 processes with 2 images each, and goes on with 1 of 4' in text
    assert 'its images and their augmentation stay the same' in text


@HOOKS.register_module(force=True)
class NoteImagesHook(Hook):
    """Write down which images a rank reads."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        path = Path(runner.work_dir, f'images_{runner.rank}')
        with path.open('a') as file:
            file.writelines(f'{sample.img_path}\n' for sample in data_batch['data_samples'])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
@pytest.mark.parametrize('randomness', [dict(seed=0, diff_rank_seed=True), dict(seed=None)])
def test_ranks_share_the_images_whatever_their_seeds(make_config, tmp_path, randomness):
    def one_epoch(work_dir):
        cfg = make_config(work_dir)
        cfg.train_cfg.max_epochs = 1
        cfg.randomness = randomness
        cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        cfg.custom_hooks = [dict(type='NoteImagesHook')]
        cfg.train_dataloader.dataset.pipeline.pop(1)
        cfg.model.decode_head.pseudo_label = None
        return cfg

    log = tmp_path / 'log'
    assert wait(start(one_epoch, 'run', 2, log), PATIENCE) == [0, 0], log.read_text()
    paths = [tmp_path / 'run' / f'images_{rank}' for rank in range(2)]
    images = [image for path in paths for image in path.read_text().split()]
    assert len(images) == len(set(images)) == 12


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
@pytest.mark.parametrize('ranks', [1, 2])
def test_killed_training_ends_with_the_same_weights(make_config, tmp_path, ranks):
    rng = random.Random(ranks)
    log = tmp_path / 'log'

    def run(work_dir):
        return start(make_config, work_dir, ranks, log)

    begin = time.monotonic()
    assert wait(run('whole'), PATIENCE) == [0] * ranks, log.read_text()
    duration = time.monotonic() - begin
    steps, expected = read_result(tmp_path / 'whole')
    assert steps == 12
    kills, trainings = 0, 0
    while kills < KILLS:
        trainings += 1
        codes = None
        while codes != [0] * ranks:
            pids = run(f'killed_{trainings}')
            codes = wait(pids, rng.uniform(0.1, 0.9) * duration)
            assert set(codes) <= {None, 0}, log.read_text()
            if None in codes:
                alive = [pid for pid, code in zip(pids, codes, strict=True) if code is None]
                kill(alive if rng.random() < 0.5 else alive[:1])
                # The others notice, and end.
                codes = wait(alive, 60)
                assert None not in codes
                kills += 1
        steps, result = read_result(tmp_path / f'killed_{trainings}')
        assert steps == 12
        assert result.keys() == expected.keys()
        differing = [key for key in expected if not torch.equal(result[key], expected[key])]
        assert not differing
