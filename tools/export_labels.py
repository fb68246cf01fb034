"""Write what a trained model predicts for a split as palette PNGs.

For the labels of a CAM network, for exported CAMs that walk by an AffinityNet (--cams), and for the
predictions of a segmentation network. An interrupted export goes on where it stopped; on several
processes or GPUs start it with tools/dist_run.sh. Where the split has masks, the labels are judged.
"""

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction
from mmengine.dist import get_rank
from torch.distributed.elastic.multiprocessing.errors import record

sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmdscnet  # noqa: F401
from mmdscnet.apis import (
    build_split,
    describe_export,
    drop_masks,
    export_labels,
    load_model,
)
from mmdscnet.datasets import VOCLayoutDataset
from mmdscnet.evaluation import judge_label_folder
from mmdscnet.inference import list_image_ids
from mmdscnet.launch import (
    enable_test_time_augmentation,
    join_ranks,
    leave_together,
    read_run_config,
)
from mmdscnet.pseudo_labels import SETTINGS_FILE, hash_file, read_dense_crf, write_voc_archive
from mmdscnet.pseudo_labels.voc_archive import NUM_CLASSES


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('--out', required=True, help='folder of the .png files')
    parser.add_argument(
        '--split', help='split file relative to data_root; default: that of test_dataloader'
    )
    parser.add_argument(
        '--labels',
        choices=('given', 'predicted'),
        help='image-level labels; default: given if the config names a source, else predicted',
    )
    parser.add_argument('--cams', help='folder of exported CAMs, for an AffinityNet')
    parser.add_argument('--tta', action='store_true', help='merge scales and flips')
    parser.add_argument(
        '--crf',
        nargs='*',
        action=DictAction,
        metavar='KEY=VALUE',
        help='run a dense CRF over the scores, with settings such as bilateral_sxy=50; default: '
        'those of AffinityNet',
    )
    parser.add_argument('--jobs', type=int, default=1, help='processes that write, and run the CRF')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images')
    parser.add_argument(
        '--no-masks', action='store_true', help='the split has no masks, as VOC test has none'
    )
    parser.add_argument('--voc-archive', help='write an archive for the VOC test server, a .tar.gz')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torchrun sets LOCAL_RANK instead; older launchers pass one of these two flags.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


@record
def main() -> None:
    """Export as the command line says."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    crf = None if args.crf is None else read_dense_crf(args.crf)
    cfg = read_run_config(args.config, options=args.cfg_options, launcher=args.launcher)
    device = join_ranks(cfg)
    model = load_model(cfg, args.checkpoint, device, args.tta)
    if args.tta:
        enable_test_time_augmentation(cfg)
    if args.cams:
        cfg.test_dataloader.dataset.cam_folder = args.cams
    if args.no_masks:
        drop_masks(cfg)
    if args.labels is None:
        has_labels = cfg.test_dataloader.dataset.get('image_labels') is not None
        args.labels = 'given' if has_labels else 'predicted'
    dataset = build_split(cfg, args.split, args.labels)
    num_classes = len(dataset.metainfo['classes'])
    if args.voc_archive and num_classes != NUM_CLASSES:
        raise ValueError(
            f'--voc-archive={args.voc_archive} takes the {NUM_CLASSES} classes of VOC and the data '
            f'set has {num_classes}: leave the flag out'
        )
    settings = describe_export(cfg, args.checkpoint, dataset, args.labels)
    cams = cfg.test_dataloader.dataset.get('cam_folder')
    settings['cams'] = cams and identify_cams(cams)
    written = export_labels(model, dataset, args.out, settings, crf, args.num_workers, args.jobs)
    if get_rank() == 0:
        print(f'\n{written} label maps written by this process, {len(dataset)} in {args.out}')
        finish(args, dataset)
    leave_together()


def identify_cams(folder: str) -> str:
    """Identify exported CAMs by their settings.

    Args:
        folder: Folder of the CAMs.

    Returns:
        Hash of the settings.

    Raises:
        FileNotFoundError: If there are none, so that these are not exported CAMs.
    """
    path = Path(folder, SETTINGS_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f'{folder} has no {SETTINGS_FILE}: give a folder that tools/export_cams.py wrote'
        )
    return hash_file(path)


def finish(args: argparse.Namespace, dataset: VOCLayoutDataset) -> None:
    """Judge and pack what was written.

    Args:
        args: The command line.
        dataset: The images.
    """
    ids = list_image_ids(dataset)
    truth = dataset.data_prefix.get('seg_map_path')
    if truth:
        scores = judge_label_folder(args.out, truth, ids, dataset.metainfo['classes'])
        print(f'mIoU {scores.mean_iou:.2f} over {scores.num_images} images (labels {args.labels})')
    if args.voc_archive:
        write_voc_archive(args.voc_archive, args.out, ids, dataset.metainfo['palette'])
        print(f'{args.voc_archive} is ready for the VOC test server')


if __name__ == '__main__':
    main()
