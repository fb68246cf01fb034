"""Contrast of pixels with the prototypes of the classes."""

from mmseg.registry import MODELS
from torch import Tensor

from mmdscnet.functional.pixel_contrast import pixel_prototype_contrast
from mmdscnet.models.losses.contrast_loss import ContrastLoss


@MODELS.register_module()
class PixelPrototypeLoss(ContrastLoss):
    """Pixel-to-prototype contrast: every pixel against one prototype a class of the batch.

    PPC, CVPR 2022, within one view; see
    :func:`~mmdscnet.functional.pixel_contrast.pixel_prototype_contrast` for what is left out.

    Args:
        temperature: Divisor of the cosine similarity, positive.
        loss_weight: Weight in the objective.
        loss_name: Key in the log, begins with ``loss_``.
    """

    def __init__(
        self, temperature: float = 0.1, loss_weight: float = 0.1, loss_name: str = 'loss_prototype'
    ) -> None:
        super().__init__(temperature, loss_weight, loss_name)

    def forward(
        self, embeddings: Tensor, cams: Tensor, pseudo_labels: Tensor, image_labels: Tensor
    ) -> Tensor:
        """Contrast the pixels of the global batch with its prototypes.

        Args:
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            cams: CAMs in [0, 1], zero for absent classes, shape (N, K, h, w).
            pseudo_labels: Labels 0..K, or 255 for pixels that are left out, int64, shape (N, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The weighted loss, a scalar.
        """
        loss = pixel_prototype_contrast(
            embeddings, cams, pseudo_labels, image_labels, self.temperature
        )
        return self.loss_weight * loss
