"""Convert the ImageNet weights of ResNet38d from MXNet's file format, without mxnet.

The source is model A1 of the ademxapp model zoo (GitHub: itijyou/ademxapp, "Wider or Deeper",
arXiv:1611.10080), a file called ilsvrc-cls_rna-a1_cls1000_ep-0001.params. The classifier in it is
left out. The result is for init_cfg=dict(type='Pretrained', checkpoint=...) of ResNet38d.
"""

import argparse
import hashlib
import math
import re
import struct
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

import mmdscnet
from mmdscnet.atomic_write import atomic_path
from mmdscnet.models import ResNet38d

# As models/checksum.md5 of the ademxapp repository has it.
PUBLISHED_MD5 = 'ff21f45d6bf03284100dcbec571edfad'

# The container, as mxnet's src/ndarray/ndarray.cc writes and reads it.
LIST_MAGIC = 0x112
V1_MAGIC, V2_MAGIC, V3_MAGIC = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0
DTYPES = tuple(np.dtype(code) for code in ('<f4', '<f8', '<f2', 'u1', '<i4', 'i1', '<i8'))
# Bounds on what a file may ask for; the published one has 193 arrays of at most 4 dimensions.
MAX_ARRAYS = 10_000
MAX_NDIM = 32

CONV_NAME = re.compile(r'res(\d)(?:a|b(\d))_(branch\w+)_weight')
NORM_NAME = re.compile(r'bn(\d)(?:(?:a|b(\d))_(branch\w+?))?_(gamma|beta|moving_mean|moving_var)')
NORM_KEYS = dict(gamma='weight', beta='bias', moving_mean='running_mean', moving_var='running_var')
CLASSIFIER = 'linear1000'

REDOWNLOAD = 'the file is damaged or no MXNet parameter file: download it again'


class Reader:
    """A cursor over a mapped file that never reads, nor makes room for, what is not there.

    Args:
        path: File to read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f'no file {path}: get ilsvrc-cls_rna-a1_cls1000_ep-0001.params as --help says'
            )
        self.path = path
        self.offset = self.field_offset = 0
        if not path.stat().st_size:
            self.fail('size of the file', 0, REDOWNLOAD)
        self.data = np.memmap(path, dtype=np.uint8, mode='r')

    @property
    def remaining(self) -> int:
        """Number of bytes behind the cursor."""
        return len(self.data) - self.offset

    def fail(self, field: str, value: object, mend: str) -> NoReturn:
        """Refuse the file for what was read last.

        Args:
            field: What is wrong.
            value: Its value.
            mend: What to do about it.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f'{self.path}, byte {self.field_offset}: {field} is {value}; {mend}')

    def bytes(self, count: int, field: str) -> np.ndarray:
        """Step over bytes.

        Args:
            count: Number of bytes, not negative.
            field: What they are.

        Returns:
            A view of them, shape (count,).

        Raises:
            ValueError: If the file ends before.
        """
        self.field_offset = self.offset
        if count > self.remaining:
            self.fail(
                f'{field}, in bytes,', count, f'only {self.remaining} bytes are left: {REDOWNLOAD}'
            )
        view = self.data[self.offset : self.offset + count]
        self.offset += count
        return view

    def numbers(self, code: str, count: int, field: str) -> tuple[int, ...]:
        """Read little-endian integers.

        Args:
            code: Their type as in :mod:`struct`.
            count: How many, not negative.
            field: What they are.

        Returns:
            The integers.

        Raises:
            ValueError: If the file ends before.
        """
        view = self.bytes(struct.calcsize(f'<{code}') * count, field)
        return struct.unpack(f'<{count}{code}', view.tobytes())

    def number(self, code: str, field: str) -> int:
        """Read one integer, as :meth:`numbers` does."""
        return self.numbers(code, 1, field)[0]


def read_shape(reader: Reader, ndim: int, code: str) -> tuple[int, ...]:
    """Read the dimensions of an array.

    Args:
        reader: Before the first dimension.
        ndim: Number of dimensions as the file has it, of any value.
        code: Type of a dimension as in :mod:`struct`.

    Returns:
        The shape.

    Raises:
        ValueError: If there are too many dimensions or one is not positive.
    """
    if not 0 <= ndim <= MAX_NDIM:
        reader.fail('number of dimensions', ndim, REDOWNLOAD)
    shape = reader.numbers(code, ndim, 'shape')
    if min(shape, default=1) < 1:
        reader.fail('shape', shape, f'an array of weights has values: {REDOWNLOAD}')
    return shape


