"""Label many images for AffinityNet, in parallel and in several runs."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmengine.utils import ProgressBar

from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.parallel import map_over_images
from mmdscnet.pseudo_labels import (
    SETTINGS_FILE,
    DenseCRF,
    ExportFolder,
    hash_file,
    label_for_affinity,
    read_cams,
    require_dense_crf,
    write_palette_png,
)


def make_affinity_labels(
    cam_folder: str | os.PathLike[str],
    image_folder: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    palette: Sequence[Sequence[int]],
    alphas: tuple[float, float] = (4.0, 24.0),
    crf: DenseCRF | None = None,
    num_processes: int = 1,
    image_ids: Sequence[str] | None = None,
) -> int:
    """Label images that have CAMs.

    Images that have a label map in the folder are left out, so an interrupted run goes on.

    Args:
        cam_folder: Folder of an export of CAMs.
        image_folder: Folder of the images, ``<id>.jpg``.
        folder: Where to write palette PNGs.
        palette: One [red, green, blue] in 0..255 a class.
        alphas: The low and the high exponent of the background, positive.
        crf: Settings of the CRF; None for those of AffinityNet.
        num_processes: Images at a time.
        image_ids: Which images; None for all that have CAMs.

    Returns:
        Number of label maps written.

    Raises:
        FileNotFoundError: If there are no CAMs, or an image is missing.
        ImportError: If the CRF is not installed.
        ValueError: If the alphas are not ascending, or the folder holds labels of another kind.
    """
    require_dense_crf()
    if not 0 < alphas[0] < alphas[1]:
        raise ValueError(f'alphas={alphas} must be positive, the lower first: SEAM uses 4 and 24')
    source = Path(cam_folder, SETTINGS_FILE)
    exported = {path.stem for path in Path(cam_folder).glob('*.npz')}
    if not source.is_file() or not exported:
        raise FileNotFoundError(
            f'{cam_folder} holds no exported CAMs: write them first with tools/export_cams.py'
        )
    image_ids = sorted(exported) if image_ids is None else image_ids
    without = [image_id for image_id in image_ids if image_id not in exported]
    if without:
        raise FileNotFoundError(
            f'{len(without)} of {len(image_ids)} images have no CAMs in {cam_folder}, the first is '
            f'{without[0]!r}: run tools/export_cams.py again, it goes on where it stopped'
        )
    images = set(os.listdir(image_folder)) if Path(image_folder).is_dir() else set()
    without = [image_id for image_id in image_ids if f'{image_id}.jpg' not in images]
    if without:
        raise FileNotFoundError(
            f'{len(without)} of {len(image_ids)} images are not in {image_folder}, the first is '
            f'{without[0]}.jpg: give the folder of the images whose CAMs were exported'
        )
    crf = crf or DenseCRF()
    settings = dict(cams=hash_file(source), alphas=alphas, crf=vars(crf))
    export = ExportFolder(folder, '.png', settings)
    missing = export.missing(image_ids)
    write = partial(
        _write_label, Path(cam_folder), Path(image_folder), export, palette, alphas, crf
    )
    progress = ProgressBar(len(missing), file=sys.stderr)
    for _ in map_over_images(write, missing, num_processes):
        progress.update()
    return len(missing)


def _write_label(
    cam_folder: Path,
    image_folder: Path,
    export: ExportFolder,
    palette: Sequence[Sequence[int]],
    alphas: tuple[float, float],
    crf: DenseCRF,
    image_id: str,
) -> None:
    cams = read_cams(cam_folder / f'{image_id}.npz')
    image = read_rgb(image_folder / f'{image_id}.jpg')
    write_palette_png(export.path(image_id), label_for_affinity(image, cams, alphas, crf), palette)
