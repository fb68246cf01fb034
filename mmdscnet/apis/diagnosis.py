"""Diagnose before tuning: what a trained ``DSCHead`` makes of images whose masks are known.

The path through this file: images of one size in batches, what a batch shows, all batches joined,
and the numbers that stand in the report. Masks judge and take part in nothing else.

Each number says in which composition it was measured. *Training*: the graph joins the images of a
batch and the class memory, as in ``DSCHead.describe_batch``; but the network is in evaluation mode
and the memory does not move. *Inference*: the graph holds an image's own nodes and the memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS
from torch import Tensor, nn

from mmdscnet.apis.run_report import CountedImages
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.evaluation.group_diagnosis import (
    PairSimilarities,
    attend_groups,
    attention_entropy,
    count_truth_by_slot,
    pair_similarities,
    place_share,
    resize_truth,
    slot_agreement,
    slot_purity,
)
from mmdscnet.evaluation.refinement_diagnosis import (
    EvidenceParts,
    count_changes,
    locate_evidence,
    measure_evidence_parts,
    paint_changes,
    sum_scores,
)
from mmdscnet.evaluation.threshold_sweep import count_pixels, per_class_scores, sweep_thresholds
from mmdscnet.functional.cam import normalize_cams
from mmdscnet.functional.pseudo_label import make_pseudo_labels
from mmdscnet.models.decode_heads import DSCHead
from mmdscnet.models.decode_heads.cam_head import (
    NORMALIZATIONS,
    classification_loss,
    resize_maps,
)
from mmdscnet.models.decode_heads.dsc_head import ImageContext, Readable, see_all
from mmdscnet.pseudo_labels.palette_png import VOID_ID
from mmdscnet.visualization.change_sheet import ChangeRow

HISTOGRAM_EDGES = np.linspace(-1, 1, 81)


class SeenBatch(NamedTuple):
    """A batch as the head sees it, before any label.

    Attributes:
        feats: Outputs of the backbone, each of shape (N, D, h, w).
        feat: The one that the head uses.
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        cam_logits: Class evidence of the plain classifier, unbounded, shape (N, K, h, w).
        image_labels: True image-level labels in {0, 1}, shape (N, K).
        truth: Masks at the size of the input, uint8, shape (N, H, W).
    """

    feats: list[Tensor]
    feat: Tensor
    embeddings: Tensor
    cam_logits: Tensor
    image_labels: Tensor
    truth: Tensor


class DiagnosedImages(NamedTuple):
    """The maps of all images, from which areas are judged and pictures are made.

    Attributes:
        plain: Class evidence of the plain classifier, shape (N, K, h, w).
        refined: Refined evidence at inference; None for a head that does not refine.
        feature_part: The part of it that comes of the features; None likewise.
        image_labels: True image-level labels in {0, 1}, shape (N, K).
        truth: Masks, uint8, shape (N, H, W).
        group_ids: Slot of each pixel's group, uint8, shape (N, h, w).
    """

    plain: Tensor
    refined: Tensor | None
    feature_part: Tensor | None
    image_labels: Tensor
    truth: Tensor
    group_ids: Tensor


class JudgedCAMs(NamedTuple):
    """CAMs at the threshold that is best on these very images.

    Attributes:
        labels: Label of each pixel at that threshold, uint8, shape (N, H, W).
        bg_thr: The threshold.
        mean_iou: Mean IoU at it, in per cent.
        image_iou: Mean IoU of each image at it, in per cent, shape (N,).
    """

    labels: Tensor
    bg_thr: float
    mean_iou: float
    image_iou: np.ndarray


def build_masked_images(cfg: Config, split: str, size: int) -> BaseSegDataset:
    """Build images with masks and given labels, all of one size, without random draws.

    Args:
        cfg: The config, whose ``test_dataloader`` names the data set.
        split: Split file, relative to the data set's ``data_root``.
        size: Height and width to which images and masks are stretched, in pixels.

    Returns:
        The data set.

    Raises:
        ValueError: If the data set has no image-level labels or no masks.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset = cfg.test_dataloader.dataset.copy()
    dataset.ann_file = split
    # Not lazily: LoadCheckedMask compares mask and image before both are resized.
    dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadCheckedMask'),
        dict(type='Resize', scale=(size, size), keep_ratio=False),
        dict(type='PackWSSSInputs'),
    ]
    built = DATASETS.build(dataset)
    sample = built[0]['data_samples']
    if 'gt_sem_seg' not in sample or 'gt_image_label' not in sample:
        lacking = 'masks' if 'gt_sem_seg' not in sample else 'image-level labels'
        raise ValueError(
            f'the images of {split} come without {lacking}, and the diagnosis needs both: name '
            'data_prefix.seg_map_path and image_labels in test_dataloader.dataset'
        )
    return built


