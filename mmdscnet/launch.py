"""What every tool does between its command line and mmengine's ``Runner``."""

import atexit
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import distributed

from mmdscnet.provenance import flatten_config
from mmdscnet.ranks import check_ranks_agree
from mmdscnet.stack import let_compile_skip_numpy


def read_run_config(
    path: str,
    work_dir: str | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config and complete it with what the command line says.

    Args:
        path: File of the config.
        work_dir: Folder for logs and checkpoints. Without it the config's own is taken, and
            without that ``work_dirs/<run_name of the config>``.
        options: Keys to overwrite, such as ``{'train_dataloader.batch_size': 4}``.
        launcher: What started the processes: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Returns:
        The config, ready for a ``Runner``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the launcher needs CUDA and there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'config {path!r} is not a file: give one of configs/, such as '
            'configs/dscnet/shapes.py, seen from the current folder'
        )
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(dict(options or {}))
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{run_name(path)}'
    prepare_cpu_launch(cfg)
    if cfg.get('compile'):
        let_compile_skip_numpy()
    return cfg


def run_name(path: str) -> str:
    """Name a run by the folder and the file of its config, which together tell configs apart.

    Args:
        path: File of the config.

    Returns:
        The name, such as ``dscnet_voc_animals`` for configs/dscnet/voc_animals.py.
    """
    # Resolved, because a path seen from the config's own folder does not name that folder.
    resolved = Path(path).resolve()
    return f'{resolved.parent.name}_{resolved.stem}'


