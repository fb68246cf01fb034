"""From a config and a checkpoint to a model that labels images."""

from pickle import UnpicklingError

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS
from torch import nn

from mmdscnet.launch import check_checkpoint


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
    check_checkpoint(checkpoint)
    if tta and cfg.get('tta_model') is None:
        raise ValueError(
            'the config has no tta_model, so views cannot be merged: add one, or leave --tta out'
        )
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model_cfg = cfg.model.copy()
    model_cfg.backbone = dict(model_cfg.backbone, init_cfg=None)
    model = MODELS.build(model_cfg)
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except (EOFError, RuntimeError, UnpicklingError, ValueError) as error:
        raise ValueError(
            f'checkpoint {checkpoint} is damaged or not of the network of this config, give the '
            f'config that it was trained with: {error}'
        ) from error
    model = model.to(device).eval()
    return MODELS.build(dict(cfg.tta_model, module=model)) if tta else model


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
