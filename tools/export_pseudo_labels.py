"""Label the images of a split by a trained CAM network, as a version of a store of pseudo labels.

The scales and flips are those of the config's tta_pipeline. OUT/current is then a folder of palette
PNGs for any data set of mmseg, OUT/current/manifest.json says how they were made. An interrupted
export goes on where it stopped; on several processes or GPUs start it with
tools/dist_export_pseudo_labels.sh. Where the split has masks, the labels are judged.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import get_rank
from torch.distributed.elastic.multiprocessing.errors import record

sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmdscnet  # noqa: F401
from mmdscnet.apis import build_split, describe_export, drop_masks, load_model
from mmdscnet.apis.export_start import identify
from mmdscnet.apis.inferencer import load_cam_model, make_labeler
from mmdscnet.datasets import VOCLayoutDataset
from mmdscnet.evaluation import judge_label_folder
from mmdscnet.inference import AffinityWalk, Finishing, Throughput, label_images
from mmdscnet.inference.cam_stream import PRECISIONS
from mmdscnet.launch import join_ranks, leave_together, read_run_config
from mmdscnet.provenance import describe_code, hash_config
from mmdscnet.pseudo_labels import (
    PseudoLabelStore,
    StoreVersion,
    hash_file,
    read_dense_crf,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a CAM network')
    parser.add_argument('checkpoint', help='its trained weights')
    parser.add_argument('--out', required=True, help='folder of the store')
    parser.add_argument(
        '--split', help='split file relative to data_root; default: that of test_dataloader'
    )
    parser.add_argument('--labels', choices=('given', 'predicted'), default='given')
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
    parser.add_argument(
        '--walk', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='AffinityNet for a random walk'
    )
    parser.add_argument('--keep-cams', type=Path, help='folder for the CAMs, present classes only')
    parser.add_argument('--single-view', action='store_true', help='no scales and flips')
    parser.add_argument('--skip-unreadable', action='store_true', help='leave such images out')
    parser.add_argument('--batch-size', type=int, default=4, help='images of one size at a time')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images')
    parser.add_argument('--jobs', type=int, default=0, help='processes that run the CRF and write')
    parser.add_argument('--precision', choices=PRECISIONS, default='float32', help='of the network')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torchrun sets LOCAL_RANK instead; older launchers pass one of these two flags.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


def use_views(cfg: Config, args: argparse.Namespace) -> None:
    """Let the images come in all their views and without masks, and say which may be damaged.

    Args:
        cfg: The config, changed in place.
        args: The command line.

    Raises:
        ValueError: If the config names no views.
    """
    dataset = cfg.test_dataloader.dataset
    if not args.single_view:
        if cfg.get('tta_pipeline') is None:
            raise ValueError(
                f'{cfg.filename} has no tta_pipeline, which says over which scales and flips CAMs '
                'are merged: add one, as configs/_base_/datasets/voc.py has, or give --single-view'
            )
        dataset.pipeline = cfg.tta_pipeline
    if args.skip_unreadable:
        # The data set would refuse them; the export finds each by itself.
        dataset.check_files = False


def read_walk(args: argparse.Namespace, device: torch.device) -> AffinityWalk | None:
    """Load the AffinityNet of the command line.

    Args:
        args: The command line.
        device: Where it shall be.

    Returns:
        The random walk, or None.
    """
    if args.walk is None:
        return None
    config, checkpoint = args.walk
    return AffinityWalk(load_model(Config.fromfile(config), checkpoint, device))


def describe(args: argparse.Namespace, cfg: Config, dataset: VOCLayoutDataset) -> dict:
    """Collect what the labels depend on.

    Args:
        args: The command line.
        cfg: The config.
        dataset: The images.

    Returns:
        Settings of the version.
    """
    walk = args.walk and dict(config=hash_file(args.walk[0]), checkpoint=identify(args.walk[1]))
    return dict(
        describe_export(cfg, args.checkpoint, dataset, args.labels),
        code=describe_code(),
        config=hash_config(cfg),
        precision=args.precision,
        walk=walk,
    )


def find_masks(cfg: Config) -> str | None:
    """Find the folder of the masks of a data set, before the export leaves them out.

    Args:
        cfg: The config.

    Returns:
        The folder; None if there is none.
    """
    dataset = cfg.test_dataloader.dataset
    prefix = dataset.get('data_prefix') or dict(seg_map_path='SegmentationClass')
    name = prefix.get('seg_map_path')
    folder = os.path.join(dataset.data_root, name) if name else None
    return folder if folder and os.path.isdir(folder) else None


def report(version: StoreVersion, masks: str | None, labels: str) -> None:
    """Print what was written, and judge it where there are masks.

    Args:
        version: The version.
        masks: Folder of the masks; None if there is none.
        labels: ``given`` or ``predicted``.
    """
    print(version.summarize())
    ids = version.ids_with_masks(masks)
    if ids and masks:
        scores = judge_label_folder(version.folder, masks, ids, version.manifest['classes'])
        print(f'mIoU {scores.mean_iou:.2f} over {len(ids)} images with masks (labels {labels})')


@record
def main() -> None:
    """Export as the command line says."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_run_config(args.config, options=args.cfg_options, launcher=args.launcher)
    use_views(cfg, args)
    masks = find_masks(cfg)
    drop_masks(cfg)
    device = join_ranks(cfg)
    model = load_cam_model(cfg, args.checkpoint, device)
    dataset = build_split(cfg, args.split, args.labels)
    crf = None if args.crf is None else read_dense_crf(args.crf)
    labeler = make_labeler(model.decode_head, args.bg_thr, args.bg_alpha, args.fg_thr, crf)
    finishing = Finishing(labeler, read_walk(args, device), args.jobs, args.keep_cams)
    version = label_images(
        model,
        dataset,
        PseudoLabelStore(args.out),
        describe(args, cfg, dataset),
        Throughput(args.batch_size, args.num_workers, args.precision),
        finishing,
        args.skip_unreadable,
    )
    if get_rank() == 0:
        # Masks of more classes than the data set has carry other ids.
        report(version, None if dataset.label_map else masks, args.labels)
    leave_together()


if __name__ == '__main__':
    main()