def require_dsc_model(model: nn.Module) -> EncoderDecoder:
    """Refuse a model without pixel groups.

    Args:
        model: The model.

    Returns:
        The model.

    Raises:
        ValueError: If it has no ``DSCHead``.
    """
    head = getattr(model, 'decode_head', None)
    if not (isinstance(model, EncoderDecoder) and isinstance(head, DSCHead)):
        found = type(model).__name__ if head is None else type(head).__name__
        raise ValueError(
            f'the diagnosis looks into pixel groups, and the model has {found}: give a config and '
            'checkpoints of an EncoderDecoder or SEAM with a DSCHead'
        )
    return model


def draw_images(num_available: int, num_images: int | None, batch_size: int) -> list[int]:
    """Choose images in a random order that is always the same, in whole batches.

    Args:
        num_available: Number of images of the split.
        num_images: Number of images wanted; None for all.
        batch_size: Images of a batch.

    Returns:
        Indices of the images; a remainder that fills no batch is left out.

    Raises:
        ValueError: If a batch has a single image, or there are fewer images than a batch has.
    """
    wanted = num_available if num_images is None else min(num_images, num_available)
    if batch_size < 2:
        raise ValueError(f'batch_size={batch_size} leaves nothing to compare: give at least 2')
    if wanted < batch_size:
        raise ValueError(
            f'{wanted} images fill no batch of batch_size={batch_size}: take more images, or a '
            'smaller batch'
        )
    order = torch.randperm(num_available, generator=torch.Generator().manual_seed(0))
    return order[: wanted - wanted % batch_size].tolist()


@torch.no_grad()
def diagnose(
    model: EncoderDecoder, dataset: BaseSegDataset, indices: list[int], batch_size: int
) -> tuple[dict[str, Any], DiagnosedImages]:
    """Look into a trained network.

    Args:
        model: Segmentor with a ``DSCHead``, in evaluation mode, on its device.
        dataset: Images of one size, from :func:`build_masked_images`.
        indices: Which of them, in the order in which batches are cut.
        batch_size: Images of a batch.

    Returns:
        The numbers, ready for JSON, and the maps of the images.
    """
    head = model.decode_head
    ignore = dataset.ignore_index
    measured: dict[str, list[Tensor]] = {}
    maps: list[DiagnosedImages] = []
    for batch in cut_batches(dataset, indices, batch_size):
        seen = see_batch(model, batch)
        values, images = measure_batch(head, seen, ignore)
        for name, value in values.items():
            measured.setdefault(name, []).append(value.cpu())
        maps.append(images)
    joined = {name: torch.cat(values) for name, values in measured.items()}
    images = join_images(maps)
    classes = dataset.metainfo['classes']
    numbers = summarize(joined, classes, has_refinement=images.feature_part is not None)
    numbers['areas'] = compare_areas(head, images, classes, ignore)
    return numbers, images


def cut_batches(
    dataset: BaseSegDataset, indices: list[int], batch_size: int
) -> Iterator[dict[str, Any]]:
    """Read images batch by batch, collated."""
    for start in range(0, len(indices), batch_size):
        yield pseudo_collate([dataset[index] for index in indices[start : start + batch_size]])


def see_batch(model: EncoderDecoder, batch: dict[str, Any]) -> SeenBatch:
    """Run backbone, classifier and projection on a batch.

    Args:
        model: Segmentor with a ``DSCHead``, in evaluation mode, on its device.
        batch: Collated items of :func:`build_masked_images`.

    Returns:
        The batch as the head sees it. Of SEAM's two views it is the first.
    """
    data = model.data_preprocessor(batch, training=False)
    feats = model.extract_feat(data['inputs'])
    head, samples = model.decode_head, data['data_samples']
    feat = feats[head.in_index]
    truth = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    return SeenBatch(
        feats=feats,
        feat=feat,
        embeddings=head.embed(feat),
        cam_logits=head.classifier(feat),
        image_labels=head.require_image_labels(samples).float(),
        truth=truth.to(device=feat.device, dtype=torch.uint8),
    )


