"""Time what DSCNet adds to the baseline: whole training steps, its parts, and the pixel context.

What is compared is timed in turns (A B A B ...) within one process, so that a machine that slows
down slows all of it down. Images and labels are random, nothing is read from disk.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import mmdscnet  # noqa: F401
from mmdscnet.functional.cam import normalize_cams
from mmdscnet.functional.dual_stream import read_class_nodes
from mmdscnet.functional.pixel_groups import group_pixels, pixel_context, standardize_pixels
from mmdscnet.functional.semantic_graph import (
    group_class_probabilities,
    make_class_nodes,
    make_class_profiles,
    pass_messages,
)
from mmdscnet.launch import read_run_config

CONFIGS = [str(ROOT / f'configs/{method}/voc_animals.py') for method in ('cam', 'dscnet')]
MAP_SIZES = (20, 40, 80)
EMBED_CHANNELS = 128
FOREGROUND_CLASSES = 6
TEMPERATURE = 0.1
WARM_UP_ROUNDS = 2


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'configs',
        nargs='*',
        default=CONFIGS,
        help='the first is what the others are compared with; default: M0 and M4 on voc_animals',
    )
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=20, help='timed rounds')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def describe_machine(device: torch.device) -> str:
    """Say what the times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()
    return f'torch {torch.__version__}, {device.type} ({name}), {torch.get_num_threads()} threads'


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    repeats: int,
    device: torch.device,
    clock: str = 'perf_counter',
) -> np.ndarray:
    """Time calls in turns, after a warm-up.

    Args:
        calls: What to time.
        repeats: Number of timed rounds.
        device: Where the calls compute; a GPU is waited for around each.
        clock: Function of ``time`` that tells the seconds.

    Returns:
        Seconds, shape (rounds, calls).
    """
    now = getattr(time, clock)
    seconds = np.zeros((WARM_UP_ROUNDS + repeats, len(calls)))
    for row in seconds:
        for index, call in enumerate(calls):
            wait_for(device)
            start = now()
            call()
            wait_for(device)
            row[index] = now() - start
    return seconds[WARM_UP_ROUNDS:]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def make_training_step(config: str, batch_size: int, device: torch.device) -> Callable[[], object]:
    """Build the model of a config, and a batch for it.

    Args:
        config: Path of the config; its pretrained weights are not loaded.
        batch_size: Number of images, which have the crop size of the config.
        device: Where to train.

    Returns:
        Training step: preprocessing, forward, losses, backward and the optimizer.
    """
    return build_training_step(read_run_config(config), batch_size, device)


def build_training_step(cfg: Config, batch_size: int, device: torch.device) -> Callable[[], object]:
    """Build the model of a config that has been read, and a batch for it.

    Args:
        cfg: The config, changed in place: its pretrained weights are not loaded.
        batch_size: Number of images, which have the crop size of the config.
        device: Where to train.

    Returns:
        Training step: preprocessing, forward, losses, backward and the optimizer.
    """
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.to(device)
    size = tuple(cfg.model.data_preprocessor.size)
    batch = make_batch(batch_size, cfg.model.decode_head.num_classes - 1, size, device)
    settle_statistics(model, batch)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    return lambda: model.train_step(batch, optimizer)


def make_batch(
    batch_size: int, foreground_classes: int, size: tuple[int, int], device: torch.device
) -> dict:
    """Make random images of one or two classes, as a data loader hands them to a model.

    Args:
        batch_size: Number of images.
        foreground_classes: Number of classes, K.
        size: Height and width.
        device: Where the images lie.

    Returns:
        ``inputs`` and ``data_samples``.
    """
    samples = []
    for index in range(batch_size):
        label = np.zeros(foreground_classes, dtype=np.float32)
        label[[index // 2 % foreground_classes, index % foreground_classes]] = 1
        samples.append(
            SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, gt_image_label=label))
        )
    images = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8, device=device)
    return dict(inputs=list(images), data_samples=samples)


@torch.no_grad()
def settle_statistics(model: nn.Module, batch: dict) -> None:
    """Give normalisations the statistics of the batch.

    Those of an untrained network in ``norm_eval`` let its features vanish, and a CPU computes with
    vanishing numbers many times slower.

    Args:
        model: Segmentor, changed in place.
        batch: As from :func:`make_batch`.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 1.0
    model.extract_feat(model.data_preprocessor(batch, training=True)['inputs'])


def make_maps(batch_size: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Make random embeddings, class evidence and image-level labels.

    Args:
        batch_size: Number of images, N.
        size: Height and width of the maps.
        device: Where they lie.

    Returns:
        Embeddings (N, E, h, w), which need a gradient; evidence (N, K, h, w); labels (N, K).
    """
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, EMBED_CHANNELS, size, size)
    # Pixels of an image have something in common, or all correlations would be near 0.
    common = torch.randn(*shape[:2], 1, 1, generator=generator)
    embeddings = (torch.randn(shape, generator=generator) + common).to(device).requires_grad_()
    evidence = torch.randn(batch_size, FOREGROUND_CLASSES, size, size, generator=generator)
    labels = (torch.rand(batch_size, FOREGROUND_CLASSES, generator=generator) < 0.4).float()
    return embeddings, evidence.to(device), labels.to(device)


