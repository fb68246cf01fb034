"""One run of a study: trained, judged, and kept as files that are whole or not there."""

import contextlib
import json
import platform
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.utils import ManagerMixin, import_modules_from_strings

from mmdscnet.apis.judgement import Threshold, build_training, choose_threshold, judge_at
from mmdscnet.apis.kept_config import keep_config
from mmdscnet.atomic_write import atomic_path
from mmdscnet.launch import find_checkpoint_to_resume

TRACEBACK_LINES = 12


class RunTask(NamedTuple):
    """What a process needs to know of a run.

    Attributes:
        folder: Where it is kept, an absolute path.
        cfg: Its config in plain dicts, without work dir.
        text: Its config, a line a value.
        is_judged: Whether the images of ``test_dataloader`` are judged, or only a threshold is
            chosen on those of ``val_dataloader``.
        keeps_checkpoint: Whether its last checkpoint stays when it is done.
        code: What :func:`mmdscnet.provenance.describe_code` gave when the study began.
        weights: Folder of the run whose weights are judged, an absolute path; None to train.
    """

    folder: Path
    cfg: dict[str, Any]
    text: str
    is_judged: bool
    keeps_checkpoint: bool
    code: dict[str, str | None]
    weights: Path | None = None


class RunResult(NamedTuple):
    """How a run did; mIoU in per cent, None for what was not judged.

    Attributes:
        bg_thr: Background threshold that is best on the images of ``val_dataloader``.
        chosen_on: mIoU at ``bg_thr`` on these images, with labels as the config has them.
        labels_given: mIoU at ``bg_thr`` on the images of ``test_dataloader``, with labels.
        labels_given_best: The same at the threshold that is best there: an upper bound.
        labels_predicted: mIoU at ``bg_thr`` on the same images without labels.
        labels_predicted_best: The same at the threshold that is best there: an upper bound.
        seconds_training: Seconds of the training, or of the share that was left of it.
        seconds_judging: Seconds of all that came after.
        resumed: Whether the training went on from a checkpoint, so that its seconds are a share.
        threads: Threads of torch.
        mmdscnet: Version of the package.
        commit: Commit of the package, or None.
        torch: Version of torch.
        machine: What it ran on.
        date: When it was done, UTC.
    """

    bg_thr: float
    chosen_on: float
    labels_given: float | None
    labels_given_best: float | None
    labels_predicted: float | None
    labels_predicted_best: float | None
    seconds_training: float
    seconds_judging: float
    resumed: bool
    threads: int
    mmdscnet: str
    commit: str | None
    torch: str
    machine: str
    date: str


class RunFailure(NamedTuple):
    """Why a run has no result.

    Attributes:
        error: The last lines of the traceback.
        date: When, UTC.
    """

    error: str
    date: str


