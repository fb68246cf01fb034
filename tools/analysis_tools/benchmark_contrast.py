"""Time the contrast of all pixels (Eq. 3) against the group contrast (Eq. 6): Table V.

Whole training steps of one network: without a contrast (M0), with the dense contrast, and with the
group contrast (M1), clustering included. Then the two contrasts alone, forward and backward from
the embeddings, and beside them Eq. 3 written the short way, with masks of all pairs.

What is compared is timed in turns within one process; peak memory is that of a process of its own
(on a CPU this needs Linux). Images are random and nothing is read from disk. The cost of the dense
contrast grows with the share of the pixels that carry a class, so labels are drawn to a share.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
sys.path.append(str(Path(__file__).parent))

from benchmark_step import (
    EMBED_CHANNELS,
    FOREGROUND_CLASSES,
    TEMPERATURE,
    build_training_step,
    describe_machine,
    time_in_turns,
)

import mmdscnet  # noqa: F401
from mmdscnet.functional.contrast import class_contrast, masked_info_nce
from mmdscnet.functional.gather import gather_images
from mmdscnet.functional.pixel_contrast import pixel_contrast
from mmdscnet.functional.pixel_groups import group_pixels
from mmdscnet.functional.pseudo_label import make_pseudo_labels
from mmdscnet.launch import read_run_config
from mmdscnet.models.decode_heads import DSCHead
from mmdscnet.models.decode_heads.cam_head import HeadOutputs

# After mmdscnet, which mends what mmseg imports.
from mmseg.registry import MODELS  # isort: skip

CONFIG = str(ROOT / 'configs/dscnet/voc_animals.py')
PROCESS = Path('/proc/self')
CLOCKS = dict(wall='perf_counter', cpu='process_time')
ARMS = ('baseline', 'pixel', 'group')
# Stages of MobileNetV2 by output stride.
STRIDES = {16: (1, 2, 2, 2, 1, 1, 1), 8: (1, 2, 2, 1, 1, 1, 1)}
DILATIONS = {16: (1, 1, 1, 1, 1, 2, 2), 8: (1, 1, 1, 2, 2, 4, 4)}
LARGEST_AT_16 = 28
BG_THR = 0.2
PEAK_STEPS = 2
FLOAT_BYTES = 4
# Matrices of anchors and pixels that are in memory at once.
LIVE_MATRICES = dict(blocks=4, masks=9)


@MODELS.register_module(force=True)
class PixelContrastHead(DSCHead):
    """The head with the dense contrast only, on labels that are drawn: no groups, no memory.

    Args:
        foreground: Share of the pixels that carry a class, in [0, 1].
        kwargs: As for :class:`DSCHead`, with ``pixel_contrast``.
    """

    def __init__(self, foreground: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.foreground = foreground

    def describe_batch(self, feats: Sequence[Tensor], image_labels: Tensor) -> HeadOutputs:
        """Compute what the plain head does, and the dense contrast.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The evidence and the contrast.
        """
        feat = self.dropout(feats[self.in_index])
        cam_logits = self.classifier(feat)
        maps = self.make_training_maps(self.projection(feat), cam_logits, image_labels)
        drawn = draw_labels(image_labels, maps.pseudo_labels.shape[1:], self.foreground)
        maps = maps._replace(pseudo_labels=drawn)
        contrast = self.pixel_contrast(*map(gather_images, maps))
        return HeadOutputs(cam_logits, None, {self.pixel_contrast.loss_name: contrast})


class ContrastMaps(NamedTuple):
    """What the contrasts alone compare.

    Attributes:
        embeddings: Pixel embeddings, with gradient, shape (N, E, h, w).
        cams: CAMs in [0, 1], shape (N, K, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).
    """

    embeddings: Tensor
    cams: Tensor
    image_labels: Tensor


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'config', nargs='?', default=CONFIG, help='of a MobileNetV2 network; default: voc_animals'
    )
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--repeats', type=int, default=10, help='timed rounds')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--sizes',
        type=int,
        nargs='+',
        default=[20, 40, 56],
        help=f'pixels of a side of the maps; up to {LARGEST_AT_16} at output stride 16, then 8',
    )
    parser.add_argument(
        '--chunk', type=int, default=512, help='anchors compared at once; 0 for whole classes'
    )
    parser.add_argument(
        '--foreground',
        type=float,
        default=0.27,
        help='share of the pixels with a class (masks of voc_animals train: 0.27)',
    )
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='cpu: processor time of this process, for a machine that others use too',
    )
    parser.add_argument(
        '--memory-limit', type=float, default=10.0, help='GB; what is estimated to need more is out'
    )
    parser.add_argument(
        '--peak-of', choices=ARMS, help='only print the peak memory of these steps, in bytes'
    )
    return parser.parse_args()


def draw_labels(image_labels: Tensor, size: Sequence[int], foreground: float) -> Tensor:
    """Give a share of the pixels a class of their image, and the others the background.

    Args:
        image_labels: Image-level labels in {0, 1}, at least one an image, shape (N, K).
        size: Height and width.
        foreground: Share of the pixels that get a class, in [0, 1].

    Returns:
        Labels 0..K, int64, shape (N, h, w).
    """
    images, device = len(image_labels), image_labels.device
    pixels = size[0] * size[1]
    classes = image_labels.float().multinomial(pixels, replacement=True) + 1
    has_class = torch.rand(images, pixels, device=device) < foreground
    return (classes * has_class).unflatten(1, tuple(size))


def make_config(args: argparse.Namespace, arm: str, size: int) -> Config:
    """Read the config and give it maps of some size and the head of an arm.

    Args:
        args: The command line.
        arm: One of ``ARMS``.
        size: Height and width of the maps.

    Returns:
        The config.
    """
    cfg = read_run_config(args.config)
    stride = 16 if size <= LARGEST_AT_16 else 8
    cfg.model.backbone.strides = STRIDES[stride]
    cfg.model.backbone.dilations = DILATIONS[stride]
    cfg.model.data_preprocessor.size = (size * stride, size * stride)
    head = cfg.model.decode_head
    shared = {key: head[key] for key in ('in_channels', 'in_index', 'num_classes') if key in head}
    pixel = dict(type='PixelContrastLoss', temperature=TEMPERATURE, chunk=args.chunk or None)
    group = dict(type='PGCLLoss', temperature=TEMPERATURE)
    heads = dict(
        baseline=dict(type='CAMHead'),
        pixel=dict(
            type='PixelContrastHead',
            pixel_contrast=pixel,
            dual_stream=False,
            foreground=args.foreground,
        ),
        group=dict(type='DSCHead', pgcl=group, dual_stream=False),
    )
    cfg.model.decode_head = heads[arm] | shared
    return cfg


def make_arm(
    args: argparse.Namespace, arm: str, size: int, device: torch.device
) -> Callable[[], object]:
    """Prepare the training step of an arm.

    Args:
        args: The command line.
        arm: One of ``ARMS``.
        size: Height and width of the maps.
        device: Where to train.

    Returns:
        The step.
    """
    return build_training_step(make_config(args, arm, size), args.batch_size, device)


def make_maps(args: argparse.Namespace, size: int, device: torch.device) -> ContrastMaps:
    """Draw embeddings, and CAMs of which the given share is foreground.

    Args:
        args: The command line.
        size: Height and width of the maps.
        device: Where they lie.

    Returns:
        The maps; each class is in two neighbours at least, where there are two images.
    """
    torch.manual_seed(0)
    images = torch.arange(args.batch_size)
    image_labels = torch.zeros(args.batch_size, FOREGROUND_CLASSES)
    image_labels[images, images // 2 % FOREGROUND_CLASSES] = 1
    labels = draw_labels(image_labels, (size, size), args.foreground)
    cams = F.one_hot(labels, FOREGROUND_CLASSES + 1)[..., 1:].movedim(3, 1).float()
    embeddings = torch.randn(args.batch_size, EMBED_CHANNELS, size, size, device=device)
    return ContrastMaps(embeddings.requires_grad_(), cams.to(device), image_labels.to(device))


def contrast_pixels(maps: ContrastMaps, chunk: int | None) -> Tensor:
    """Label the pixels and contrast all pairs (Eq. 3).

    Args:
        maps: What is compared.
        chunk: Number of anchors compared at once; None for whole classes.

    Returns:
        The loss.
    """
    labels = make_pseudo_labels(maps.cams, BG_THR)
    return pixel_contrast(maps.embeddings, labels, TEMPERATURE, chunk)


def contrast_pixels_by_masks(maps: ContrastMaps) -> Tensor:
    """Contrast all pairs the short way: the same loss, with every pixel as a row of the masks.

    Args:
        maps: What is compared.

    Returns:
        The loss.
    """
    labels = make_pseudo_labels(maps.cams, BG_THR).flatten(1)
    rows = F.normalize(maps.embeddings.flatten(2).transpose(1, 2), dim=2)
    similarity = (rows.flatten(0, 1) @ rows.flatten(0, 1).T).view(*labels.shape, -1)
    images = torch.arange(len(labels), device=labels.device).repeat_interleave(labels.shape[1])
    anchors = labels[:, :, None]
    same = anchors == labels.flatten()
    other_image = images.view_as(anchors) != images
    is_anchor = anchors > 0
    return masked_info_nce(
        similarity, is_anchor & same & other_image, is_anchor & ~same, TEMPERATURE
    )


def contrast_groups(maps: ContrastMaps) -> Tensor:
    """Group the pixels and contrast the groups (Eq. 5, 6).

    Args:
        maps: What is compared.

    Returns:
        The loss.
    """
    _, groups, _, valid = group_pixels(maps.embeddings, maps.cams, maps.image_labels)
    return class_contrast(groups, valid, groups, valid, TEMPERATURE, own_image_is_positive=False)


def with_gradient(contrast: Callable[[ContrastMaps], Tensor], maps: ContrastMaps) -> Tensor:
    """Run a contrast forward and backward.

    Args:
        contrast: The contrast.
        maps: What is compared.

    Returns:
        Gradient of the embeddings.
    """
    return torch.autograd.grad(contrast(maps), maps.embeddings)[0]


def estimate_gigabytes(pixels: int, anchors: int, kind: str) -> float:
    """Estimate the memory that matrices of anchors and pixels need.

    Args:
        pixels: Number of pixels of the batch.
        anchors: Number of anchors that are compared at once.
        kind: ``blocks`` for the dense contrast, ``masks`` for the short way.

    Returns:
        The estimate, in GB.
    """
    return LIVE_MATRICES[kind] * FLOAT_BYTES * min(anchors, pixels) * pixels / 1e9


def explain_misfit(args: argparse.Namespace, size: int, kind: str) -> str:
    """Say what does not fit into the memory.

    Args:
        args: The command line.
        size: Height and width of the maps.
        kind: As for :func:`estimate_gigabytes`.

    Returns:
        The estimate in words; empty where it fits.
    """
    pixels = args.batch_size * size**2
    anchors = args.chunk if kind == 'blocks' and args.chunk else pixels
    need = estimate_gigabytes(pixels, anchors, kind)
    return f'does not fit: about {need:.0f} GB' if need > args.memory_limit else ''


def print_peak(args: argparse.Namespace, device: torch.device) -> None:
    """Run a few steps of one arm and print the most memory that they held.

    Args:
        args: The command line.
        device: Where to train.
    """
    step = make_arm(args, args.peak_of, args.sizes[0], device)
    reset_peak(device)
    for _ in range(PEAK_STEPS):
        step()
    print(read_peak(device))


def reset_peak(device: torch.device) -> None:
    """Forget what was the most memory until now."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    else:
        (PROCESS / 'clear_refs').write_text('5')


