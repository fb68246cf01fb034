"""Train a config and judge its CAMs with a threshold that was chosen on other images."""

import sys
from copy import deepcopy
from typing import NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner, TestLoop
from torch.utils.data import DataLoader


class Threshold(NamedTuple):
    """A background threshold, and how it does where it was chosen.

    Attributes:
        bg_thr: Background threshold that is best on the images of ``val_dataloader``.
        chosen_on: mIoU at ``bg_thr`` on these images, in per cent.
    """

    bg_thr: float
    chosen_on: float


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
    judged_loaders(runner)
    return judge_at(runner, choose_threshold(runner))


def choose_threshold(runner: Runner) -> Threshold:
    """Choose the threshold on ``val_dataloader``; no other image is looked at.

    Args:
        runner: As for :func:`judge`.

    Returns:
        The threshold.
    """
    chosen, _ = _measure(runner, runner.val_dataloader, 'val', None)
    return Threshold(chosen['best_bg_thr'], chosen['best_mIoU'])


def judge_at(runner: Runner, threshold: Threshold, predict_labels: bool = False) -> Judgement:
    """Judge a chosen threshold on ``test_dataloader``.

    Args:
        runner: As for :func:`judge`.
        threshold: What :func:`choose_threshold` gave.
        predict_labels: Withhold the image-level labels of the judged images, so that the model
            predicts which classes they hold; else the config decides.

    Returns:
        The judgement.

    Raises:
        ValueError: If the labels cannot be withheld.
    """
    loader = _unlabelled_loader(runner) if predict_labels else runner.test_dataloader
    judged, labels = _measure(runner, loader, 'test', threshold.bg_thr)
    if predict_labels and labels != 'labels_predicted':
        raise ValueError(
            'the images of test_dataloader keep their labels without '
            f'test_dataloader.dataset.image_labels (type {runner.cfg.test_dataloader.dataset.type}'
            '): use a data set that takes them from this argument, as VOCLayoutDataset does'
        )
    return Judgement(
        bg_thr=threshold.bg_thr,
        chosen_on=threshold.chosen_on,
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
    runner = build_training(cfg)
    # Before the training: a data set that cannot be judged should not cost one.
    judged_loaders(runner)
    runner.train()
    return runner, judge(runner)


def build_training(cfg: Config) -> Runner:
    """Build a training in which nothing is evaluated.

    Args:
        cfg: Config of the run, changed in place.

    Returns:
        The runner.
    """
    # mmengine evaluates after the last epoch whatever the interval; only this switches it off.
    cfg.train_cfg.val_begin = sys.maxsize
    return Runner.from_cfg(cfg)


def judged_loaders(runner: Runner) -> dict[str, DataLoader]:
    """Give the data on which a model is judged; the first call builds, and by that checks, it.

    Args:
        runner: Runner of a config with ``val_dataloader`` and ``test_dataloader``.

    Returns:
        The data loaders ``val`` and ``test``.
    """
    return {'val': runner.val_dataloader, 'test': runner.test_dataloader}


def _unlabelled_loader(runner: Runner) -> DataLoader:
    cfg: ConfigDict = deepcopy(runner.cfg.test_dataloader)
    # Other data sets do not know the argument.
    if 'image_labels' in cfg.dataset:
        cfg.dataset.image_labels = None
    return runner.build_dataloader(cfg, seed=runner.seed)


def _measure(
    runner: Runner, loader: DataLoader, split: str, bg_thr: float | None
) -> tuple[dict[str, float], str]:
    # The test loop for both splits: only it runs models with test-time augmentation.
    evaluator = dict(runner.cfg[f'{split}_evaluator'], bg_thr=bg_thr)
    own_loop = runner._test_loop
    # The log counts the images of the loop that the runner knows.
    runner._test_loop = loop = TestLoop(runner, loader, evaluator)
    try:
        metrics = loop.run()
    finally:
        # By which the runner finds the loader of test_dataloader.
        runner._test_loop = own_loop
    mode = next(iter(metrics)).split('/')[0]
    return {name.removeprefix(f'{mode}/'): value for name, value in metrics.items()}, mode
