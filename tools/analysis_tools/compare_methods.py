"""Train several configs over several seeds, judge their CAMs, and print one table.

The background threshold of a run is chosen on its val_dataloader and judged on its test_dataloader.
A run that is already judged in the work dir is not run again, so an interrupted comparison goes on
where it stopped. Beside its judgements a run keeps its config, and another config is refused there.
"""

import argparse
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner, find_latest_checkpoint

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet  # noqa: F401
from mmdscnet.apis import Judgement, judge, train_and_judge
from mmdscnet.apis.kept_config import keep_config
from mmdscnet.atomic_write import atomic_path
from mmdscnet.evaluation.seed_statistics import spread
from mmdscnet.launch import enable_test_time_augmentation, read_run_config, run_name


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', help='the first is what the others are compared with')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--tta', action='store_true', help='judge over scales and flips as well')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return parser.parse_args()


def run_seed(config: str, seed: int, args: argparse.Namespace) -> dict[str, Judgement]:
    """Train and judge one config with one seed, or read what an earlier call judged.

    Args:
        config: Path of the config.
        seed: Seed of the run.
        args: The command line.

    Returns:
        Judgement by protocol: ``single scale`` and, if asked for, ``scales and flips``.
    """
    work_dir = args.work_dir / run_name(config) / f'seed_{seed}'
    cfg = read_run_config(config, options=args.cfg_options)
    cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
    cfg.experiment_name = f'{run_name(config)}_{seed}'
    # Before the config knows its folder, which may be moved, or named from elsewhere.
    keep_config(work_dir / 'config.txt', cfg.pretty_text)
    cfg.work_dir = str(work_dir)
    protocols = {'single scale': judge_trained}
    if args.tta:
        protocols['scales and flips'] = judge_augmented
    return {
        protocol: judge_once(work_dir / f'{protocol.replace(" ", "_")}.json', judge_run, cfg)
        for protocol, judge_run in protocols.items()
    }


def judge_once(result: Path, judge_run: Callable[[Config], Judgement], cfg: Config) -> Judgement:
    """Read a judgement, or make it and write it.

    Args:
        result: JSON file of the judgement.
        judge_run: What makes it.
        cfg: Config of the run, left as it is.

    Returns:
        The judgement.
    """
    if result.is_file():
        return Judgement(**json.loads(result.read_text()))
    judgement = judge_run(deepcopy(cfg))
    with atomic_path(result) as temporary:
        temporary.write_text(json.dumps(judgement._asdict(), indent=1))
    return judgement


def judge_trained(cfg: Config) -> Judgement:
    """Train a run and judge it.

    Args:
        cfg: Config of the run, changed in place.

    Returns:
        The judgement.
    """
    return train_and_judge(cfg)[1]


def judge_augmented(cfg: Config) -> Judgement:
    """Judge the newest checkpoint of a run over scales and flips.

    Args:
        cfg: Config of the run, changed in place.

    Returns:
        The judgement.
    """
    enable_test_time_augmentation(cfg)
    cfg.experiment_name += '_augmented'
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(find_latest_checkpoint(cfg.work_dir))
    return judge(runner)


def table(results: dict[str, list[dict[str, Judgement]]]) -> str:
    """Draw the table.

    Args:
        results: Judgements of each seed, by name of the config.

    Returns:
        Markdown, a row a protocol and config.
    """
    lines = [
        '| protocol | config | mIoU (%) | minus the first | seeds | bg_thr |',
        '|---|---|---|---|---|---|',
    ]
    first = next(iter(results.values()))
    for protocol in first[0]:
        for name, runs in results.items():
            judged = [run[protocol].judged for run in runs]
            gains = [value - run[protocol].judged for value, run in zip(judged, first, strict=True)]
            lines.append(
                f'| {protocol}, {runs[0][protocol].labels.replace("_", " ")} | {name} '
                f'| {spread(judged)} | {spread(gains)} | {", ".join(f"{v:.2f}" for v in judged)} '
                f'| {", ".join(f"{run[protocol].bg_thr:.2f}" for run in runs)} |'
            )
    return '\n'.join(lines)


def main() -> None:
    """Run the comparison."""
    args = parse_args()
    results: dict[str, list] = {run_name(config): [] for config in args.configs}
    for seed in args.seeds:
        for config in args.configs:
            results[run_name(config)].append(run_seed(config, seed, args))
    print(table(results))


if __name__ == '__main__':
    main()
