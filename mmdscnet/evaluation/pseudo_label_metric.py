"""mIoU of pseudo labels as they will be trained with: after CRF, ignore band and all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.evaluation.label_folder import count_labels, score_labels
from mmdscnet.pseudo_labels import CAMs, PseudoLabeler


@METRICS.register_module()
class PseudoLabelMetric(BaseMetric):
    """Judge the label maps that a :class:`PseudoLabeler` makes of CAMs.

    Where ``CAMIoUMetric`` judges CAMs at every threshold, this judges the labels at one, made by
    the very rules of ``tools/export_pseudo_labels.py``. A void pixel counts as wrong, and
    ``coverage`` says how many are not.

    Results, in per cent: ``mIoU``, ``mPrecision``, ``mRecall``, ``coverage``.

    Args:
        labeler: Settings of the labeler; by default its own.
        ignore_index: Truth id of the pixels that count nowhere.
        collect_device: Where ranks exchange results, 'cpu' or 'gpu'.
        prefix: Put before the names of the results.
    """

    default_prefix = 'pseudo_labels'

    def __init__(
        self,
        labeler: Mapping[str, Any] | None = None,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.labeler = PseudoLabeler(**(labeler or {}))
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Label the images of a batch and count their pixels.

        Args:
            data_batch: Unused.
            data_samples: Outputs of the model as dicts: ``seg_logits`` with data (C, H, W), CAMs in
                [0, 1] from channel 1 on; ``gt_sem_seg`` with data (1, H, W).

        Raises:
            ValueError: If an image has no CAMs or no truth, or they do not fit.
        """
        for sample in data_samples:
            path = sample.get('img_path', 'an image')
            if 'seg_logits' not in sample or 'gt_sem_seg' not in sample:
                raise ValueError(
                    f'{path}: no CAMs (seg_logits) or no truth (gt_sem_seg) to judge by: use a '
                    'model with a CAM head and a data set with masks'
                )
            scores = sample['seg_logits']['data'].float().cpu().numpy()
            truth = sample['gt_sem_seg']['data'][0].cpu().numpy().astype(np.uint8)
            image = read_rgb(path) if self.labeler.needs_image else None
            labels = self.labeler.label(present_cams(scores[1:], sample), image)
            self.results.append(count_labels(labels, truth, len(scores), self.ignore_index))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Score the pixels of all images.

        Args:
            results: What :meth:`process` appended.

        Returns:
            The results named in the class docstring.
        """
        scores = score_labels(np.sum(results, axis=0), len(results))
        return dict(
            mIoU=scores.mean_iou,
            mPrecision=scores.mean_precision,
            mRecall=scores.mean_recall,
            coverage=100 * scores.coverage,
        )


def present_cams(cams: np.ndarray, sample: Mapping[str, Any]) -> CAMs:
    """Choose the CAMs of the classes that an image has.

    Args:
        cams: CAMs of all classes, shape (K, H, W).
        sample: Output of the model; ``gt_image_label`` or ``pred_image_label`` where it has one.

    Returns:
        The CAMs of its classes; without a label those of all classes with any CAM.
    """
    label = sample.get('gt_image_label', sample.get('pred_image_label'))
    present = cams.any(axis=(1, 2)) if label is None else np.asarray(label) > 0
    return CAMs(cams[present], (1 + np.flatnonzero(present)).astype(np.uint8))
