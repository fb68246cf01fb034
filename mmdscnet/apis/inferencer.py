"""Label images of one's own in one call."""

import os
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS
from PIL import Image

from mmdscnet.apis.model_loading import find_model_files, load_model
from mmdscnet.atomic_write import atomic_path
from mmdscnet.datasets import voc_palette
from mmdscnet.datasets.image_labels import to_multi_hot
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.inference import (
    ImageList,
    Throughput,
    Unreadable,
    check_model,
    find_images,
    list_image_ids,
    stream_cams,
)
from mmdscnet.models.decode_heads import CAMHead
from mmdscnet.pseudo_labels import CAMs, PseudoLabeler, require_dense_crf, write_palette_png
from mmdscnet.visualization import draw_label_overlay

ImageInput: TypeAlias = str | os.PathLike[str] | np.ndarray
"""File or folder of images, or an image in memory: BGR, uint8, shape (H, W, 3)."""

JPEG_QUALITY = 90


class InferenceResult(NamedTuple):
    """What became of an image.

    Attributes:
        image_path: Its file, or the name of one in memory.
        label_map: Class ids, 0 for background and 255 for void, uint8, shape (H, W).
        cams: CAMs of its k classes, float32, shape (k, H, W), and their class ids.
        class_names: Names of these classes.
        palette: One [red, green, blue] in 0..255 a class, background included.
        image: The image if it was in memory, BGR, uint8, shape (H, W, 3); else None.
    """

    image_path: str
    label_map: np.ndarray
    cams: CAMs
    class_names: tuple[str, ...]
    palette: Sequence[Sequence[int]]
    image: np.ndarray | None = None

    @property
    def image_id(self) -> str:
        """Id of the image: its file name without suffix."""
        return Path(self.image_path).stem

    @property
    def overlay(self) -> np.ndarray:
        """Label map as colours over the photo, RGB, uint8, shape (H, W, 3); drawn when asked."""
        return draw_label_overlay(
            read_info_rgb(self.image_path, self.image), self.label_map, self.palette
        )

    def write(self, folder: Path) -> None:
        """Write label map and overlay, each whole or not at all.

        Args:
            folder: Where to write ``<id>.png`` and ``<id>_overlay.jpg``.
        """
        write_palette_png(folder / f'{self.image_id}.png', self.label_map, self.palette)
        write_jpeg(folder / f'{self.image_id}_overlay.jpg', self.overlay)


