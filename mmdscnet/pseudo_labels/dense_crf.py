"""Dense CRF: class scores that keep to the edges of the image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np

from mmdscnet.pseudo_labels.palette_png import VOID_ID

# The energy of a class without any score at a pixel stays finite, so that colour and neighbours
# can still overrule it.
MIN_PROBABILITY = 1e-5


@dataclass(frozen=True)
class DenseCRF:
    """Settings of a fully connected CRF with a Gaussian and a bilateral kernel.

    Krähenbühl and Koltun, NIPS 2011, arXiv:1210.5644, Eq. 3. The defaults are the constants of the
    label stage of AffinityNet (Ahn and Kwak, CVPR 2018, arXiv:1803.10464).

    Args:
        gaussian_sxy: Reach of the kernel that smooths, in pixels.
        gaussian_compat: Its weight.
        bilateral_sxy: Reach of the kernel between pixels of like colour, in pixels.
        bilateral_srgb: Its reach in colour, in steps of 0..255.
        bilateral_compat: Its weight.
        num_steps: Steps of mean field inference.

    Raises:
        TypeError: If ``num_steps`` is not an integer.
        ValueError: If a reach or ``num_steps`` is not positive, or a weight is negative.
    """

    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 80
    bilateral_srgb: float = 13
    bilateral_compat: float = 10
    num_steps: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int):
            raise TypeError(f'num_steps={self.num_steps!r} is not an integer: give a count')
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name.endswith('_compat')
            if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
                bound = 'at least 0' if may_be_zero else 'above 0'
                raise ValueError(f'{field.name}={value} must be finite and {bound}')


def read_dense_crf(options: Mapping[str, Any]) -> DenseCRF:
    """Make settings out of what a command line says.

    Args:
        options: Settings that differ from the defaults.

    Returns:
        The settings.

    Raises:
        ValueError: If a setting is unknown, or its value of another kind.
    """
    try:
        return DenseCRF(**options)
    except TypeError as error:
        raise ValueError(
            f'--crf {dict(options)}: {error}. Give numbers for some of {vars(DenseCRF())}'
        ) from error


def require_dense_crf() -> ModuleType:
    """Import the optional CRF; call it before work that will need one.

    Returns:
        The module ``pydensecrf.densecrf``.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise ImportError(
            'the dense CRF needs an optional package: run `pip install pydensecrf2==1.1` (it '
            'compiles for half a minute and needs a C++ compiler), or go on without a CRF'
        ) from error
    return densecrf


def refine(
    image: np.ndarray, scores: np.ndarray, settings: DenseCRF, present: np.ndarray | None = None
) -> np.ndarray:
    """Move the edges of class scores to the edges of the image.

    Only classes that are present take part; all others come out as 0. This is what the time
    depends on: a 500x375 image takes 0.2 to 0.3 s of one CPU with 2 classes and about 1 s with all
    21 of VOC.

    Args:
        image: The image, RGB, uint8, shape (H, W, 3).
        scores: Scores of the classes, background first, finite and at least 0, shape (C, H, W).
            At each pixel those of the present classes are divided by their sum; where all are 0
            the CRF decides from the other pixels.
        settings: Settings of the CRF.
        present: Which classes take part, bool, shape (C,). By default the background and every
            class that has the highest score at some pixel.

    Returns:
        Probabilities that sum to 1 over the present classes, float32, shape (C, H, W).

    Raises:
        ImportError: If the CRF is not installed and more than one class is present.
        TypeError: If ``image`` is not uint8, ``scores`` not floating or ``present`` not bool.
        ValueError: If shapes do not fit, ``scores`` has negative or infinite values or NaN, or no
            class is present.
    """
    classes, probabilities = _infer(image, scores, settings, present)
    refined = np.zeros(scores.shape, dtype=np.float32)
    refined[classes] = probabilities
    return refined


