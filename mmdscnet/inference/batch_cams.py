"""From a batch of images to their CAMs, merged over the views of each."""

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from mmdscnet.inference.view_batches import CAMBatch, Images, group_views
from mmdscnet.models.decode_heads.cam_head import (
    NORMALIZATIONS,
    refuse_windows_and_padding,
    resize_maps,
)
from mmdscnet.models.segmentors import SEAM
from mmdscnet.pseudo_labels import CAMs


def check_model(model: EncoderDecoder, dataset: Images) -> None:
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


def check_labels(dataset: Images, batch: CAMBatch) -> None:
    """Refuse a pipeline that loses the labels of the data set, which would then be predicted.

    Args:
        dataset: The images.
        batch: What its pipeline made of some of them.

    Raises:
        ValueError: If the data set has image-level labels and the batch has none.
    """
    # In this order, because a data set may have to collect its labels.
    if batch.image_labels is None and getattr(dataset, 'image_labels', None) is not None:
        raise ValueError(
            'the data set has image_labels, but its pipeline loses them: end it with '
            'PackWSSSInputs, or set image_labels=None to have them predicted'
        )


@torch.inference_mode()
def compute_cams(model: EncoderDecoder, batch: CAMBatch, precision: torch.dtype) -> list[CAMs]:
    """Merge the views of each image of a batch.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode.
        batch: The images.
        precision: Of the network: float32, or bfloat16 or float16 for autocast.

    Returns:
        For each image the CAMs of its classes, in float32. Without image-level labels the classes
        are predicted from all views.
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
        class_ids = 1 + classes.cpu()[present].numpy()
        result.append(CAMs(maps[present].numpy(), class_ids.astype(np.uint8)))
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
