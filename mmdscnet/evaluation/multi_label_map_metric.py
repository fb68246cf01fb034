"""Mean average precision of the image-level classifier behind the CAMs."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS
from prettytable import PrettyTable

from mmdscnet.evaluation.dataset_classes import read_classes

_REQUIRED = ('mmpretrain', 'torchvision')


@METRICS.register_module()
class MultiLabelMAPMetric(BaseMetric):
    """Judge how well the classifier knows which classes an image has.

    The scores are those of the plain classifier, which ``ImageScoresHook`` hands over; no label
    takes part in them. The truth of an image is its ``gt_image_label``, and without one the classes
    in its mask. An image with neither is left out.

    Results, in per cent: ``mAP``, the mean over the classes that occur in the truth; nothing where
    no class does. The log has the average precision of each class, as mmpretrain computes it. Among
    images of equal score those without the class come first, so that equal scores earn nothing and
    the order of the images does not matter.

    Args:
        ignore_index: Id of the mask's pixels that count nowhere.
        collect_device: Where ranks exchange results, 'cpu' or 'gpu'.
        prefix: Put before the names of the results.

    Raises:
        ImportError: If mmpretrain or its torchvision is not installed.
    """

    default_prefix = 'classifier'

    def __init__(
        self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f'MultiLabelMAPMetric needs {" and ".join(missing)}: install what '
                'requirements/lite.txt (of the forks: onedl.txt) names, torchvision from the index '
                'that torch came from, or judge without it, by '
                '--cfg-options default_hooks.image_scores.metric=None'
            )
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep scores and truth of a batch.

        Args:
            data_batch: Unused.
            data_samples: Outputs of the model as dicts: ``pred_image_scores``, unbounded, shape
                (K,); ``gt_image_label``, shape (K,), or ``gt_sem_seg`` with data (1, H, W).

        Raises:
            ValueError: If scores are missing or not finite, or do not fit the classes, or these
                are not known.
        """
        for sample in data_samples:
            scores = self._checked_scores(sample)
            # One entry an image, also without truth: ranks drop their padding by counting.
            self.results.append((scores, self._find_truth(sample, len(scores))))

    def compute_metrics(self, results: list[tuple[np.ndarray, np.ndarray | None]]) -> dict:
        """Average the precision over the classes, and log the table.

        Args:
            results: What :meth:`process` appended, a pair an image.

        Returns:
            The results named in the class docstring.
        """
        judged = [(scores, truth) for scores, truth in results if truth is not None]
        truth = np.array([truth for _, truth in judged])
        if not truth.any():
            print_log(
                f'no mAP of the classifier: of {len(results)} images none is known to have a '
                'class. Give the data set image_labels or masks',
                'current',
                logging.WARNING,
            )
            return {}
        precision = average_precision(np.array([scores for scores, _ in judged]), truth)
        mean = round(float(np.nanmean(precision)), 2)
        self._log(precision, truth, mean, len(results))
        return dict(mAP=mean)

    def _checked_scores(self, sample: dict) -> np.ndarray:
        image, scores = sample.get('img_path', 'an image'), sample.get('pred_image_scores')
        if scores is None:
            raise ValueError(
                f'{image}: the output has no pred_image_scores: add '
                "dict(type='ImageScoresHook') to custom_hooks, and use a model with a CAM head"
            )
        expected = len(self._classes)
        if len(scores) != expected:
            raise ValueError(
                f'{image}: scores of {len(scores)} classes, but the data set has {expected} '
                f'without background: set decode_head.num_classes={expected + 1}'
            )
        if not np.isfinite(scores).all():
            raise ValueError(
                f'{image}: image scores are {scores}, not finite: the training has diverged, or '
                'half precision is too narrow for this model'
            )
        return np.asarray(scores)

    def _find_truth(self, sample: dict, num_foreground: int) -> np.ndarray | None:
        label = sample.get('gt_image_label')
        if label is not None:
            return np.asarray(label) > 0
        if 'gt_sem_seg' not in sample:
            return None
        ids = sample['gt_sem_seg']['data'].unique().cpu().numpy()
        return np.isin(np.arange(1, num_foreground + 1), ids[ids != self.ignore_index])

    @property
    def _classes(self) -> Sequence[str]:
        return read_classes(self.dataset_meta)[1:]

    def _log(self, precision: np.ndarray, truth: np.ndarray, mean: float, images: int) -> None:
        table = PrettyTable()
        table.add_column('Class', list(self._classes))
        table.add_column('Images', truth.sum(axis=0).tolist())
        table.add_column('AP', [round(value, 2) for value in precision.tolist()])
        left_out = images - len(truth)
        print_log(
            f'classifier: mAP {mean:.2f} over {truth.any(axis=0).sum()} classes and {len(truth)} '
            f'images ({left_out} without truth left out):\n{table}',
            'current',
        )


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the average precision of each class by mmpretrain.

    Args:
        scores: Image scores, shape (N, K).
        truth: Which classes the images have, bool, shape (N, K).

    Returns:
        In per cent, NaN for a class that no image has, float64, shape (K,).
    """
    # Importing it takes seconds, and only judging needs it.
    from mmpretrain.evaluation import AveragePrecision

    precision = AveragePrecision.calculate(
        torch.from_numpy(rank_images(scores, truth)).double(),
        torch.from_numpy(truth).long(),
        average=None,
    )
    return np.where(truth.any(axis=0), precision.numpy(), np.nan)


def rank_images(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank the images for each class, with the worse outcome where scores are equal.

    Args:
        scores: Image scores, shape (N, K).
        truth: Which classes the images have, bool, shape (N, K).

    Returns:
        Ranks from 0, the highest score last, int64, shape (N, K); all different within a class, and
        images that have it before images of equal score that do not.
    """
    order = np.lexsort((~truth, scores), axis=0)
    return order.argsort(axis=0)
