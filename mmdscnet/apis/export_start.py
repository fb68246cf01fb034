"""How every export begins: the same on all ranks, and where an earlier run stopped."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier
from mmseg.datasets import BaseSegDataset

from mmdscnet.inference import list_image_ids, open_together
from mmdscnet.pseudo_labels import ExportFolder, hash_file
from mmdscnet.zoo import SCHEME, checked_address, fetch


def start_export(
    folder: str | os.PathLike[str],
    suffix: str,
    settings: Mapping[str, Any],
    dataset: BaseSegDataset,
) -> tuple[ExportFolder, list[int]]:
    """Open the folder of an export on every rank, and see what is to be done.

    Args:
        folder: Where to write.
        suffix: End of the file names, such as ``.png``.
        settings: What the files depend on; see :class:`ExportFolder`.
        dataset: The images.

    Returns:
        The folder, and the indices of the images without a file, the same on every rank.

    Raises:
        ValueError: If the folder holds an export with other settings, or two images have one name.
    """
    ids = list_image_ids(dataset)
    export = open_together(folder, suffix, settings)
    missing = set(export.missing(ids))
    # No rank may write before all have looked.
    barrier()
    return export, [index for index, image_id in enumerate(ids) if image_id in missing]


def describe_export(
    cfg: Config, checkpoint: str, dataset: BaseSegDataset, labels: str
) -> dict[str, Any]:
    """Collect what the files of an export depend on.

    Args:
        cfg: The config, with the pipeline of the export in ``test_dataloader``.
        checkpoint: File or address of the weights.
        dataset: The images.
        labels: ``given`` or ``predicted``.

    Returns:
        The settings for :class:`ExportFolder`.
    """
    source = getattr(dataset, 'image_labels', None)
    return dict(
        model=cfg.model.to_dict(),
        pipeline=cfg.test_dataloader.dataset.pipeline,
        checkpoint=identify(checkpoint),
        classes=dataset.metainfo['classes'],
        labels=labels,
        label_source=source and identify(source),
    )


def identify(source: str) -> str:
    """Name what an export was made from.

    Args:
        source: File, folder or address.

    Returns:
        Hash of a file, also of one that :mod:`mmdscnet.zoo` brings; else the source itself.
    """
    address = checked_address(source)
    path = fetch(address) if address.startswith(SCHEME) else Path(source)
    return hash_file(path) if path.is_file() else source
