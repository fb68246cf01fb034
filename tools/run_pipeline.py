"""Run the whole pipeline on one machine, from CAMs to the second stage, and judge every stage.

Every stage is one of the commands of configs/dscnet/README.md, which the script prints and runs. It
goes on where it stopped. A training runs in one process, so the batch size of its config is that of
a step. At the end it writes mIoU after every stage on two splits to table.md: image-level labels
are given for CAMs and walk, as in the papers, and not for the second stage.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import find_latest_checkpoint

TOOLS = Path(__file__).resolve().parent
sys.path.append(str(TOOLS.parent))

import mmdscnet  # noqa: F401
from mmdscnet.apis import build_split
from mmdscnet.atomic_write import atomic_path
from mmdscnet.datasets import VOCLayoutDataset
from mmdscnet.evaluation import judge_label_folder, sweep_cam_folder
from mmdscnet.inference import list_image_ids
from mmdscnet.launch import read_run_config
from mmdscnet.pseudo_labels import ExportFolder, require_dense_crf

# How the second stage is judged: folder of the label maps, and options of their export.
PREDICTIONS = {
    'predictions': ('--labels', 'predicted', '--tta'),
    'predictions_crf': ('--labels', 'predicted', '--tta', '--crf'),
}
JUDGED = {
    'random walk': ('walk', 'given'),
    'second stage, scales and flips': ('predictions', 'predicted'),
    'second stage, scales, flips, CRF': ('predictions_crf', 'predicted'),
}
STAGES = ('cam', 'affinity', 'segmentation')
NOT_SETTINGS = ('work_dir', 'processes')
NO_VALIDATION = ('val_cfg=None', 'val_dataloader=None', 'val_evaluator=None')


class Row(NamedTuple):
    """A row of the table: mIoU in per cent.

    Attributes:
        stage: What was judged.
        labels: ``given`` or ``predicted``.
        train: On the split that trains.
        val: On the split that does not.
    """

    stage: str
    labels: str
    train: float
    val: float


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cam', default='configs/dscnet/voc_animals_seam.py', help='config')
    parser.add_argument('--affinity', default='configs/affinitynet/voc_animals.py', help='config')
    parser.add_argument(
        '--segmentation',
        default='configs/segmentation/deeplabv3plus_mobilenetv2_voc_animals.py',
        help='config',
    )
    splits = 'ImageSets/Segmentation'
    parser.add_argument('--train-split', default=f'{splits}/mini_train.txt')
    parser.add_argument('--val-split', default=f'{splits}/mini_val.txt')
    parser.add_argument(
        '--alphas', type=float, nargs=2, default=(1.0, 4.0), help='of the labels for AffinityNet'
    )
    parser.add_argument(
        '--crf',
        nargs='*',
        default=['bilateral_sxy=50', 'bilateral_srgb=5', 'bilateral_compat=4'],
        metavar='KEY=VALUE',
        help='settings of every dense CRF',
    )
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--processes',
        type=int,
        default=torch.cuda.device_count() or 2,
        help='of exports and dense CRFs; default: the number of GPUs, 2 without any',
    )
    parser.add_argument(
        '--data-options',
        nargs='*',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='options of every data set, such as data_root=...',
    )
    return parser.parse_args()


class Pipeline:
    """The stages of one seed, each in a folder of its own below the work dir.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.splits = {'train': args.train_split, 'val': args.val_split}
        self.folder = args.work_dir.absolute()
        for stage in STAGES:
            refuse_single_images(getattr(args, stage))
        # Before the first training: a split that cannot be judged should not cost one.
        self.datasets = {name: self.dataset(split) for name, split in self.splits.items()}
        # Refuses a work dir with results of other settings, which would be taken for these.
        ExportFolder(self.folder, '.pth', self.settings())

    def settings(self) -> dict[str, Any]:
        """Collect what the results depend on."""
        own = {key: value for key, value in vars(self.args).items() if key not in NOT_SETTINGS}
        texts = {stage: Config.fromfile(own[stage]).pretty_text for stage in STAGES}
        hashes = {stage: sha256(text.encode()).hexdigest()[:16] for stage, text in texts.items()}
        return {**own, 'content of the configs': hashes}

    def run(self) -> None:
        """Run all stages, in the order of the data."""
        self.train('cam', self.args.cam)
        for split in self.splits.values():
            self.export('export_cams.py', 'cam', self.args.cam, 'cams', split)
        self.call(
            [sys.executable, TOOLS / 'make_affinity_labels.py', self.folder / 'cams'],
            ['--images', self.datasets['train'].data_prefix['img_path']],
            ['--split', self.datasets['train'].ann_file, '--jobs', self.args.processes],
            ['--out', self.folder / 'affinity_labels', '--alphas', *self.args.alphas],
            ['--crf', *self.args.crf],
        )
        self.train('affinity', self.args.affinity, self.folder / 'affinity_labels')
        for split in self.splits.values():
            extra = ('--cams', self.folder / 'cams')
            self.export('export_labels.py', 'affinity', self.args.affinity, 'walk', split, *extra)
        self.train('segmentation', self.args.segmentation, self.folder / 'walk')
        for out, extra in PREDICTIONS.items():
            extra += tuple(self.args.crf) if '--crf' in extra else ()
            for split in self.splits.values():
                self.export(
                    'export_labels.py', 'segmentation', self.args.segmentation, out, split, *extra
                )

    def train(self, stage: str, config: str, labels: Path | None = None) -> None:
        """Train a network, unless it is trained to its end.

        Args:
            stage: Name of its folder.
            config: Its config.
            labels: Folder of the label maps that it learns from; None for image-level labels.
        """
        work_dir = self.folder / stage
        loop = Config.fromfile(config).train_cfg
        last = f'epoch_{loop.max_epochs}' if 'max_epochs' in loop else f'iter_{loop.max_iters}'
        if (work_dir / f'{last}.pth').is_file():
            return
        dataset = {'ann_file': self.args.train_split, **self.args.data_options}
        if labels is not None:
            dataset['pseudo_label_folder'] = labels
        options = [f'train_dataloader.dataset.{key}={value}' for key, value in dataset.items()]
        self.call(
            [sys.executable, TOOLS / 'train.py', config, '--work-dir', work_dir, '--resume'],
            ['--cfg-options', f'randomness.seed={self.args.seed}', *options, *NO_VALIDATION],
        )

    def export(
        self, tool: str, stage: str, config: str, out: str, split: str, *extra: str | Path
    ) -> None:
        """Run an export on several processes.

        Args:
            tool: Which one.
            stage: Whose checkpoint.
            config: Its config.
            out: Folder to write.
            split: Split file relative to ``data_root``.
            extra: Further options.
        """
        checkpoint = find_latest_checkpoint(self.folder / stage)
        options = [
            f'test_dataloader.dataset.{key}={v}' for key, v in self.args.data_options.items()
        ]
        self.call(
            ['bash', TOOLS / 'dist_run.sh', tool, self.args.processes, config, checkpoint],
            ['--out', self.folder / out, '--split', split, *extra],
            ['--cfg-options', *options] if options else [],
        )

    def call(self, *parts: list) -> None:
        """Print a command and run it.

        Args:
            parts: Its words.

        Raises:
            SystemExit: If it fails; what it said stands above.
        """
        command = [str(word) for part in parts for word in part]
        print(f'\n$ {shlex.join(command)}', flush=True)
        start = time.monotonic()
        environment = {**os.environ, 'PYTHON': sys.executable}
        code = subprocess.run(command, env=environment, check=False).returncode
        print(f'({time.monotonic() - start:.0f} s)', flush=True)
        if code:
            raise SystemExit('this stage failed; mend what it says and run the same command again')

    def dataset(self, split: str) -> VOCLayoutDataset:
        """Build a split with its masks.

        Args:
            split: Split file relative to ``data_root``.

        Returns:
            The data set of the CAM config.
        """
        cfg = read_run_config(self.args.cam)
        cfg.test_dataloader.dataset.update(self.args.data_options)
        return build_split(cfg, split)

    def judge(self) -> Iterator[Row]:
        """Judge the labels of every stage.

        Yields:
            A row a stage.
        """
        ids = {name: list_image_ids(dataset) for name, dataset in self.datasets.items()}
        truth = self.datasets['train'].data_prefix['seg_map_path']
        classes = self.datasets['train'].metainfo['classes']
        curves = {
            name: sweep_cam_folder(self.folder / 'cams', truth, ids[name], len(classes)).mean_iou
            for name in ids
        }
        best = int(curves['train'].argmax())
        yield Row(
            f'CAMs, bg_thr {best / 100:.2f} chosen on train',
            'given',
            float(curves['train'][best]),
            float(curves['val'][best]),
        )
        for stage, (folder, labels) in JUDGED.items():
            scores = [
                judge_label_folder(self.folder / folder, truth, ids[name], classes).mean_iou
                for name in ids
            ]
            yield Row(stage, labels, *scores)


