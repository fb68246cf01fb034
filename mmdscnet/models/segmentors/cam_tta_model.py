"""CAMs merged over scales and flips."""

from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmdscnet.models.segmentors.seam import SEAM


@MODELS.register_module()
class CAMTTAModel(BaseTTAModel):
    """Sum the class evidence of an image over scales and flips, then normalise it to CAMs.

    The order matters: CAMs that are normalised first weigh a view without evidence as much as one
    with. mmseg's own ``SegTTAModel`` takes a softmax instead, which CAMs are not made for.

    Where no labels are given, the classes are predicted from the plain evidence of all views; a
    model that refines its CAMs then refines every view under these same labels, in a second pass.

    Args:
        module: Config of the segmentor, whose head is a :class:`CAMHead`.
        kwargs: As for mmengine's ``BaseTTAModel``.
    """

    def __init__(self, module: dict, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        self.module.test_cfg = ConfigDict(self.module.test_cfg or {}, cam_output='logits')

    def test_step(self, data: dict) -> list[SegDataSample]:
        """Run all views of a batch and merge them.

        Args:
            data: ``inputs`` and ``data_samples``, each a list of views of a list of images.

        Returns:
            As :meth:`merge_preds`.
        """
        views = data['data_samples']
        if refines_cams(self.module) and not any('gt_image_label' in sample for sample in views[0]):
            test_cfg = self.module.test_cfg
            self.module.test_cfg = ConfigDict(test_cfg, refine=False)
            plain = super().test_step(data)
            self.module.test_cfg = test_cfg
            for view in views:
                for sample, merged in zip(view, plain, strict=True):
                    sample.set_metainfo(dict(pred_image_label=merged.pred_image_label))
        return super().test_step(data)

    def merge_preds(self, data_samples_list: list[list[SegDataSample]]) -> list[SegDataSample]:
        """Merge the views of each image.

        Args:
            data_samples_list: For each image its views, at the size of the original image and
                flipped back (mmseg does both), with ``seg_logits`` of shape (K + 1, H, W).

        Returns:
            One sample an image: ``seg_logits`` holds the scores [background, CAMs] in [0, 1] and
            ``pred_sem_seg`` the pseudo label.
        """
        return [self.merge_views(views) for views in data_samples_list]

    def merge_views(self, views: list[SegDataSample]) -> SegDataSample:
        """Merge the views of one image.

        Args:
            views: As in :meth:`merge_preds`.

        Returns:
            The merged sample, with the meta information and truth of the first view; where the
            views have ``pred_image_scores``, with their mean.
        """
        head = self.module.decode_head
        # The mean, not the sum, keeps the image scores comparable with those of a single view.
        cam_logits = torch.stack([view.seg_logits.data[1:] for view in views]).mean(dim=0)
        merged = views[0]
        image_labels = head.stack_image_labels([merged.metainfo])
        if image_labels is None:
            image_labels = head.predict_labels(cam_logits[None])
            merged.set_metainfo(dict(pred_image_label=image_labels[0].cpu().numpy()))
        if all('pred_image_scores' in view for view in views):
            image_scores = np.mean([view.pred_image_scores for view in views], axis=0)
            merged.set_metainfo(dict(pred_image_scores=image_scores))
        scores = head.score_maps(cam_logits[None], image_labels)[0]
        merged.seg_logits = PixelData(data=scores)
        merged.pred_sem_seg = PixelData(data=scores.argmax(dim=0, keepdim=True))
        return merged


def refines_cams(segmentor: EncoderDecoder) -> bool:
    """Whether the CAMs of a model are not those of its plain classifier."""
    return isinstance(segmentor, SEAM) or getattr(segmentor.decode_head, 'dual_stream', False)