class PseudoLabelInferencer:
    """Label images by a trained CAM network: files, folders and arrays in, label maps out.

    It is no ``BaseInferencer`` of mmengine, whose chunks follow the order of the inputs and whose
    model predicts each view for itself: here every input may bring its classes, batches are of one
    size, and evidence is merged over views before it is normalised.

    The weights are read without running code that a checkpoint might carry.

    Args:
        model: Config of a CAM network, or its file, or the address of a published one, such as
            ``mmdscnet://dscnet_shapes``.
        weights: File or address of its checkpoint; None for that of a published model.
        device: Where to compute, such as ``cpu`` or ``cuda:1``; None for CUDA where there is one.
        labeler: From CAMs to label maps, as it is or as a mapping; None for the rule of the
            config's head.
        tta: Whether to merge the views of the config's ``tta_pipeline``, if it has one.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ImportError: If a CRF is asked for and not installed.
        ValueError: If the device is none, there are no weights, the checkpoint is of another
            network, the network has no CAMs, or its classes are not those of the config.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Config,
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        labeler: PseudoLabeler | Mapping[str, Any] | None = None,
        tta: bool = True,
    ) -> None:
        cfg, checkpoint = find_model_files(model, weights)
        if checkpoint is None:
            raise ValueError(
                f'weights=None for {cfg.filename}: give a checkpoint, or, in place of the config, '
                'the address of a published model'
            )
        self.scope = cfg.get('default_scope', 'mmseg')
        self.device = read_device(device)
        self.metainfo = find_metainfo(cfg)
        self.pipeline = find_pipeline(cfg, tta)
        self.model = load_cam_model(cfg, checkpoint, self.device)
        check_model(self.model, ImageList([], self.pipeline, self.metainfo))
        if isinstance(labeler, Mapping):
            labeler = PseudoLabeler(**labeler)
        self.labeler = make_labeler(self.model.decode_head) if labeler is None else labeler
        if self.labeler.crf is not None:
            require_dense_crf()

    def __call__(
        self,
        inputs: ImageInput | Sequence[ImageInput],
        image_labels: Sequence[Collection[str]] | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        out_dir: str | os.PathLike[str] | None = None,
        show_progress: bool = True,
    ) -> list[InferenceResult]:
        """Label images.

        All results stay in memory; for more images than fit there take ``tools/label_images.py``.

        Args:
            inputs: An image file, a folder of images, an array in BGR (uint8, shape (H, W, 3)), or
                several of these. The images of a folder come in the order of their paths.
            image_labels: Names of the classes of each image; None to have them predicted.
            batch_size: Images a batch, at most; only images of one size share a batch.
            num_workers: Processes that read images; 0 to read in the calling one.
            out_dir: Folder for ``<id>.png``, the label maps as palette PNGs, and
                ``<id>_overlay.jpg``; None to write nothing.
            show_progress: Whether to show a progress bar on standard error.

        Returns:
            A result an image, in the order of the inputs.

        Raises:
            FileNotFoundError: If a path is missing, or a folder has no images.
            TypeError: If an input is neither a path nor an array, or is no uint8 array.
            ValueError: If an image cannot be read or is of another shape, labels do not fit, or
                files of ``out_dir`` would overwrite each other or the images.
        """
        throughput = Throughput(batch_size, num_workers)
        infos = list_infos(inputs)
        if image_labels is not None:
            add_labels(infos, image_labels, self.metainfo['classes'][1:])
        init_default_scope(self.scope)
        dataset = ImageList(infos, self.pipeline, self.metainfo)
        if out_dir is not None:
            check_out_dir(out_dir, inputs, dataset)
        # Images of one path are of one size, so they come in their order.
        waiting: dict[str, deque[int]] = defaultdict(deque)
        for index, info in enumerate(infos):
            waiting[info['img_path']].append(index)
        results: dict[int, InferenceResult] = {}
        indices = range(len(infos))
        for image in stream_cams(self.model, dataset, indices, throughput, show_progress):
            if isinstance(image, Unreadable):
                raise ValueError(f'{image.image_path} cannot be read: {image.reason}')
            index = waiting[image.image_path].popleft()
            results[index] = self.label(infos[index], image.cams)
            if out_dir is not None:
                results[index].write(Path(out_dir))
        return [results[index] for index in indices]

    def label(self, info: Mapping[str, Any], cams: CAMs) -> InferenceResult:
        """Label an image whose CAMs are there.

        Args:
            info: ``img_path`` and, for an image in memory, ``img``.
            cams: Its CAMs.

        Returns:
            The result.
        """
        path, array = info['img_path'], info.get('img')
        image = read_info_rgb(path, array) if self.labeler.needs_image else None
        names = tuple(self.metainfo['classes'][class_id] for class_id in cams.class_ids)
        label_map = self.labeler.label(cams, image)
        return InferenceResult(path, label_map, cams, names, self.metainfo['palette'], array)


def read_device(name: str | torch.device | None) -> torch.device:
    """Choose where to compute.

    Args:
        name: Device as torch calls it; None for CUDA where there is one, else the CPU.

    Returns:
        The device.

    Raises:
        ValueError: If there is no such device.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={str(name)!r} cannot be used: {reason}. Give 'cpu', or 'cuda' or 'cuda:0' "
            f'where there is one (torch finds {torch.cuda.device_count()})'
        ) from error
    return device


def load_cam_model(cfg: Config, weights: str, device: torch.device) -> EncoderDecoder:
    """Load a network that gives CAMs.

    Args:
        cfg: Its config.
        weights: Its checkpoint.
        device: Where it shall be.

    Returns:
        The network in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint is of another network, or the network gives no CAMs.
    """
    model: EncoderDecoder = load_model(cfg, weights, device)
    head = getattr(model, 'decode_head', None)
    if not isinstance(head, CAMHead):
        raise ValueError(
            f'labels need the CAMs of a CAMHead or DSCHead, and the head of the network is '
            f'{type(head).__name__}: give a config such as configs/dscnet/voc_animals.py'
        )
    # Convolutions are faster in this order, on CPU and GPU alike.
    return model.to(memory_format=torch.channels_last)


