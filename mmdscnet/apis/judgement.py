"""Train a config and judge its CAMs with a threshold that was chosen on other images."""

import sys
from typing import NamedTuple

from mmengine.config import Config
from mmengine.runner import Runner, TestLoop
from torch.utils.data import DataLoader


class Judgement(NamedTuple):
    """mIoU of the CAMs of one trained model, in per cent.

    Attributes:
        bg_thr: Background threshold that is best on the images of ``val_dataloader``.
        chosen_on: mIoU at ``bg_thr`` on these images.
        judged: mIoU at ``bg_thr`` on the images of ``test_dataloader``.
        best: mIoU on the images of ``test_dataloader`` at the threshold that is best there: an
            upper bound of ``judged``, not a result.
        labels: ``labels_given`` or ``labels_predicted``, for ``test_dataloader``.
    """

    bg_thr: float
    chosen_on: float
    judged: float
    best: float
    labels: str


def judge(runner: Runner) -> Judgement:
    """Choose the threshold on ``val_dataloader`` and judge it on ``test_dataloader``.

    Args:
        runner: Runner with a trained model, of a config whose two evaluators are one
            ``CAMIoUMetric`` each. A model with test-time augmentation needs the augmenting
            pipeline in both data loaders.

    Returns:
        The judgement.
    """
    loaders = judged_loaders(runner)
    chosen, _ = _measure(runner, loaders, 'val', None)
    judged, labels = _measure(runner, loaders, 'test', chosen['best_bg_thr'])
    return Judgement(
        bg_thr=chosen['best_bg_thr'],
        chosen_on=chosen['best_mIoU'],
        judged=judged['mIoU'],
        best=judged['best_mIoU'],
        labels=labels,
    )


def train_and_judge(cfg: Config) -> tuple[Runner, Judgement]:
    """Train a config to its end, then judge it.

    Args:
        cfg: Config of the run; changed in place: nothing is evaluated during the training.

    Returns:
        The runner with the trained model, and its judgement.
    """
    # mmengine evaluates after the last epoch whatever the interval; only this switches it off.
    cfg.train_cfg.val_begin = sys.maxsize
    runner = Runner.from_cfg(cfg)
    # Before the training: a data set that cannot be judged should not cost one.
    judged_loaders(runner)
    runner.train()
    return runner, judge(runner)


def judged_loaders(runner: Runner) -> dict[str, DataLoader]:
    """Give the data on which a model is judged; the first call builds, and by that checks, it.

    Args:
        runner: Runner of a config with ``val_dataloader`` and ``test_dataloader``.

    Returns:
        The data loaders ``val`` and ``test``.
    """
    return {'val': runner.val_dataloader, 'test': runner.test_dataloader}


def _measure(
    runner: Runner, loaders: dict[str, DataLoader], split: str, bg_thr: float | None
) -> tuple[dict[str, float], str]:
    # The test loop for both splits: only it runs models with test-time augmentation.
    evaluator = dict(runner.cfg[f'{split}_evaluator'], bg_thr=bg_thr)
    # The log counts the images of the loop that the runner knows.
    runner._test_loop = loop = TestLoop(runner, loaders[split], evaluator)
    metrics = loop.run()
    mode = next(iter(metrics)).split('/')[0]
    return {name.removeprefix(f'{mode}/'): value for name, value in metrics.items()}, mode
