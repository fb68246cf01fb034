"""Store the features of a frozen backbone, so that heads are trained on them without it.

The backbone is that of a CAM config with the weights from which its training starts, its feature
map the one that the head reads; --levels adds further ones, for heads that group pixels by several.
Each image becomes OUT/<image id>.npy, float16, and with --flip also OUT/<image id>_flip.npy;
OUT/index.json is written last. An interrupted run goes on where it stopped, and several splits may
share a folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Subset

sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmdscnet
from mmdscnet.apis import build_split, drop_masks
from mmdscnet.atomic_write import atomic_path
from mmdscnet.datasets import FeatureIndex, read_feature_index, write_feature_index
from mmdscnet.datasets.file_checks import read_image_size
from mmdscnet.datasets.stored_features import FEATURES_SUFFIX, FLIP_SUFFIX, INDEX_FILE
from mmdscnet.functional.pixel_groups import resize_level
from mmdscnet.inference.labeling import list_image_ids
from mmdscnet.launch import check_backbone_weights, read_run_config
from mmdscnet.provenance import hash_sha256
from mmdscnet.pseudo_labels import ExportFolder

from mmseg.datasets import BaseSegDataset  # isort: skip
from mmseg.models.segmentors import EncoderDecoder  # isort: skip
from mmseg.registry import MODELS  # isort: skip

# Longer than the long side of any photograph, so that the short side decides.
ANY_LENGTH = 10**6


class Output(NamedTuple):
    """Shape of an output of the backbone.

    Attributes:
        channels: Number of channels.
        stride: Output stride in pixels.
    """

    channels: int
    stride: int


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a CAM network')
    parser.add_argument('--out', type=Path, required=True, help='folder of the features')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--scale', type=float, default=1.0, help='of the images')
    size.add_argument(
        '--short-side', type=int, metavar='PIXELS', help='of the images, in its place'
    )
    parser.add_argument(
        '--split',
        nargs='+',
        help='split files relative to data_root; default: that of test_dataloader',
    )
    parser.add_argument(
        '--levels',
        type=int,
        nargs='+',
        default=[],
        metavar='INDEX',
        help='outputs of the backbone that are stored beside the one that the head reads, resized '
        'to its grid, their channels in front of its own',
    )
    parser.add_argument('--flip', action='store_true', help='store those of mirror images, too')
    parser.add_argument('--num-workers', type=int, default=0, help='processes that read images')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return parser.parse_args()


def use_size(cfg: Config, scale: float, short_side: int | None) -> dict[str, Any]:
    """Let the images of ``test_dataloader`` come in one size and without masks.

    Args:
        cfg: The config, changed in place.
        scale: Factor of height and width, positive.
        short_side: Pixels of the short side in place of it, positive; None for the factor.

    Returns:
        The resizing transform, which the features depend on.

    Raises:
        ValueError: If the size is not positive.
    """
    if scale <= 0 or (short_side is not None and short_side < 1):
        name, value = ('scale', scale) if short_side is None else ('short-side', short_side)
        raise ValueError(f'--{name} {value} must be positive')
    resize = dict(type='Resize', keep_ratio=True)
    if short_side is None:
        resize['scale_factor'] = scale
    else:
        resize['scale'] = (ANY_LENGTH, short_side)
    drop_masks(cfg)
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadCheckedImage'),
        resize,
        dict(type='PackWSSSInputs'),
    ]
    return resize


def build_network(cfg: Config, device: torch.device) -> EncoderDecoder:
    """Build the model of a config with the weights that its training starts from.

    Args:
        cfg: The config.
        device: Where it shall be.

    Returns:
        The model, in evaluation mode.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    # Or mmengine reports where every single parameter comes from.
    MMLogger.get_instance('store_features', log_level='WARNING')
    model = MODELS.build(cfg.model)
    model.init_weights()
    # Module.eval, because the train method of some backbones of mmseg returns nothing.
    model.to(device, memory_format=torch.channels_last).eval()
    return model


def describe(
    cfg: Config, resize: dict[str, Any], outputs: Sequence[Output], levels: Sequence[int]
) -> dict[str, Any]:
    """Collect what the features depend on.

    Args:
        cfg: The config.
        resize: The resizing transform.
        outputs: Outputs of the backbone.
        levels: Which of them are stored beside the one that the head reads.

    Returns:
        Settings of the folder; ``levels`` only where there are some.

    Raises:
        ValueError: If the backbone starts from no weights.
    """
    backbone = cfg.model.backbone.to_dict()
    init_cfg = backbone.pop('init_cfg', None)
    source = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    if source is None:
        raise ValueError(
            f'{cfg.filename} names no weights of its backbone, whose features would be random: '
            'give --cfg-options model.backbone.init_cfg.type=Pretrained '
            'model.backbone.init_cfg.checkpoint=...'
        )
    in_index = cfg.model.decode_head.get('in_index', -1)
    settings = dict(
        backbone=backbone,
        data_preprocessor=cfg.model.data_preprocessor.to_dict(),
        in_index=in_index,
        checkpoint=hash_sha256(source) if Path(source).is_file() else source,
        prefix=init_cfg.get('prefix'),
        resize=resize,
        stride=outputs[in_index].stride,
        mmdscnet=mmdscnet.__version__,
    )
    if levels:
        settings['levels'] = [dict(index=i, channels=outputs[i].channels) for i in levels]
    return settings