def label(
    image: np.ndarray, scores: np.ndarray, settings: DenseCRF, present: np.ndarray | None = None
) -> np.ndarray:
    """Label every pixel with its most probable class after the CRF.

    Args:
        image: As for :func:`refine`.
        scores: As for :func:`refine`, of at most 255 classes.
        settings: As for :func:`refine`.
        present: As for :func:`refine`.

    Returns:
        Class ids, uint8, shape (H, W).

    Raises:
        ImportError: As :func:`refine`.
        TypeError: As :func:`refine`.
        ValueError: As :func:`refine`, or if there are more than 255 classes.
    """
    if len(scores) > VOID_ID:
        raise ValueError(
            f'scores has {len(scores)} channels, but a label map has room for {VOID_ID} classes '
            f'beside void ({VOID_ID}): use refine and an argmax of your own'
        )
    classes, probabilities = _infer(image, scores, settings, present)
    return classes[probabilities.argmax(axis=0)].astype(np.uint8)


def _infer(
    image: np.ndarray, scores: np.ndarray, settings: DenseCRF, present: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Run the CRF over the k present classes: their ids (k,) and probabilities (k, H, W)."""
    _check_image_and_scores(image, scores)
    if present is None:
        present = np.zeros(len(scores), dtype=bool)
        present[np.unique(scores.argmax(axis=0))] = True
        present[0] = True
    _check_present(present, len(scores))
    classes = np.flatnonzero(present)
    height, width = image.shape[:2]
    if len(classes) == 1:
        return classes, np.ones((1, height, width), dtype=np.float32)
    crf = require_dense_crf().DenseCRF2D(width, height, len(classes))
    crf.setUnaryEnergy(_unary_energy(scores[classes]))
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        # What Pillow and a memory map give is read-only, which the CRF's compiled code refuses.
        rgbim=np.require(image, requirements=('C', 'W')),
        compat=settings.bilateral_compat,
    )
    probabilities = np.asarray(crf.inference(settings.num_steps), dtype=np.float32)
    return classes, probabilities.reshape(len(classes), height, width)


def _unary_energy(scores: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float32)
    total = scores.sum(axis=0)
    # Pixels without any score get the same energy for every class from the clamp below.
    probabilities = scores / np.where(total > 0, total, 1)
    energy = -np.log(np.maximum(probabilities, MIN_PROBABILITY))
    return np.ascontiguousarray(energy.reshape(len(scores), -1))


def _check_image_and_scores(image: np.ndarray, scores: np.ndarray) -> None:
    if image.dtype != np.uint8:
        raise TypeError(f'image is {image.dtype}, not uint8: give the image as it is in its file')
    if not np.issubdtype(scores.dtype, np.floating):
        raise TypeError(f'scores is {scores.dtype}, not floating: give scores, not labels')
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f'image has shape {image.shape}, not (H, W, 3): give one RGB image')
    if scores.ndim != 3 or len(scores) == 0 or scores.shape[1:] != image.shape[:2]:
        raise ValueError(
            f'scores has shape {scores.shape}, which does not fit an image of shape '
            f'{image.shape}: resize the scores to (C, {image.shape[0]}, {image.shape[1]})'
        )
    low, high = float(scores.min()), float(scores.max())
    # Written so that NaN fails too.
    if not (low >= 0 and high < math.inf):
        raise ValueError(
            f'scores run from {low:.4g} to {high:.4g}, but must be finite and at least 0: give '
            'probabilities or CAMs, not logits (if NaN: training has diverged)'
        )


def _check_present(present: np.ndarray, num_classes: int) -> None:
    if present.dtype != bool:
        raise TypeError(f'present is {present.dtype}, not bool: give one truth value a class')
    if present.shape != (num_classes,):
        raise ValueError(
            f'present has shape {present.shape}, but scores has {num_classes} channels: give one '
            'truth value a class, background first'
        )
    if not present.any():
        raise ValueError('present has no class at all: set present[0] for the background at least')
