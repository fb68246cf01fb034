"""Write the CAMs of many images, merged over scales and flips, fast and in several runs."""

import io
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.dist import barrier, get_dist_info
from mmengine.utils import ProgressBar
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor
from torch.utils.data import DataLoader

from mmdscnet.apis.export_start import start_export
from mmdscnet.datasets import VOCLayoutDataset
from mmdscnet.datasets.file_checks import read_image_size
from mmdscnet.models.decode_heads.cam_head import (
    NORMALIZATIONS,
    refuse_windows_and_padding,
    resize_maps,
)
from mmdscnet.models.segmentors import SEAM
from mmdscnet.pseudo_labels import write_cams

WRITER_THREADS = 2
# Axes of maps of shape (N, P, H, W), by the direction in which their images were flipped.
FLIP_AXES = {'horizontal': 3, 'vertical': 2}


class CAMBatch(NamedTuple):
    """Images of one size, in all their views.

    Attributes:
        inputs: For each view the images, each of shape (3, H, W).
        flip_axes: For each view the axis of its maps that is flipped; None for none.
        image_ids: Id of each image.
        image_labels: Image-level labels in {0, 1}, shape (N, K); None where there are none.
        size: Height and width of the original images in pixels.
    """

    inputs: list[list[Tensor]]
    flip_axes: list[int | None]
    image_ids: list[str]
    image_labels: Tensor | None
    size: tuple[int, int]


