"""Write what a model predicts as label maps, optionally after a dense CRF, in several runs."""

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import barrier, get_dist_info
from mmengine.utils import ProgressBar
from mmseg.datasets import BaseSegDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils.data import DataLoader, Subset

from mmdscnet.apis.export_start import start_export
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.parallel import map_over_images
from mmdscnet.pseudo_labels import (
    DenseCRF,
    ExportFolder,
    PseudoLabeler,
    require_dense_crf,
    write_palette_png,
)


class Prediction(NamedTuple):
    """What a model says of an image.

    Attributes:
        image_id: Id of the image.
        image_path: Its file.
        label_map: Class ids, uint8, shape (H, W).
        class_ids: Classes that win somewhere, and the background, ascending, shape (k,); empty
            where no CRF follows.
        scores: Their scores in [0, 1], float16, shape (k, H, W).
    """

    image_id: str
    image_path: str
    label_map: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray


def export_labels(
    model: nn.Module,
    dataset: BaseSegDataset,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    crf: DenseCRF | None = None,
    num_workers: int = 2,
    num_processes: int = 1,
) -> int:
    """Write one palette PNG an image.

    Images that have a file in the folder are left out, so an interrupted export goes on. Under a
    launcher every rank writes its share.

    Args:
        model: A segmentor or a test-time augmentation of one, in evaluation mode.
        dataset: Images, with the pipeline that the model wants.
        folder: Where to write.
        settings: What the labels depend on, kept beside the files; see :class:`ExportFolder`.
        crf: Settings of the CRF; None for none.
        num_workers: Processes that read images.
        num_processes: Processes that run the CRF.

    Returns:
        Number of files that this rank wrote.

    Raises:
        ImportError: If a CRF is asked for and not installed.
        ValueError: If the folder holds an export with other settings.
    """
    if crf is not None:
        require_dense_crf()
    settings = dict(settings, crf=None if crf is None else vars(crf))
    export, missing = start_export(folder, '.png', settings, dataset)
    rank, ranks = get_dist_info()
    mine = missing[rank::ranks]
    loader = DataLoader(Subset(dataset, mine), collate_fn=pseudo_collate, num_workers=num_workers)
    write = partial(_write_prediction, export, dataset.metainfo['palette'], crf)
    progress = ProgressBar(len(mine), file=sys.stderr if rank == 0 else io.StringIO())
    predictions = predict(model, loader, keep_scores=crf is not None)
    for _ in map_over_images(write, predictions, num_processes, lambda item: item.image_id):
        progress.update()
    barrier()
    return len(mine)


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader, keep_scores: bool) -> Iterator[Prediction]:
    """Run a model over images.

    Args:
        model: As for :func:`export_labels`.
        loader: Loads the images one by one.
        keep_scores: Whether a CRF follows.

    Yields:
        A prediction an image.
    """
    # A stock segmentor gives logits; CAM heads and test-time augmentation give scores.
    has_logits = isinstance(getattr(model, 'decode_head', None), BaseDecodeHead)
    for batch in loader:
        for sample in cast(Any, model).test_step(batch):
            yield _describe(sample, has_logits, keep_scores)


def _describe(sample: SegDataSample, has_logits: bool, keep_scores: bool) -> Prediction:
    label_map = sample.pred_sem_seg.data[0]
    class_ids = torch.empty(0, dtype=torch.int64)
    scores = torch.empty(0)
    if keep_scores:
        scores = sample.seg_logits.data.float()
        scores = scores.softmax(dim=0) if has_logits else scores
        # The background is one of the classes of a CRF whether it wins somewhere or not.
        class_ids = torch.cat([label_map.flatten(), label_map.new_zeros(1)]).unique()
        scores = scores[class_ids]
    return Prediction(
        image_id=Path(sample.img_path).stem,
        image_path=sample.img_path,
        label_map=label_map.cpu().numpy().astype(np.uint8),
        class_ids=class_ids.cpu().numpy(),
        scores=scores.half().cpu().numpy(),
    )


def _write_prediction(
    export: ExportFolder,
    palette: Sequence[Sequence[int]],
    crf: DenseCRF | None,
    prediction: Prediction,
) -> None:
    label_map = prediction.label_map
    if crf is not None:
        # The background is the first of the classes, and scored like the others.
        foreground = prediction.class_ids[1:]
        image = read_rgb(prediction.image_path)
        label_map = PseudoLabeler(crf=crf).label_scores(prediction.scores, foreground, image)
    write_palette_png(export.path(prediction.image_id), label_map, palette)
