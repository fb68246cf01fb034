import hashlib
import re
import struct
import sys

import numpy as np
import pytest
import torch
from mmengine.model import initialize
from mmseg.registry import MODELS
from torch import nn

MAGICS = dict(legacy=None, v1=0xF993FAC8, v2=0xF993FAC9, v3=0xF993FACA)
DTYPES = (np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64)
FORMS = list(MAGICS)


def u64(*values):
    return struct.pack(f'<{len(values)}Q', *values)


def write_array(array, form='v2', storage=0):
    """One record, as mxnet writes it; the oldest forms are those of its older versions."""
    array = np.asarray(array)
    head = b'' if form == 'legacy' else struct.pack('<I', MAGICS[form])
    if form in ('v2', 'v3'):
        head += struct.pack('<i', storage)
    dim = 'I' if form == 'legacy' else 'q'
    head += struct.pack(f'<I{array.ndim}{dim}', array.ndim, *array.shape)
    device_and_type = struct.pack('<3i', 1, 0, DTYPES.index(array.dtype.type))
    return head + device_and_type + array.astype(array.dtype.newbyteorder('<')).tobytes()


def write_list(records, names, magic=0x112):
    """The container around records that are bytes already."""
    raw = [name if isinstance(name, bytes) else name.encode() for name in names]
    text = b''.join(u64(len(name)) + name for name in raw)
    return u64(magic, 0, len(records)) + b''.join(records) + u64(len(names)) + text


def mxnet_name(key):
    """Name that the MXNet model gives to a tensor of ours, written out the other way round."""
    prefix = 'aux:' if 'running' in key else 'arg:'
    module, *layer, kind = key.split('.')
    if module in ('conv1a', 'bn7'):
        stem = module
    else:
        level, _, index = module.partition('_')
        block = level[1:] + (f'b{index}' if index else 'a')
        sort, branch = layer[0].split('_')
        stem = f'{"res" if sort == "conv" else "bn"}{block}_{branch}'
    names = dict(bias='beta', running_mean='moving_mean', running_var='moving_var')
    names['weight'] = 'weight' if module == 'conv1a' or '.conv_' in key else 'gamma'
    return f'{prefix}{stem}_{names[kind]}'


@pytest.fixture
def tool(load_tool):
    return load_tool('model_converters/resnet38d_mxnet.py')


@pytest.fixture
def source(tmp_path):
    return tmp_path / 'source.params'


@pytest.fixture
def small(tool, monkeypatch):
    """Every key of the network with a small shape of its own, so that a file of it is small."""
    shapes = {
        key: tuple(1 + (index + axis) % 3 for axis in range(len(shape)))
        for index, (key, shape) in enumerate(tool.expected_shapes().items())
    }
    monkeypatch.setattr(tool, 'expected_shapes', lambda: shapes)
    return shapes


@pytest.fixture
def arrays(small):
    """The arrays of a published file, in small, by MXNet's names; no two values are equal."""
    values = iter(range(1, 100_000))
    named = {
        mxnet_name(key): np.reshape([next(values) for _ in range(np.prod(shape))], shape).astype(
            np.float32
        )
        for key, shape in small.items()
    }
    named['arg:linear1000_weight'] = np.zeros((2, 4), np.float32)
    named['arg:linear1000_bias'] = np.zeros(2, np.float32)
    return named


def write_file(path, arrays, form='v2'):
    path.write_bytes(write_list([write_array(a, form) for a in arrays.values()], list(arrays)))


def run(tool, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['resnet38d_mxnet.py', *map(str, args)])
    tool.main()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_every_record_form_and_type_is_read(tool, source, form, dtype):
    arrays = {
        'odd': np.arange(3).astype(dtype),
        'arg:größe': np.arange(24).reshape(2, 3, 4).astype(dtype),
        'four': np.arange(2).reshape(1, 2, 1, 1).astype(dtype),
    }
    write_file(source, arrays, form)
    read = tool.read_params(source)
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize('form', ['legacy', 'v1', 'v2'])
def test_record_without_dimensions_ends_there(tool, source, form):
    empty = write_array(np.float32(0), form)[: -(12 + 4)]
    source.write_bytes(write_list([empty, write_array(np.ones(2, np.int8))], ['none', 'two']))
    read = tool.read_params(source)
    assert read['none'].shape == (0,)
    assert read['two'].tolist() == [1, 1]