def export_cams(
    model: EncoderDecoder,
    dataset: VOCLayoutDataset,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    batch_size: int = 4,
    num_workers: int = 2,
    precision: torch.dtype = torch.float32,
) -> int:
    """Write one file of CAMs an image: the present classes, in half precision.

    The CAMs are those of ``CAMTTAModel``. What makes it faster than one image and one view at a
    time: images of one size are one batch and so are a view and its mirror image; only the maps of
    present classes are resized; reading, computing and writing overlap.

    Images that have a file in the folder are left out, so an interrupted export goes on. Under a
    launcher every rank writes its share.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        dataset: Images, whose pipeline is the ``tta_pipeline`` of a CAM config.
        folder: Where to write.
        settings: What the CAMs depend on, kept beside the files; see :class:`ExportFolder`.
        batch_size: Images a batch, at most.
        num_workers: Processes that read images.
        precision: Of the network: float32, or bfloat16 or float16 for autocast.

    Returns:
        Number of files that this rank wrote.

    Raises:
        ValueError: If the folder holds an export with other settings, the classes of model and data
            set differ, or the model would cut or pad the images.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1 image')
    check_model(model, dataset)
    export, missing = start_export(folder, '.npz', settings, dataset)
    rank, ranks = get_dist_info()
    batches = batch_by_size(dataset, missing, batch_size)[rank::ranks]
    # Convolutions are faster in this order, on CPU and GPU alike.
    model = model.to(memory_format=torch.channels_last)
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_views,
        num_workers=num_workers,
    )
    total = sum(map(len, batches))
    progress = ProgressBar(total, file=sys.stderr if rank == 0 else io.StringIO())
    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        pending: list[Future] = []
        for batch in loader:
            check_labels(dataset, batch)
            cams = compute_cams(model, batch, precision)
            pending = wait_for_writers(pending, WRITER_THREADS * batch_size)
            for image_id, (maps, class_ids) in zip(batch.image_ids, cams, strict=True):
                pending.append(pool.submit(write_cams, export.path(image_id), maps, class_ids))
            progress.update(len(cams))
        wait_for_writers(pending, 0)
    barrier()
    return total


def check_model(model: EncoderDecoder, dataset: VOCLayoutDataset) -> None:
    """Refuse a model that cannot give the CAMs of these images.

    Args:
        model: Segmentor with a ``CAMHead``.
        dataset: The images.

    Raises:
        ValueError: If the classes of model and data set differ, or the model would cut or pad the
            images.
    """
    num_classes, expected = len(dataset.metainfo['classes']), model.decode_head.num_classes
    if num_classes != expected:
        raise ValueError(
            f'the data set has {num_classes} classes {dataset.metainfo["classes"]} and the network '
            f'{expected}, background counts: give the config that the network was trained with'
        )
    refuse_windows_and_padding([], model.test_cfg or {})
    if model.data_preprocessor.test_cfg:
        raise ValueError(
            f'data_preprocessor.test_cfg={model.data_preprocessor.test_cfg} pads the images, and '
            'the CAMs would depend on it: set it to None'
        )


def check_labels(dataset: VOCLayoutDataset, batch: CAMBatch) -> None:
    """Refuse a pipeline that loses the labels of the data set, which would then be predicted.

    Args:
        dataset: The images.
        batch: What its pipeline made of some of them.

    Raises:
        ValueError: If the data set has image-level labels and the batch has none.
    """
    if dataset.image_labels is not None and batch.image_labels is None:
        raise ValueError(
            'the data set has image_labels, but its pipeline loses them: end it with '
            'PackWSSSInputs, or set image_labels=None to have them predicted'
        )


def wait_for_writers(pending: list[Future], most: int) -> list[Future]:
    """Wait until few writers are left, so that maps do not pile up; pass on their errors.

    Args:
        pending: Writers that were started.
        most: Number of them that may go on.

    Returns:
        Those that go on.
    """
    for future in pending[: max(0, len(pending) - most)]:
        future.result()
    return pending[max(0, len(pending) - most) :]


def batch_by_size(
    dataset: VOCLayoutDataset, indices: Sequence[int], batch_size: int
) -> list[list[int]]:
    """Put images of one size together.

    Args:
        dataset: The images.
        indices: Which of them.
        batch_size: Images a batch, at most.

    Returns:
        Batches of indices; the largest images come first, so that memory fails early if at all.
    """
    by_size = defaultdict(list)
    for index in indices:
        by_size[read_image_size(dataset.get_data_info(index)['img_path'])].append(index)
    sizes = sorted(by_size, key=lambda size: (-size[0] * size[1], size))
    return [
        by_size[size][start : start + batch_size]
        for size in sizes
        for start in range(0, len(by_size[size]), batch_size)
    ]


def collate_views(items: list[dict[str, Any]]) -> CAMBatch:
    """Join what a ``TestTimeAug`` pipeline makes of images of one size.

    Args:
        items: Items of the data set: ``inputs`` and ``data_samples``, a list of views each.

    Returns:
        The batch.
    """
    data = pseudo_collate(items)
    first_view = data['data_samples'][0]
    labels = [sample.metainfo.get('gt_image_label') for sample in first_view]
    return CAMBatch(
        inputs=data['inputs'],
        flip_axes=[find_flip_axis(view[0].metainfo) for view in data['data_samples']],
        image_ids=[Path(sample.img_path).stem for sample in first_view],
        image_labels=None if labels[0] is None else torch.from_numpy(np.stack(labels)),
        size=tuple(first_view[0].ori_shape),
    )


def find_flip_axis(meta: Mapping[str, Any]) -> int | None:
    """Find how to turn the maps of a view upright.

    Args:
        meta: Meta information of an image of the view.

    Returns:
        Axis of maps of shape (N, P, H, W); None for a view that is not flipped.

    Raises:
        ValueError: If the view is flipped in a way that mmseg cannot undo either.
    """
    if not meta.get('flip'):
        return None
    direction = meta.get('flip_direction')
    if direction not in FLIP_AXES:
        raise ValueError(
            f'a view is flipped in flip_direction={direction!r}: let RandomFlip of the '
            f'tta_pipeline take one of {list(FLIP_AXES)}'
        )
    return FLIP_AXES[direction]


@torch.inference_mode()
def compute_cams(
    model: EncoderDecoder, batch: CAMBatch, precision: torch.dtype
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Merge the views of each image of a batch.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode.
        batch: The images.
        precision: As for :func:`export_cams`.

    Returns:
        For each image the CAMs of its classes in [0, 1], shape (k, H, W), and their class ids in
        1..K, shape (k,). Without image-level labels the classes are predicted from all views.
    """
    head = model.decode_head
    device = head.classifier.weight.device
    half = precision != torch.float32
    with torch.autocast(device.type, precision if half else None, enabled=half):
        labels = batch.image_labels
        if labels is None:
            everything = torch.arange(head.num_classes - 1, device=device)
            labels = head.predict_labels(merge_views(model, batch, None, everything))
        labels = labels.to(device)
        # The others need not be resized. One stays, for images without any class.
        classes = labels.any(dim=0).nonzero()[:, 0] if labels.any() else labels.new_zeros(1).long()
        merged = merge_views(model, batch, labels, classes)
    cams = NORMALIZATIONS[head.normalization](merged, labels[:, classes])
    result = []
    for maps, present in zip(cams.cpu(), labels[:, classes].bool().cpu(), strict=True):
        result.append((maps[present].numpy(), 1 + classes.cpu()[present].numpy()))
    return result


