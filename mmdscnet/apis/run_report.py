"""What the report of a run is made of: how its CAMs do, and its worst images in all their maps."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar
from mmseg.datasets import BaseSegDataset
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmdscnet.evaluation import CAMIoUMetric, LabelScores, score_labels
from mmdscnet.evaluation.threshold_sweep import per_class_scores, sum_confusions, sweep_thresholds
from mmdscnet.models.decode_heads import CAMHead, DSCHead
from mmdscnet.models.segmentors import SEAM
from mmdscnet.models.segmentors.cam_tta_model import refines_cams
from mmdscnet.pseudo_labels import CAMs, PseudoLabeler
from mmdscnet.visualization import CAMGridRow, GalleryItem


class CountedImages(NamedTuple):
    """The pixels of a split, counted at all thresholds.

    Attributes:
        counts: What :func:`count_pixels` gave for each image, in the order of the data set.
        labels: ``given`` or ``predicted``.
        num_classes: Number of classes, background included, C.
    """

    counts: list[tuple[Tensor, Tensor]]
    labels: str
    num_classes: int

    def confusions(self) -> Tensor:
        """Sum up all images.

        Returns:
            Numbers of pixels, int64, shape (T, C, C), indexed [threshold, truth, prediction].
        """
        return sum_confusions(self.counts, len(sweep_thresholds()), self.num_classes)

    def image_iou(self, place: int) -> np.ndarray:
        """Score each image by itself.

        Args:
            place: Which threshold, as an index.

        Returns:
            Mean IoU over the classes in truth or label of the image, in per cent, NaN for an image
            without a judged pixel; float64, shape (N,).
        """
        num_thresholds = len(sweep_thresholds())
        iou = [
            per_class_scores(sum_confusions([count], num_thresholds, self.num_classes)[place])
            for count in self.counts
        ]
        return 100 * np.array([float(scores['IoU'].nanmean()) for scores in iou])


class RunScores(NamedTuple):
    """How the CAMs of a run do on the images on which it is judged.

    Attributes:
        thresholds: Ascending background thresholds, shape (T,).
        mean_iou: Mean IoU at each in per cent, shape (T,).
        bg_thr: Threshold that is best on the other split, the lowest of equal ones.
        scores: Scores of the classes at ``bg_thr``.
        image_iou: Of each image at ``bg_thr``, as :meth:`CountedImages.image_iou`, shape (N,).
    """

    thresholds: np.ndarray
    mean_iou: np.ndarray
    bg_thr: float
    scores: LabelScores
    image_iou: np.ndarray


def build_judged_split(cfg: Config, split: str, labels: str) -> BaseSegDataset:
    """Build the images of ``val_dataloader`` or ``test_dataloader``.

    Args:
        cfg: The config.
        split: ``val`` or ``test``.
        labels: ``given``, where the data set has image-level labels, or ``predicted``.

    Returns:
        The data set, whose first image has a mask.

    Raises:
        ValueError: If the config names no such images, or they have no masks.
    """
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise ValueError(
            f'the config has no {split}_dataloader: the threshold is chosen on val_dataloader and '
            'judged on test_dataloader, so name images with masks in both'
        )
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset = loader.dataset.copy()
    # Other data sets do not know the argument.
    if labels == 'predicted' and 'image_labels' in dataset:
        dataset.image_labels = None
    built = DATASETS.build(dataset)
    if len(built) == 0:
        raise ValueError(f'{split}_dataloader has no image: check its ann_file and data_root')
    if 'gt_sem_seg' not in built[0]['data_samples']:
        raise ValueError(
            f'the images of {split}_dataloader come without masks, and nothing can be judged: name '
            'data_prefix.seg_map_path, load the masks in the pipeline (LoadCheckedMask), or point '
            'it to a split that has masks'
        )
    return built


def require_cam_model(model: nn.Module) -> EncoderDecoder:
    """Refuse a model without CAMs.

    Args:
        model: The model.

    Returns:
        The model.

    Raises:
        ValueError: If it has no ``CAMHead``.
    """
    head = getattr(model, 'decode_head', None)
    if not (isinstance(model, EncoderDecoder) and isinstance(head, CAMHead)):
        found = type(model).__name__ if head is None else type(head).__name__
        raise ValueError(
            f'a report shows CAMs, and the model has {found}: give a run of EncoderDecoder or SEAM '
            'with a CAMHead or DSCHead'
        )
    return model


def count_images(model: EncoderDecoder, dataset: BaseSegDataset, num_workers: int) -> CountedImages:
    """Run a model over images and count their pixels at all thresholds.

    The CAMs are those that ``tools/test.py`` judges, in the one view of the data set's pipeline.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        dataset: Images with masks.
        num_workers: Processes that read images; 0 to read in the calling one.

    Returns:
        The counts.

    Raises:
        ValueError: If CAMs and truth do not fit each other or the classes, only a part of the
            images has image-level labels, or there is no pixel to judge.
    """
    metric = CAMIoUMetric(ignore_index=dataset.ignore_index)
    metric.dataset_meta = dataset.metainfo
    loader: DataLoader = DataLoader(
        dataset, num_workers=num_workers, collate_fn=pseudo_collate, generator=torch.Generator()
    )
    progress = ProgressBar(len(dataset), file=sys.stderr)
    for batch in loader:
        metric.process(None, [predict(model, batch).to_dict()])
        progress.update()
    print(file=sys.stderr)
    given = {result['labels_given'] for result in metric.results}
    if len(given) == 2:
        raise ValueError(
            'some images have image-level labels (gt_image_label) and some have none: give labels '
            "for every image of a split, or let the labels be 'predicted'"
        )
    counts = [(result['cells'], result['numbers']) for result in metric.results]
    if not any(len(cells) for cells, _ in counts):
        raise ValueError(
            f'no pixel to judge: every truth pixel of all {len(counts)} images is '
            f'ignore_index={dataset.ignore_index}; check the masks'
        )
    labels = 'given' if given == {True} else 'predicted'
    return CountedImages(counts, labels, len(dataset.metainfo['classes']))


def score_run(chosen_on: CountedImages, judged: CountedImages) -> RunScores:
    """Choose the threshold on one split and judge another at it.

    Args:
        chosen_on: Where the threshold is chosen.
        judged: What is judged.

    Returns:
        The scores.
    """
    place = int(per_class_scores(chosen_on.confusions())['IoU'].nanmean(dim=1).argmax())
    confusions = judged.confusions()
    # The last column is for void, which CAMs at a threshold never say.
    confusion = np.pad(confusions[place].numpy(), ((0, 0), (0, 1)))
    thresholds = np.arange(len(confusions)) / len(confusions)
    return RunScores(
        thresholds=thresholds,
        mean_iou=100 * per_class_scores(confusions)['IoU'].nanmean(dim=1).numpy(),
        bg_thr=float(thresholds[place]),
        scores=score_labels(confusion, len(judged.counts)),
        image_iou=judged.image_iou(place),
    )


def show_images(
    model: EncoderDecoder, dataset: BaseSegDataset, indices: Sequence[int], scores: RunScores
) -> Iterator[GalleryItem]:
    """Make all maps of images, one image at a time.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        dataset: The judged images.
        indices: Which of them.
        scores: Their IoU and the threshold.

    Yields:
        Image, CAMs, those of a model that refines them, groups of a ``DSCHead``, pseudo label and
        truth.
    """
    labeler = PseudoLabeler(bg_thr=scores.bg_thr)
    progress = ProgressBar(len(indices), file=sys.stderr)
    for index in indices:
        row = show_image(model, dataset[index], labeler, dataset.ignore_index)
        yield GalleryItem(row, float(scores.image_iou[index]))
        progress.update()
    print(file=sys.stderr)


def show_image(
    model: EncoderDecoder, item: dict[str, Any], labeler: PseudoLabeler, ignore_index: int = 255
) -> CAMGridRow:
    """Make all maps of an image.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        item: Item of a data set, with its mask.
        labeler: From the CAMs that the model exports to its pseudo label.
        ignore_index: Truth id of the pixels that count nowhere.

    Returns:
        The maps, at the size of the image.
    """
    batch = pseudo_collate([item])
    sample = predict(model, batch)
    truth = sample.gt_sem_seg.data[0].cpu().numpy()
    best = read_cams(sample)
    plain = read_cams(predict(model, batch, refine=False)) if refines_cams(model) else best
    present = np.flatnonzero(best.max(axis=(1, 2)))
    # The pipeline may have resized the image, and it is in BGR.
    pixels = np.ascontiguousarray(item['inputs'].numpy()[::-1].transpose(1, 2, 0))
    return CAMGridRow(
        image=mmcv.imresize(pixels, truth.shape[::-1]),
        cams=plain,
        refined_cams=best if refines_cams(model) else None,
        pseudo_label=labeler.label(CAMs(best[present], (1 + present).astype(np.uint8))),
        truth=np.where(truth == ignore_index, 255, truth).astype(np.uint8),
        title=Path(sample.img_path).name,
        groups=group_image(model, batch, truth.shape),
    )


def read_cams(sample: SegDataSample) -> np.ndarray:
    """Take the CAMs out of what a model predicted, shape (K, H, W)."""
    return sample.seg_logits.data[1:].float().clamp(0, 1).cpu().numpy()


@torch.no_grad()
def predict(model: EncoderDecoder, batch: dict[str, Any], refine: bool = True) -> SegDataSample:
    """Predict one image.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        batch: Batch of this image.
        refine: Whether the CAMs are those that the model exports, or those of the plain
            classifier.

    Returns:
        The sample with the prediction.
    """
    kept = model.test_cfg
    try:
        if not refine:
            model.test_cfg = ConfigDict(kept, refine=False)
        return model.test_step(batch)[0]
    finally:
        model.test_cfg = kept


@torch.no_grad()
def group_image(
    model: EncoderDecoder, batch: dict[str, Any], size: tuple[int, int]
) -> np.ndarray | None:
    """Group the pixels of an image as a ``DSCHead`` does.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        batch: Batch of this image.
        size: Height and width of the result.

    Returns:
        Class id of each pixel's group, 0 for the background's, uint8, shape (H, W); None for a
        head without groups.
    """
    head = model.decode_head
    if not isinstance(head, DSCHead):
        return None
    data = model.data_preprocessor(batch, training=False)
    feats = model.extract_feat(data['inputs'])
    feat = feats[head.in_index]
    cam_logits = head.classifier(feat)
    image_labels = head.stack_image_labels([sample.metainfo for sample in data['data_samples']])
    if image_labels is None:
        image_labels = head.predict_labels(cam_logits)
    seeds = cam_logits
    if head.reads_classes and isinstance(model, SEAM):
        seeds = model.revise(data['inputs'], feats, cam_logits)
    groups = head.group(feats, head.embed(feat), seeds, image_labels).group_ids
    resized = F.interpolate(groups[:, None].float(), size, mode='nearest-exact')
    return resized[0, 0].cpu().numpy().astype(np.uint8)