def measure_batch(
    head: DSCHead, seen: SeenBatch, ignore_index: int
) -> tuple[dict[str, Tensor], DiagnosedImages]:
    """Measure all that one batch shows.

    Args:
        head: The head, in evaluation mode.
        seen: The batch.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        The measures, to be joined with those of other batches along the first axis, and the maps.
    """
    labels, num_classes = seen.image_labels, head.num_classes
    height, width = seen.feat.shape[2:]
    truth = resize_truth(seen.truth, (height, width))
    cams = normalize_cams(seen.cam_logits, labels)
    groups = head.group(seen.feats, seen.embeddings, seen.cam_logits, labels)
    group_ids = groups.group_ids
    pseudo_labels = head.label_pixels(cams)
    own = head.describe_images(seen.embeddings, seen.cam_logits, labels, groups)
    measured = {
        'valid': own.valid,
        'groups': count_truth_by_slot(group_ids, truth, num_classes, ignore_index),
        'pseudo_labels': count_truth_by_slot(pseudo_labels, truth, num_classes, ignore_index),
        'map_sums': seen.embeddings.double().sum(dim=0, keepdim=True),
        'square_sums': seen.embeddings.double().square().sum(dim=(0, 2, 3))[None],
        'foreground_by_row': measure_rows(group_ids, truth, ignore_index)[None],
        'foreground_by_column': measure_rows(group_ids.mT, truth.mT, ignore_index)[None],
        'loss_cls': classification_loss(seen.cam_logits, labels)[None],
    }
    measured |= measure_pairs(head, own)
    refined = head(seen.feats, labels).cpu() if head.dual_stream else None
    feature_part = None
    if head.has_refined_classifier:
        measured |= measure_reading(head, seen, own, truth, ignore_index)
        measured |= measure_leakage(head, seen)
        feature_part = head.refined_classifier(seen.feat).cpu()
    images = DiagnosedImages(
        plain=seen.cam_logits.cpu(),
        refined=refined,
        feature_part=feature_part,
        image_labels=labels.cpu(),
        truth=seen.truth.cpu(),
        group_ids=group_ids.byte().cpu(),
    )
    return measured, images


def measure_rows(group_ids: Tensor, truth: Tensor, ignore_index: int) -> Tensor:
    """Measure which share of each row is foreground, by mask and by groups, shape (2, h)."""
    judged = truth != ignore_index
    count = judged.sum(dim=(0, 2))
    found = [((ids > 0) & judged).sum(dim=(0, 2)) / count for ids in (truth, group_ids)]
    return torch.stack(found).double()


def measure_pairs(head: DSCHead, own: ImageContext) -> dict[str, Tensor]:
    """Compare the groups, and the nodes with the keys, in training composition."""
    found = {'groups': pair_similarities(own.groups, own.valid, own.groups, own.valid, False)}
    if head.has_graph:
        nodes = join_graph(head, own)
        found['nodes'] = pair_similarities(nodes, own.valid, own.keys, own.key_valid, True)
    return {
        f'{name}_{kind}': values
        for name, pairs in found.items()
        for kind, values in pairs._asdict().items()
    }


def join_graph(head: DSCHead, own: ImageContext) -> Tensor:
    """Make the nodes of a batch whose graph joins all images and the memory."""
    return head.make_nodes(own, see_all(own))


def read_batch(head: DSCHead, own: ImageContext) -> Readable:
    """Collect what the pixels of a batch read, in training composition."""
    nodes = join_graph(head, own)
    return head.make_readable(own, nodes, own, nodes, see_all(own))


def measure_reading(
    head: DSCHead, seen: SeenBatch, own: ImageContext, truth: Tensor, ignore_index: int
) -> dict[str, Tensor]:
    """Measure what pixels read of the groups, and what the classifier makes of it, in training."""
    readable = read_batch(head, own)
    refined = head.refine(seen.feat, seen.embeddings, readable)
    feature_part = head.refined_classifier(seen.feat)
    evidence = {
        'plain': seen.cam_logits,
        'refined': refined,
        'feature': feature_part,
        'enriched': refined - feature_part,
    }
    parts = measure_evidence_parts(evidence['feature'], evidence['enriched'], seen.image_labels)
    attention = attend_groups(seen.embeddings, readable.groups, readable.valid, head.temperature)
    # The slots of all images that are read, summed by class.
    attention = attention.unflatten(1, (-1, head.num_classes)).sum(dim=1)
    is_read = readable.valid.unflatten(1, (-1, head.num_classes)).any(dim=1)
    read = attention.argmax(dim=1)
    return {
        **{f'part_{name}': values for name, values in parts._asdict().items()},
        **{
            f'location_{name}': locate_evidence(maps, seen.image_labels, truth, ignore_index)
            for name, maps in evidence.items()
        },
        'attention': count_truth_by_slot(read, truth, head.num_classes, ignore_index),
        'attention_entropy': attention_entropy(attention, is_read),
    }