def test_record_without_dimensions_is_a_number_in_version_3(tool, source):
    source.write_bytes(write_list([write_array(np.float32(7), 'v3')], ['seven']))
    assert tool.read_params(source)['seven'] == 7


def test_every_key_of_the_network_has_a_name_in_the_file(tool):
    keys = list(tool.expected_shapes())
    assert len(keys) == 191
    assert [tool.torch_key(mxnet_name(key)) for key in keys] == keys


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('arg:conv1a_weight', 'conv1a.weight'),
        ('arg:res2a_branch1_weight', 'b2.conv_branch1.weight'),
        ('arg:res4b5_branch2b1_weight', 'b4_5.conv_branch2b1.weight'),
        ('arg:bn3a_branch2a_gamma', 'b3.bn_branch2a.weight'),
        ('arg:bn5b2_branch2b1_beta', 'b5_2.bn_branch2b1.bias'),
        ('aux:bn6a_branch2b2_moving_mean', 'b6.bn_branch2b2.running_mean'),
        ('aux:bn7a_branch2a_moving_var', 'b7.bn_branch2a.running_var'),
        ('aux:bn7_moving_var', 'bn7.running_var'),
        ('arg:bn7_gamma', 'bn7.weight'),
        ('arg:fc_weight', 'fc_weight'),
    ],
)
def test_names_are_translated(tool, name, key):
    assert tool.torch_key(name) == key


@pytest.mark.parametrize('form', FORMS)
def test_converted_values_are_those_of_the_file(
    tool, monkeypatch, source, small, arrays, tmp_path, form, capsys
):
    write_file(source, arrays, form)
    target = tmp_path / 'made' / 'weights.pth'
    run(tool, monkeypatch, source, target)
    checkpoint = torch.load(target, weights_only=True)
    assert list(checkpoint['state_dict']) == list(small)
    for key, value in checkpoint['state_dict'].items():
        assert value.dtype == torch.float32
        np.testing.assert_array_equal(value, arrays[mxnet_name(key)])
    assert checkpoint['meta']['source'] == source.name
    assert checkpoint['meta']['sha256'] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == ['weights.pth']
    assert 'its MD5 is not that of the published file' in capsys.readouterr().out


def test_equal_sources_make_equal_files(tool, monkeypatch, source, arrays, tmp_path):
    write_file(source, arrays)
    for name in ('first.pth', 'second.pth'):
        run(tool, monkeypatch, source, tmp_path / name)
    assert (tmp_path / 'first.pth').read_bytes() == (tmp_path / 'second.pth').read_bytes()


def test_published_file_is_known_by_its_checksum(tool, monkeypatch, source, arrays, capsys):
    write_file(source, arrays)
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    monkeypatch.setattr(tool, 'PUBLISHED_MD5', md5)
    run(tool, monkeypatch, source, source.with_suffix('.pth'))
    assert 'MD5' not in capsys.readouterr().out


def test_result_initialises_a_network(tool, tmp_path, source):
    source.write_bytes(b'source')
    with torch.device('meta'):
        part = nn.ModuleDict(dict(b2=MODELS.build(dict(type='ResNet38d')).b2))
    part.to_empty(device='cpu')
    state = {key: torch.full(value.shape, 0.5) for key, value in part.state_dict().items()}
    tool.write_checkpoint(tmp_path / 'b2.pth', source, state)
    initialize(part, dict(type='Pretrained', checkpoint=str(tmp_path / 'b2.pth')))
    assert all(value.eq(0.5).all() for value in part.state_dict().values())


def test_truncated_files_are_refused_wherever_they_end(tool, source):
    arrays = {'arg:a': np.ones((2, 3), np.float32), 'aux:b': np.ones(2, np.float64)}
    for form in FORMS:
        write_file(source, arrays, form)
        whole = source.read_bytes()
        for size in range(len(whole)):
            source.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=f'^{re.escape(str(source))}, byte .* again$'):
                tool.read_params(source)


