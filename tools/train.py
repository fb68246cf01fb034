"""Train a model, with mmseg's command line."""

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction
from torch.distributed.elastic.multiprocessing.errors import record

# A clone runs without being installed; an installed mmdscnet comes first on the path.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Before any config is read, so that its `mmdscnet::` bases are found.
import mmdscnet  # noqa: F401
from mmdscnet.launch import (
    build_runner,
    check_backbone_weights,
    enable_amp,
    find_checkpoint_to_resume,
    leave_together,
    read_run_config,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--resume', action='store_true', help='go on from the newest checkpoint in the work dir'
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (CUDA only)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='overwrite the config, for example train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torchrun sets LOCAL_RANK instead; older launchers pass one of these two flags.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


@record
def main() -> None:
    """Train as the command line says."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_run_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    check_backbone_weights(cfg)
    if args.amp:
        enable_amp(cfg)
    cfg.resume = args.resume or cfg.get('resume', False)
    find_checkpoint_to_resume(cfg)
    runner = build_runner(cfg)
    runner.train()
    leave_together()


if __name__ == '__main__':
    main()
