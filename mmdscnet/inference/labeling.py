"""Label the images of a data set into a version of a store."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import all_gather_object, barrier
from mmseg.models.segmentors import EncoderDecoder

from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.inference.batch_cams import check_model
from mmdscnet.inference.cam_stream import ImageCAMs, Throughput, stream_cams
from mmdscnet.inference.view_batches import Images, Unreadable
from mmdscnet.parallel import map_over_images
from mmdscnet.pseudo_labels import (
    CAMs,
    ExportFolder,
    PseudoLabeler,
    PseudoLabelStore,
    StoreDraft,
    StoreVersion,
    Walk,
    read_version,
    require_dense_crf,
    write_cams,
    write_palette_png,
)
from mmdscnet.pseudo_labels.store import MANIFEST_FILE
from mmdscnet.ranks import on_first_rank

# Settings of a version that its CAMs do not depend on.
AFTER_CAMS = ('labeler', 'walk')


class Finishing(NamedTuple):
    """What follows the network.

    Attributes:
        labeler: From CAMs to a label map.
        walk: Random walk before it; None for none.
        num_processes: Processes that label and write; 0 or 1 to do it in the calling one.
        cam_folder: Where to keep the CAMs; None not to.
    """

    labeler: PseudoLabeler
    walk: Walk | None = None
    num_processes: int = 0
    cam_folder: Path | None = None


class LabelTask(NamedTuple):
    """An image whose CAMs are there.

    Attributes:
        image_path: Its file.
        cams: Its CAMs.
        walked: Scores after a random walk, shape (k + 1, H, W); None without.
    """

    image_path: str
    cams: CAMs
    walked: np.ndarray | None


def label_images(
    model: EncoderDecoder,
    dataset: Images,
    store: PseudoLabelStore,
    settings: Mapping[str, Any],
    throughput: Throughput,
    finishing: Finishing,
    skip_unreadable: bool = False,
    show_progress: bool = True,
) -> StoreVersion:
    """Label images by the CAMs of a network, and make the label maps the current version.

    Images that have a label map in an unfinished version of the same settings are left out, so an
    interrupted run goes on. Under a launcher every rank labels its share, and all must call this.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        dataset: Images with the pipeline that the model wants, in one view or several.
        store: Where to write.
        settings: What the label maps depend on beside the images and ``finishing``.
        throughput: How images go through the network.
        finishing: What follows the network.
        skip_unreadable: Whether to leave out images that cannot be read; the manifest lists them.
        show_progress: Whether to show a progress bar.

    Returns:
        The version.

    Raises:
        ImportError: If a CRF is asked for and not installed.
        ValueError: If an image cannot be read, two have one name, the classes differ from those
            of the model or the store, or the model would cut or pad the images.
    """
    if finishing.labeler.crf is not None:
        require_dense_crf()
    check_model(model, dataset)
    ids = list_image_ids(dataset)
    settings = {**settings, **describe_labels(ids, finishing)}
    classes, palette = dataset.metainfo['classes'], dataset.metainfo['palette']
    draft = begin_together(store, settings, classes, palette)
    kept = open_cam_folder(finishing.cam_folder, settings)
    missing = list_missing(draft, kept, ids)
    indices = [index for index, image_id in enumerate(ids) if image_id in missing]
    # No rank may write before all have looked.
    barrier()
    skipped: dict[str, str] = {}
    images = stream_cams(model, dataset, indices, throughput, show_progress)
    tasks = prepare_tasks(images, finishing.walk, skipped if skip_unreadable else None)
    write = partial(write_label, finishing.labeler, draft.export, palette, kept)
    for _ in map_over_images(write, tasks, finishing.num_processes, _name_of):
        pass
    return publish_together(draft, ids, skipped)


def list_image_ids(dataset: Images) -> list[str]:
    """List the images of a data set.

    Args:
        dataset: The images.

    Returns:
        File names without suffix, in the order of the data set.

    Raises:
        ValueError: If two images have one name, so that their files would be the same.
    """
    paths = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    first: dict[str, str] = {}
    for path in paths:
        image_id = Path(path).stem
        if image_id in first:
            raise ValueError(
                f'images {first[image_id]} and {path} would both be {image_id!r} in an export: '
                'list every image once, under a name of its own'
            )
        first[image_id] = path
    return list(first)


def describe_labels(image_ids: Sequence[str], finishing: Finishing) -> dict[str, Any]:
    """Describe what becomes of the CAMs, and of which images.

    Args:
        image_ids: Ids of all images.
        finishing: What follows the network.

    Returns:
        Settings of a store.
    """
    names = sha256('\n'.join(image_ids).encode()).hexdigest()
    return dict(
        labeler=finishing.labeler.settings(), images=dict(number=len(image_ids), sha256=names)
    )


def begin_together(
    store: PseudoLabelStore,
    settings: Mapping[str, Any],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> StoreDraft:
    """Begin a version on the first rank and open it on the others.

    Args:
        store: The store.
        settings: As for its ``begin``.
        classes: As for its ``begin``.
        palette: As for its ``begin``.

    Returns:
        The draft.
    """
    number = on_first_rank(lambda: store.begin(settings, classes, palette).number)
    return store.open_draft(number, settings, classes, palette)


def open_cam_folder(folder: Path | None, settings: Mapping[str, Any]) -> ExportFolder | None:
    """Open the folder of the CAMs that are kept, on every rank.

    Args:
        folder: The folder; None not to keep them.
        settings: Settings of the store; those of the labels do not concern CAMs.

    Returns:
        The folder, or None.

    Raises:
        ValueError: If it holds other CAMs.
    """
    if folder is None:
        return None
    settings = {key: value for key, value in settings.items() if key not in AFTER_CAMS}
    return open_together(folder, '.npz', settings)


def open_together(
    folder: str | os.PathLike[str], suffix: str, settings: Mapping[str, Any]
) -> ExportFolder:
    """Make the folder of an export on the first rank, and open it on all.

    Args:
        folder: As for :class:`ExportFolder`.
        suffix: As for it.
        settings: As for it.

    Returns:
        The folder.

    Raises:
        RuntimeError: On the other ranks, if the first cannot make or use it.
        ValueError: If it holds an export with other settings.
    """
    on_first_rank(lambda: ExportFolder(folder, suffix, settings).folder)
    return ExportFolder(folder, suffix, settings)


def list_missing(draft: StoreDraft, kept: ExportFolder | None, image_ids: list[str]) -> set[str]:
    """List the images that have no label map, or no CAMs where these are kept.

    A version that is complete stays as it is: what it left out is not made later.

    Args:
        draft: Where label maps are written.
        kept: Where CAMs are kept; None if they are not.
        image_ids: All images.

    Returns:
        Their ids.
    """
    missing = set(draft.export.missing(image_ids))
    if kept is not None:
        missing |= set(kept.missing(image_ids))
    if (draft.export.folder / MANIFEST_FILE).is_file():
        missing -= read_version(draft.export.folder).manifest['skipped'].keys()
    return missing


def prepare_tasks(
    images: Iterator[ImageCAMs | Unreadable], walk: Walk | None, skipped: dict[str, str] | None
) -> Iterator[LabelTask]:
    """Let CAMs walk, and decide about images that cannot be read.

    Args:
        images: What :func:`stream_cams` gives.
        walk: Random walk; None for none.
        skipped: Takes the reason by id of the images that are left out; None to leave none out.

    Yields:
        A task an image.

    Raises:
        ValueError: If an image cannot be read and is not to be left out.
    """
    for image in images:
        if isinstance(image, Unreadable):
            if skipped is None:
                raise ValueError(
                    f'{image.image_path} cannot be read: {image.reason} What is written stays: '
                    'mend the file and run the same command again, or skip unreadable images '
                    '(--skip-unreadable), which lists them in the manifest'
                )
            skipped[image.image_id] = image.reason
            continue
        walked = None if walk is None else walk(read_rgb(image.image_path), image.cams)
        yield LabelTask(image.image_path, image.cams, walked)


def write_label(
    labeler: PseudoLabeler,
    labels: ExportFolder,
    palette: Sequence[Sequence[int]],
    kept: ExportFolder | None,
    task: LabelTask,
) -> None:
    """Label an image and write what is wanted of it.

    Args:
        labeler: From CAMs to a label map.
        labels: Where to write the label map.
        palette: Colours of the classes.
        kept: Where to write the CAMs; None not to.
        task: The image.
    """
    image_id = _name_of(task)
    # The label map comes last: an image that has one is done.
    if kept is not None:
        write_cams(kept.path(image_id), *task.cams)
    # Where only the CAMs were missing it stays: its version may be in use.
    if labels.path(image_id).is_file():
        return
    image = read_rgb(task.image_path) if labeler.needs_image else None
    if task.walked is None:
        label_map = labeler.label(task.cams, image)
    else:
        label_map = labeler.label_scores(task.walked, task.cams.class_ids, image)
    write_palette_png(labels.path(image_id), label_map, palette)


def publish_together(
    draft: StoreDraft, image_ids: Sequence[str], skipped: Mapping[str, str]
) -> StoreVersion:
    """Publish a version on the first rank, when all have written.

    Args:
        draft: The version.
        image_ids: All its images.
        skipped: Reason by id of the images that this rank left out.

    Returns:
        The version, on every rank.

    Raises:
        ValueError: If all images were left out.
    """
    shares = all_gather_object(dict(skipped))
    everything = {image_id: reason for share in shares for image_id, reason in share.items()}
    # One that lacks only its CAMs has a label map of an earlier run.
    lacking = set(draft.export.missing(list(everything)))
    everything = {key: reason for key, reason in everything.items() if key in lacking}
    if len(everything) == len(image_ids) > 0:
        first = everything[image_ids[0]]
        raise ValueError(f'none of the {len(image_ids)} images can be read. The first: {first}')
    on_first_rank(lambda: draft.publish(image_ids, everything).number)
    return read_version(draft.export.folder)


def _name_of(task: LabelTask) -> str:
    return Path(task.image_path).stem