def read_array(reader: Reader) -> np.ndarray:
    """Read one array of any version of the record.

    Args:
        reader: At the start of the record.

    Returns:
        A view of the file, of the record's own type and shape; of shape (0,) where the record says
        that it holds no array.

    Raises:
        ValueError: If the record is sparse, damaged, of an unknown type or cut off.
    """
    magic = reader.number('I', 'magic number of an array')
    if magic in (V2_MAGIC, V3_MAGIC):
        storage = reader.number('i', 'storage type')
        if storage != DENSE:
            reader.fail('storage type', storage, 'only dense arrays (0) are read: save it as dense')
    if magic in (V1_MAGIC, V2_MAGIC, V3_MAGIC):
        shape = read_shape(reader, reader.number('i', 'number of dimensions'), 'q')
    else:
        # The oldest records have no magic number but begin with the number of dimensions.
        shape = read_shape(reader, magic, 'I')
    # Since version 3 an array without dimensions holds one number, before it holds nothing.
    if not shape and magic != V3_MAGIC:
        return np.empty(0, np.float32)
    reader.numbers('i', 2, 'device')
    flag = reader.number('i', 'type flag')
    if not 0 <= flag < len(DTYPES):
        reader.fail('type flag', flag, f'0 to {len(DTYPES) - 1} are read: save it in float32')
    dtype = DTYPES[flag]
    values = reader.bytes(math.prod(shape) * dtype.itemsize, f'array of shape {shape}')
    return values.view(dtype).reshape(shape)


def read_names(reader: Reader, count: int) -> list[str]:
    """Read the names of the arrays.

    Args:
        reader: Behind the last array.
        count: Number of arrays.

    Returns:
        As many different names.

    Raises:
        ValueError: If there are more or fewer, one comes twice or is no text, or the file is cut
            off.
    """
    found = reader.number('Q', 'number of names')
    if found != count:
        reader.fail('number of names', found, f'there are {count} arrays: {REDOWNLOAD}')
    names: dict[str, None] = {}
    for _ in range(count):
        raw = reader.bytes(reader.number('Q', 'length of a name'), 'name').tobytes()
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            reader.fail('name', raw[:40], f'it is not UTF-8: {REDOWNLOAD}')
        if name in names:
            reader.fail('name', repr(name), f'another array has it: {REDOWNLOAD}')
        names[name] = None
    return list(names)


def read_params(path: Path) -> dict[str, np.ndarray]:
    """Read a file that mxnet's ``ndarray.save`` wrote from named arrays.

    Args:
        path: The file.

    Returns:
        Views of the file by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or damaged.
    """
    reader = Reader(path)
    magic = reader.number('Q', 'magic number')
    if magic != LIST_MAGIC:
        reader.fail('magic number', hex(magic), f'it should be {LIST_MAGIC:#x}: {REDOWNLOAD}')
    reader.number('Q', 'reserved field')
    count = reader.number('Q', 'number of arrays')
    if count > MAX_ARRAYS:
        reader.fail('number of arrays', count, f'at most {MAX_ARRAYS} are read: {REDOWNLOAD}')
    arrays = [read_array(reader) for _ in range(count)]
    names = read_names(reader, count)
    if reader.remaining:
        reader.fail('number of bytes behind the end', reader.remaining, REDOWNLOAD)
    return dict(zip(names, arrays, strict=True))


def torch_key(name: str) -> str:
    """Translate a name of the MXNet model.

    Args:
        name: For example ``arg:bn5b2_branch2a_gamma``.

    Returns:
        Key in the state dict of :class:`ResNet38d`; a name of no known form without its prefix.

    Example:
        >>> torch_key('arg:bn5b2_branch2a_gamma')
        'b5_2.bn_branch2a.weight'
    """
    stem = re.sub('^(arg|aux):', '', name)
    if conv := CONV_NAME.fullmatch(stem):
        return f'{block_name(conv[1], conv[2])}.conv_{conv[3]}.weight'
    if norm := NORM_NAME.fullmatch(stem):
        level, index, branch, statistic = norm.groups()
        module = f'{block_name(level, index)}.bn_{branch}' if branch else f'bn{level}'
        return f'{module}.{NORM_KEYS[statistic]}'
    return 'conv1a.weight' if stem == 'conv1a_weight' else stem


