"""CAMs that walk along the affinities of an AffinityNet, one image at a time."""

import numpy as np
import torch
from mmseg.models.segmentors import EncoderDecoder

from mmdscnet.models.decode_heads import AffinityHead
from mmdscnet.pseudo_labels import CAMs


class AffinityWalk:
    """Random walk by a trained AffinityNet, a ``Walk`` for :class:`PseudoLabeler`.

    Args:
        model: Segmentor with an ``AffinityHead``, in evaluation mode, on its device.

    Raises:
        ValueError: If the model has another head.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        if not isinstance(model.decode_head, AffinityHead):
            raise ValueError(
                f'a random walk needs an AffinityHead, and the model has '
                f'{type(model.decode_head).__name__}: give a config of configs/affinitynet'
            )
        self.model = model

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, cams: CAMs) -> np.ndarray:
        """Let the CAMs of an image walk.

        Args:
            image: RGB, uint8, shape (H, W, 3).
            cams: CAMs of its classes, shape (k, H, W).

        Returns:
            Scores in [0, 1], background first, float32, shape (k + 1, H, W).
        """
        # Images come in BGR to a network, as mmcv reads them.
        pixels = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        inputs = self.model.data_preprocessor(dict(inputs=[pixels]), training=False)['inputs']
        meta = dict(img_shape=image.shape[:2], cams=cams.cams, cam_classes=cams.class_ids)
        scores = self.model.encode_decode(inputs, [meta])[0]
        return scores[[0, *cams.class_ids.tolist()]].float().cpu().numpy()