def read_peak(device: torch.device) -> int:
    """Read the most memory since :func:`reset_peak`, in bytes.

    Not by getrusage, which begins with the memory of the process that started this one.
    """
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    kilobytes = re.search(r'VmHWM:\s+(\d+) kB', (PROCESS / 'status').read_text())
    return 1024 * int(kilobytes[1])


def measure_peak(args: argparse.Namespace, arm: str, size: int) -> int:
    """Measure the memory of one arm in a process of its own.

    Args:
        args: The command line.
        arm: One of ``ARMS``.
        size: Height and width of the maps.

    Returns:
        Bytes: of tensors on a GPU; on a CPU of the whole process, Python and libraries included.
    """
    options = dict(
        sizes=size,
        batch_size=args.batch_size,
        device=args.device,
        chunk=args.chunk,
        foreground=args.foreground,
        peak_of=arm,
    )
    words = [f'--{name.replace("_", "-")}={value}' for name, value in options.items()]
    command = [sys.executable, __file__, args.config, *words]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.split()[-1])


def ratio_cells(seconds: np.ndarray, over: np.ndarray) -> list[str]:
    """Describe the ratio of two columns of rounds.

    Args:
        seconds: Seconds of the one, shape (rounds,).
        over: Seconds of the other, shape (rounds,).

    Returns:
        The median over rounds, and its middle half.
    """
    low, ratio, high = np.quantile(seconds / over, (0.25, 0.5, 0.75))
    return [f'{ratio:.2f}', f'{low:.2f} to {high:.2f}']


