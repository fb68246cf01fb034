"""Time what the global batch costs: gloo ranks against one process at the same total batch.

Ranks and single processes take whole training steps in turns, so that a machine that slows down
slows all of them down. Images and labels are random, nothing is read from disk. The collectives of
the contrasts are timed and counted within the step, where they also wait for the slowest rank, and
once more by themselves.

What more ranks would cost is computed, not measured: the second table, from a bandwidth, a latency
and a speed that the command line states, see :func:`estimate_scale`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor
from torch import distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
sys.path.append(str(Path(__file__).parent))

from benchmark_step import make_batch, settle_statistics

import mmdscnet  # noqa: F401
from mmdscnet.atomic_write import atomic_path
from mmdscnet.functional import gather
from mmdscnet.launch import read_run_config
from mmdscnet.models.decode_heads import DSCHead
from mmdscnet.models.decode_heads.dsc_head import ImageContext

WARM_UP_ROUNDS = 2
FLOAT_BYTES = 4
SIZE_BYTES = 8
MATRIX_SIZE = 1024
SIMILARITY_IMAGES = 32
NEGLIGIBLE = 0.01


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'config',
        nargs='?',
        default=str(ROOT / 'configs/dscnet/voc_animals.py'),
        help='of a DSCHead',
    )
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('--batch-size', type=int, default=16, help='of all ranks together')
    parser.add_argument(
        '--threads', type=int, nargs='+', default=[1, 2], help='of the single processes'
    )
    parser.add_argument('--repeats', type=int, default=20, help='timed rounds')
    paper = parser.add_argument_group('what is computed, not measured')
    paper.add_argument('--paper-ranks', type=int, nargs='+', default=[8, 64, 512])
    paper.add_argument('--images-a-rank', type=int, default=16)
    paper.add_argument('--num-classes', type=int, default=21, help='background counts')
    paper.add_argument('--embed-channels', type=int, default=128)
    paper.add_argument('--gbit', type=float, default=200.0, help='bandwidth in Gbit/s')
    paper.add_argument('--latency', type=float, default=5e-6, help='of a message, in seconds')
    paper.add_argument('--step', type=float, help='seconds; default: that of the ranks')
    paper.add_argument('--flops', type=float, help='a second; default: a matrix product here')
    parser.add_argument('--out', type=Path, help='file for the numbers, as JSON')
    # What the tool passes to the processes that it starts.
    parser.add_argument('--job', type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------- in a process


class Meter:
    """Stands for ``torch.distributed`` where the contrasts gather: times and counts."""

    def __init__(self) -> None:
        self.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds = 0.0
        self.sent = dict(all_gather=0, all_reduce=0)

    def all_gather(self, pieces: list[Tensor], tensor: Tensor) -> None:
        """Gather, as ``torch.distributed`` does.

        Args:
            pieces: Where to put the tensors of all ranks.
            tensor: That of this rank.
        """
        self.measure('all_gather', tensor, lambda: dist.all_gather(pieces, tensor))

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum, as ``torch.distributed`` does.

        Args:
            tensor: That of this rank, changed in place.
        """
        self.measure('all_reduce', tensor, lambda: dist.all_reduce(tensor))

    def measure(self, name: str, tensor: Tensor, call: Callable[[], object]) -> None:
        """Time a collective and count what this rank gives to it.

        Args:
            name: Of the collective.
            tensor: What the rank gives.
            call: The collective.
        """
        start = time.perf_counter()
        call()
        self.seconds += time.perf_counter() - start
        self.sent[name] += tensor.numel() * tensor.element_size()


class Job(NamedTuple):
    """What a process does.

    Attributes:
        config: Path of the config.
        batch_size: Images of all ranks together.
        rank: Number of the process in its group.
        ranks: Processes of the group.
        threads: Threads of the process.
        folder: Where the group meets.
    """

    config: str
    batch_size: int
    rank: int
    ranks: int
    threads: int
    folder: str


