"""Test a model, with mmseg's command line."""

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from torch.distributed.elastic.multiprocessing.errors import record

# A clone runs without being installed; an installed mmdscnet comes first on the path.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Before any config is read, so that its `mmdscnet::` bases are found.
import mmdscnet  # noqa: F401
from mmdscnet.launch import (
    build_runner,
    check_checkpoint,
    enable_test_time_augmentation,
    leave_together,
    read_run_config,
)
from mmdscnet.zoo import checked_address


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--work-dir', help='folder for the log and the results')
    parser.add_argument('--out', help='folder for the predictions, as PNGs of class indices')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for painted predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='overwrite the config, for example test_dataloader.batch_size=1',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--tta', action='store_true', help='merge scales and flips')
    # torchrun sets LOCAL_RANK instead; older launchers pass one of these two flags.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


def enable_painting(cfg: Config, args: argparse.Namespace) -> None:
    """Paint every prediction, also where the config has no hook or visualizer for it."""
    hook = cfg.get('default_hooks', {}).get('visualization', dict(type='SegVisualizationHook'))
    hook = dict(hook, draw=True, interval=1, show=args.show, wait_time=args.wait_time)
    cfg.merge_from_dict({'default_hooks.visualization': hook})
    if cfg.get('visualizer') is None:
        cfg.visualizer = dict(
            type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
        )
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def add_prediction_writer(cfg: Config, out: str) -> None:
    """Write predictions to a folder, whatever metrics the config has."""
    metrics = cfg.test_evaluator
    metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    cfg.test_evaluator = [*metrics, dict(type='IoUMetric', format_only=True, output_dir=out)]


@record
def main() -> None:
    """Test as the command line says."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_checkpoint(args.checkpoint)
    cfg = read_run_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    cfg.load_from = checked_address(args.checkpoint)
    if args.show or args.show_dir:
        enable_painting(cfg, args)
    if args.tta:
        enable_test_time_augmentation(cfg)
    if args.out:
        add_prediction_writer(cfg, args.out)
    runner = build_runner(cfg)
    runner.test()
    leave_together()


if __name__ == '__main__':
    main()
