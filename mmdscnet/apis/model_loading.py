"""From a config and a checkpoint to a model that labels images."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS
from torch import nn

from mmdscnet.launch import check_checkpoint, read_run_config
from mmdscnet.zoo import SCHEME, checked_address, find_config, read_checkpoint

WRONG_NETWORK = (
    'is damaged or not of the network of this config, give the config that it was trained with'
)


def load_model(cfg: Config, checkpoint: str, device: torch.device, tta: bool = False) -> nn.Module:
    """Build the model of a config and load trained weights.

    Args:
        cfg: The config; weights that it would start a training from are not loaded.
        checkpoint: File or address.
        device: Where the model shall be.
        tta: Whether to wrap it in the config's ``tta_model``.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint is damaged or of another network, or the config has no
            ``tta_model``.
    """
    if tta and cfg.get('tta_model') is None:
        raise ValueError(
            'the config has no tta_model, so views cannot be merged: add one, or leave --tta out'
        )
    contents = read_contents(checkpoint)
    model = build_model(cfg)
    load_contents(model, contents, checkpoint)
    model = model.to(device).eval()
    return MODELS.build(dict(cfg.tta_model, module=model)) if tta else model


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config.

    Args:
        cfg: The config; weights that it would start a training from are not loaded.

    Returns:
        The model, with random weights.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model_cfg = cfg.model.copy()
    model_cfg.backbone = dict(model_cfg.backbone, init_cfg=None)
    return MODELS.build(model_cfg)


def load_contents(model: nn.Module, contents: dict[str, Any], name: str) -> None:
    """Give a model the weights of a checkpoint, all of them and no others.

    Args:
        model: The model.
        contents: The checkpoint.
        name: Its file or address, for the error.

    Raises:
        ValueError: If the checkpoint is of another network.
    """
    try:
        _load_checkpoint_to_model(model, contents, strict=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'checkpoint {name} {WRONG_NETWORK}: {error}') from error


def read_contents(checkpoint: str) -> dict[str, Any]:
    """Read a checkpoint from wherever it is.

    Args:
        checkpoint: File or address; URLs and addresses of :mod:`mmdscnet.zoo` are checked.

    Returns:
        The checkpoint, on the CPU.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is damaged or none.
    """
    check_checkpoint(checkpoint)
    if Path(checkpoint).is_file():
        # Not by mmengine, which in the maintained forks runs code where a safe load fails.
        return read_checkpoint(checkpoint, 'cpu')
    address = checked_address(checkpoint)
    try:
        contents = CheckpointLoader.load_checkpoint(address, 'cpu', logger=None)
    except (EOFError, RuntimeError, UnpicklingError, ValueError) as error:
        if address.startswith(SCHEME):
            raise
        raise ValueError(f'checkpoint {checkpoint} {WRONG_NETWORK}: {error}') from error
    if not isinstance(contents, dict):
        raise ValueError(f'checkpoint {checkpoint} {WRONG_NETWORK}: it holds no weights')
    return contents


def find_model_files(
    model: str | os.PathLike[str] | Config, checkpoint: str | os.PathLike[str] | None
) -> tuple[Config, str | None]:
    """Find config and weights of a model.

    Args:
        model: Address of a published model, or a config, or its file.
        checkpoint: File or address of the weights; None for those of a published model.

    Returns:
        The config, and file or address of the weights; None if there are none.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If there is no such model.
    """
    weights = None if checkpoint is None else os.fspath(checkpoint)
    if isinstance(model, Config):
        return model, weights
    source = os.fspath(model)
    if source.startswith(SCHEME):
        return read_run_config(str(find_config(source))), weights or source
    return read_run_config(source), weights


def drop_masks(cfg: Config) -> None:
    """Let the images of ``test_dataloader`` come without masks.

    Args:
        cfg: The config, changed in place.
    """
    dataset = cfg.test_dataloader.dataset
    images = (dataset.get('data_prefix') or {}).get('img_path', 'JPEGImages')
    dataset.data_prefix = dict(img_path=images)


def build_split(cfg: Config, split: str | None, labels: str = 'given') -> BaseSegDataset:
    """Build the images of ``test_dataloader``, or those of another split with the same pipeline.

    Args:
        cfg: The config.
        split: Split file, relative to the data set's ``data_root``; None for the config's.
        labels: ``given`` or ``predicted``: whether the model is told the image-level labels.

    Returns:
        The data set.

    Raises:
        ValueError: If labels are to be given and the data set has none.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset = cfg.test_dataloader.dataset.copy()
    if split is not None:
        dataset.ann_file = split
    # Other data sets do not know the argument.
    if labels == 'predicted' and 'image_labels' in dataset:
        dataset.image_labels = None
    built = DATASETS.build(dataset)
    if labels == 'given' and getattr(built, 'image_labels', None) is None:
        raise ValueError(
            "labels='given', but the data set of test_dataloader has no image_labels: name a label "
            "source there, or let the labels be 'predicted'"
        )
    return built
