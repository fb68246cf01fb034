"""Whether a training that resumes is still the one that was interrupted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.config import Config

from mmdscnet.provenance import flatten_config

# What makes it another training, and what changes its course.
DECISIVE = ('model', 'optim_wrapper', 'randomness', 'train_dataloader')
STEERING = ('custom_hooks', 'param_scheduler', 'train_cfg')
# Keys anywhere in these that say how and where a training runs, or how it starts and is judged.
HARMLESS = {
    'data_root',
    'init_cfg',
    'num_workers',
    'persistent_workers',
    'pin_memory',
    'prefetch_factor',
    'pretrained',
    'test_cfg',
}
BATCH_SIZE = 'train_dataloader.batch_size'
SHOWN = 5


class Changes(NamedTuple):
    """What differs from the run that wrote a checkpoint, each as ``key was x and is y``.

    Attributes:
        decisive: What makes it another training.
        steering: What changes the course of the training from now on.
    """

    decisive: list[str]
    steering: list[str]


def describe_run(cfg: Config, world_size: int) -> dict[str, Any]:
    """Describe a run for those that resume it.

    Args:
        cfg: Its config.
        world_size: Number of its processes.

    Returns:
        Plain values, as a checkpoint can hold them: ``config``, the text of each value by its
        dotted key, and ``world_size``.
    """
    sections = {key: value for key, value in cfg.to_dict().items() if key in DECISIVE + STEERING}
    return dict(config=flatten_config(sections), world_size=world_size)


def compare_runs(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Find what differs between the configs of two runs.

    Args:
        saved: Description of the run that wrote the checkpoint.
        now: Description of the one that resumes it.

    Returns:
        The changes, without those of the batch size, see :func:`compare_batches`.
    """
    old, new = saved['config'], now['config']
    changes = Changes([], [])
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key == BATCH_SIZE or HARMLESS & set(key.split('.')):
            continue
        kind = changes.decisive if key.split('.')[0] in DECISIVE else changes.steering
        kind.append(f'{key} was {old.get(key, "not there")} and is {new.get(key, "not there")}')
    return changes


def compare_batches(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say what another number of processes or another batch size means.

    Args:
        saved: Description of the run that wrote the checkpoint.
        now: Description of the one that resumes it.

    Returns:
        What is no longer exact; None if nothing changed.
    """
    sizes = [run['config'].get(BATCH_SIZE, '1') for run in (saved, now)]
    ranks = [run['world_size'] for run in (saved, now)]
    if sizes[0] == sizes[1] and ranks[0] == ranks[1]:
        return None
    text = (
        f'the checkpoint was trained by {ranks[0]} processes with {sizes[0]} images each, and goes '
        f'on with {ranks[1]} of {sizes[1]}. '
    )
    if global_batch(saved) == global_batch(now):
        return text + (
            'The global batch, its images and their augmentation stay the same; sums are rounded '
            'differently, dropout differs, and batch norm sees other batches unless it is '
            'synchronized'
        )
    text += (
        'The global batch has another size: the learning rate is not scaled, steps are not '
        'comparable, an epoch that was interrupted begins anew, and images may come again or late'
    )
    kept, rest = divmod(global_batch(saved), now['world_size'])
    return text if rest else f'{text}. {BATCH_SIZE}={kept} keeps the size'


def global_batch(run: Mapping[str, Any]) -> int:
    """Count the images of a step on all ranks.

    Args:
        run: Description of a run.

    Returns:
        Their number.
    """
    return run['world_size'] * int(run['config'].get(BATCH_SIZE, 1))


def shorten(changes: list[str]) -> str:
    """Show the first few changes.

    Args:
        changes: The changes.

    Returns:
        One line.
    """
    more = f' and {len(changes) - SHOWN} more' if len(changes) > SHOWN else ''
    return '; '.join(changes[:SHOWN]) + more
