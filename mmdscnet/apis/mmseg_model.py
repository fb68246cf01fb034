"""From an address to a model for mmseg's ``inference_model``, in one call."""

import os
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmdscnet.apis.inferencer import find_metainfo
from mmdscnet.apis.model_loading import (
    build_model,
    find_model_files,
    load_contents,
    read_contents,
)


def init_model(
    model: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device = 'cpu',
) -> nn.Module:
    """Build a model with its trained weights, as ``init_model`` of mmseg does.

    Different from mmseg's: a published model needs its address only; weights of another network are
    an error and not a warning, and they are read without running code; classes that the checkpoint
    does not name are those of the config.

    Args:
        model: Address of a published model, such as ``mmdscnet://dscnet_shapes``, or a config, or
            its file.
        checkpoint: File or address of the weights. None for those of a published model; of any
            other, for none.
        device: Where the model shall be.

    Returns:
        The model in evaluation mode, with its config as ``cfg`` and, if it has weights, its classes
        and palette as ``dataset_meta``.

    Raises:
        FileNotFoundError: If config or checkpoint is missing.
        ValueError: If there is no such model, or the checkpoint is damaged or of another network.

    Example:
        >>> net = init_model('mmdscnet://dscnet_shapes')
        Loads checkpoint by mmdscnet backend from path: mmdscnet://dscnet_shapes
        >>> net.dataset_meta['classes'][0]
        'background'
    """
    cfg, weights = find_model_files(model, checkpoint)
    contents = None if weights is None else read_contents(weights)
    built: Any = build_model(cfg)
    if weights is not None and contents is not None:
        load_contents(built, contents, weights)
        built.dataset_meta = read_dataset_meta(contents, cfg)
    built.cfg = cfg
    built.to(device).eval()
    return built


def read_dataset_meta(contents: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """Read the classes that a model was trained on.

    Args:
        contents: Its checkpoint.
        cfg: Its config, for a checkpoint of weights alone.

    Returns:
        ``classes`` and ``palette``, and what else the data set of the training noted.
    """
    meta = contents.get('meta') or {}
    return meta.get('dataset_meta') or find_metainfo(cfg)