def make_step(job: Job) -> tuple[Callable[[], object], Callable[[], float]]:
    """Build the model of a config, and this rank's part of a batch.

    Args:
        job: What the process does.

    Returns:
        A training step; and one exchange of the contrasts by itself, forward and backward, which
        gives its seconds.

    Raises:
        ValueError: If the head of the config is not a ``DSCHead``.
    """
    torch.manual_seed(0)
    cfg = read_run_config(job.config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    head = model.decode_head
    if not isinstance(head, DSCHead):
        raise ValueError(
            f'{job.config} has a {type(head).__name__}, which gathers nothing: give a config with '
            'a DSCHead, such as configs/dscnet/voc_animals.py'
        )
    size = tuple(cfg.model.data_preprocessor.size)
    batch = make_batch(job.batch_size, head.num_classes - 1, size, torch.device('cpu'))
    batch = {key: values[job.rank :: job.ranks] for key, values in batch.items()}
    settle_statistics(model, batch)
    if job.ranks > 1:
        model = MMDistributedDataParallel(module=model, broadcast_buffers=False)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    width = gathered_width(head.num_classes, head.projection.out_channels)
    rows = torch.zeros(len(batch['inputs']), head.num_classes, width, requires_grad=True)

    def exchange() -> float:
        if job.ranks > 1:
            dist.barrier()
        start = time.perf_counter()
        gather.gather_images(rows).sum().backward()
        return time.perf_counter() - start

    return lambda: model.train_step(batch, optimizer), exchange


def serve(job: Job) -> None:
    """Take a step for every line of standard input and answer with what it cost, as JSON.

    Args:
        job: What the process does.
    """
    # What the stack prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    MMLogger.get_instance('benchmark', log_level='ERROR')
    torch.set_num_threads(job.threads)
    if job.ranks > 1:
        dist.init_process_group(
            'gloo',
            init_method=f'file://{job.folder}/rendezvous',
            rank=job.rank,
            world_size=job.ranks,
            timeout=timedelta(seconds=300),
        )
    meter = gather.dist = Meter()
    step, exchange = make_step(job)
    for _ in sys.stdin:
        meter.clear()
        start = time.perf_counter()
        step()
        answer = dict(step=time.perf_counter() - start, gather=meter.seconds, sent=dict(meter.sent))
        answer['exchange'] = exchange()
        print(json.dumps(answer), file=answers, flush=True)
    # Not through the end of the interpreter, where a thread of gloo may abort the process.
    os._exit(0)


# ------------------------------------------------------------------------------- all processes


@contextmanager
def start_group(args: argparse.Namespace, ranks: int, threads: int) -> Iterator[list]:
    """Start the processes of a group.

    Args:
        args: The command line.
        ranks: Processes of the group.
        threads: Threads of each.

    Yields:
        The processes; they end with the block.
    """
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES='')
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(ranks):
                job = Job(args.config, args.batch_size, rank, ranks, threads, folder)
                command = [sys.executable, __file__, '--job', json.dumps(job)]
                processes.append(subprocess.Popen(command, env=env, **pipes))
            yield processes
        finally:
            for process in processes:
                process.stdin.close()
                process.stdout.close()
                process.kill()
                process.wait()


def take_step(processes: list) -> dict[str, Any]:
    """Let all processes of a group take a step at the same time.

    Args:
        processes: As from :func:`start_group`.

    Returns:
        ``step``, seconds of the slowest rank; ``shares`` of the step that each rank spent in the
        collectives of the contrasts; ``exchange``, seconds of one exchange by itself; and ``sent``,
        the bytes that a rank gave to each kind of collective.

    Raises:
        RuntimeError: If a process ended.
    """
    for process in processes:
        print(file=process.stdin, flush=True)
    lines = [process.stdout.readline() for process in processes]
    if not all(lines):
        raise RuntimeError('a process of the benchmark ended early: its error stands above')
    answers = [json.loads(line) for line in lines]
    slowest = max(answers, key=lambda answer: answer['step'])
    # A rank that comes early waits in the collectives for the others.
    shares = [answer['gather'] / answer['step'] for answer in answers]
    exchange = max(answer['exchange'] for answer in answers)
    return dict(step=slowest['step'], shares=shares, exchange=exchange, sent=slowest['sent'])