def run_once(task: RunTask) -> RunResult | RunFailure:
    """Train and judge a run, and write its result, or why there is none.

    A training that was interrupted goes on from its last checkpoint; one that is complete and
    still has its checkpoint is judged only. What the run prints goes to ``output.txt``.

    Args:
        task: The run.

    Returns:
        What was written.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with _print_to(task.folder / 'output.txt'):
        try:
            result = _run(task)
        except Exception:
            lines = traceback.format_exc().strip().splitlines()
            return write_failure(task.folder, '\n'.join(lines[-TRACEBACK_LINES:]))
        finally:
            _forget_instances()
    _write_json(task.folder / 'result.json', result._asdict())
    (task.folder / 'failure.json').unlink(missing_ok=True)
    _drop_checkpoints(task)
    return result


def read_outcome(folder: Path) -> RunResult | RunFailure | None:
    """Read what a run has left.

    Args:
        folder: Folder of the run.

    Returns:
        Its result, else why it failed, else None.
    """
    if (result := folder / 'result.json').is_file():
        return RunResult(**json.loads(result.read_text(encoding='utf-8')))
    if (failure := folder / 'failure.json').is_file():
        return RunFailure(**json.loads(failure.read_text(encoding='utf-8')))
    return None


def write_failure(folder: Path, error: str) -> RunFailure:
    """Note that a run failed.

    Args:
        folder: Folder of the run.
        error: What happened.

    Returns:
        What was written.
    """
    failure = RunFailure(error, _now())
    _write_json(folder / 'failure.json', failure._asdict())
    return failure


@contextlib.contextmanager
def _print_to(path: Path) -> Iterator[None]:
    with (
        open(path, 'a', encoding='utf-8') as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        yield


def _run(task: RunTask) -> RunResult:
    keep_config(task.folder / 'config.txt', task.text)
    cfg = _prepare(task)
    started = time.perf_counter()
    runner = build_training(cfg)
    _build_loaders(runner, task.is_judged)
    if task.weights is None:
        runner.train()
    else:
        _load_weights(runner, task.weights)
    trained = time.perf_counter()
    threshold = choose_threshold(runner)
    scores = _judge(runner, threshold) if task.is_judged else {}
    seconds, resumed = trained - started, bool(cfg.resume)
    earlier = read_outcome(task.folder)
    if resumed and isinstance(earlier, RunResult):
        # It was trained before, and is judged further.
        seconds, resumed = earlier.seconds_training, earlier.resumed
    return RunResult(
        bg_thr=threshold.bg_thr,
        chosen_on=threshold.chosen_on,
        labels_given=scores.get('labels_given'),
        labels_given_best=scores.get('labels_given_best'),
        labels_predicted=scores.get('labels_predicted'),
        labels_predicted_best=scores.get('labels_predicted_best'),
        seconds_training=round(seconds, 2),
        seconds_judging=round(time.perf_counter() - trained, 2),
        resumed=resumed,
        threads=torch.get_num_threads(),
        mmdscnet=str(task.code['mmdscnet']),
        commit=task.code['commit'],
        torch=torch.__version__,
        machine=_describe_machine(),
        date=_now(),
    )


def _prepare(task: RunTask) -> Config:
    # Formatted, the texts of a config that mmengine writes and logs take half a second a run.
    cfg = Config(task.cfg, format_python_code=False)
    import_modules_from_strings(**cfg.get('custom_imports', dict(imports=None)))
    cfg.work_dir = str(task.folder)
    cfg.experiment_name = task.folder.name
    if (task.folder / 'last_checkpoint').is_file():
        # From there, and not from the weights that the config may start from.
        cfg.resume, cfg.load_from = True, None
        find_checkpoint_to_resume(cfg)
    else:
        cfg.resume = False
    return cfg


def _load_weights(runner: Runner, folder: Path) -> None:
    if not isinstance(read_outcome(folder), RunResult):
        raise ValueError(f'{folder}, whose weights are to be judged, is not done: run it first')
    # Hooks make their files ready here, before a training as before a test.
    runner.call_hook('before_run')
    runner.load_checkpoint(find_latest_checkpoint(str(folder)))


def _build_loaders(runner: Runner, is_judged: bool) -> None:
    # Before the training: a data set that cannot be judged should not cost one.
    _ = runner.val_dataloader
    if is_judged:
        _ = runner.test_dataloader


def _judge(runner: Runner, threshold: Threshold) -> dict[str, float]:
    scores = {}
    for predict_labels in (False, True):
        judgement = judge_at(runner, threshold, predict_labels)
        scores[judgement.labels] = judgement.judged
        scores[f'{judgement.labels}_best'] = judgement.best
    if 'labels_given' not in scores:
        raise ValueError(
            'the images of test_dataloader have no labels to give: name image_labels in its data '
            "set, or judge the part on 'train'"
        )
    return scores


def _drop_checkpoints(task: RunTask) -> None:
    note = task.folder / 'last_checkpoint'
    last = Path(note.read_text().strip()).name if note.is_file() else None
    for path in task.folder.glob('*.pth'):
        if not (task.keeps_checkpoint and path.name == last):
            path.unlink()
    if not task.keeps_checkpoint:
        note.unlink(missing_ok=True)


def _forget_instances() -> None:
    # mmengine gives a process one visualizer of a name, which would write to the first run's
    # folder for all of them, and keeps the open log file of every run.
    for manager in _subclasses(ManagerMixin):
        for instance in manager._instance_dict.values():
            for handler in getattr(instance, 'handlers', []):
                handler.close()
        manager._instance_dict.clear()


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _describe_machine() -> str:
    if torch.cuda.is_available():
        return f'{platform.node()}, {torch.cuda.get_device_name()}'
    return f'{platform.node()}, {platform.machine()} CPU'


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding='utf-8')