def find_metainfo(cfg: Config) -> dict[str, Any]:
    """Find classes and colours in the data set of ``test_dataloader``.

    Args:
        cfg: The config.

    Returns:
        ``classes``, background first, and ``palette``: the config's own, else that of the data
        set's type, else VOC's.

    Raises:
        ValueError: If the config names no classes.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    known = getattr(kind, 'METAINFO', {})
    metainfo = {**known, **(dataset.get('metainfo') or {})}
    classes = tuple(metainfo.get('classes') or ())
    if len(classes) < 2 or classes[0] != 'background':
        raise ValueError(
            f'test_dataloader.dataset of the config has the classes {classes}, which must be '
            "'background', then at least one other: set "
            "metainfo=dict(classes=('background', ...)) there"
        )
    palette = metainfo.get('palette')
    if palette is known.get('palette'):
        # A choice among the classes of the type keeps their colours.
        colours = dict(zip(known.get('classes', ()), palette or (), strict=False))
        palette = [colours[name] for name in classes] if set(classes) <= set(colours) else None
    return dict(classes=classes, palette=palette or voc_palette(len(classes)))


def find_pipeline(cfg: Config, tta: bool) -> list[dict[str, Any]]:
    """Find the pipeline of images that are to be labelled.

    Args:
        cfg: The config, with a data set in ``test_dataloader``.
        tta: Whether to take the views of its ``tta_pipeline``, if it has one.

    Returns:
        Configs of the transforms.
    """
    views = cfg.get('tta_pipeline') if tta else None
    return cfg.test_dataloader.dataset.pipeline if views is None else views


def make_labeler(
    head: CAMHead,
    bg_thr: float | None = None,
    bg_alpha: float | None = None,
    fg_thr: float | None = None,
    crf: Any = None,
) -> PseudoLabeler:
    """Make the rules of the labels, with those of a head where none are given.

    Args:
        head: A ``CAMHead``.
        bg_thr: Constant background score.
        bg_alpha: Exponent of the power rule that replaces it.
        fg_thr: Pixels of a class with a lower score become void.
        crf: Settings of a dense CRF; None for none.

    Returns:
        The rules.
    """
    own_rule = bg_thr is None and bg_alpha is None
    return PseudoLabeler(
        bg_thr=head.bg_thr if bg_thr is None else bg_thr,
        bg_alpha=head.bg_alpha if own_rule else bg_alpha,
        fg_thr=head.fg_thr if fg_thr is None else fg_thr,
        crf=crf,
    )


def list_infos(inputs: ImageInput | Sequence[ImageInput]) -> list[dict[str, Any]]:
    """List images one by one.

    Args:
        inputs: As for :class:`PseudoLabelInferencer`.

    Returns:
        ``img_path`` of each image, and ``img`` of one in memory, whose name is ``array`` and its
        place.

    Raises:
        FileNotFoundError: If a path is missing, or a folder has no images.
        TypeError: If an input is neither a path nor an array, or is no uint8 array.
        ValueError: If there are no inputs, or an array is of another shape.
    """
    infos: list[dict[str, Any]] = []
    for item in as_list(inputs):
        if isinstance(item, np.ndarray):
            name = f'array{len(infos):04d}'
            check_array(item, name)
            infos.append(dict(img_path=name, img=item))
        else:
            infos += [dict(img_path=str(path)) for path in list_files(item)]
    if not infos:
        raise ValueError('inputs are empty: give at least one image')
    return infos


def as_list(inputs: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Make a list also of a single input."""
    if isinstance(inputs, (str, os.PathLike, np.ndarray)):
        return [inputs]
    if isinstance(inputs, Sequence):
        return list(inputs)
    raise TypeError(
        f'inputs is a {type(inputs).__name__}: give a path, a numpy array, or a list of these'
    )


