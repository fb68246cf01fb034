"""Dense contrast of pixels with pixels."""

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.functional.pixel_contrast import pixel_contrast
from mmdscnet.models.losses.contrast_loss import ContrastLoss


@MODELS.register_module()
class PixelContrastLoss(ContrastLoss):
    """Pixel-wise contrast over all pairs: what DSCNet's group contrast is compared with.

    DSCNet, arXiv:2405.04913, Eq. 3 and the pixel-by-pixel rows of Table V.

    Args:
        chunk: Number of anchors that are compared at once; None for whole classes.
        temperature: Divisor of the cosine similarity, positive.
        loss_weight: Weight in the objective: alpha of Eq. 13.
        loss_name: Key in the log, begins with ``loss_``.

    Raises:
        ValueError: If ``chunk`` is not positive, or as for :class:`ContrastLoss`.
    """

    def __init__(
        self,
        chunk: int | None = 512,
        temperature: float = 0.1,
        loss_weight: float = 0.6,
        loss_name: str = 'loss_pixel_contrast',
    ) -> None:
        super().__init__(temperature, loss_weight, loss_name)
        if chunk is not None and chunk < 1:
            raise ValueError(f'chunk={chunk} must be at least 1, or None for whole classes')
        self.chunk = chunk

    def forward(
        self, embeddings: Tensor, cams: Tensor, pseudo_labels: Tensor, image_labels: Tensor
    ) -> Tensor:
        """Contrast the pixels of the global batch with each other.

        Args:
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            cams: CAMs in [0, 1], shape (N, K, h, w); the pseudo labels stand for them.
            pseudo_labels: Labels 0..K, or 255 for pixels that are left out, int64, shape (N, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K); as the CAMs.

        Returns:
            The weighted loss, a scalar.
        """
        loss = pixel_contrast(embeddings, pseudo_labels, self.temperature, self.chunk)
        return self.loss_weight * loss
