"""Train M0 (plain CAM) and M4 (DSCNet) for the same steps, judge both, and draw what they see.

Without --data on generated shapes; with it on a folder in VOC's layout. Writes to the work dir:
grid.png (image, CAM, refined CAM, pseudo label, truth), threshold_curve.png, pseudo_labels/ (a
palette PNG for every training image that has a mask to judge by), summary.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import mmdscnet  # noqa: F401
from mmdscnet.apis import Judgement, train_and_judge
from mmdscnet.atomic_write import atomic_path
from mmdscnet.datasets import read_label_classes
from mmdscnet.pseudo_labels import write_palette_png
from mmdscnet.visualization import CAMGridRow, draw_cam_grid, draw_threshold_curve

METHODS = {'M0': 'cam', 'M4': 'dscnet'}
GRID_ROWS = 8
REAL_EPOCHS = 4


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='default: work_dirs/demo, and with --data work_dirs/demo/<name of its folder>',
    )
    parser.add_argument('--data', type=Path, help='folder in VOC layout; default: shapes')
    parser.add_argument(
        '--weights',
        help='with --data: ImageNet weights of MobileNetV2, key names of mmpretrain; default: '
        'mobilenet_v2*.pth in a folder weights/ beside the data, else the model zoo. A file is '
        'expected to have been trained with inputs (x - 127.5) / 127.5 in RGB; the weights of the '
        'model zoo are used with the mean and std of ImageNet',
    )
    args = parser.parse_args()
    if args.work_dir is None:
        # Results of generated and of real images must not mix.
        args.work_dir = Path('work_dirs/demo', args.data.resolve().name if args.data else '')
    return args


def make_config(args: argparse.Namespace, method: str) -> Config:
    """Read the config of a method and point it to the data.

    Args:
        args: The command line.
        method: Key of ``METHODS``.

    Returns:
        The config of the run.
    """
    name = 'voc_animals' if args.data else 'shapes'
    cfg = Config.fromfile(ROOT / 'configs' / METHODS[method] / f'{name}.py')
    cfg.work_dir = str(args.work_dir / method)
    cfg.log_level = 'WARNING'
    cfg.visualizer.name = method
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='ProgressHook', name=method)]
    for loop in ('val', 'test'):
        cfg[f'{loop}_evaluator'].curve_path = str(args.work_dir / method / f'{loop}_curve.json')
    if args.data:
        use_folder(cfg, args.data)
        use_weights(cfg, args.weights or find_weights(args.data))
        cfg.train_cfg.max_epochs = REAL_EPOCHS
    return cfg


def use_folder(cfg: Config, folder: Path) -> None:
    """Point a config to a folder in VOC's layout.

    Args:
        cfg: Config, changed in place.
        folder: Folder with JPEGImages, SegmentationClass, image_labels.json and the splits
            train, val and, for shorter training, mini_train.

    Raises:
        FileNotFoundError: If the label list or a split is missing.
        ValueError: If the label list names no classes.
    """
    splits = folder / 'ImageSets/Segmentation'
    for path in (folder / 'image_labels.json', splits / 'train.txt', splits / 'val.txt'):
        if not path.is_file():
            raise FileNotFoundError(
                f'--data {folder} has no {path.relative_to(folder)}: README.md, "Your own images", '
                'shows the folder that the demo reads'
            )
    classes = read_label_classes(folder / 'image_labels.json')
    if classes is None:
        raise ValueError(
            f'{folder / "image_labels.json"} has no "classes": write {{"classes": [names], '
            '"labels": {id: [names]}}'
        )
    cfg.model.decode_head.num_classes = len(classes) + 1
    train_split = 'mini_train' if (splits / 'mini_train.txt').is_file() else 'train'
    for loop, split in (('train', train_split), ('val', 'train'), ('test', 'val')):
        dataset = cfg[f'{loop}_dataloader'].dataset
        dataset.data_root = str(folder)
        dataset.ann_file = f'ImageSets/Segmentation/{split}.txt'
        dataset.metainfo = dict(classes=('background', *classes))


def find_weights(folder: Path) -> str | None:
    """Look for ImageNet weights beside the data.

    Args:
        folder: Folder of the data.

    Returns:
        Path of the weights, or None.
    """
    for parent in list(folder.resolve().parents)[:2]:
        for path in sorted(parent.glob('weights/mobilenet_v2*.pth')):
            return str(path)
    return None


def use_weights(cfg: Config, weights: str | None) -> None:
    """Start the backbone from ImageNet weights.

    Args:
        cfg: Config, changed in place.
        weights: Path of the weights; None for the model zoo of OpenMMLab.
    """
    if weights is None:
        weights = 'mmcls://mobilenet_v2'
        # These were trained with another normalisation than those that the config names.
        cfg.model.data_preprocessor.mean = [123.675, 116.28, 103.53]
        cfg.model.data_preprocessor.std = [58.395, 57.12, 57.375]
    elif not Path(weights).is_file():
        raise FileNotFoundError(f'--weights {weights} is not a file: give a .pth of MobileNetV2')
    cfg.model.backbone.init_cfg.checkpoint = weights


@torch.no_grad()
def export_pseudo_labels(runner: Runner, folder: Path) -> int:
    """Write the pseudo label of every image of ``val_dataloader``.

    Args:
        runner: Runner with the trained model.
        folder: Folder of the palette PNGs.

    Returns:
        Number of files written.
    """
    written = 0
    palette = runner.val_dataloader.dataset.metainfo['palette']
    for batch in runner.val_dataloader:
        for sample in runner.model.test_step(batch):
            label_map = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            write_palette_png(folder / f'{Path(sample.img_path).stem}.png', label_map, palette)
            written += 1
    return written


@torch.no_grad()
def grid_row(runner: Runner, item: dict) -> CAMGridRow:
    """Run one image through both classifiers of DSCNet.

    Args:
        runner: Runner with the trained model.
        item: Item of the data set.

    Returns:
        The row of the grid.
    """
    model = runner.model
    model.test_cfg.refine = False
    plain = model.test_step(pseudo_collate([item]))[0].seg_logits.data[1:].cpu().numpy()
    model.test_cfg.refine = True
    sample = model.test_step(pseudo_collate([item]))[0]
    truth = sample.gt_sem_seg.data[0].cpu().numpy().astype(np.uint8)
    # The pipeline may have resized the image; maps and truth have its original size.
    image = mmcv.imresize(item['inputs'].numpy()[::-1].transpose(1, 2, 0), truth.shape[::-1])
    return CAMGridRow(
        image=image,
        cams=plain,
        refined_cams=sample.seg_logits.data[1:].cpu().numpy(),
        pseudo_label=sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8),
        truth=truth,
        title=Path(sample.img_path).name,
    )


def draw_results(
    work_dir: Path, runner: Runner, judgements: dict[str, Judgement], rows: int = GRID_ROWS
) -> None:
    """Draw the grid and the threshold curves.

    Args:
        work_dir: Folder of the pictures.
        runner: Runner with the trained M4.
        judgements: Judgement of each method.
        rows: Number of images in the grid.
    """
    dataset = runner.test_dataloader.dataset
    chosen = np.linspace(0, len(dataset) - 1, min(rows, len(dataset))).astype(int)
    draw_cam_grid(
        work_dir / 'grid.png',
        [grid_row(runner, dataset[int(index)]) for index in chosen],
        dataset.metainfo['palette'],
        dataset.metainfo['classes'],
    )
    curves = {m: json.loads((work_dir / m / 'test_curve.json').read_text()) for m in judgements}
    draw_threshold_curve(
        work_dir / 'threshold_curve.png',
        {method: curve['mIoU'] for method, curve in curves.items()},
        next(iter(curves.values()))['thresholds'],
        {method: judgement.bg_thr for method, judgement in judgements.items()},
    )


def main() -> None:
    """Run the demo."""
    args = parse_args()
    start = time.monotonic()
    judgements = {}
    for method in METHODS:
        runner, judgements[method] = train_and_judge(make_config(args, method))
    runner.model.eval()
    runner.model.decode_head.bg_thr = judgements['M4'].bg_thr
    draw_results(args.work_dir, runner, judgements)
    written = export_pseudo_labels(runner, args.work_dir / 'pseudo_labels')
    summary = {method: judgement._asdict() for method, judgement in judgements.items()}
    with atomic_path(args.work_dir / 'summary.json') as temporary:
        temporary.write_text(json.dumps(summary, indent=1))
    print(f'\nCAM mIoU (%) on val, {judgements["M4"].labels.replace("_", " ")}, one seed:')
    for method, result in judgements.items():
        print(f'  {method}: {result.judged:.2f} at bg_thr={result.bg_thr} (chosen on train)')
    print(
        f'{written} pseudo labels, grid.png and threshold_curve.png are in {args.work_dir}; '
        f'{time.monotonic() - start:.0f} s in all'
    )


if __name__ == '__main__':
    main()
