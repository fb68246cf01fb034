"""Write the CAMs of a split, merged over scales and flips, as one file of present classes an image.

The scales and flips are those of the config's tta_pipeline. An interrupted export goes on where it
stopped; on several processes or GPUs start it with tools/dist_run.sh.
"""

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from torch.distributed.elastic.multiprocessing.errors import record

sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmdscnet  # noqa: F401
from mmdscnet.apis import build_split, describe_export, drop_masks, export_cams, load_model
from mmdscnet.inference import Throughput
from mmdscnet.inference.cam_stream import PRECISIONS
from mmdscnet.launch import join_ranks, leave_together, read_run_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a CAM network')
    parser.add_argument('checkpoint', help='its trained weights')
    parser.add_argument('--out', required=True, help='folder of the .npz files')
    parser.add_argument(
        '--split', help='split file relative to data_root; default: that of test_dataloader'
    )
    parser.add_argument('--labels', choices=('given', 'predicted'), default='given')
    parser.add_argument('--batch-size', type=int, default=4, help='images of one size at a time')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images')
    parser.add_argument('--precision', choices=PRECISIONS, default='float32', help='of the network')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torchrun sets LOCAL_RANK instead; older launchers pass one of these two flags.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


def use_views(cfg: Config) -> None:
    """Let the images of ``test_dataloader`` come in all their views and without masks.

    Args:
        cfg: The config, changed in place.

    Raises:
        ValueError: If the config names no views.
    """
    if cfg.get('tta_pipeline') is None:
        raise ValueError(
            f'{cfg.filename} has no tta_pipeline, which says over which scales and flips CAMs are '
            'merged: add one, as configs/_base_/datasets/voc.py has'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    drop_masks(cfg)


@record
def main() -> None:
    """Export as the command line says."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_run_config(args.config, options=args.cfg_options, launcher=args.launcher)
    use_views(cfg)
    device = join_ranks(cfg)
    model = load_model(cfg, args.checkpoint, device)
    dataset = build_split(cfg, args.split, args.labels)
    settings = describe_export(cfg, args.checkpoint, dataset, args.labels)
    settings['precision'] = args.precision
    written = export_cams(
        model,
        dataset,
        args.out,
        settings,
        Throughput(args.batch_size, args.num_workers, args.precision),
    )
    print(f'\n{written} CAM files written, {len(dataset)} images in {args.out}')
    leave_together()


if __name__ == '__main__':
    main()
