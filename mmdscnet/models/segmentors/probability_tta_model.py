"""Class probabilities averaged over scales and flips."""

from typing import Any

from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


@MODELS.register_module()
class ProbabilityTTAModel(BaseTTAModel):
    """Average the probabilities of an image over its views, and keep them.

    Predicts the same labels as mmseg's ``SegTTAModel``, which keeps nothing but the labels. What
    comes after, such as a dense CRF, needs the probabilities.

    Args:
        module: Config of the segmentor, with one output channel a class.
        kwargs: As for mmengine's ``BaseTTAModel``.

    Raises:
        ValueError: If the segmentor has a single output channel, so no probability of background.
    """

    def __init__(self, module: dict, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        if self.module.out_channels == 1:
            raise ValueError(
                'out_channels=1 gives no probability to the background: set '
                'decode_head.out_channels=2 (and use_sigmoid=False in its loss)'
            )

    def merge_preds(self, data_samples_list: list[list[SegDataSample]]) -> list[SegDataSample]:
        """Merge the views of each image.

        Args:
            data_samples_list: For each image its views, at the size of the original image and
                flipped back (mmseg does both), with logits in ``seg_logits``, shape (C, H, W).

        Returns:
            One sample an image, with meta information and truth of the first view:
            ``seg_logits`` holds probabilities in [0, 1] that sum to 1 over the classes, float32,
            shape (C, H, W), and ``pred_sem_seg`` their argmax.
        """
        return [_merge_views(views) for views in data_samples_list]


def _merge_views(views: list[SegDataSample]) -> SegDataSample:
    total = sum(view.seg_logits.data.float().softmax(dim=0) for view in views)
    probabilities = total / len(views)
    merged = views[0]
    merged.seg_logits = PixelData(data=probabilities)
    merged.pred_sem_seg = PixelData(data=probabilities.argmax(dim=0, keepdim=True))
    return merged
