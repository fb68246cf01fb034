"""Time the export of CAMs against the plain way: one image and one view at a time, in float32.

Both run the same network over the same views of the same images, in turns within one process, so
that a machine that slows down slows both down. Weights and images are random; reading and writing
files is left out of both.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import mmdscnet  # noqa: F401
from mmdscnet.inference import collate_views, compute_cams
from mmdscnet.inference.cam_stream import PRECISIONS
from mmdscnet.launch import read_run_config, run_name

# After mmdscnet, which mends what mmseg imports.
from mmseg.registry import DATASETS, MODELS  # isort: skip


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', default=str(ROOT / 'configs/seam/voc.py'))
    parser.add_argument('--images', type=int, default=8)
    parser.add_argument(
        '--size', type=int, nargs=2, default=(96, 128), metavar=('H', 'W'), help='in pixels'
    )
    parser.add_argument('--classes-an-image', type=int, default=2)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--repeats', type=int, default=3, help='timed rounds')
    parser.add_argument('--precisions', nargs='+', choices=PRECISIONS, default=['float32'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def write_images(folder: Path, args: argparse.Namespace, classes: tuple[str, ...]) -> None:
    """Write smooth random images with labels, in VOC's layout.

    Args:
        folder: Where to write.
        args: The command line.
        classes: Names of the foreground classes.
    """
    rng = np.random.default_rng(0)
    for name in ('JPEGImages', 'ImageSets'):
        (folder / name).mkdir()
    lines = []
    for index in range(args.images):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(args.size[::-1]).save(folder / f'JPEGImages/{index}.jpg')
        chosen = rng.choice(classes, args.classes_an_image, replace=False)
        lines.append(f'{index} {",".join(chosen)}\n')
    (folder / 'labels.txt').write_text(''.join(lines))
    (folder / 'ImageSets/all.txt').write_text(''.join(f'{i}\n' for i in range(args.images)))


def load_items(cfg: Config, folder: Path) -> list[dict]:
    """Read the images in all their views.

    Args:
        cfg: The config.
        folder: As :func:`write_images` wrote it.

    Returns:
        Items of the data set.
    """
    dataset = dict(
        cfg.test_dataloader.dataset,
        data_root=str(folder),
        ann_file='ImageSets/all.txt',
        image_labels='labels.txt',
        data_prefix=dict(img_path='JPEGImages'),
        pipeline=cfg.tta_pipeline,
    )
    return list(DATASETS.build(dataset))


@torch.inference_mode()
def export_plainly(model: nn.Module, items: list[dict]) -> list[np.ndarray]:
    """Merge the views of each image by itself.

    Args:
        model: The ``tta_model`` of the config.
        items: Items of the data set.

    Returns:
        CAMs of the present classes of each image, shape (k, H, W).
    """
    maps = []
    for item in items:
        (sample,) = model.test_step(pseudo_collate([item]))
        present = torch.from_numpy(sample.gt_image_label).bool()
        maps.append(sample.seg_logits.data[1:].cpu()[present].numpy())
    return maps


def export_in_batches(
    model: nn.Module, items: list[dict], batch_size: int, precision: torch.dtype
) -> list[np.ndarray]:
    """Merge the views as the export does.

    Args:
        model: The segmentor.
        items: Items of the data set, of one size.
        batch_size: Images a batch.
        precision: Of the network.

    Returns:
        As :func:`export_plainly`.
    """
    maps = []
    for start in range(0, len(items), batch_size):
        batch = collate_views(items[start : start + batch_size])
        maps += [cams for cams, _ in compute_cams(model, batch, precision)]
    return maps


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    torch.manual_seed(0)
    cfg = read_run_config(args.config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).to(args.device).eval()
    # Another memory format for one way must not reach the other.
    fast = MODELS.build(cfg.model)
    fast.load_state_dict(model.state_dict())
    fast = fast.to(args.device, memory_format=torch.channels_last).eval()
    plain = MODELS.build(dict(cfg.tta_model, module=model))
    with tempfile.TemporaryDirectory() as folder:
        known = DATASETS.get(cfg.dataset_type).METAINFO
        classes = cfg.test_dataloader.dataset.get('metainfo', known)['classes']
        write_images(Path(folder), args, classes[1:])
        items = load_items(cfg, Path(folder))
    ways = {'one image and view at a time, float32': partial(export_plainly, plain, items)}
    for name in args.precisions:
        ways[f'batches of {args.batch_size}, {name}'] = partial(
            export_in_batches, fast, items, args.batch_size, PRECISIONS[name]
        )
    report(ways, args)


def report(ways: dict, args: argparse.Namespace) -> None:
    """Time the ways in turns and print a table.

    Args:
        ways: What to time, by its name; the first is what the others are compared with.
        args: The command line.
    """
    maps = {name: way() for name, way in ways.items()}
    seconds = np.zeros((args.repeats, len(ways)))
    for row in seconds:
        for index, way in enumerate(ways.values()):
            start = time.perf_counter()
            # Maps come back to the CPU, so a GPU is waited for.
            way()
            row[index] = time.perf_counter() - start
    print(
        f'{run_name(args.config)}: {args.images} images of {args.size[0]} x {args.size[1]} in all '
        f'views of the config, {args.repeats} rounds, torch {torch.__version__}, '
        f'{torch.get_num_threads()} threads'
    )
    print('| way | images/s | times as fast | largest difference | mean difference |')
    print('|---|---|---|---|---|')
    first = next(iter(maps.values()))
    for index, name in enumerate(ways):
        differences = [np.abs(a - b) for a, b in zip(first, maps[name], strict=True)]
        ratio = np.median(seconds[:, 0] / seconds[:, index])
        speed = args.images / np.median(seconds[:, index])
        print(
            f'| {name} | {speed:.3f} | {ratio:.2f} '
            f'| {max(d.max() for d in differences):.1e} '
            f'| {np.mean([d.mean() for d in differences]):.1e} |'
        )


if __name__ == '__main__':
    main()
