"""What a result was made by: code, config and weights, so that it can be made again."""

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmdscnet.version import __version__

# Keys of a config that say how a run is started and where it writes.
CIRCUMSTANCES = ('launcher', 'load_from', 'log_level', 'model_wrapper_cfg', 'resume', 'work_dir')


def describe_code() -> dict[str, str | None]:
    """Identify the code of this package.

    Returns:
        ``mmdscnet``, its version, and ``commit``: the commit of a clone, followed by ``+changes``
        where tracked files were changed; None outside a clone.
    """
    root = Path(__file__).resolve().parents[1]
    commit = _ask_git(root, 'rev-parse', 'HEAD') if (root / '.git').exists() else None
    if commit and _ask_git(root, 'status', '--porcelain', '--untracked-files=no'):
        commit += '+changes'
    return dict(mmdscnet=__version__, commit=commit)


def hash_config(cfg: Config) -> str:
    """Identify a config by what decides the result.

    Args:
        cfg: The config, with its base files and the command line merged in.

    Returns:
        SHA-256, hexadecimal; the same where only :data:`CIRCUMSTANCES` differ.
    """
    content = {key: value for key, value in cfg.to_dict().items() if key not in CIRCUMSTANCES}
    return hashlib.sha256(Config(content).dump().encode()).hexdigest()


def hash_sha256(path: str | os.PathLike[str]) -> str:
    """Identify a file by its content.

    Args:
        path: The file.

    Returns:
        SHA-256, hexadecimal.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def flatten_config(content: Mapping[str, Any]) -> dict[str, str]:
    """Spell a config out, so that two can be compared and told apart.

    Args:
        content: The config, or sections of it, as plain dicts.

    Returns:
        Text of each value by its dotted key, such as ``model.decode_head.num_classes``; a list that
        holds dicts is counted through.
    """
    return dict(_flatten(content, ''))


def hash_weights(model: nn.Module) -> str:
    """Identify a model by its parameters and buffers, on whatever device.

    Args:
        model: The model.

    Returns:
        SHA-256, hexadecimal.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        # As bytes, because numpy does not know every type of torch.
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        yield key, repr(value)
        return
    for name, part in value.items():
        yield from _flatten(part, f'{key}.{name}' if key else str(name))


def _ask_git(root: Path, *command: str) -> str | None:
    try:
        answer = subprocess.run(
            ['git', '-C', str(root), *command], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
