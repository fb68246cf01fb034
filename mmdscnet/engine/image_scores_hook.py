"""The image scores of the classifier reach the metrics."""

from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import HOOKS, METRICS
from mmseg.structures import SegDataSample
from torch.utils.hooks import RemovableHandle

from mmdscnet.models.decode_heads import CAMHead


@HOOKS.register_module()
class ImageScoresHook(Hook):
    """Give every output of a validation or test the image scores of its CAM head.

    A head hands nothing but maps to mmseg's ``EncoderDecoder``, and the maps are masked by labels.
    This hook adds ``pred_image_scores`` to the meta information of the outputs: what the plain
    classifier said before any label came in. ``CAMTTAModel`` averages them over the views of an
    image. Outside of validation and test the model is left as it was.

    Args:
        metric: Config of a metric that judges beside ``val_evaluator`` and ``test_evaluator``,
            which can so stay what ``--cfg-options test_evaluator.bg_thr=...`` expects, a single
            metric; None adds none.
    """

    def __init__(self, metric: dict | None = None) -> None:
        self.metric = METRICS.build(metric) if metric else None
        self.handles: list[RemovableHandle] = []

    def before_val(self, runner: Runner) -> None:
        """Begin with the validation.

        Args:
            runner: The runner.

        Raises:
            ValueError: If the model has no ``CAMHead``.
        """
        self.begin(runner, runner.val_loop.evaluator)

    def before_test(self, runner: Runner) -> None:
        """Begin with the test.

        Args:
            runner: The runner.

        Raises:
            ValueError: If the model has no ``CAMHead``.
        """
        self.begin(runner, runner.test_loop.evaluator)

    def after_val(self, runner: Runner) -> None:
        """End with the validation.

        Args:
            runner: The runner.
        """
        self.end(runner.val_loop.evaluator)

    def after_test(self, runner: Runner) -> None:
        """End with the test.

        Args:
            runner: The runner.
        """
        self.end(runner.test_loop.evaluator)

    def begin(self, runner: Runner, evaluator: Evaluator) -> None:
        """Attach scores to what the model gives from now on, and add the metric.

        Args:
            runner: The runner.
            evaluator: What judges.

        Raises:
            ValueError: If the model has no ``CAMHead``.
        """
        # What an interrupted evaluation left.
        self.end(evaluator)
        segmentors = [
            module
            for module in runner.model.modules()
            if isinstance(getattr(module, 'decode_head', None), CAMHead)
        ]
        if not segmentors:
            raise ValueError(
                'ImageScoresHook finds no CAMHead in the model: take the hook out of default_hooks '
                'or custom_hooks, or use type="CAMHead" or "DSCHead" as decode_head'
            )
        self.handles = [one.register_forward_hook(attach_scores) for one in segmentors]
        if self.metric is not None:
            self.metric.results.clear()
            self.metric.dataset_meta = evaluator.dataset_meta
            evaluator.metrics.append(self.metric)

    def end(self, evaluator: Evaluator) -> None:
        """Undo :meth:`begin`.

        Args:
            evaluator: What judged.
        """
        for handle in self.handles:
            handle.remove()
        self.handles = []
        evaluator.metrics = [metric for metric in evaluator.metrics if metric is not self.metric]


def attach_scores(
    segmentor: EncoderDecoder, inputs: Any, data_samples: list[SegDataSample]
) -> None:
    """Write the image scores of a prediction into its samples.

    Args:
        segmentor: What predicted, with a ``CAMHead``.
        inputs: Not used.
        data_samples: The prediction; receives ``pred_image_scores``, unbounded, shape (K,).
    """
    scores = segmentor.decode_head.predicted_scores.float().cpu().numpy()
    for sample, image_scores in zip(data_samples, scores, strict=True):
        sample.set_metainfo(dict(pred_image_scores=image_scores))
