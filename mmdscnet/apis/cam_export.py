"""Write the CAMs of many images, merged over scales and flips, fast and in several runs."""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from mmengine.dist import barrier
from mmseg.models.segmentors import EncoderDecoder

from mmdscnet.apis.export_start import start_export
from mmdscnet.inference import Images, Throughput, Unreadable, check_model, stream_cams
from mmdscnet.pseudo_labels import write_cams

WRITER_THREADS = 2


def export_cams(
    model: EncoderDecoder,
    dataset: Images,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    throughput: Throughput,
) -> int:
    """Write one file of CAMs an image: the present classes, in half precision.

    Images that have a file in the folder are left out, so an interrupted export goes on. Under a
    launcher every rank writes its share.

    Args:
        model: Segmentor with a ``CAMHead``, in evaluation mode, on its device.
        dataset: Images, whose pipeline is the ``tta_pipeline`` of a CAM config.
        folder: Where to write.
        settings: What the CAMs depend on, kept beside the files; see :class:`ExportFolder`.
        throughput: How images go through the network.

    Returns:
        Number of files that this rank wrote.

    Raises:
        ValueError: If the folder holds an export with other settings, the classes of model and data
            set differ, the model would cut or pad the images, or an image cannot be read.
    """
    check_model(model, dataset)
    export, missing = start_export(folder, '.npz', settings, dataset)
    # Convolutions are faster in this order, on CPU and GPU alike.
    model = model.to(memory_format=torch.channels_last)
    written = 0
    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        pending: list[Future] = []
        for image in stream_cams(model, dataset, missing, throughput):
            if isinstance(image, Unreadable):
                raise ValueError(f'{image.image_path} cannot be read: {image.reason}')
            pending = wait_for_writers(pending, WRITER_THREADS * throughput.batch_size)
            pending.append(pool.submit(write_cams, export.path(image.image_id), *image.cams))
            written += 1
        wait_for_writers(pending, 0)
    barrier()
    return written


def wait_for_writers(pending: list[Future], most: int) -> list[Future]:
    """Wait until few writers are left, so that maps do not pile up; pass on their errors.

    Args:
        pending: Writers that were started.
        most: Number of them that may go on.

    Returns:
        Those that go on.
    """
    for future in pending[: max(0, len(pending) - most)]:
        future.result()
    return pending[max(0, len(pending) - most) :]