def merge_views(
    model: EncoderDecoder, batch: CAMBatch, image_labels: Tensor | None, classes: Tensor
) -> Tensor:
    """Average class evidence over the views of each image.

    Args:
        model: Segmentor with a ``CAMHead``.
        batch: The images.
        image_labels: Image-level labels in {0, 1}, shape (N, K); None for the evidence of the plain
            classifier.
        classes: Which classes, from 0, int64, shape (P,).

    Returns:
        Class evidence at the size of the images, float32, shape (N, P, H, W).
    """
    total = torch.zeros(())
    for same_size in group_views(batch.inputs):
        images = [image for view in same_size for image in batch.inputs[view]]
        inputs = model.data_preprocessor(dict(inputs=images), training=False)['inputs']
        inputs = inputs.to(memory_format=torch.channels_last)
        labels = None if image_labels is None else image_labels.repeat(len(same_size), 1)
        evidence = compute_evidence(model, inputs, labels)[:, classes]
        maps = resize_maps(evidence, inputs.shape[2:], model.decode_head.align_corners)
        views = maps.unflatten(0, (len(same_size), -1))
        axes = [batch.flip_axes[view] for view in same_size]
        upright = [
            maps_of_view if axis is None else maps_of_view.flip(axis)
            for axis, maps_of_view in zip(axes, views, strict=True)
        ]
        # Resizing is linear: once for the sum does it for all.
        total = total + resize_maps(sum(upright), batch.size, model.align_corners)
    return total / len(batch.inputs)


def group_views(inputs: list[list[Tensor]]) -> Iterator[list[int]]:
    """Find the views that can go through the network together.

    Args:
        inputs: For each view the images, each of shape (3, H, W).

    Yields:
        Indices of views of one size, such as a scale and its mirror image.
    """
    by_size = defaultdict(list)
    for view, images in enumerate(inputs):
        by_size[images[0].shape].append(view)
    yield from by_size.values()


def compute_evidence(model: EncoderDecoder, inputs: Tensor, image_labels: Tensor | None) -> Tensor:
    """Run the network on one view.

    Args:
        model: Segmentor with a ``CAMHead``.
        inputs: Normalised images, shape (N, 3, H, W).
        image_labels: As for :func:`merge_views`.

    Returns:
        Class evidence, shape (N, K, h, w).
    """
    test_cfg = ConfigDict(model.test_cfg or {})
    metas: list[dict] = [{}] * len(inputs)
    if image_labels is None:
        test_cfg.refine = False
    else:
        metas = [dict(gt_image_label=label) for label in image_labels.cpu().numpy()]
    if isinstance(model, SEAM):
        return model.predict_evidence(inputs, metas, test_cfg)[0]
    feats = model.extract_feat(inputs)
    return model.decode_head.predict_evidence(feats, metas, test_cfg)[0]