def refuse_single_images(config: str) -> None:
    """Refuse a config whose images a step come from several GPUs: a training here is one process.

    Args:
        config: Config of a stage.

    Raises:
        ValueError: If a process trains on one image a step.
    """
    batch_size = Config.fromfile(config).train_dataloader.batch_size
    if batch_size < 2:
        raise ValueError(
            f'{config} has train_dataloader.batch_size={batch_size}, which is for several GPUs: '
            'run the commands of configs/dscnet/README.md, or give a config with all images of a '
            'step'
        )


def table(rows: list[Row]) -> str:
    """Draw the table.

    Args:
        rows: Its rows.

    Returns:
        Markdown.
    """
    lines = ['| stage | labels | train | val |', '|---|---|---|---|']
    lines += [f'| {r.stage} | {r.labels} | {r.train:.2f} | {r.val:.2f} |' for r in rows]
    return '\n'.join(lines)


def main() -> None:
    """Run the pipeline."""
    args = parse_args()
    # Before the first training rather than after it.
    require_dense_crf()
    pipeline = Pipeline(args)
    pipeline.run()
    rows = list(pipeline.judge())
    with atomic_path(pipeline.folder / 'table.json') as temporary:
        temporary.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    with atomic_path(pipeline.folder / 'table.md') as temporary:
        temporary.write_text(f'{table(rows)}\n')
    print(f'\n{table(rows)}')


if __name__ == '__main__':
    main()
