"""A study: what is run with which config and seeds, read from one file."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.runner import Runner

from mmdscnet.launch import read_run_config
from mmdscnet.provenance import flatten_config

PART_KEYS = {'title', 'base', 'seeds', 'judge', 'options', 'arms', 'grid', 'keep_checkpoints'}
REQUIRED = ('title', 'base', 'seeds', 'judge')
KEPT_BY_DEFAULT = {'train': 'first_seed', 'val': 'all'}
KEEPING = ('all', 'first_seed', 'none')
# What mmengine's Runner reads, in a config or besides.
RUNNER_KEYS = {*signature(Runner).parameters, 'activation_checkpointing', 'compile'}
# Names are folders.
NAME = re.compile(r'[\w+=.,@-]+')


class StudyRun(NamedTuple):
    """One config with one seed.

    Attributes:
        part: Name of the part of the study.
        arm: Name of the arm within the part.
        seed: The seed.
        cfg: The config in plain dicts, seed included; it names no work dir.
        text: The config, a line a value.
        keeps_checkpoint: Whether the last checkpoint stays on the disk.
        weights: Name of the run whose weights are judged, of which nothing is trained anew; None
            for a run that trains its own.
    """

    part: str
    arm: str
    seed: int
    cfg: dict[str, Any]
    text: str
    keeps_checkpoint: bool
    weights: str | None = None

    @property
    def name(self) -> str:
        """The run among all of a study: equal for equal configs."""
        return name_config(self.text)

    @property
    def place(self) -> Path:
        """Part, arm and seed as a path."""
        return Path(self.part, self.arm, f'seed_{self.seed}')


class GridAxis(NamedTuple):
    """One weight that a grid varies.

    Attributes:
        label: What it is called in the figure.
        key: Its dotted key in the config.
        values: What it takes, in the order of the axis.
    """

    label: str
    key: str
    values: list[Any]


class Part(NamedTuple):
    """Configs that are compared with each other.

    Attributes:
        name: Name of the part, a folder.
        title: Its heading.
        base: The config that it starts from.
        judge: ``train`` or ``val``, see ``tools/analysis_tools/ablation.py``.
        seeds: Seeds of every arm.
        options: What all arms change.
        arms: What each arm changes by its name; the first is what the others are compared with.
        grid: Axes x and y of a part that varies two weights, else None; its arms run through x
            within y.
        runs: All runs, every arm with the first seed before any with the second.
    """

    name: str
    title: str
    base: str
    judge: str
    seeds: list[int]
    options: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    grid: tuple[GridAxis, GridAxis] | None
    runs: list[StudyRun]


def read_study(path: Path) -> list[Part]:
    """Read a study file and the configs that it names.

    Args:
        path: A config of mmengine with ``parts``, a dict by name.

    Returns:
        The parts in the order of the file.

    Raises:
        FileNotFoundError: If the file, or a config that it names, is not there.
        ValueError: If it says something that cannot be run.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'study {path} is not a file: give one such as configs/dscnet/study.py'
        )
    parts = Config.fromfile(str(path)).to_dict().get('parts')
    if not parts or not isinstance(parts, dict):
        raise ValueError(f'{path} has no parts: write parts = dict(NAME=dict(title=..., arms=...))')
    return [_read_part(path, name, content) for name, content in parts.items()]


def select_parts(parts: Sequence[Part], names: Sequence[str] | None) -> list[Part]:
    """Choose parts by name.

    Args:
        parts: All parts.
        names: Which of them; None for all.

    Returns:
        The chosen ones in the order of the study.

    Raises:
        ValueError: If there is no part of a name.
    """
    unknown = set(names or ()) - {part.name for part in parts}
    if unknown:
        raise ValueError(
            f'--only names {sorted(unknown)}, and the study has the parts '
            f'{[part.name for part in parts]}: choose among these'
        )
    return [part for part in parts if names is None or part.name in names]


def _read_part(path: Path, name: str, content: dict[str, Any]) -> Part:
    where = f'{path}: part {name!r}'
    _check_name(where, name)
    _check_keys(where, content)
    grid = _read_grid(where, content['grid']) if 'grid' in content else None
    arms = _grid_arms(grid) if grid else content['arms']
    for arm in arms:
        _check_name(f'{where}: arm', arm)
    keeping = content.get('keep_checkpoints', KEPT_BY_DEFAULT[content['judge']])
    sources = {arm: changes.get('weights_of') for arm, changes in arms.items()}
    _check_sources(where, sources)
    configs = {
        arm: _read_arm(path, f'{where}, arm {arm!r}', content, changes)
        for arm, changes in arms.items()
    }
    _check_differ(where, configs)
    seeds = content['seeds']
    runs = []
    for seed in seeds:
        keeps = keeping == 'all' or (keeping, seed) == ('first_seed', seeds[0])
        for arm, cfg in configs.items():
            source = sources[arm]
            weights = None if source is None else name_config(_seed_text(configs[source], seed)[1])
            runs.append(_seed_run(name, arm, seed, cfg, keeps, weights))
    options = content.get('options', {})
    base = content['base']
    return Part(name, content['title'], base, content['judge'], seeds, options, arms, grid, runs)


