"""From CAMs to the labels that AffinityNet learns from: only what is beyond doubt."""

import numpy as np
import torch

from mmdscnet.functional.pixel_affinity import combine_affinity_labels
from mmdscnet.pseudo_labels import dense_crf
from mmdscnet.pseudo_labels.cam_file import CAMs
from mmdscnet.pseudo_labels.dense_crf import DenseCRF


def label_for_affinity(
    image: np.ndarray, cams: CAMs, alphas: tuple[float, float], settings: DenseCRF
) -> np.ndarray:
    """Label the pixels on which a bold and a timid background agree.

    Two dense CRFs, over the CAMs and a background of (1 - max)^alpha: with the low exponent there
    is much background, so its foreground is sure; with the high one there is little, so its
    background is. Pixels on which they differ are void. Ahn and Kwak, "Learning Pixel-level
    Semantic Affinity with Image-level Supervision", CVPR 2018, Sec. 3.2.1.

    Args:
        image: The image, RGB, uint8, shape (H, W, 3).
        cams: CAMs of its classes at the same size.
        alphas: The low and the high exponent, both positive (SEAM: 4 and 24).
        settings: Settings of the CRF.

    Returns:
        Class ids, 255 for void, uint8, shape (H, W).

    Raises:
        ValueError: If the CAMs have another size than the image.
    """
    if cams.cams.shape[1:] != image.shape[:2]:
        raise ValueError(
            f'the CAMs have the size {cams.cams.shape[1:]} and the image {image.shape[:2]} '
            '(height, width): export the CAMs of these very images'
        )
    bold, timid = (torch.from_numpy(_label(image, cams, alpha, settings)) for alpha in alphas)
    return combine_affinity_labels(bold, timid).numpy()


def _label(image: np.ndarray, cams: CAMs, alpha: float, settings: DenseCRF) -> np.ndarray:
    class_ids = np.concatenate([[0], cams.class_ids]).astype(np.uint8)
    foreground = cams.cams.astype(np.float32)
    background = (1 - foreground.max(axis=0, initial=0)) ** alpha
    scores = np.concatenate([background[None], foreground])
    # Every labelled class takes part, also one that wins nowhere before the CRF.
    everything = np.ones(len(scores), dtype=bool)
    return class_ids[dense_crf.label(image, scores, settings, everything)]