@torch.no_grad()
def measure_outputs(model: EncoderDecoder, device: torch.device) -> list[Output]:
    """Measure the outputs of the backbone.

    Args:
        model: The model.
        device: Where it is.

    Returns:
        Channels and stride of each.
    """
    side = 256
    feats = model.extract_feat(torch.zeros(1, 3, side, side, device=device))
    return [Output(feat.shape[1], side // feat.shape[-1]) for feat in feats]


def check_levels(levels: Sequence[int], num_outputs: int) -> None:
    """Check that the levels are outputs of the backbone.

    Args:
        levels: The levels.
        num_outputs: Number of outputs of the backbone.

    Raises:
        ValueError: If one of them is not.
    """
    for level in levels:
        if not 0 <= level < num_outputs:
            raise ValueError(
                f'--levels {level} is no output of the backbone, which has {num_outputs}: give '
                f'indices from 0 to {num_outputs - 1}, or more of model.backbone.out_indices'
            )


@torch.no_grad()
def compute_features(
    model: EncoderDecoder, inputs: Tensor, levels: Sequence[int] = ()
) -> np.ndarray:
    """Compute the feature map that the head reads, and the levels in front of it.

    Args:
        model: The model.
        inputs: A normalised image, shape (1, 3, H, W).
        levels: Outputs of the backbone, of D_1, D_2, ... channels.

    Returns:
        Features, float16, shape (D_1 + D_2 + ... + D, h, w).

    Raises:
        ValueError: If a value does not fit into float16.
    """
    outputs = model.extract_feat(inputs)
    last = outputs[model.decode_head.in_index]
    size = (last.shape[2], last.shape[3])
    # As DSCHead resizes them, so that they group pixels as the outputs themselves do.
    feats = torch.cat([*(resize_level(outputs[i], size) for i in levels), last], dim=1)[0]
    stored = feats.half()
    if not torch.isfinite(stored).all():
        raise ValueError(
            f'features reach {feats.abs().max().item():.3g}, which float16 does not hold: '
            'store those of other layers (model.decode_head.in_index, --levels)'
        )
    return np.ascontiguousarray(stored.cpu().numpy())


def write_features(path: Path, feats: np.ndarray) -> None:
    """Write the features of an image.

    Args:
        path: The file.
        feats: Features, shape (D, h, w).
    """
    with atomic_path(path) as temporary, temporary.open('wb') as file:
        np.save(file, feats, allow_pickle=False)


def store_split(
    model: EncoderDecoder, dataset: BaseSegDataset, export: ExportFolder, args: argparse.Namespace
) -> int:
    """Store what is missing of the features of a split.

    Args:
        model: The model.
        dataset: The images.
        export: Folder of the features.
        args: The command line.

    Returns:
        Number of files that were written.
    """
    suffixes = [FEATURES_SUFFIX, FLIP_SUFFIX] if args.flip else [FEATURES_SUFFIX]
    paths = [[export.folder / f'{i}{end}' for end in suffixes] for i in list_image_ids(dataset)]
    places = [place for place, files in enumerate(paths) if not all(map(Path.is_file, files))]
    loader = DataLoader(
        Subset(dataset, places), num_workers=args.num_workers, collate_fn=pseudo_collate
    )
    progress = ProgressBar(len(places), file=sys.stderr)
    written = 0
    for place, batch in zip(places, loader, strict=True):
        inputs = model.data_preprocessor(batch, training=False)['inputs']
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        for path in paths[place]:
            if not path.is_file():
                is_mirrored = path.name.endswith(FLIP_SUFFIX)
                view = inputs.flip(3) if is_mirrored else inputs
                write_features(path, compute_features(model, view, args.levels))
                written += 1
        progress.update()
    print(file=sys.stderr)
    return written


def list_sizes(dataset: BaseSegDataset) -> dict[str, tuple[int, int]]:
    """List how large the photographs of a split are.

    Args:
        dataset: The images.

    Returns:
        Height and width in pixels by image id.
    """
    paths = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    return {Path(path).stem: read_image_size(path) for path in paths}


def main() -> None:
    """Store features as the command line says.

    Raises:
        FileNotFoundError: If config, weights, split or an image is missing.
        ValueError: If the size is not positive, a level is no output of the backbone, the backbone
            starts from no weights, or the folder holds features that were made in another way.
    """
    args = parse_args()
    cfg = read_run_config(args.config, options=args.cfg_options)
    check_backbone_weights(cfg)
    resize = use_size(cfg, args.scale, args.short_side)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    splits = [build_split(cfg, split, 'predicted') for split in args.split or [None]]
    model = build_network(cfg, device)
    outputs = measure_outputs(model, device)
    check_levels(args.levels, len(outputs))
    settings = describe(cfg, resize, outputs, args.levels)
    export = ExportFolder(args.out, FEATURES_SUFFIX, settings)
    has_index = (args.out / INDEX_FILE).is_file()
    sizes = dict(read_feature_index(args.out).sizes) if has_index else {}
    written = 0
    for dataset in splits:
        written += store_split(model, dataset, export, args)
        sizes |= list_sizes(dataset)
    made_by = dict(config=args.config, **export.settings)
    write_feature_index(args.out, FeatureIndex(made_by, sizes))
    print(f'{written} files written, features of {len(sizes)} images in {args.out}')


if __name__ == '__main__':
    main()