def _check_keys(where: str, content: Mapping[str, Any]) -> None:
    missing = [key for key in REQUIRED if key not in content]
    unknown = sorted(content.keys() - PART_KEYS)
    if missing or unknown:
        raise ValueError(
            f'{where} lacks {missing} and has {unknown}, which nothing reads: its keys are '
            f'{sorted(PART_KEYS)}'
        )
    if ('arms' in content) == ('grid' in content):
        raise ValueError(f'{where} needs either arms or a grid: give one of the two')
    if content['judge'] not in KEPT_BY_DEFAULT:
        raise ValueError(f"{where} has judge={content['judge']!r}: give 'train' or 'val'")
    if content.get('keep_checkpoints', 'all') not in KEEPING:
        raise ValueError(
            f'{where} has keep_checkpoints={content["keep_checkpoints"]!r}: give one of {KEEPING}'
        )
    seeds = content['seeds']
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f'{where} has seeds={seeds}: give two different ones or more')
    if 'arms' in content and not content['arms']:
        raise ValueError(f'{where} has no arms: give at least one, such as arms=dict(M0=dict())')


def _check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name) or name in ('.', '..', 'runs'):
        raise ValueError(
            f'{where} {name!r} cannot be a folder: use letters, digits and _ + = . , @ -, and not '
            'the name runs'
        )


def _read_grid(where: str, grid: Mapping[str, Any]) -> tuple[GridAxis, GridAxis]:
    try:
        x, y = (GridAxis(*grid[axis]) for axis in ('x', 'y'))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{where} has grid={grid}: write grid=dict(x=(label, key, values), y=(label, key, '
            'values))'
        ) from error
    return x, y


def _grid_arms(grid: tuple[GridAxis, GridAxis]) -> dict[str, dict[str, Any]]:
    x, y = grid
    return {f'x={a},y={b}': {x.key: a, y.key: b} for b in y.values for a in x.values}


def _read_arm(
    path: Path, where: str, part: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    changes = dict(deepcopy(changes))
    base = path.parent / changes.pop('base', part['base'])
    changes.pop('weights_of', None)
    try:
        cfg = read_run_config(str(base))
        for options in (deepcopy(part.get('options', {})), changes):
            unknown = {key.split('.')[0] for key in options} - cfg.keys() - RUNNER_KEYS
            if unknown:
                raise ValueError(f'{base} has nothing named {sorted(unknown)}: check the keys')
            cfg.merge_from_dict(options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{where}: {error}') from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{where}: {error}') from error
    content = cfg.to_dict()
    # Each run gets a folder of its own.
    del content['work_dir']
    return content


def _check_differ(where: str, configs: Mapping[str, dict[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for arm, cfg in configs.items():
        text = spell_config(cfg)
        if '_delete_' in text:
            raise ValueError(f'{where}, arm {arm!r}: _delete_ stands where its base has nothing')
        if text in seen:
            raise ValueError(
                f'{where}: arms {seen[text]!r} and {arm!r} are the same config: check their keys, '
                'or leave one out'
            )
        seen[text] = arm


def _check_sources(where: str, sources: Mapping[str, str | None]) -> None:
    for arm, source in sources.items():
        if source is not None and (source not in sources or sources[source] is not None):
            raise ValueError(
                f'{where}, arm {arm!r} has weights_of={source!r}: name another arm of the part, '
                f'one that trains its own weights, of {list(sources)}'
            )


def _seed_run(
    part: str, arm: str, seed: int, cfg: dict[str, Any], keeps: bool, weights: str | None
) -> StudyRun:
    content, text = _seed_text(cfg, seed)
    if weights is not None:
        text += f'weights_of = {weights}\n'
    return StudyRun(part, arm, seed, content, text, keeps, weights)


def _seed_text(cfg: dict[str, Any], seed: int) -> tuple[dict[str, Any], str]:
    content = {**cfg, 'randomness': dict(cfg.get('randomness', {}), seed=seed)}
    return content, spell_config(content)


def name_config(text: str) -> str:
    """Name a run by its config.

    Args:
        text: The config as :func:`spell_config` gives it.

    Returns:
        The name of its folder.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def spell_config(content: Mapping[str, Any]) -> str:
    """Spell out a config, to be read, compared and hashed.

    Args:
        content: The config as plain dicts.

    Returns:
        A line a value, sorted by dotted key.
    """
    lines = [f'{key} = {value}\n' for key, value in sorted(flatten_config(content).items())]
    return ''.join(lines)
