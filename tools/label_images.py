"""Label a folder of one's own images by a trained CAM network, with tags from a file or predicted.

OUT/current is then a folder of palette PNGs for any data set of mmseg, OUT/current/manifest.json
says how they were made. An interrupted run goes on where it stopped. For a data set with splits,
masks or several GPUs there is tools/export_pseudo_labels.py.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, DictAction
from mmengine.utils import ProgressBar

sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmdscnet  # noqa: F401
from mmdscnet.apis.export_start import identify
from mmdscnet.apis.inferencer import (
    find_metainfo,
    find_pipeline,
    load_cam_model,
    make_labeler,
    read_device,
    refuse_inside,
    write_jpeg,
)
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.inference import (
    Finishing,
    ImageList,
    Throughput,
    add_image_labels,
    find_images,
    label_images,
    list_image_ids,
)
from mmdscnet.inference.cam_stream import PRECISIONS
from mmdscnet.launch import read_run_config
from mmdscnet.provenance import describe_code, hash_config
from mmdscnet.pseudo_labels import PseudoLabelStore, StoreVersion, read_dense_crf
from mmdscnet.pseudo_labels.label_map_files import open_label_map
from mmdscnet.visualization import draw_label_overlay


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a CAM network')
    parser.add_argument('checkpoint', help='its trained weights')
    parser.add_argument('folder', type=Path, help='the images, also those in folders in it')
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument('--tags', help='classes of each image: .csv, .json or .txt')
    labels.add_argument('--labels', choices=('predicted',), help='let the network name the classes')
    parser.add_argument('--out', type=Path, required=True, help='folder of the store')
    parser.add_argument('--keep-cams', type=Path, help='folder for the CAMs, present classes only')
    parser.add_argument('--overlays', type=Path, help='folder for label maps laid over the photos')
    parser.add_argument('--bg-thr', type=float, help="background score; default: the head's")
    parser.add_argument(
        '--bg-alpha',
        type=float,
        help="exponent of (1 - max)^alpha in its place; default: the head's",
    )
    parser.add_argument('--fg-thr', type=float, help='classes that win with less become void')
    parser.add_argument(
        '--crf',
        nargs='*',
        action=DictAction,
        metavar='KEY=VALUE',
        help='dense CRF, with settings such as bilateral_sxy=50',
    )
    parser.add_argument('--no-tta', action='store_true', help='no scales and flips')
    parser.add_argument('--skip-unreadable', action='store_true', help='leave such images out')
    parser.add_argument('--batch-size', type=int, default=4, help='images of one size at a time')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images')
    parser.add_argument('--jobs', type=int, default=0, help='processes that run the CRF and write')
    parser.add_argument('--precision', choices=PRECISIONS, default='float32', help='of the network')
    parser.add_argument('--device', help='such as cpu or cuda:1; default: CUDA where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return parser.parse_args()


def list_images(args: argparse.Namespace, metainfo: dict[str, Any]) -> list[dict[str, Any]]:
    """List the images with their tags.

    Args:
        args: The command line.
        metainfo: Classes of the network.

    Returns:
        Infos for :class:`ImageList`.

    Raises:
        FileNotFoundError: If there are no images, or no tags.
        ValueError: If images and tags do not fit, or results would be taken for images.
    """
    infos: list[dict[str, Any]] = [dict(img_path=str(path)) for path in find_images(args.folder)]
    refuse_inside(args.out, args.folder, '--out')
    if args.overlays is not None:
        refuse_inside(args.overlays, args.folder, '--overlays')
    if args.tags is not None:
        add_image_labels(infos, args.tags, metainfo['classes'][1:])
    return infos


def describe(
    args: argparse.Namespace, cfg: Config, metainfo: dict[str, Any], pipeline: list[dict[str, Any]]
) -> dict[str, Any]:
    """Collect what the labels depend on, as ``describe_export`` does for a data set.

    Args:
        args: The command line.
        cfg: The config.
        metainfo: Classes of the network.
        pipeline: What is done to an image.

    Returns:
        Settings of the version.
    """
    return dict(
        model=cfg.model.to_dict(),
        pipeline=pipeline,
        checkpoint=identify(args.checkpoint),
        classes=metainfo['classes'],
        labels='predicted' if args.tags is None else 'given',
        label_source=args.tags and identify(args.tags),
        precision=args.precision,
        code=describe_code(),
        config=hash_config(cfg),
    )


def write_overlays(version: StoreVersion, dataset: ImageList, folder: Path) -> None:
    """Lay the label maps of a version over the photos.

    Args:
        version: The version.
        dataset: Its images.
        folder: Where to write ``<id>.jpg``.
    """
    palette = dataset.metainfo['palette']
    paths = dict(zip(list_image_ids(dataset), dataset.infos, strict=True))
    progress = ProgressBar(len(version.manifest['files']), file=sys.stderr)
    for image_id in version.manifest['files']:
        label_map = np.asarray(open_label_map(version.folder / f'{image_id}.png'))
        image = read_rgb(paths[image_id]['img_path'])
        write_jpeg(folder / f'{image_id}.jpg', draw_label_overlay(image, label_map, palette))
        progress.update()
    print(file=sys.stderr)


def main() -> None:
    """Label as the command line says."""
    args = parse_args()
    cfg = read_run_config(args.config, options=args.cfg_options)
    device = read_device(args.device)
    metainfo, pipeline = find_metainfo(cfg), find_pipeline(cfg, not args.no_tta)
    infos = list_images(args, metainfo)
    crf = None if args.crf is None else read_dense_crf(args.crf)
    # Loading sets the scope in which the pipeline is built.
    model = load_cam_model(cfg, args.checkpoint, device)
    dataset = ImageList(infos, pipeline, metainfo)
    labeler = make_labeler(model.decode_head, args.bg_thr, args.bg_alpha, args.fg_thr, crf)
    version = label_images(
        model,
        dataset,
        PseudoLabelStore(args.out),
        describe(args, cfg, metainfo, pipeline),
        Throughput(args.batch_size, args.num_workers, args.precision),
        Finishing(labeler, None, args.jobs, args.keep_cams),
        args.skip_unreadable,
    )
    if args.overlays is not None:
        write_overlays(version, dataset, args.overlays)
    print(version.summarize())


if __name__ == '__main__':
    main()