def read_or_refuse(tool, source):
    try:
        return tool.read_params(source)
    except ValueError as error:
        return str(error)


def test_a_changed_byte_never_does_worse_than_a_value_error(tool, source):
    arrays = {'a': np.ones(2, np.float32), 'b': np.ones((1, 2), np.int8)}
    for form in FORMS:
        write_file(source, arrays, form)
        whole = source.read_bytes()
        for position in range(len(whole)):
            for value in (0, 0x7F, 0x80, 0xFF):
                changed = bytearray(whole)
                changed[position] = value
                source.write_bytes(changed)
                outcome = read_or_refuse(tool, source)
                assert len(outcome) == 2 or outcome.startswith(f'{source}, byte ')


ONE = write_array(np.ones(1, np.float32))
HUGE = 2**63


def record(magic, *fields):
    """A V1 or V2 record from pairs of a struct code and a value."""
    codes = ''.join(code for code, _ in fields)
    return struct.pack(f'<I{codes}', magic, *(value for _, value in fields))


V1, V2 = MAGICS['v1'], MAGICS['v2']
DEVICE_AND_FLOAT = (('i', 1), ('i', 0), ('i', 0))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'byte 0: size of the file is 0; .*download it again'),
        (write_list([ONE], ['a'], magic=0x113), 'byte 0: magic number is 0x113; it should be'),
        (b'PK\x03\x04' + bytes(60), 'byte 0: magic number is 0x4034b50; it should be 0x112'),
        (u64(0x112, 0, HUGE), f'byte 16: number of arrays is {HUGE}; at most 10000 are read'),
        (u64(0x112, 0, 9999), 'byte 24: magic number of an array, in bytes, is 4; only 0 bytes'),
        (write_list([ONE], []), 'number of names is 0; there are 1 arrays'),
        (write_list([ONE], ['a', 'b']), 'number of names is 2; there are 1 arrays'),
        (write_list([ONE, ONE], ['a', 'a']), "name is 'a'; another array has it"),
        (write_list([ONE], [b'\xff\xfe']), r"name is b'\\xff\\xfe'; it is not UTF-8"),
        (write_list([ONE], ['a']) + b'\0', 'number of bytes behind the end is 1; .*damaged'),
        (
            u64(0x112, 0, 1) + ONE + u64(1, HUGE) + b'a',
            f'name, in bytes, is {HUGE}; only 1 bytes are left',
        ),
        (write_list([write_array(np.ones(1, np.float32), storage=1)], ['a']), 'save it as dense'),
        (write_list([record(0xF993FACB)], ['a']), 'number of dimensions is 4187224779'),
        (write_list([record(V1, ('I', 33))], ['a']), 'byte 28: number of dimensions is 33; .*dam'),
        (write_list([record(V1, ('i', -1))], ['a']), 'byte 28: number of dimensions is -1; .*dam'),
        (
            write_list([record(V2, ('i', 0), ('I', 2), ('q', -4), ('q', -2))], ['a']),
            r'shape is \(-4, -2\); an array of weights has values',
        ),
        (
            write_list([record(V1, ('I', 1), ('q', 0), *DEVICE_AND_FLOAT)], ['a']),
            r'shape is \(0,\); an array of weights has values',
        ),
        (
            # A product that is 0 modulo 2^64.
            write_list(
                [record(V1, ('I', 2), ('q', 2**32), ('q', 2**32), *DEVICE_AND_FLOAT)], ['a']
            ),
            f'array of shape .*, in bytes, is {2**66}; only 17 bytes are left',
        ),
        (
            write_list([record(2, ('I', 2**32 - 1), ('I', 2**31), *DEVICE_AND_FLOAT)], ['a']),
            'only 17 bytes are left',
        ),
        (
            write_list([record(V1, ('I', 1), ('q', 1), ('i', 1), ('i', 0), ('i', 7))], ['a']),
            'type flag is 7; 0 to 6 are read: save it in float32',
        ),
        (
            write_list([record(V1, ('I', 1), ('q', 1), ('i', 1), ('i', 0), ('i', -1))], ['a']),
            'type flag is -1; 0 to 6 are read',
        ),
    ],
)
def test_hostile_file_is_refused(tool, source, content, message):
    source.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        tool.read_params(source)
    assert str(caught.value).startswith(f'{source}, byte ')