def compare_steps(args: argparse.Namespace, size: int, device: torch.device) -> list[str]:
    """Time the training steps at one size, and measure their memory.

    Args:
        args: The command line.
        size: Height and width of the maps.
        device: Where to train.

    Returns:
        Cells of a row.
    """
    misfit = explain_misfit(args, size, 'blocks')
    arms = [arm for arm in ARMS if not (misfit and arm == 'pixel')]
    rounds = time_in_turns(
        [make_arm(args, arm, size, device) for arm in arms],
        args.repeats,
        device,
        CLOCKS[args.clock],
    )
    seconds = dict(zip(arms, rounds.T, strict=True))
    times = [f'{np.median(seconds[arm]):.4f}' if arm in seconds else misfit for arm in ARMS]
    ratio = ['-', '-'] if misfit else ratio_cells(seconds['pixel'], seconds['group'])
    peaks = [f'{measure_peak(args, arm, size) / 1e6:.0f}' if arm in arms else '-' for arm in ARMS]
    return [f'{size}x{size}', *times, *ratio, *peaks]


def compare_contrasts(args: argparse.Namespace, size: int, device: torch.device) -> list[str]:
    """Time the contrasts without the network at one size.

    Args:
        args: The command line.
        size: Height and width of the maps.
        device: Where to compute.

    Returns:
        Cells of a row.
    """
    maps = make_maps(args, size, device)
    contrasts = dict(
        masks=contrast_pixels_by_masks,
        blocks=partial(contrast_pixels, chunk=args.chunk or None),
        group=contrast_groups,
    )
    misfits = {kind: explain_misfit(args, size, kind) for kind in LIVE_MATRICES}
    names = [name for name in contrasts if not misfits.get(name)]
    calls = [partial(with_gradient, contrasts[name], maps) for name in names]
    rounds = time_in_turns(calls, args.repeats, device, CLOCKS[args.clock])
    seconds = dict(zip(names, rounds.T, strict=True))
    times = [
        f'{np.median(seconds[name]):.4f}' if name in seconds else misfits[name]
        for name in contrasts
    ]
    fits = 'blocks' in seconds
    ratio = ratio_cells(seconds['blocks'], seconds['group']) if fits else ['-', '-']
    return [f'{size}x{size}', str(args.batch_size * size**2), *times, *ratio]


