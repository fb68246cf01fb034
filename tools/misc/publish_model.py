"""Publish a trained model: weights without the state of their training, named by their hash.

Writes OUT/NAME-<first 8 digits of its SHA-256>.pth and prints the entry of a metafile. Equal
checkpoints make equal files. A folder of such files, or the URL of one, is a zoo: with
MMDSCNET_ZOO=OUT the file is loaded as mmdscnet://NAME-<8 digits>.pth by everything of OpenMMLab.
"""

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet
from mmdscnet.apis.inferencer import find_metainfo
from mmdscnet.apis.model_loading import build_model
from mmdscnet.atomic_write import atomic_path
from mmdscnet.launch import check_checkpoint, read_run_config, run_name
from mmdscnet.zoo import SAFE_NAME, SCHEME, WEB, fetch, name_file, read_checkpoint

# What a training notes and a reader may want; hooks, logs, optimizers and times are left out.
KEPT_META = ('cfg', 'epoch', 'iter', 'mmengine_version', 'seed')
# What a test notes besides its metrics.
TIMES = ('data_time', 'time')
TASK = 'Weakly Supervised Semantic Segmentation'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='file that its training wrote')
    parser.add_argument('--out', type=Path, required=True, help='folder of the zoo')
    parser.add_argument('--name', help='default: folder and file of the config, dscnet_shapes')
    parser.add_argument('--base-url', help='where the files of OUT will be, for the entry')
    parser.add_argument('--metafile', type=Path, help='add or replace the entry in this file')
    parser.add_argument(
        '--results', type=Path, help='metrics: the .json that tools/test.py writes to its work dir'
    )
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Refuse a command line that cannot come to its end, before anything is written.

    Args:
        args: The command line.

    Raises:
        FileNotFoundError: If the checkpoint, the metafile or the results are missing.
        ValueError: If the name or the URL is none.
    """
    check_checkpoint(args.checkpoint)
    for path in (args.metafile, args.results):
        if path is not None and not path.is_file():
            raise FileNotFoundError(
                f'{path} is not a file: --metafile is that of the folder of the config, --results '
                'is WORK_DIR/<time>/<time>.json of tools/test.py'
            )
    if not SAFE_NAME.fullmatch(args.name) or args.name.endswith('.pth'):
        raise ValueError(
            f'--name={args.name!r} cannot name a file and an address: use letters, digits, '
            'hyphens, dots and underscores, without .pth'
        )
    if args.base_url is not None and not args.base_url.startswith(WEB):
        raise ValueError(
            f'--base-url={args.base_url!r} is no URL: give https://..., the folder in which the '
            'file will be, or leave it out'
        )


def slim(checkpoint: dict[str, Any], cfg: Config, source: str) -> dict[str, Any]:
    """Keep weights and what belongs to them, and see that they are those of the config.

    Args:
        checkpoint: What a training wrote.
        cfg: Config of the model.
        source: Its file, for errors.

    Returns:
        ``state_dict``, as it was, and a small ``meta``.

    Raises:
        ValueError: If there are no weights, or those of another network or other classes.
    """
    state_dict, meta = checkpoint.get('state_dict'), checkpoint.get('meta') or {}
    weights = state_dict.values() if isinstance(state_dict, dict) else [None]
    if not all(isinstance(value, Tensor) for value in weights):
        raise ValueError(
            f'{source} has no state_dict of tensors: give a checkpoint that tools/train.py wrote'
        )
    try:
        build_model(cfg).load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f'{source} does not fit the model of {cfg.filename}, give the config that it was '
            f'trained with: {error}'
        ) from error
    kept = {key: meta[key] for key in KEPT_META if key in meta}
    dataset_meta = read_dataset_meta(meta, cfg, source)
    versions = dict(mmdscnet_version=mmdscnet.__version__, torch_version=str(torch.__version__))
    return dict(meta=dict(kept, dataset_meta=dataset_meta, **versions), state_dict=state_dict)


def read_dataset_meta(meta: dict[str, Any], cfg: Config, source: str) -> dict[str, Any]:
    """Read the classes of a checkpoint, and see that they are those of the config.

    Args:
        meta: What the training noted.
        cfg: Config of the model.
        source: File of the checkpoint, for errors.

    Returns:
        ``classes`` and ``palette``.

    Raises:
        ValueError: If the checkpoint was trained on other classes.
    """
    wanted = find_metainfo(cfg)
    found = {**wanted, **(meta.get('dataset_meta') or {})}
    if tuple(found['classes']) != tuple(wanted['classes']):
        raise ValueError(
            f'{source} was trained on the classes {tuple(found["classes"])} and {cfg.filename} has '
            f'{tuple(wanted["classes"])}: give the config that it was trained with'
        )
    palette = [[int(value) for value in colour] for colour in found['palette']]
    return dict(classes=tuple(found['classes']), palette=palette)


def write_published(folder: Path, name: str, content: dict[str, Any]) -> tuple[Path, str]:
    """Write a checkpoint under the hash of its bytes.

    Args:
        folder: Where to write.
        name: Name of the model.
        content: The checkpoint.

    Returns:
        The file and its SHA-256.
    """
    # In memory, because torch writes the name of a file into it, and the hash is in the name.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    # What is published must load without running code.
    torch.load(buffer, weights_only=True)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = folder / name_file(name, digest)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path, digest


def make_entry(
    args: argparse.Namespace,
    cfg: Config,
    meta: dict[str, Any],
    metrics: dict[str, float],
    path: Path,
    digest: str,
) -> dict[str, Any]:
    """Describe a published model as a metafile of OpenMMLab does.

    Args:
        args: The command line.
        cfg: Config of the model.
        meta: What is kept of the training's notes.
        metrics: What its test measured; empty if there was none.
        path: The published file.
        digest: Its SHA-256.

    Returns:
        The entry.
    """
    train = cfg.train_dataloader
    length = {'Epochs': meta['epoch']} if 'epoch' in meta else {}
    if cfg.train_cfg.get('max_iters') is not None:
        length = {'Iterations': meta['iter']} if 'iter' in meta else {}
    metadata = {
        'Training Data': name_data(cfg, 'train'),
        **length,
        'Batch Size': train.batch_size,
        'Architecture': [cfg.model.type, cfg.model.backbone.type, cfg.model.decode_head.type],
        'Classes': list(meta['dataset_meta']['classes']),
    }
    result = {
        'Task': TASK,
        'Dataset': name_data(cfg, 'test'),
        'Split': Path(cfg.test_dataloader.dataset.get('ann_file') or 'all').stem,
        'Metrics': metrics,
    }
    place = f'{args.base_url.rstrip("/")}/' if args.base_url else SCHEME
    return {
        'Name': args.name,
        'In Collection': find_collection(args),
        'Config': relate_config(args.config),
        'Metadata': metadata,
        **({'Results': [result]} if metrics else {}),
        'Weights': f'{place}{path.name}',
        'SHA256': digest,
        'Size': path.stat().st_size,
    }


def name_data(cfg: Config, split: str) -> str:
    """Name a data set by its folder, or, where it has none, by its type."""
    dataset = cfg[f'{split}_dataloader'].dataset
    return Path(dataset.get('data_root') or dataset.type).name


def relate_config(config: str) -> str:
    """Give the path of a config from the folder that holds ``configs``, else as it is."""
    parts = Path(config).resolve().parts
    if 'configs' not in parts:
        return Path(config).as_posix()
    last = len(parts) - 1 - parts[::-1].index('configs')
    return Path(*parts[last:]).as_posix()


def find_collection(args: argparse.Namespace) -> str:
    """Name the collection: that of the metafile, or of the config's folder, else the folder."""
    folder = Path(args.config).resolve().parent
    metafile = args.metafile or folder / 'metafile.yml'
    if metafile.is_file():
        collections = (yaml.safe_load(metafile.read_text('utf-8')) or {}).get('Collections')
        if collections:
            return collections[0]['Name']
    return folder.name


