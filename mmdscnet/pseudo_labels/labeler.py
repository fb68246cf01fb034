"""From the CAMs of an image to its pseudo label: the one place for all rules on the way."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mmdscnet.functional.cam import background_score
from mmdscnet.functional.pseudo_label import decide_labels
from mmdscnet.pseudo_labels import dense_crf
from mmdscnet.pseudo_labels.cam_file import CAMs
from mmdscnet.pseudo_labels.dense_crf import DenseCRF, read_dense_crf

Walk = Callable[[np.ndarray, CAMs], np.ndarray]
"""From an image (RGB, uint8, shape (H, W, 3)) and its k CAMs to scores of the background and these
classes in [0, 1], shape (k + 1, H, W): a random walk by an AffinityNet."""


@dataclass(frozen=True)
class PseudoLabeler:
    """Label the pixels of an image from its CAMs.

    The background competes with the classes of the image, at a constant score or at
    (1 - max)^alpha; a dense CRF may move the edges of all; the best score wins, and a class that
    wins with a low score is void. DSCNet, arXiv:2405.04913, Eq. 2 and 12, with the background that
    the equations leave out.

    Args:
        bg_thr: Constant background score, in [0, 1).
        bg_alpha: Exponent of the power rule that replaces ``bg_thr``, positive.
        fg_thr: Pixels of a class with a lower score become void (255): the ignore band. After a
            CRF the score is its probability.
        crf: Settings of the dense CRF, as they are or as a mapping; None for none.

    Raises:
        ValueError: If a value is out of its range, or the ignore band is empty.
    """

    bg_thr: float = 0.25
    bg_alpha: float | None = None
    fg_thr: float | None = None
    crf: DenseCRF | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.bg_thr < 1:
            raise ValueError(f'bg_thr={self.bg_thr} must lie in [0, 1), where CAMs live')
        # Written so that NaN fails too.
        if self.bg_alpha is not None and not 0 < self.bg_alpha < math.inf:
            raise ValueError(
                f'bg_alpha={self.bg_alpha} must be positive and finite, or None for a constant '
                'bg_thr'
            )
        lowest = self.bg_thr if self.bg_alpha is None else 0
        if self.fg_thr is not None and not lowest <= self.fg_thr <= 1:
            raise ValueError(
                f'fg_thr={self.fg_thr} must lie in [{lowest}, 1], above the background: choose '
                'another, or None for no ignore band'
            )
        if isinstance(self.crf, Mapping):
            # The dataclass is frozen.
            object.__setattr__(self, 'crf', read_dense_crf(self.crf))

    @property
    def needs_image(self) -> bool:
        """Whether :meth:`label` wants the image beside its CAMs."""
        return self.crf is not None

    def label(
        self, cams: CAMs, image: np.ndarray | None = None, walk: Walk | None = None
    ) -> np.ndarray:
        """Label an image.

        Args:
            cams: CAMs of its classes, shape (k, H, W).
            image: The image for a CRF or a walk, RGB, uint8, shape (H, W, 3).
            walk: Random walk, whose background takes the place of this labeler's.

        Returns:
            Class ids, 0 for background and 255 for void, uint8, shape (H, W).

        Raises:
            ImportError: If a CRF is asked for and not installed.
            ValueError: If the image is needed and missing, or of another size than the CAMs.
        """
        if walk is None:
            return self.label_scores(self.score(cams), cams.class_ids, image)
        return self.label_scores(walk(_require(image, cams.cams), cams), cams.class_ids, image)

    def score(self, cams: CAMs) -> np.ndarray:
        """Put the background before the CAMs of an image.

        Args:
            cams: CAMs of its classes, shape (k, H, W).

        Returns:
            Scores in [0, 1], background first, float32, shape (k + 1, H, W).
        """
        maps = torch.from_numpy(cams.cams).float()[None]
        # An empty map as the strongest of an image with no class.
        background = background_score(F.pad(maps, (0, 0, 0, 0, 1, 0)), self.bg_thr, self.bg_alpha)
        return torch.cat([background, maps], dim=1)[0].numpy()

    def label_scores(
        self, scores: np.ndarray, class_ids: np.ndarray, image: np.ndarray | None = None
    ) -> np.ndarray:
        """Label an image whose background is scored already.

        Args:
            scores: Scores in [0, 1], background first, floating, shape (k + 1, H, W).
            class_ids: Class ids of the others, in 1..254, shape (k,).
            image: As for :meth:`label`.

        Returns:
            As :meth:`label`.

        Raises:
            ImportError: If a CRF is asked for and not installed.
            ValueError: If the image is needed and missing, or of another size than the scores.
        """
        if self.crf is not None:
            # Every class of the image takes part, also one that wins nowhere before the CRF.
            everything = np.ones(len(scores), dtype=bool)
            scores = dense_crf.refine(_require(image, scores), scores, self.crf, everything)
        slots = decide_labels(torch.from_numpy(scores).float()[None], self.fg_thr)[0].numpy()
        ids = np.full(256, 255, dtype=np.uint8)
        ids[: len(scores)] = [0, *class_ids]
        return ids[slots]

    def settings(self) -> dict[str, Any]:
        """Give everything on which the labels depend beside the CAMs, as JSON has it."""
        return asdict(self)


def _require(image: np.ndarray | None, maps: np.ndarray) -> np.ndarray:
    if image is None:
        raise ValueError('a CRF or a random walk needs the image beside its CAMs: give image=...')
    if image.shape[:2] != maps.shape[1:]:
        raise ValueError(
            f'the CAMs have the size {maps.shape[1:]} and the image {image.shape[:2]} '
            '(height, width): export the CAMs of these very images'
        )
    return image