def format_row(cells: Sequence[str]) -> str:
    """Write a row of a Markdown table."""
    return f'| {" | ".join(cells)} |'


def print_table(
    header: Sequence[str], compare: Callable[..., list[str]], args: argparse.Namespace
) -> None:
    """Print a table, each row as soon as it is there.

    Args:
        header: Names of the columns.
        compare: Makes the cells of a row from the command line, a size and the device.
        args: The command line.
    """
    print(f'\n{format_row(header)}\n{"|---" * len(header)}|', flush=True)
    for size in args.sizes:
        print(format_row(compare(args, size, torch.device(args.device))), flush=True)


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    device = torch.device(args.device)
    MMLogger.get_instance('benchmark', log_level='ERROR')
    if args.peak_of:
        print_peak(args, device)
        return
    print(
        f'{describe_machine(device)}; batch of {args.batch_size}, {args.repeats} rounds in turns, '
        f'medians of {args.clock} time; foreground {args.foreground}, '
        f'chunk {args.chunk or "a class"}, E={EMBED_CHANNELS}'
    )
    steps = ['training step', 'M0 s', '+ pixel s', '+ group s', 'pixel / group', 'middle half']
    peaks = ['peak MB: M0', '+ pixel', '+ group']
    print_table([*steps, *peaks], compare_steps, args)
    alone = ['contrast alone', 'pixels', 'pixel by masks s', 'pixel s', 'group s']
    print_table([*alone, 'pixel / group', 'middle half'], compare_contrasts, args)


if __name__ == '__main__':
    main()