def prepare_cpu_launch(cfg: Config) -> None:
    """Start the process group on machines without CUDA, before mmengine's ``Runner`` would.

    mmengine sets a CUDA device before it starts the process group, which a CPU build of torch
    refuses; a group that already exists it takes as it is. This is no guard of
    :mod:`mmdscnet.stack`, because an import must not wait for other processes. With CUDA, or
    without a launcher, nothing happens.

    Args:
        cfg: Config of the run with its ``launcher``; its ``model_wrapper_cfg`` is set to a wrapper
            without devices when it has none, and so is the wrapper of ``FSDPStrategy``.

    Raises:
        ValueError: If there is no CUDA and the launcher is neither ``none`` nor ``pytorch``.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'launcher={cfg.launcher!r} needs CUDA, and torch finds none: '
            'on CPU start the processes with tools/dist_train.sh or tools/dist_test.sh'
        )
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    if cfg.get('strategy', {}).get('type') == 'FSDPStrategy':
        cfg.strategy.model_wrapper = {'device_id': 'cpu', **cfg.strategy.get('model_wrapper', {})}
    if not distributed.is_initialized():
        if 'WORLD_SIZE' not in os.environ:
            raise ValueError(
                "launcher='pytorch' needs the environment that torchrun sets, and WORLD_SIZE is "
                'not set: start the processes with tools/dist_train.sh or tools/dist_test.sh'
            )
        distributed.init_process_group('gloo')


def leave_together() -> None:
    """End this process well, when all ranks have done their work; the last call of a tool.

    On CPU a thread of gloo that asks for the interpreter's lock while the interpreter is being
    taken down aborts the process, which then counts as failed (one of eight toy trainings on two
    ranks). So the process ends without taking it down, after everything registered at exit. With
    CUDA, or without a launcher, nothing happens. After an exception this must not be called: the
    others would be waited for.
    """
    if not distributed.is_initialized() or distributed.get_backend() != 'gloo':
        return
    distributed.barrier()
    distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def enable_amp(cfg: Config) -> None:
    """Switch a config to mixed precision.

    Args:
        cfg: Config of the run; its ``optim_wrapper`` is changed in place.

    Raises:
        ValueError: If there is no CUDA, or the config has an optimizer wrapper of another kind.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            '--amp needs CUDA, and torch finds none: leave the flag out to train in float32'
        )
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind == 'DeepSpeedOptimWrapper':
        raise ValueError(
            '--amp is not for DeepSpeed, whose mixed precision is set in strategy.bf16 or '
            'strategy.fp16 and rounds the class memory too: leave the flag out'
        )
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f"--amp replaces optim_wrapper.type 'OptimWrapper', and the config has {kind!r}: "
            "leave the flag out, or set the type to 'AmpOptimWrapper' in the config"
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_test_time_augmentation(cfg: Config) -> None:
    """Let tests run over the scales and flips of the config's ``tta_pipeline``.

    Args:
        cfg: Config of the run; its model and the pipelines of its ``test_dataloader`` and, where
            it has one, ``val_dataloader`` are changed in place.

    Raises:
        ValueError: If the config says nothing about test-time augmentation.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is None]
    if missing:
        raise ValueError(
            f'--tta needs {" and ".join(missing)} in the config: '
            'add them, or leave the flag out to test at one scale'
        )
    for loader in ('val_dataloader', 'test_dataloader'):
        if cfg.get(loader) is not None:
            cfg[loader].dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def check_backbone_weights(cfg: Config) -> None:
    """Check that the weights from which a backbone starts exist, before anything slow is built.

    Args:
        cfg: Config of the run. An address with a scheme is not checked.

    Raises:
        FileNotFoundError: If the config names a file that is not there.
    """
    init_cfg = (cfg.model.get('backbone') or {}).get('init_cfg')
    path = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    if path is None or '://' in path or Path(path).is_file():
        return
    raise FileNotFoundError(
        f'the backbone starts from {path!r}, which is not a file: for ResNet38d write it with '
        'tools/model_converters/resnet38d_mxnet.py, else put the weights there or give '
        '--cfg-options model.backbone.init_cfg.checkpoint=...'
    )


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint exists, before anything slow is built.

    Args:
        path: A file, or an address with a scheme such as ``https://``, which is not checked.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if '://' not in path and not Path(path).is_file():
        raise FileNotFoundError(
            f'checkpoint {path!r} is not a file: training writes checkpoints to its work_dir, and '
            'the file last_checkpoint there names the newest'
        )


def find_checkpoint_to_resume(cfg: Config) -> None:
    """Let a training resume in a work dir that was moved or copied.

    mmengine notes the newest checkpoint by its absolute path, which leads to the old place. Where
    there is none, which may be a mistyped folder, a warning says so.

    Args:
        cfg: Config of the run; its ``load_from`` is set where the note leads nowhere.

    Raises:
        FileNotFoundError: If the checkpoint is not in the work dir either.
    """
    note = Path(cfg.work_dir, 'last_checkpoint')
    if not cfg.resume or cfg.get('load_from'):
        return
    if not note.is_file():
        warnings.warn(
            f'{cfg.work_dir} has no checkpoint to resume from: the training starts from nothing',
            stacklevel=2,
        )
        return
    noted = Path(note.read_text().strip())
    if noted.exists():
        return
    moved = Path(cfg.work_dir, noted.name)
    if not moved.is_file():
        raise FileNotFoundError(
            f'{note} names {str(noted)!r}, which is not there, and neither is {moved}: give the '
            'checkpoint to resume from by --cfg-options load_from=..., or leave --resume out'
        )
    cfg.load_from = str(moved)


def join_ranks(cfg: Config) -> torch.device:
    """Join the processes that a launcher started, and check that they have the same config.

    mmengine's ``Runner`` takes the group as it is; it would compare nothing, and fail or wait
    where the ranks differ.

    Args:
        cfg: Config of the run with its ``launcher``, as :func:`read_run_config` gives it.

    Returns:
        The device of this process.

    Raises:
        ValueError: On every rank, if the configs of two differ.
    """
    if torch.cuda.is_available() and cfg.launcher != 'none':
        init_dist(cfg.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
    check_same_config(cfg)
    if not torch.cuda.is_available():
        return torch.device('cpu')
    return torch.device('cuda', torch.cuda.current_device())


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build what trains or tests a config, once the ranks have joined.

    Args:
        cfg: Config of the run with its ``launcher``, as :func:`read_run_config` gives it.

    Returns:
        The runner.

    Raises:
        ValueError: On every rank, if the configs of two differ.
    """
    if 'runner_type' in cfg:
        # Its strategy joins the ranks in its own way.
        return RUNNERS.build(cfg)
    join_ranks(cfg)
    return Runner.from_cfg(cfg)


def check_same_config(cfg: Config) -> None:
    """Check that all ranks have the same config.

    Args:
        cfg: The config. Where a rank finds its data may differ.

    Raises:
        ValueError: On every rank, if those of two differ.
    """
    parts = flatten_config(cfg.to_dict())
    check_ranks_agree('config', {k: v for k, v in parts.items() if not k.endswith('data_root')})