def block_name(level: str, index: str | None) -> str:
    """Name a block: ``b5`` is the first of its level, ``b5_1`` the one behind it."""
    return f'b{level}' if index is None else f'b{level}_{index}'


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the state dict of :class:`ResNet38d`, by key."""
    with torch.device('meta'):
        return {key: tuple(value.shape) for key, value in ResNet38d().state_dict().items()}


def convert(path: Path) -> dict[str, Tensor]:
    """Read the weights of the network.

    Args:
        path: MXNet file.

    Returns:
        State dict of :class:`ResNet38d` in float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds another network.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in read_params(path).items():
        key = torch_key(name)
        if key.startswith(CLASSIFIER):
            continue
        if key in arrays:
            raise ValueError(f'{path}: two arrays are {key}, one of them {name}; {REDOWNLOAD}')
        arrays[key] = array
    check_shapes(path, {key: array.shape for key, array in arrays.items()})
    return {key: to_tensor(path, key, arrays[key]) for key in expected_shapes()}


def check_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare what a file holds with what the network has.

    Args:
        path: The file.
        shapes: Shapes by key.

    Raises:
        ValueError: If they are not exactly the same.
    """
    expected = expected_shapes()
    problems = {
        'missing': sorted(expected.keys() - shapes.keys()),
        'unexpected': sorted(shapes.keys() - expected.keys()),
        'of another shape': [
            f'{key} {shapes[key]} instead of {shape}'
            for key, shape in expected.items()
            if shapes.get(key, shape) != shape
        ],
    }
    if any(problems.values()):
        listed = '; '.join(
            f'{len(keys)} {problem}: {", ".join(keys[:3])}{", ..." * (len(keys) > 3)}'
            for problem, keys in problems.items()
            if keys
        )
        raise ValueError(
            f'{path} does not hold ResNet38d: {listed}; give the file of model A1, '
            'ilsvrc-cls_rna-a1_cls1000_ep-0001.params'
        )


def to_tensor(path: Path, key: str, array: np.ndarray) -> Tensor:
    """Copy an array out of the file.

    Args:
        path: The file.
        key: What the array is.
        array: Its values, of any type and shape.

    Returns:
        The same in float32.

    Raises:
        ValueError: If a value is not finite, or a variance negative.
    """
    with np.errstate(over='ignore'):
        values = array.astype(np.float32)
    if not np.isfinite(values).all() or (key.endswith('running_var') and values.min() < 0):
        raise ValueError(
            f'{path}: {key} has values from {values.min()} to {values.max()}, which no trained '
            f'network has; {REDOWNLOAD}'
        )
    return torch.from_numpy(values)


def digest(path: Path, algorithm: str) -> str:
    """Compute the checksum of a file, in hexadecimal digits."""
    data = np.memmap(path, dtype=np.uint8, mode='r')
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def write_checkpoint(path: Path, source: Path, state_dict: dict[str, Tensor]) -> None:
    """Write weights so that mmengine, and ``torch.load`` without unpickling, read them.

    Args:
        path: File to write. Equal sources make equal files.
        source: File the weights are from.
        state_dict: The weights.
    """
    meta = dict(
        model='ResNet38d',
        source=source.name,
        sha256=digest(source, 'sha256'),
        mmdscnet_version=mmdscnet.__version__,
    )
    with atomic_path(path) as temporary, temporary.open('wb') as file:
        # Given a path, torch would write that temporary name into the file.
        torch.save(dict(meta=meta, state_dict=state_dict), file)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, metavar='SRC.params', help='MXNet file')
    parser.add_argument('target', type=Path, metavar='DST.pth', help='PyTorch file to write')
    return parser.parse_args()


def main() -> None:
    """Convert a file.

    Raises:
        FileNotFoundError: If there is no source.
        ValueError: If the source is not the file to convert, or the target no name for a result.
    """
    args = parse_args()
    if args.target.suffix != '.pth':
        raise ValueError(f'DST is {args.target}: give a file that ends in .pth')
    state_dict = convert(args.source)
    write_checkpoint(args.target, args.source, state_dict)
    print(f'{args.target}: {len(state_dict)} tensors from {args.source}')
    if digest(args.source, 'md5') != PUBLISHED_MD5:
        print(f'its MD5 is not that of the published file, {PUBLISHED_MD5}')


if __name__ == '__main__':
    main()