def read_metrics(path: Path) -> dict[str, float]:
    """Read the metrics of a test.

    Args:
        path: What ``tools/test.py`` wrote.

    Returns:
        The metrics, without times.

    Raises:
        ValueError: If there are none.
    """
    content = json.loads(path.read_text('utf-8'))
    numbers = {k: v for k, v in content.items() if isinstance(v, (int, float)) and k not in TIMES}
    if not numbers:
        raise ValueError(
            f'--results {path} has no metrics: give the .json that tools/test.py writes to its '
            'work dir, WORK_DIR/<time>/<time>.json'
        )
    return numbers


def dump_entry(entry: dict[str, Any]) -> str:
    """Write an entry as an item of a list in YAML."""
    return yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=96)


def merge_entry(text: str, entry: dict[str, Any], name: str) -> str:
    """Add an entry to a metafile or replace the one of its name; all other lines stay as they are.

    Args:
        text: The metafile.
        entry: The entry.
        name: How to call the metafile in an error.

    Returns:
        The new metafile.

    Raises:
        ValueError: If its layout is another than that of our metafiles, so that anything else
            would change.
    """
    lines = text.splitlines(keepends=True)
    merged = splice(lines, dump_entry(entry).splitlines(keepends=True), entry['Name'])
    before, after = yaml.safe_load(text) or {}, yaml.safe_load(''.join(merged))
    expected = {**before, 'Models': replace_entry(before.get('Models') or [], entry)}
    if after != expected:
        raise ValueError(
            f'{name} is laid out in another way than our metafiles (a list Models of items that '
            'begin with "- Name:"), so it is left as it is: put the printed entry there by hand'
        )
    return ''.join(merged)


