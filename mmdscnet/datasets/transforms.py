"""Loading with checks, and packing of image-level labels and CAMs."""

import io
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.registry import TRANSFORMS

from mmdscnet.datasets.file_checks import check_image_complete
from mmdscnet.pseudo_labels import read_cams


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Load an image and refuse a file that is missing, truncated or no image.

    As the stock transform, with OpenCV's speed and in BGR, except that no truncated JPEG comes
    through with its missing part filled with grey.

    Args:
        to_float32: Whether to convert the image to float32.
        color_type: Flag of ``mmcv.imfrombytes``.
        imdecode_backend: Decoding backend of ``mmcv.imfrombytes``.
        backend_args: File backend of mmengine.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(to_float32, color_type, imdecode_backend, backend_args=backend_args)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read ``img_path``.

        Args:
            results: Data info with ``img_path``.

        Returns:
            The same dict with ``img`` (values in [0, 255], shape (H, W, 3)), ``img_shape`` and
            ``ori_shape`` (H, W).

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is truncated or no image.
        """
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'image {path} is missing. Add the file, or take its id out of the split file.'
            ) from error
        check_image_complete(io.BytesIO(content), path)
        image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        if image is None:
            raise ValueError(
                f'image {path} cannot be decoded. Copy the file again, or take its id out of the '
                'split file.'
            )
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadCheckedMask(LoadAnnotations):
    """Load a mask and refuse one of another size than its image. Place it after the image.

    An image whose data set names no mask passes through: mmseg's ``inference_model`` runs the test
    pipeline on such images.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load the mask where there is one.

        Args:
            results: Output of the image loader, with ``seg_map_path`` for an image with a mask.

        Returns:
            The same dict with ``gt_seg_map``, class ids, shape (H, W), where there is a mask.
        """
        return super().transform(results) if results.get('seg_map_path') else results

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results['seg_map_path']
        try:
            super()._load_seg_map(results)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'mask {path} is missing. Add the file, or take LoadCheckedMask out of the '
                'pipeline: training from image-level labels needs no masks.'
            ) from error
        size, image_size = results['gt_seg_map'].shape, results['ori_shape']
        if size != tuple(image_size):
            raise ValueError(
                f'mask {path} has the shape {size} but its image {results["img_path"]} has '
                f'{tuple(image_size)} (height, width). Give an index PNG of the size of the image.'
            )


@TRANSFORMS.register_module()
class PackWSSSInputs(PackSegInputs):
    """Pack an image for weakly supervised segmentation: as mmseg does, with image-level labels.

    The labels travel in the meta information of the data sample, the only part of it that mmseg
    hands to ``decode_head.predict``. A sample with ``gt_image_label`` is judged with labels given,
    one without it, as a data set with ``image_labels=None`` gives, with labels predicted. CAMs that
    :class:`LoadCAMs` read travel in the same way.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack image, masks, labels and CAMs.

        Args:
            results: Output of a pipeline; ``gt_image_label`` is float32 in {0, 1}, shape (K,).

        Returns:
            ``inputs``, a tensor of shape (3, H, W), and ``data_samples``, a ``SegDataSample``.
        """
        packed = super().transform(results)
        extras = ('gt_image_label', 'cams', 'cam_classes')
        packed['data_samples'].set_metainfo({key: results[key] for key in extras if key in results})
        return packed


@TRANSFORMS.register_module()
class LoadCAMs(BaseTransform):
    """Load the CAMs of an image that were exported before; they travel in the meta information."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read ``cam_path``.

        Args:
            results: Output of the image loader, with ``cam_path`` as a data set with
                ``cam_folder`` gives it.

        Returns:
            The same dict with ``cams``, in [0, 1], float16, shape (k, H, W), and
            ``cam_classes``, their class ids, uint8, shape (k,).

        Raises:
            FileNotFoundError: If there are no CAMs of the image.
            ValueError: If the data set names no CAMs, or they are of another size than the image.
        """
        path = results.get('cam_path')
        if path is None:
            raise ValueError(
                f'{results["img_path"]} comes with no cam_path: give the data set '
                'cam_folder=..., the folder that tools/export_cams.py wrote'
            )
        cams, class_ids = read_cams(path)
        size = tuple(results['ori_shape'])
        if cams.shape[1:] != size:
            raise ValueError(
                f'{path} has CAMs of {cams.shape[1:]} pixels and its image {results["img_path"]} '
                f'has {size} (height, width): export the CAMs of these very images'
            )
        results['cams'], results['cam_classes'] = cams, class_ids
        return results