def refuse(tool, monkeypatch, source, message):
    target = source.with_name('weights.pth')
    before = sorted(source.parent.iterdir())
    with pytest.raises(ValueError, match=f'{re.escape(str(source))}.*{message}'):
        run(tool, monkeypatch, source, target)
    assert sorted(source.parent.iterdir()) == before


def test_missing_unexpected_and_misshapen_arrays_are_listed(tool, monkeypatch, source, arrays):
    for name in ('arg:conv1a_weight', 'arg:bn7_gamma', 'arg:bn7_beta', 'aux:bn7_moving_var'):
        del arrays[name]
    arrays['arg:fc_weight'] = np.zeros(1, np.float32)
    arrays['aux:bn7_moving_mean'] = np.zeros(9, np.float32)
    write_file(source, arrays)
    message = (
        r'does not hold ResNet38d: 4 missing: bn7\.bias, bn7\.running_var, bn7\.weight, \.\.\.; '
        r'1 unexpected: fc_weight; 1 of another shape: bn7\.running_mean \(9,\) instead of '
        r'\(\d,\); give the file of model A1'
    )
    refuse(tool, monkeypatch, source, message)


def test_two_arrays_for_one_tensor_are_refused(tool, monkeypatch, source, arrays):
    arrays['aux:bn7_gamma'] = arrays['arg:bn7_gamma']
    write_file(source, arrays)
    refuse(tool, monkeypatch, source, r'two arrays are bn7\.weight, one of them aux:bn7_gamma')


@pytest.mark.parametrize(
    ('name', 'value'),
    [('arg:conv1a_weight', np.nan), ('arg:bn7_beta', np.inf), ('aux:bn7_moving_var', -1)],
)
def test_values_that_no_network_has_are_refused(tool, monkeypatch, source, arrays, name, value):
    arrays[name].flat[0] = value
    write_file(source, arrays)
    refuse(tool, monkeypatch, source, 'has values from .*, which no trained network has')


def test_float64_beyond_float32_is_refused(tool, monkeypatch, source, arrays):
    arrays['arg:bn7_beta'] = np.full_like(arrays['arg:bn7_beta'], 1e300, dtype=np.float64)
    write_file(source, arrays)
    refuse(tool, monkeypatch, source, 'bn7.bias has values from inf to inf')


def test_truncated_file_leaves_an_older_result_alone(tool, monkeypatch, source, arrays):
    write_file(source, arrays)
    source.write_bytes(source.read_bytes()[:-1])
    source.with_name('weights.pth').write_text('older')
    refuse(tool, monkeypatch, source, 'download it again')
    assert source.with_name('weights.pth').read_text() == 'older'


@pytest.mark.parametrize('kind', ['missing', 'folder'])
def test_missing_source_is_refused(tool, monkeypatch, tmp_path, kind):
    path = tmp_path if kind == 'folder' else tmp_path / 'nothing.params'
    with pytest.raises(FileNotFoundError, match=f'no file {re.escape(str(path))}: get ilsvrc-cls'):
        run(tool, monkeypatch, path, tmp_path / 'weights.pth')


def test_target_must_be_a_pth_file(tool, monkeypatch, source):
    source.write_bytes(b'source')
    with pytest.raises(
        ValueError, match=r'DST is .*source\.params: give a file that ends in \.pth'
    ):
        run(tool, monkeypatch, source, source)
    assert source.read_bytes() == b'source'


def test_help_says_where_the_file_is_from(tool, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, '--help')
    text = capsys.readouterr().out
    assert 'itijyou/ademxapp' in text
    assert 'ilsvrc-cls_rna-a1_cls1000_ep-0001.params' in text