def splice(lines: list[str], entry: list[str], name: str) -> list[str]:
    """Put the lines of an entry among those of a metafile.

    Args:
        lines: The metafile.
        entry: The entry, not indented.
        name: Its name.

    Returns:
        The lines of both; none if there is no place for the entry.
    """
    starts = [i for i, line in enumerate(lines) if line.rstrip() in ('Models:', 'Models: []')]
    if not starts:
        return []
    head = starts[0]
    tops = [i for i in range(head + 1, len(lines)) if lines[i][0] not in ' -#\n']
    end = tops[0] if tops else len(lines)
    items = [i for i in range(head + 1, end) if lines[i].lstrip().startswith('- Name:')]
    indent = lines[items[0]][: -len(lines[items[0]].lstrip())] if items else ''
    entry = [indent + line for line in entry]
    body = [line if line.endswith('\n') else line + '\n' for line in lines[head + 1 : end]]
    for place, start in enumerate(items):
        if lines[start].split(':', 1)[1].strip(' \n\'"') == name:
            stop = items[place + 1] if place + 1 < len(items) else end
            # Comments and blank lines before the next entry belong to that one.
            while lines[stop - 1].lstrip()[:1] in ('', '#'):
                stop -= 1
            body[start - head - 1 : stop - head - 1] = entry
            break
    else:
        body += entry
    return [*lines[:head], 'Models:\n', *body, *lines[end:]]


def replace_entry(models: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Add an entry to a list, or replace the one of its name."""
    names = [model['Name'] for model in models]
    if entry['Name'] not in names:
        return [*models, entry]
    return [entry if model['Name'] == entry['Name'] else model for model in models]


def main() -> None:
    """Publish as the command line says."""
    args = parse_args()
    args.name = args.name or run_name(args.config)
    check_args(args)
    cfg = read_run_config(args.config)
    metrics = read_metrics(args.results) if args.results else {}
    content = slim(read_checkpoint(fetch(args.checkpoint), 'cpu'), cfg, args.checkpoint)
    path, digest = write_published(args.out, args.name, content)
    entry = make_entry(args, cfg, content['meta'], metrics, path, digest)
    print(f'{path}: {path.stat().st_size} bytes, {len(content["state_dict"])} tensors\n')
    print(dump_entry(entry))
    if args.metafile:
        merged = merge_entry(args.metafile.read_text('utf-8'), entry, str(args.metafile))
        with atomic_path(args.metafile) as temporary:
            temporary.write_text(merged, encoding='utf-8')


if __name__ == '__main__':
    main()
