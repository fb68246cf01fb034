import os
import re
import subprocess
import sys
import time

import pytest
import torch

DYING = """
import os, signal
from mmengine.hooks import Hook
from mmseg.registry import HOOKS


@HOOKS.register_module()
class DyingHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 1:
            {how}
"""


def load_weight(work_dir, iteration):
    path = work_dir / f'iter_{iteration}.pth'
    return torch.load(path, weights_only=True)['state_dict']['layer.weight']


def launch(repository, cwd, script, *args, **environment):
    return subprocess.run(
        ['bash', str(repository / 'tools' / script), *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'PYTHON': sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_training_writes_a_checkpoint_to_the_work_dir(run_tool, toy_dir, tmp_path):
    run_tool('train.py', toy_dir / 'config.py', '--work-dir', tmp_path)
    assert load_weight(tmp_path, 2).shape == (1, 2)
    assert (tmp_path / 'last_checkpoint').is_file()


def test_same_seed_gives_the_same_weights(run_tool, toy_dir, tmp_path):
    for name in 'ab':
        run_tool('train.py', toy_dir / 'config.py', '--work-dir', tmp_path / name)
    assert torch.equal(load_weight(tmp_path / 'a', 2), load_weight(tmp_path / 'b', 2))


def test_resumed_training_equals_one_run(run_tool, toy_dir, tmp_path):
    config, longer = toy_dir / 'config.py', ('--cfg-options', 'train_cfg.max_iters=4')
    run_tool('train.py', config, '--work-dir', tmp_path / 'once', *longer)
    run_tool('train.py', config, '--work-dir', tmp_path / 'twice')
    run_tool('train.py', config, '--work-dir', tmp_path / 'twice', '--resume', *longer)
    assert torch.equal(load_weight(tmp_path / 'once', 4), load_weight(tmp_path / 'twice', 4))


def test_missing_config_error_names_it(run_tool):
    with pytest.raises(FileNotFoundError, match="config 'no.py' is not a file"):
        run_tool('train.py', 'no.py')


@pytest.mark.skipif(torch.cuda.is_available(), reason='the error is for machines without CUDA')
def test_amp_without_cuda_is_refused(run_tool, toy_dir, tmp_path):
    with pytest.raises(ValueError, match='--amp needs CUDA'):
        run_tool('train.py', toy_dir / 'config.py', '--work-dir', tmp_path, '--amp')


@pytest.mark.parametrize(
    ('script', 'args', 'usage'),
    [
        ('dist_train.sh', ['config.py'], 'CONFIG GPUS'),
        ('dist_test.sh', ['config.py', 'a.pth'], 'CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', ['partition', 'job'], 'PARTITION JOB_NAME CONFIG'),
        ('slurm_test.sh', ['partition', 'job', 'config.py'], 'JOB_NAME CONFIG CHECKPOINT'),
        ('slurm_run.sh', ['export_cams.py', 'partition', 'job'], 'TOOL.py PARTITION JOB_NAME'),
    ],
)
def test_script_with_too_few_arguments_shows_its_usage(repository, tmp_path, script, args, usage):
    run = launch(repository, tmp_path, script, *args)
    assert run.returncode == 2
    assert re.search(rf'usage: .*{script} .*{usage}', run.stderr) or usage in run.stderr


def test_slurm_script_hands_srun_the_whole_command(repository, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    args = ('part', 'a job', 'config.py', '--work-dir', 'a b')
    environment = dict(PATH=path, GPUS='8', SRUN_ARGS='--quiet --mem=4G')
    run = launch(repository, tmp_path, 'slurm_train.sh', *args, **environment)
    words = run.stdout.splitlines()
    assert {'--partition=part', '--job-name=a job', '--ntasks=8', '--quiet', '--mem=4G'} <= {*words}
    assert words[-6].endswith('tools/train.py')
    assert words[-5:] == ['config.py', '--work-dir', 'a b', '--launcher', 'slurm']


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
def test_two_processes_average_their_gradients(run_tool, repository, toy_dir, tmp_path, free_port):
    """One process with the whole batch takes the same steps."""
    environment = dict(PYTHONPATH=str(toy_dir), PORT=free_port)
    args = (toy_dir / 'config.py', 2, '--work-dir', tmp_path / 'two')
    run = launch(repository, tmp_path, 'dist_train.sh', *args, **environment)
    assert run.returncode == 0, run.stderr
    whole = ('--cfg-options', 'train_dataloader.batch_size=2')
    run_tool('train.py', toy_dir / 'config.py', '--work-dir', tmp_path / 'one', *whole)
    torch.testing.assert_close(load_weight(tmp_path / 'two', 2), load_weight(tmp_path / 'one', 2))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
def test_dscnet_trains_on_two_processes(repository, tmp_path, free_port):
    config = repository / 'configs' / 'dscnet' / 'shapes.py'
    few = [
        f'{name}_dataloader.dataset.splits.{split}=8'
        for name in ('train', 'val')
        for split in ('train', 'val')
    ]
    options = ('--cfg-options', *few, 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4')
    args = (config, 2, '--work-dir', tmp_path / 'run', *options)
    run = launch(repository, tmp_path, 'dist_train.sh', *args, PORT=free_port)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / 'run' / 'last_checkpoint').is_file()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
@pytest.mark.parametrize(
    ('how', 'cause'),
    [
        (
            "raise ValueError('image 7.jpg is damaged: mend it')",
            'ValueError: image 7.jpg is',
        ),
        ('os.kill(os.getpid(), signal.SIGKILL)', 'Signal 9 (SIGKILL) received'),
    ],
)
def test_rank_that_dies_takes_the_job_down_with_its_error(
    repository, toy_dir, tmp_path, free_port, how, cause
):
    (tmp_path / 'dying.py').write_text(DYING.format(how=how))
    text = (toy_dir / 'config.py').read_text().replace("'toy'", "'toy', 'dying'")
    (tmp_path / 'config.py').write_text(text + "custom_hooks = [dict(type='DyingHook')]\n")
    environment = dict(PYTHONPATH=f'{toy_dir}{os.pathsep}{tmp_path}', PORT=free_port)
    begin = time.monotonic()
    args = (tmp_path / 'config.py', 2, '--work-dir', tmp_path / 'run')
    run = launch(repository, tmp_path, 'dist_train.sh', *args, **environment)
    assert time.monotonic() - begin < 60
    assert run.returncode != 0
    # The last thing that is said.
    root_cause = run.stderr.rpartition('Root Cause (first observed failure)')[2]
    assert cause in root_cause
    assert 'rank      : 1 ' in root_cause


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on machines without CUDA')
def test_ranks_with_other_configs_are_refused_before_anything_is_built(
    repository, toy_dir, tmp_path, free_port
):
    rank = "int(__import__('os').environ['RANK'])"
    text = (toy_dir / 'config.py').read_text().replace('lr=0.01', f'lr=0.1 + {rank}')
    (tmp_path / 'config.py').write_text(text)
    args = (tmp_path / 'config.py', 2, '--work-dir', tmp_path / 'run')
    environment = dict(PYTHONPATH=str(toy_dir), PORT=free_port)
    run = launch(repository, tmp_path, 'dist_train.sh', *args, **environment)
    assert run.returncode != 0
    assert (
        'the processes of this job do not have the same config: optim_wrapper.optimizer.lr is 0.1 '
        'on rank 0 and 1.1 on rank 1. Start all of them with the same command'
    ) in run.stderr
    assert not (tmp_path / 'run').exists()