def make_method_step(batch_size: int, size: int, device: torch.device) -> Callable[[], Tensor]:
    """Prepare maps for groups, graph and dual stream.

    Args:
        batch_size: Number of images.
        size: Height and width of the maps.
        device: Where to compute.

    Returns:
        Forward and backward of the three; gives the gradient of the embeddings.
    """
    embeddings, evidence, labels = make_maps(batch_size, size, device)
    cams = normalize_cams(evidence, labels)
    visible = torch.ones(batch_size, batch_size, dtype=torch.bool, device=device)

    def step() -> Tensor:
        ids, groups, _, valid = group_pixels(embeddings, cams, labels)
        probabilities = group_class_probabilities(evidence, ids, valid)
        nodes = make_class_nodes(groups, probabilities)
        profiles = make_class_profiles(probabilities)
        messages = pass_messages(nodes, profiles, nodes, profiles, valid, visible, TEMPERATURE)
        enriched = read_class_nodes(embeddings, groups, nodes + messages, valid, TEMPERATURE)
        return torch.autograd.grad(enriched.square().mean(), embeddings)[0]

    return step


def naive_pixel_context(rows: Tensor) -> Tensor:
    """Average the V x V matrix of correlations, which ``pixel_context`` never builds.

    Args:
        rows: Standardised pixels, shape (N, V, E).

    Returns:
        Mean correlation, shape (N, V).
    """
    return (rows @ rows.transpose(1, 2)).mean(dim=2)


def compare_steps(args: argparse.Namespace, device: torch.device) -> str:
    """Time the training steps of the configs.

    Args:
        args: The command line.
        device: Where to train.

    Returns:
        Markdown, a row a config. The ratio is the median over rounds, and its middle half.
    """
    steps = [make_training_step(config, args.batch_size, device) for config in args.configs]
    seconds = time_in_turns(steps, args.repeats, device)
    lines = ['| training step | s a step | ratio to the first | middle half |', '|---|---|---|---|']
    for config, column in zip(args.configs, seconds.T, strict=True):
        low, ratio, high = np.quantile(column / seconds[:, 0], (0.25, 0.5, 0.75))
        name = '/'.join(Path(config).with_suffix('').parts[-2:])
        lines.append(
            f'| {name} | {np.median(column):.4f} | {ratio:.3f} | {low:.3f} to {high:.3f} |'
        )
    return '\n'.join(lines)


def compare_sizes(args: argparse.Namespace, device: torch.device) -> str:
    """Time groups, graph and dual stream at several sizes of the maps.

    Args:
        args: The command line.
        device: Where to compute.

    Returns:
        Markdown, a row a size. Time per pixel stays about constant if the cost is linear.
    """
    steps = [make_method_step(args.batch_size, size, device) for size in MAP_SIZES]
    medians = np.median(time_in_turns(steps, args.repeats, device), axis=0)
    lines = ['| groups + graph + dual stream | s | ns a pixel |', '|---|---|---|']
    for size, second in zip(MAP_SIZES, medians, strict=True):
        per_pixel = second / (args.batch_size * size**2)
        lines.append(f'| {size}x{size} | {second:.5f} | {1e9 * per_pixel:.0f} |')
    return '\n'.join(lines)


@torch.no_grad()
def compare_contexts(args: argparse.Namespace, device: torch.device) -> str:
    """Time the pixel context of one image against the naive one.

    Args:
        args: The command line.
        device: Where to compute.

    Returns:
        Markdown, a row a size.
    """
    lines = ['| pixel context | naive s | s | factor | max difference |', '|---|---|---|---|---|']
    for size in MAP_SIZES:
        rows = standardize_pixels(make_maps(1, size, device)[0])
        calls = [lambda rows=rows: naive_pixel_context(rows), lambda rows=rows: pixel_context(rows)]
        naive, ours = np.median(time_in_turns(calls, args.repeats, device), axis=0)
        difference = (naive_pixel_context(rows) - pixel_context(rows)).abs().max().item()
        lines.append(
            f'| {size}x{size} | {naive:.6f} | {ours:.6f} | {naive / ours:.1f} | {difference:.1e} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    device = torch.device(args.device)
    MMLogger.get_instance('benchmark', log_level='ERROR')
    print(
        f'{describe_machine(device)}; batch of {args.batch_size}, {args.repeats} rounds in turns, '
        f'medians; E={EMBED_CHANNELS}, K={FOREGROUND_CLASSES}'
    )
    for compare in (compare_steps, compare_sizes, compare_contexts):
        print(f'\n{compare(args, device)}', flush=True)


if __name__ == '__main__':
    main()
