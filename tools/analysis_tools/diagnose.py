"""Diagnose trained DSCHead networks on images with masks, before anything is tuned.

Several checkpoints of one run show its training. DIR gets diagnosis.json, diagnosis.md,
diagnosis.html and the figures curves.png, similarities.png, places.png and changes.png. Images and
masks are stretched to one size, so that the mIoU is not that of tools/test.py.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet  # noqa: F401
from mmdscnet.apis import load_model
from mmdscnet.apis.diagnosis import (
    HISTOGRAM_EDGES,
    build_masked_images,
    diagnose,
    draw_images,
    require_dsc_model,
    show_changes,
)
from mmdscnet.atomic_write import atomic_path
from mmdscnet.launch import check_checkpoint, join_ranks, read_run_config
from mmdscnet.provenance import describe_code
from mmdscnet.visualization.change_sheet import draw_change_sheet
from mmdscnet.visualization.diagnosis_figures import (
    draw_curves,
    draw_places,
    draw_similarities,
)
from mmdscnet.visualization.diagnosis_page import write_diagnosis_page
from mmdscnet.visualization.diagnosis_tables import as_markdown, tabulate

from mmengine.config import DictAction  # isort: skip


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoints', nargs='+', help='of one run, in the order of training')
    parser.add_argument(
        '--split',
        default='ImageSets/Segmentation/train.txt',
        help='images with masks, of the data set of test_dataloader',
    )
    parser.add_argument('--images', type=int, help='a fixed random choice; default: all')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--size', type=int, default=320, help='of images, in pixels')
    parser.add_argument('--shown', type=int, default=6, help='images harmed, and as many helped')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    for name in ('size', 'shown'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} {getattr(args, name)} must be at least 1')
    return args


def name_checkpoints(paths: list[str]) -> list[str]:
    """Name checkpoints by their files or, where these are equal, by their paths.

    Args:
        paths: The checkpoints.

    Returns:
        A name a checkpoint.

    Raises:
        ValueError: If a checkpoint is named twice.
    """
    names = [Path(path).stem for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f'checkpoints {paths} name one twice: give each once')
    return names


def write_numbers(
    folder: Path, facts: dict[str, str], diagnoses: dict[str, dict[str, Any]]
) -> None:
    """Write the numbers as JSON and as tables in Markdown.

    Args:
        folder: Folder of the diagnosis.
        facts: What was diagnosed.
        diagnoses: Numbers by checkpoint.
    """
    content = dict(facts=facts, histogram_edges=HISTOGRAM_EDGES.tolist(), checkpoints=diagnoses)
    with atomic_path(folder / 'diagnosis.json') as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + '\n')
    lines = [f'- {name}: {text}' for name, text in facts.items()]
    parts = ['# Diagnosis\n', '\n'.join(lines) + '\n', *map(as_markdown, tabulate(diagnoses))]
    with atomic_path(folder / 'diagnosis.md') as temporary:
        temporary.write_text('\n'.join(parts))


def main() -> None:
    """Diagnose the checkpoints and write what was found."""
    args = parse_args()
    names = name_checkpoints(args.checkpoints)
    for checkpoint in args.checkpoints:
        check_checkpoint(checkpoint)
    cfg = read_run_config(args.config, options=args.cfg_options)
    device = join_ranks(cfg)
    dataset = build_masked_images(cfg, args.split, args.size)
    indices = draw_images(len(dataset), args.images, args.batch_size)
    diagnoses = {}
    for name, checkpoint in zip(names, args.checkpoints, strict=True):
        print(f'{name}: {len(indices)} images', file=sys.stderr)
        model = require_dsc_model(load_model(cfg, checkpoint, device))
        diagnoses[name], images = diagnose(model, dataset, indices, args.batch_size)
    facts = {
        'config': args.config,
        'checkpoints': ', '.join(args.checkpoints),
        'images': f'{len(indices)} of {args.split} at {args.size} x {args.size} pixels, '
        f'in batches of {args.batch_size}',
        'code': ' '.join(str(value) for value in describe_code().values()),
    }
    write_numbers(args.out, facts, diagnoses)
    rows = show_changes(model.decode_head, dataset, indices, images, args.shown)
    meta = dataset.metainfo
    last = diagnoses[names[-1]]
    draw_curves(args.out / 'curves.png', diagnoses)
    draw_similarities(args.out / 'similarities.png', last['similarity'], HISTOGRAM_EDGES)
    draw_places(args.out / 'places.png', last['place'])
    draw_change_sheet(args.out / 'changes.png', rows, meta['palette'], meta['classes'])
    figures = {
        'Over the checkpoints': args.out / 'curves.png',
        f'Similarities of {names[-1]}': args.out / 'similarities.png',
        f'Foreground by place of {names[-1]}': args.out / 'places.png',
        f'Most harmed to most helped images of {names[-1]}': args.out / 'changes.png',
    }
    page = args.out / 'diagnosis.html'
    write_diagnosis_page(page, 'Diagnosis', facts, tabulate(diagnoses), figures)
    print(f'{page}: {page.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