def check_array(array: np.ndarray, name: str) -> None:
    """Refuse an array that is no image.

    Args:
        array: BGR, uint8, shape (H, W, 3).
        name: How to call it in the error.

    Raises:
        TypeError: If it is not uint8.
        ValueError: If it is of another shape, or empty.
    """
    if array.dtype != np.uint8:
        raise TypeError(
            f'{name} is of {array.dtype}: give an image in BGR as mmcv reads it, uint8 in 0..255'
        )
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(
            f'{name} has the shape {array.shape}: give one image in BGR, shape (H, W, 3), channels '
            'last'
        )


def list_files(path: Any) -> list[Path]:
    """List the image files of a path.

    Args:
        path: An image file, or a folder of some.

    Returns:
        The files.

    Raises:
        FileNotFoundError: If there is nothing, or the folder has no images.
        TypeError: If it is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f'an input is a {type(path).__name__}: give paths and numpy arrays (BGR, uint8, shape '
            '(H, W, 3))'
        )
    if Path(path).is_dir():
        return find_images(path)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'{path} does not exist: give an image file, or a folder of images, seen from the '
            'current folder'
        )
    return [Path(path)]


def add_labels(
    infos: Sequence[dict[str, Any]], image_labels: Sequence[Collection[str]], classes: Sequence[str]
) -> None:
    """Add the image-level labels of a caller to images.

    Args:
        infos: Infos with ``img_path``; ``gt_image_label`` is added in place.
        image_labels: Names of the classes of each image.
        classes: Foreground names.

    Raises:
        TypeError: If the labels of an image are one text.
        ValueError: If there are more or fewer labels than images, or a name is no class.
    """
    if isinstance(image_labels, (str, Mapping)):
        raise TypeError(
            f'image_labels is a {type(image_labels).__name__}: give a list with the class names of '
            "each image, such as [['cat', 'dog'], []]"
        )
    if len(image_labels) != len(infos):
        raise ValueError(
            f'image_labels are {len(image_labels)} for {len(infos)} images: give the class names '
            'of each image, in their order'
        )
    for info, names in zip(infos, image_labels, strict=True):
        if isinstance(names, str):
            raise TypeError(
                f'image_labels of {info["img_path"]} are the text {names!r}: give a list of class '
                f'names, such as [{names!r}]'
            )
        try:
            info['gt_image_label'] = to_multi_hot(names, classes)
        except ValueError as error:
            raise ValueError(f'image_labels of {info["img_path"]}: {error}') from error


def check_out_dir(
    out_dir: str | os.PathLike[str],
    inputs: ImageInput | Sequence[ImageInput],
    dataset: ImageList,
) -> None:
    """Refuse a folder whose files would overwrite each other or images, or be taken for images.

    Args:
        out_dir: Where to write.
        inputs: What is labelled.
        dataset: The images of it.

    Raises:
        ValueError: If it is so, or two images have one name.
    """
    list_image_ids(dataset)
    for item in as_list(inputs):
        if isinstance(item, np.ndarray):
            continue
        if Path(item).is_dir():
            refuse_inside(out_dir, item, 'out_dir')
        elif Path(item).resolve().parent == Path(out_dir).resolve():
            raise ValueError(
                f'out_dir {out_dir} is the folder of the image {item}, which could be overwritten: '
                'choose another folder'
            )


def refuse_inside(out_dir: str | os.PathLike[str], folder: Any, name: str) -> None:
    """Refuse to write pictures into a folder of images, where the next run would find them.

    Args:
        out_dir: Where to write.
        folder: Folder of the images.
        name: How to call ``out_dir`` in the error.

    Raises:
        ValueError: If it lies in the folder.
    """
    if Path(out_dir).resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f'{name} {out_dir} lies in {folder}, and its files would be taken for images: choose a '
            'folder beside it'
        )


def read_info_rgb(path: str, array: np.ndarray | None) -> np.ndarray:
    """Give an image as a person sees it.

    Args:
        path: Its file.
        array: The image if it is in memory, BGR, uint8, shape (H, W, 3).

    Returns:
        RGB, uint8, shape (H, W, 3).
    """
    return read_rgb(path) if array is None else np.ascontiguousarray(array[..., ::-1])


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write a picture as JPEG, whole or not at all.

    Args:
        path: File to write; missing parent folders are made.
        picture: RGB, uint8, shape (H, W, 3).
    """
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format='JPEG', quality=JPEG_QUALITY)
