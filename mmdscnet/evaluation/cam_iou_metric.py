"""mIoU of class activation maps at every background threshold."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor

from mmdscnet.atomic_write import atomic_path
from mmdscnet.evaluation.dataset_classes import read_classes
from mmdscnet.evaluation.threshold_sweep import (
    count_pixels,
    per_class_scores,
    sum_confusions,
    sweep_thresholds,
)

# How far a map that was resized or averaged in low precision may leave [0, 1].
CAM_TOLERANCE = 1e-3


@METRICS.register_module()
class CAMIoUMetric(BaseMetric):
    """Mean IoU of CAMs at the background thresholds 0, 0.01, ..., 0.99, from one pass.

    A pixel is the class of its strongest cam if that lies strictly above the threshold, else
    background; the result equals an evaluation of its own at each threshold, to the pixel.

    A threshold chosen by truth flatters the split it was chosen on: choose it on one
    (``best_bg_thr``) and give it (``bg_thr``) on another.

    Results carry the name of their mode. ``labels_given/``: every sample has ``gt_image_label``,
    so its absent classes were masked (the protocol of the papers on training images);
    ``labels_predicted/``: none has. Then, in per cent with two decimals: ``best_mIoU``,
    ``best_mPrecision``, ``best_mRecall`` at ``best_bg_thr``, and with ``bg_thr`` also ``mIoU``,
    ``mPrecision``, ``mRecall`` at it. Of equal thresholds the lowest is the best.

    As in mmseg's ``IoUMetric``, means skip what is undefined: a class that occurs neither in truth
    nor in prediction is not in mIoU, one that is only predicted counts as 0.

    Args:
        bg_thr: Background threshold in [0, 1) that was chosen elsewhere, reported beside the
            best one of this split.
        ignore_index: Truth id of the pixels that count nowhere.
        curve_path: JSON file for the whole curve (``labels``, ``num_images``, ``thresholds``,
            ``mIoU`` in per cent, ``best_bg_thr``, ``best_mIoU``), replaced by each evaluation.
        collect_device: Where ranks exchange results, 'cpu' or 'gpu'.
        prefix: Put before the names of the results, for two metrics in one evaluation.

    Raises:
        ValueError: If ``bg_thr`` is outside [0, 1).
    """

    # Not None: mmengine warns about a metric without prefix, and the mode is this one's.
    default_prefix = ''

    def __init__(
        self,
        bg_thr: float | None = None,
        ignore_index: int = 255,
        curve_path: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if bg_thr is not None and not 0 <= bg_thr < 1:
            raise ValueError(
                f'bg_thr={bg_thr!r} is not in [0, 1), where cams live: give a threshold such as '
                'the best_bg_thr of another split, or None for the sweep alone'
            )
        self.bg_thr = bg_thr
        self.ignore_index = ignore_index
        self.curve_path = curve_path

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            data_batch: Unused.
            data_samples: Outputs of the model as dicts: ``seg_logits`` with data (C, H, W), cams
                in [0, 1] from channel 1 on; ``gt_sem_seg`` with data (1, H, W).

        Raises:
            ValueError: If cams or truth are missing or do not fit each other or the classes.
        """
        thresholds = sweep_thresholds(self.bg_thr)
        for sample in data_samples:
            cams, truth = self._checked_maps(sample)
            cells, numbers = count_pixels(cams, truth, thresholds, self.ignore_index)
            self.results.append(
                {
                    'image': _path_of(sample, 'img_path'),
                    'labels_given': 'gt_image_label' in sample,
                    'cells': cells,
                    'numbers': numbers,
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Sweep the thresholds over the counts of all images, and log curve and class table.

        Args:
            results: What :meth:`process` appended, one dict an image.

        Returns:
            The results named in the class docstring.

        Raises:
            ValueError: If there is no image or no judged pixel, or if only a part of the images
                has image-level labels.
        """
        mode = _mode_of(results)
        thresholds = sweep_thresholds(self.bg_thr)
        counts = ((result['cells'], result['numbers']) for result in results)
        confusions = sum_confusions(counts, len(thresholds), len(self._classes))
        if not confusions.any():
            raise ValueError(
                f'no pixel to judge: every truth pixel of all {len(results)} images is '
                f'ignore_index={self.ignore_index}; check ignore_index and the seg_map folder'
            )
        scores = {name: 100 * of_class for name, of_class in per_class_scores(confusions).items()}
        # A given threshold between two of the sweep must not become the best of the sweep.
        swept = torch.isin(thresholds, sweep_thresholds()).nonzero().squeeze(1)
        curve = scores['IoU'][swept].nanmean(dim=1)
        best = int(curve.argmax())
        metrics = _means(scores, int(swept[best]), 'best_')
        metrics['best_bg_thr'] = best / 100
        reported = int(swept[best])
        if self.bg_thr is not None:
            reported = int(torch.searchsorted(thresholds, torch.tensor(self.bg_thr)))
            metrics |= _means(scores, reported, '') | {'bg_thr': float(self.bg_thr)}
        self._log(mode, curve, metrics, {name: s[reported] for name, s in scores.items()})
        if self.curve_path is not None:
            self._write_curve(mode, len(results), curve, metrics)
        return {f'{mode}/{name}': value for name, value in metrics.items()}

    @property
    def _classes(self) -> Sequence[str]:
        return read_classes(self.dataset_meta)

    def _checked_maps(self, sample: dict) -> tuple[Tensor, Tensor]:
        image, seg_map = _path_of(sample, 'img_path'), _path_of(sample, 'seg_map_path')
        if 'seg_logits' not in sample:
            raise ValueError(
                f'{image}: the output has no seg_logits, so no cams to judge; use a model with a '
                'CAM head (a stock SegTTAModel keeps label maps only)'
            )
        if 'gt_sem_seg' not in sample:
            raise ValueError(
                f'{image}: no truth (gt_sem_seg) to judge by; add LoadAnnotations to the test '
                'pipeline, or take CAMIoUMetric out for a split without masks'
            )
        cams, truth = sample['seg_logits']['data'][1:], sample['gt_sem_seg']['data'].squeeze(0)
        num_classes = len(self._classes)
        if len(cams) != num_classes - 1:
            raise ValueError(
                f'{image}: {len(cams)} cam channels, but the data set has {num_classes} classes, '
                f'{num_classes - 1} of them foreground; set decode_head.num_classes={num_classes} '
                'or give the classes the model was trained on'
            )
        if cams.shape[1:] != truth.shape:
            raise ValueError(
                f'{seg_map}: truth is {_size(truth)} pixels, but the cams of {image} are '
                f'{_size(cams)}; give the mask of this very image, and place LoadAnnotations '
                'after Resize in the test pipeline'
            )
        self._check_values(cams, truth, image, seg_map)
        return cams, truth

    def _check_values(self, cams: Tensor, truth: Tensor, image: str, seg_map: str) -> None:
        low, high = float(cams.min()), float(cams.max())
        # Written so that NaN fails too.
        if not (low >= -CAM_TOLERANCE and high <= 1 + CAM_TOLERANCE):
            raise ValueError(
                f'{image}: cams run from {low:.4g} to {high:.4g}, not within [0, 1]; '
                'seg_logits[1:] must be normalised cams (if NaN: training has diverged)'
            )
        ids = truth.unique()
        outside = ids[(ids != self.ignore_index) & ((ids < 0) | (ids >= len(self._classes)))]
        if len(outside):
            raise ValueError(
                f'{seg_map}: truth ids {outside.tolist()} are outside the {len(self._classes)} '
                f'classes and are not ignore_index={self.ignore_index}; give the masks of these '
                'classes, or map the ids (metainfo classes, reduce_zero_label)'
            )

    def _log(
        self, mode: str, curve: Tensor, metrics: dict[str, float], of_class: dict[str, Tensor]
    ) -> None:
        points = '  '.join(f'{i / 100:.2f}: {curve[i]:.2f}' for i in range(0, len(curve), 5))
        print_log(f'{mode}: mIoU (%) over bg_thr: {points}', 'current')
        best_bg_thr = metrics['best_bg_thr']
        print_log(
            f'{mode}: best mIoU {metrics["best_mIoU"]:.2f} at best_bg_thr={best_bg_thr}, which was '
            f'chosen on this very split: use it with bg_thr={best_bg_thr} on another split',
            'current',
        )
        table = PrettyTable()
        table.add_column('Class', list(self._classes))
        for name, values in of_class.items():
            table.add_column(name, [round(value, 2) for value in values.tolist()])
        where = metrics.get('bg_thr', best_bg_thr)
        means = f'mIoU {metrics.get("mIoU", metrics["best_mIoU"]):.2f}'
        print_log(f'{mode}: per class results at bg_thr={where}, {means}:\n{table}', 'current')

    def _write_curve(
        self, mode: str, num_images: int, curve: Tensor, metrics: dict[str, float]
    ) -> None:
        content = {
            'labels': mode.removeprefix('labels_'),
            'num_images': num_images,
            'thresholds': [i / 100 for i in range(len(curve))],
            'mIoU': curve.tolist(),
            'best_bg_thr': metrics['best_bg_thr'],
            'best_mIoU': metrics['best_mIoU'],
        }
        with atomic_path(str(self.curve_path)) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding='utf-8')


def _mode_of(results: list[dict]) -> str:
    if not results:
        raise ValueError(
            'no image was evaluated: the evaluated split is empty; check ann_file and data_root '
            'of its data loader'
        )
    first_of_mode = {result['labels_given']: result['image'] for result in reversed(results)}
    if len(first_of_mode) == 2:
        raise ValueError(
            f'{first_of_mode[True]} has image-level labels (gt_image_label) and '
            f'{first_of_mode[False]} has none: scores with labels given and predicted must not be '
            'mixed; give labels for every image of the split or for none, and for both numbers '
            'evaluate twice'
        )
    return 'labels_given' if True in first_of_mode else 'labels_predicted'


def _means(scores: dict[str, Tensor], index: int, prefix: str) -> dict[str, float]:
    means = {name: float(of_class[index].nanmean()) for name, of_class in scores.items()}
    return {f'{prefix}m{name}': round(mean, 2) for name, mean in means.items()}


def _path_of(sample: dict, key: str) -> str:
    return str(sample.get(key) or sample.get('img_path') or 'a sample without img_path')


def _size(maps: Tensor) -> str:
    return f'{maps.shape[-2]}x{maps.shape[-1]}'
