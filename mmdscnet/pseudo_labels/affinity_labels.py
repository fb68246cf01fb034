"""From CAMs to the labels that AffinityNet learns from: only what is beyond doubt."""

import numpy as np
import torch

from mmdscnet.functional.pixel_affinity import combine_affinity_labels
from mmdscnet.pseudo_labels.cam_file import CAMs
from mmdscnet.pseudo_labels.dense_crf import DenseCRF
from mmdscnet.pseudo_labels.labeler import PseudoLabeler


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
    bold, timid = (
        torch.from_numpy(PseudoLabeler(bg_alpha=alpha, crf=settings).label(cams, image))
        for alpha in alphas
    )
    return combine_affinity_labels(bold, timid).numpy()