def measure_leakage(head: DSCHead, seen: SeenBatch) -> dict[str, Tensor]:
    """Measure how the refined scores follow the labels that the graph was told, in training.

    The graph is told the true labels, those that the head predicts, and those of the next image of
    the batch; the target is always the true labels.
    """
    labels = seen.image_labels
    told_labels = {
        'given': labels,
        'predicted': head.predict_labels(seen.cam_logits).to(labels.dtype),
        'permuted': labels.roll(1, dims=0),
    }
    measured = {}
    for name, told in told_labels.items():
        groups = head.group(seen.feats, seen.embeddings, seen.cam_logits, told)
        context = head.describe_images(seen.embeddings, seen.cam_logits, told, groups)
        refined = head.refine(seen.feat, seen.embeddings, read_batch(head, context))
        sums, counts = sum_scores(refined, labels, told)
        measured[f'loss_refined_{name}'] = classification_loss(refined, labels)[None]
        measured[f'score_sums_{name}'] = sums[None]
        measured[f'score_counts_{name}'] = counts[None]
    sums, counts = sum_scores(seen.cam_logits, labels, labels)
    return measured | {'score_sums_plain': sums[None], 'score_counts_plain': counts[None]}


def join_images(maps: list[DiagnosedImages]) -> DiagnosedImages:
    """Join the maps of all batches."""
    columns: list[Any] = [
        None if column[0] is None else torch.cat(column) for column in zip(*maps, strict=True)
    ]
    return DiagnosedImages(*columns)


def summarize(
    joined: dict[str, Tensor], classes: tuple[str, ...], has_refinement: bool
) -> dict[str, Any]:
    """Turn the measures of all batches into the numbers of the report.

    Args:
        joined: Measures of :func:`measure_batch`, all batches joined.
        classes: Names of the classes, background first.
        has_refinement: Whether the head has a refined classifier.

    Returns:
        The numbers, ready for JSON; ``enriched``, ``attention`` and ``leakage`` are None for a head
        that does not refine.
    """
    valid = joined['valid']
    numbers: dict[str, Any] = {
        'groups': summarize_slots(joined['groups'], valid, classes),
        'pseudo_labels': summarize_slots(joined['pseudo_labels'], valid, classes),
        'similarity': {
            name: {
                kind: summarize_values(joined[f'{name}_{kind}'])
                for kind in PairSimilarities._fields
            }
            for name in ('groups', 'nodes')
            if f'{name}_positives' in joined
        },
        'place': summarize_place(joined),
        'enriched': None,
        'attention': None,
        'leakage': None,
    }
    if has_refinement:
        numbers['enriched'] = summarize_parts(joined)
        numbers['attention'] = summarize_slots(joined['attention'], valid, classes)
        numbers['attention']['entropy'] = mean_known(joined['attention_entropy'])
        numbers['leakage'] = summarize_leakage(joined)
    return numbers