def run_in_turns(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Let the ranks and the single processes take steps in turns.

    Args:
        args: The command line.

    Returns:
        What each step cost, by the name of the group; the ranks come first.
    """
    groups = {f'{args.ranks} ranks of 1 thread': (args.ranks, 1)}
    groups |= {f'1 process of {threads} threads': (1, threads) for threads in args.threads}
    started, costs = {}, {name: [] for name in groups}
    with ExitStack() as stack:
        for name, (ranks, threads) in groups.items():
            started[name] = stack.enter_context(start_group(args, ranks, threads))
        for number in range(WARM_UP_ROUNDS + args.repeats):
            for name, processes in started.items():
                cost = take_step(processes)
                costs[name] += [cost] if number >= WARM_UP_ROUNDS else []
    return costs


# --------------------------------------------------------------------------------- on paper


def gathered_width(num_classes: int, embed_channels: int) -> int:
    """Count the numbers that ranks exchange about a class slot of an image.

    Group and key, E each, the class probabilities, A, and two flags: ``2 E + A + 2``.

    Args:
        num_classes: A, background counts.
        embed_channels: E.

    Returns:
        The count.
    """
    return 2 * embed_channels + num_classes + 2


def count_bytes(images: int, num_classes: int, embed_channels: int, ranks: int) -> dict[str, int]:
    """Count what a rank gives to the collectives in a step.

    Forward its own slots, ``N A (2 E + A + 2)`` numbers of 4 bytes, and 8 bytes to tell how many
    images it has; backward the gradient of all slots, R times as many numbers.

    Args:
        images: N, of a rank.
        num_classes: A, background counts.
        embed_channels: E.
        ranks: R.

    Returns:
        Bytes, by the name of the collective.
    """
    own = images * num_classes * gathered_width(num_classes, embed_channels) * FLOAT_BYTES
    return dict(all_gather=own + SIZE_BYTES, all_reduce=ranks * own)


def count_pairs(slots: int, num_classes: int) -> int:
    """Count the pairs of slots that a rank compares: V of the batch with V and A of the memory.

    Args:
        slots: V, images of all ranks times classes.
        num_classes: A, background counts.

    Returns:
        ``V (V + A)``.
    """
    return slots * (slots + num_classes)


def pair_flops(num_classes: int, embed_channels: int) -> int:
    """Count the operations of the matrix products for a pair of slots, forward and backward.

    Both contrasts and the attention of the graph compare E channels of each, and the graph
    averages E channels by the attention: four times 2 E operations forward and, for two gradients,
    4 E backward. The graph also compares A probabilities, without gradient: 2 A.

    Args:
        num_classes: A, background counts.
        embed_channels: E.

    Returns:
        ``24 E + 2 A``.
    """
    return 24 * embed_channels + 2 * num_classes


def similarity_flops(args: argparse.Namespace, ranks: int) -> int:
    """Count the operations of :func:`pair_flops` in a step; every rank does them for all pairs.

    Args:
        args: The command line.
        ranks: R; the global batch has V = R N A slots.

    Returns:
        ``V (V + A) (24 E + 2 A)``, of each rank.
    """
    pairs = count_pairs(ranks * args.images_a_rank * args.num_classes, args.num_classes)
    return pairs * pair_flops(args.num_classes, args.embed_channels)


def ring_seconds(ranks: int, own_bytes: int, bandwidth: float, latency: float) -> dict[str, float]:
    """Estimate the collectives of a step on a ring.

    An all-gather passes each rank's bytes b on R - 1 times, ``(R - 1) (latency + b / bandwidth)``,
    and an all-reduce of R b bytes does that twice. The sizes go round before, 8 bytes each.

    Args:
        ranks: R.
        own_bytes: b, of a rank.
        bandwidth: Bytes a second.
        latency: Seconds a message.

    Returns:
        Seconds, by the name of the collective.
    """
    once = (ranks - 1) * (latency + own_bytes / bandwidth)
    sizes = (ranks - 1) * (latency + SIZE_BYTES / bandwidth)
    return dict(all_gather=sizes + once, all_reduce=2 * once)


def estimate_scale(args: argparse.Namespace, step: float, flops: float, saved: float) -> list[dict]:
    """Estimate what the contrasts cost on many ranks.

    The share of the exchange is that of :func:`ring_seconds` in a step, as if nothing hid it; that
    of the similarities is :func:`similarity_flops` at the stated speed, without all that is done
    element by element. Memory is what backward keeps of each pair, as measured.

    Args:
        args: The command line.
        step: Seconds a step.
        flops: Operations a second.
        saved: Bytes that backward keeps of a pair of slots.

    Returns:
        The numbers, a dict for each count of ranks.
    """
    rows = []
    for ranks in args.paper_ranks:
        sent = count_bytes(args.images_a_rank, args.num_classes, args.embed_channels, ranks)
        own = sent['all_gather'] - SIZE_BYTES
        seconds = ring_seconds(ranks, own, args.gbit * 1e9 / 8, args.latency)
        slots = ranks * args.images_a_rank * args.num_classes
        operations = similarity_flops(args, ranks)
        rows.append(
            dict(
                ranks=ranks,
                slots=slots,
                gathered_bytes=ranks * own,
                **{f'{name}_seconds': value for name, value in seconds.items()},
                exchange_share=sum(seconds.values()) / step,
                operations=operations,
                similarity_seconds=operations / flops,
                similarity_share=operations / flops / step,
                saved_bytes=saved * count_pairs(slots, args.num_classes),
            )
        )
    return rows


def find_limit(args: argparse.Namespace, step: float, flops: float) -> int:
    """Find the fewest ranks on which the similarities take more than 1 % of a step.

    Args:
        args: The command line.
        step: Seconds a step.
        flops: Operations a second.

    Returns:
        Number of ranks.
    """
    ranks = 1
    while similarity_flops(args, ranks) <= NEGLIGIBLE * step * flops:
        ranks += 1
    return ranks


def make_context(images: int, num_classes: int, embed_channels: int) -> ImageContext:
    """Make a random context of a global batch, as it comes from the ranks.

    Args:
        images: N.
        num_classes: A, background counts.
        embed_channels: E.

    Returns:
        The context; its groups and keys need a gradient.
    """
    groups, keys = (torch.randn(images, num_classes, embed_channels) for _ in range(2))
    valid = torch.rand(images, num_classes) < 0.1
    valid[:, 0] = True
    probabilities = torch.rand(images, num_classes, num_classes) * valid[:, None] * valid[..., None]
    return ImageContext(
        groups.requires_grad_(), valid, probabilities, keys.requires_grad_(), valid.clone()
    )


def compare_slots(head: DSCHead, batch: ImageContext) -> Tensor:
    """Do what :meth:`DSCHead.describe_batch` does with all pairs of slots.

    Args:
        head: With both contrasts and a graph.
        batch: The context.

    Returns:
        The sum of the contrasts.
    """
    memory = head.memory[None], head.memory_valid[None]
    images = len(batch.groups)
    nodes = head.make_nodes(batch, torch.ones(images, images + 1, dtype=torch.bool))
    groups = head.pgcl(batch.groups, batch.valid, *memory)
    return groups + head.sgcl(nodes, batch.valid, batch.keys, batch.key_valid, *memory)


def build_head(num_classes: int, embed_channels: int) -> DSCHead:
    """Build a head with both contrasts and a graph.

    Args:
        num_classes: A, background counts.
        embed_channels: E.

    Returns:
        The head.
    """
    init_default_scope('mmseg')
    contrasts = dict(pgcl=dict(type='PGCLLoss'), sgcl=dict(type='SGCLLoss'))
    sizes = dict(in_channels=8, num_classes=num_classes, embed_channels=embed_channels)
    return MODELS.build(dict(type='DSCHead', **contrasts, **sizes))


def measure_saved_bytes(images: int, num_classes: int, embed_channels: int) -> float:
    """Measure what backward keeps of a pair of slots.

    Args:
        images: N of the global batch; the more, the less everything else counts.
        num_classes: A, background counts.
        embed_channels: E.

    Returns:
        Bytes a pair.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Kept alive, so that no other tensor gets its address.
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    head = build_head(num_classes, embed_channels)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compare_slots(head, make_context(images, num_classes, embed_channels))
    nbytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return nbytes / count_pairs(images * num_classes, num_classes)


def measure_pair_seconds(images: int, num_classes: int, embed_channels: int, repeats: int) -> float:
    """Time everything that is done with a pair of slots, forward and backward, in this process.

    Args:
        images: N of the global batch; the more, the less everything else counts.
        num_classes: A, background counts.
        embed_channels: E.
        repeats: How often; the median counts.

    Returns:
        Seconds a pair.
    """
    head = build_head(num_classes, embed_channels)
    batch = make_context(images, num_classes, embed_channels)
    seconds = median_seconds(lambda: compare_slots(head, batch).backward(), repeats)
    return seconds / count_pairs(images * num_classes, num_classes)


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Time a call after one to warm up.

    Args:
        call: What to time.
        repeats: How often.

    Returns:
        The median, in seconds.
    """
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def measure_flops(repeats: int) -> float:
    """Time a matrix product in this process.

    Args:
        repeats: How often; the median counts.

    Returns:
        Operations a second.
    """
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    return 2 * MATRIX_SIZE**3 / median_seconds(lambda: matrix @ matrix, repeats)


# ------------------------------------------------------------------------------------- tables


def describe_steps(costs: dict[str, list[dict]], batch_size: int) -> str:
    """Compare the groups.

    Args:
        costs: As from :func:`run_in_turns`.
        batch_size: Images of all ranks together.

    Returns:
        Markdown, a row a group. The ratio is the median over rounds, and its middle half.
    """
    first = np.array([cost['step'] for cost in next(iter(costs.values()))])
    lines = [
        f'| {batch_size} images a step | s a step | middle half | ranks / it | middle half |',
        '|---|---|---|---|---|',
    ]
    for name, rounds in costs.items():
        seconds = np.array([cost['step'] for cost in rounds])
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
        slow, ratio, fast = np.quantile(first / seconds, (0.25, 0.5, 0.75))
        lines.append(
            f'| {name} | {median:.4f} | {low:.4f} to {high:.4f} | {ratio:.3f} | '
            f'{slow:.3f} to {fast:.3f} |'
        )
    return '\n'.join(lines)


def describe_exchange(rounds: list[dict], formula: dict[str, int]) -> str:
    """Say what the ranks exchanged.

    Args:
        rounds: Costs of the ranks.
        formula: Bytes as :func:`count_bytes` counts them, of one view.

    Returns:
        Markdown.
    """
    least = np.median([min(cost['shares']) for cost in rounds])
    most = np.median([max(cost['shares']) for cost in rounds])
    alone = np.array([cost['exchange'] for cost in rounds])
    share = np.median(alone / [cost['step'] for cost in rounds])
    lines = [
        f'In the collectives of the contrasts the ranks spend {least:.2%} (the later one) to '
        f'{most:.2%} (the earlier one, which waits) of a step. By itself, after a barrier, one '
        f'exchange takes {np.median(alone) * 1e3:.2f} ms, {share:.2%} of a step.',
        '',
        '| a rank gives | bytes a step, counted | by the formula, a view |',
        '|---|---|---|',
    ]
    sent = rounds[0]['sent']
    lines += [f'| {name} | {sent[name]:,} | {count:,} |' for name, count in formula.items()]
    return '\n'.join(lines)


def describe_scale(args: argparse.Namespace, rows: list[dict], paper: dict[str, float]) -> str:
    """Make a table of the estimates.

    Args:
        args: The command line.
        rows: As from :func:`estimate_scale`.
        paper: What they rest on, ``step``, ``flops`` and ``saved``; and ``limit`` and ``pair``, as
            from :func:`find_limit` and :func:`measure_pair_seconds`.

    Returns:
        Markdown.
    """
    products = pair_flops(args.num_classes, args.embed_channels) / paper['flops']
    lines = [
        f'Computed: {args.images_a_rank} images a rank, A={args.num_classes}, '
        f'E={args.embed_channels}, {args.gbit:g} Gbit/s, {args.latency * 1e6:g} us a message, '
        f'{paper["step"]:.3g} s a step, {paper["flops"] / 1e9:.4g} GFLOP/s, {paper["saved"]:.1f} '
        'bytes kept of a pair of slots.',
        f'Measured in one thread here: {paper["pair"] * 1e9:.1f} ns a pair with all that is done '
        f'element by element; its products are {products * 1e9:.1f} ns at the speed above.',
        '',
        '| ranks | gathered MB | all-gather ms | all-reduce ms | of a step | similarity TFLOP a '
        'rank | s | of a step | kept GB |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        lines.append(
            f'| {row["ranks"]} | {row["gathered_bytes"] / 1e6:.1f} '
            f'| {row["all_gather_seconds"] * 1e3:.2f} | {row["all_reduce_seconds"] * 1e3:.2f} '
            f'| {row["exchange_share"]:.2%} | {row["operations"] / 1e12:.4g} '
            f'| {row["similarity_seconds"]:.3g} | {row["similarity_share"]:.2%} '
            f'| {row["saved_bytes"] / 1e9:.3g} |'
        )
    lines += ['', f'The similarities pass 1 % of a step on {paper["limit"]} ranks.']
    return '\n'.join(lines)


def read_sizes(config: str) -> tuple[int, int]:
    """Read the number of classes and of embedding channels of a config.

    Args:
        config: Path of the config.

    Returns:
        A, background counts, and E.
    """
    cfg = read_run_config(config)
    init_default_scope(cfg.default_scope)
    head = MODELS.build(cfg.model.decode_head)
    return head.num_classes, head.projection.out_channels


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    if args.job:
        serve(Job(*args.job))
        return
    if args.batch_size % args.ranks:
        raise ValueError(
            f'--batch-size {args.batch_size} is not a multiple of --ranks {args.ranks}: every rank '
            'takes the same number of images'
        )
    torch.set_num_threads(1)
    formula = count_bytes(args.batch_size // args.ranks, *read_sizes(args.config), args.ranks)
    costs = run_in_turns(args)
    rounds = next(iter(costs.values()))
    paper = dict(
        step=args.step or float(np.median([cost['step'] for cost in rounds])),
        flops=args.flops or measure_flops(args.repeats),
        saved=measure_saved_bytes(SIMILARITY_IMAGES, args.num_classes, args.embed_channels),
    )
    rows = estimate_scale(args, **paper)
    slots = SIMILARITY_IMAGES, args.num_classes, args.embed_channels
    paper['pair'] = measure_pair_seconds(*slots, args.repeats)
    paper['limit'] = find_limit(args, paper['step'], paper['flops'])
    print(
        f'torch {torch.__version__}, gloo on a CPU of {os.cpu_count()} cores, load '
        f'{os.getloadavg()[0]:.1f} at the end, {args.repeats} rounds in turns\n'
    )
    print(describe_steps(costs, args.batch_size), describe_exchange(rounds, formula), sep='\n\n')
    print(f'\n{describe_scale(args, rows, paper)}')
    if args.out:
        with atomic_path(args.out) as temporary:
            content = dict(costs=costs, formula=formula, paper=paper, scale=rows)
            temporary.write_text(json.dumps(content, indent=1))


if __name__ == '__main__':
    main()