def summarize_slots(counts: Tensor, valid: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Sum up a partition of the pixels of many images.

    Args:
        counts: Numbers of pixels, shape (N, A, A), indexed [image, slot, truth].
        valid: Whether the image has the slot, bool, shape (N, A).
        classes: Names of the slots.

    Returns:
        Mean purity and agreement of the background's and the foreground's slots, and by class with
        IoU, number of slots and share of those without a pixel; mean IoU. Shares in [0, 1] but for
        the IoU, which is in per cent.
    """
    purity, agreement = slot_purity(counts), slot_agreement(counts)
    iou = 100 * per_class_scores(counts.sum(dim=0).T)['IoU']
    empty = ((counts.sum(dim=2) == 0) & valid).double()
    by_class = {
        name: {
            'slots': int(valid[:, slot].sum()),
            'purity': mean_known(purity[:, slot]),
            'agreement': mean_known(agreement[:, slot]),
            'empty': mean_known(empty[valid[:, slot], slot]),
            'iou': known(iou[slot]),
        }
        for slot, name in enumerate(classes)
    }
    return {
        'miou': mean_known(iou),
        'purity': {'background': mean_known(purity[:, 0]), 'foreground': mean_known(purity[:, 1:])},
        'agreement': {
            'background': mean_known(agreement[:, 0]),
            'foreground': mean_known(agreement[:, 1:]),
        },
        'by_class': by_class,
    }


def summarize_place(joined: dict[str, Tensor]) -> dict[str, Any]:
    """Sum up what depends on the place in the image alone."""
    map_sums, square_sums = (joined[name].sum(dim=0) for name in ('map_sums', 'square_sums'))
    share = place_share(map_sums, square_sums, len(joined['valid']))
    place: dict[str, Any] = {'share': known(torch.tensor(share))}
    for axis in ('row', 'column'):
        mask, groups = joined[f'foreground_by_{axis}'].nanmean(dim=0)
        place[f'mask_by_{axis}'] = [known(value) for value in mask]
        place[f'groups_by_{axis}'] = [known(value) for value in groups]
    return place


def summarize_values(values: Tensor) -> dict[str, Any]:
    """Sum up cosine similarities.

    Args:
        values: Similarities in [-1, 1], shape (P,).

    Returns:
        Number, mean, standard deviation and numbers in the bins of ``HISTOGRAM_EDGES``.
    """
    found = values.double().numpy().clip(-1, 1)
    return {
        'pairs': len(found),
        'mean': float(found.mean()) if len(found) else None,
        'std': float(found.std()) if len(found) else None,
        'histogram': np.histogram(found, HISTOGRAM_EDGES)[0].tolist(),
    }


def summarize_parts(joined: dict[str, Tensor]) -> dict[str, Any]:
    """Sum up how much of the refined evidence comes from the enriched pixels."""
    mean = {name: mean_known(joined[f'part_{name}'].abs()) for name in EvidenceParts._fields}
    return {
        **mean,
        'std_ratio': ratio(mean['enriched_std'], mean['feature_std']),
        'mean_ratio': ratio(mean['enriched_mean'], mean['feature_mean']),
        'location': {
            name: mean_known(joined[f'location_{name}'])
            for name in ('plain', 'refined', 'feature', 'enriched')
        },
    }


def summarize_leakage(joined: dict[str, Tensor]) -> dict[str, Any]:
    """Sum up losses and image scores by what the graph was told."""
    leakage: dict[str, Any] = {'loss_cls': mean_known(joined['loss_cls'])}
    for told in ('given', 'predicted', 'permuted'):
        leakage[f'loss_refined_{told}'] = mean_known(joined[f'loss_refined_{told}'])
    for told in ('plain', 'given', 'predicted', 'permuted'):
        means = joined[f'score_sums_{told}'].sum(dim=0) / joined[f'score_counts_{told}'].sum(dim=0)
        leakage[f'scores_{told}'] = {
            'present_told': known(means[1, 1]),
            'present_untold': known(means[1, 0]),
            'absent_told': known(means[0, 1]),
            'absent_untold': known(means[0, 0]),
        }
    return leakage


def compare_areas(
    head: DSCHead, images: DiagnosedImages, classes: tuple[str, ...], ignore_index: int
) -> dict[str, Any]:
    """Judge plain and refined CAMs, and where they differ.

    Args:
        head: The head.
        images: The maps, at inference.
        classes: Names of the classes, background first.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        Mean IoU in per cent and threshold of both, and of the CAMs that either part of the refined
        evidence gives alone; and pixels gained and lost, rightly and wrongly, in per cent of all
        judged pixels, in all and by class. Without refined CAMs the plain ones' alone;
        without a refined classifier the evidence has no parts.
    """
    plain = judge_cams(head, images.plain, images, ignore_index)
    areas: dict[str, Any] = {'plain': {'miou': plain.mean_iou, 'bg_thr': plain.bg_thr}}
    if images.refined is None:
        return areas
    refined = judge_cams(head, images.refined, images, ignore_index)
    changes = count_changes(plain.labels, refined.labels, images.truth, len(classes), ignore_index)
    shares = 100 * changes.double() / (images.truth != ignore_index).sum()
    names = ('gained_right', 'gained_wrong', 'lost_right', 'lost_wrong')
    areas['refined'] = {'miou': refined.mean_iou, 'bg_thr': refined.bg_thr}
    if images.feature_part is not None:
        parts = {'feature_part': images.feature_part}
        parts['enriched_part'] = images.refined - images.feature_part
        for name, part in parts.items():
            judged = judge_cams(head, part, images, ignore_index)
            areas[name] = {'miou': judged.mean_iou, 'bg_thr': judged.bg_thr}
    areas['by_class'] = {
        name: dict(zip(names, row, strict=True))
        for name, row in zip(classes, shares.tolist(), strict=True)
    }
    areas['foreground'] = dict(zip(names, shares[1:].sum(dim=0).tolist(), strict=True))
    areas['mended'], areas['spoiled'] = (float(shares[:, column].sum()) for column in (0, 3))
    return areas


def judge_cams(
    head: DSCHead, evidence: Tensor, images: DiagnosedImages, ignore_index: int
) -> JudgedCAMs:
    """Label all images at the threshold that is best on them.

    Args:
        head: The head, which says how evidence is resized and normalised.
        evidence: Class evidence, unbounded, shape (N, K, h, w).
        images: Truth and labels.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        The labels and their scores.
    """
    thresholds = sweep_thresholds()
    counted = CountedImages(
        [
            count_pixels(cams[0], truth, thresholds, ignore_index)
            for cams, truth in zip(make_cams(head, evidence, images), images.truth, strict=True)
        ],
        'given',
        head.num_classes,
    )
    mean_iou = per_class_scores(counted.confusions())['IoU'].nanmean(dim=1)
    place = int(mean_iou.argmax())
    bg_thr = round(float(thresholds[place]), 6)
    labels = [make_pseudo_labels(cams, bg_thr).byte() for cams in make_cams(head, evidence, images)]
    return JudgedCAMs(
        torch.cat(labels), bg_thr, 100 * float(mean_iou[place]), counted.image_iou(place)
    )


def make_cams(head: DSCHead, evidence: Tensor, images: DiagnosedImages) -> Iterator[Tensor]:
    """Make the CAMs of one image after the other, at the size of its mask, shape (1, K, H, W)."""
    height, width = images.truth.shape[1:]
    for maps, labels in zip(evidence, images.image_labels, strict=True):
        resized = resize_maps(maps[None], (height, width), head.align_corners)
        yield NORMALIZATIONS[head.normalization](resized, labels[None])


def mean_known(values: Tensor) -> float | None:
    """Average what is not NaN; None where nothing is."""
    return known(values.double().nanmean())


def known(value: Tensor) -> float | None:
    """Make a number of a scalar; None of NaN, which JSON does not know."""
    return None if value.isnan() else float(value)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Divide, where there is something to divide by."""
    return None if numerator is None or not denominator else numerator / denominator


def show_changes(
    head: DSCHead,
    dataset: BaseSegDataset,
    indices: list[int],
    images: DiagnosedImages,
    num_each: int,
) -> list[ChangeRow]:
    """Show the images that refining has harmed most, and those that it has helped most.

    Args:
        head: The head.
        dataset: The images.
        indices: Which of them were diagnosed.
        images: Their maps.
        num_each: Number of images of either kind.

    Returns:
        Rows, from the most harmed to the most helped; for a head that does not refine from the
        worst to the best.
    """
    ignore = dataset.ignore_index
    truth = images.truth.masked_fill(images.truth == ignore, VOID_ID)
    plain = judge_cams(head, images.plain, images, ignore)
    refined, change, kinds = None, plain.image_iou, None
    if images.refined is not None:
        refined = judge_cams(head, images.refined, images, ignore)
        change = refined.image_iou - plain.image_iou
        kinds = paint_changes(plain.labels, refined.labels, truth)
    paths = [dataset.get_data_info(index)['img_path'] for index in indices]
    # An image of void alone has no IoU and shows nothing.
    order = [int(place) for place in np.argsort(change) if not np.isnan(change[place])]
    shown = order if len(order) <= 2 * num_each else order[:num_each] + order[-num_each:]
    return [
        ChangeRow(
            title=Path(paths[place]).name,
            image=read_rgb(paths[place]),
            truth=truth[place].numpy(),
            groups=images.group_ids[place].numpy(),
            plain=plain.labels[place].numpy(),
            refined=None if refined is None else refined.labels[place].numpy(),
            changes=None if kinds is None else kinds[place].numpy(),
            note=describe_change(plain, refined, place),
        )
        for place in shown
    ]


def describe_change(plain: JudgedCAMs, refined: JudgedCAMs | None, place: int) -> str:
    """Say in words how the IoU of an image has changed."""
    text = f'IoU {plain.image_iou[place]:.1f} %'
    return text if refined is None else f'{text} to {refined.image_iou[place]:.1f} %'
