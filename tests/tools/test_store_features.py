import json
import os

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS

from mmdscnet.datasets import read_feature_index
from mmdscnet.functional.pixel_groups import resize_level, stack_levels
from mmdscnet.provenance import hash_sha256

# Output stride of the network of ``export_project``.
STRIDE = 8


@pytest.fixture
def project(export_project):
    """Images, and the config of a network whose backbone starts from the weights in it."""
    folder = export_project()
    path = folder / 'config.py'
    weights = dict(type='Pretrained', checkpoint=str(folder / 'weights.pth'), prefix='backbone.')
    path.write_text(f'{path.read_text()}\nmodel["backbone"]["init_cfg"] = {weights!r}\n')
    return folder


@pytest.fixture
def store(run_tool, project):
    def run(*args, out='features'):
        run_tool('store_features.py', project / 'config.py', '--out', project / out, *args)
        return project / out

    return run


@pytest.fixture
def network(project):
    """The network, loaded in another way than by its init_cfg."""
    cfg = Config.fromfile(project / 'config.py')
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(project / 'weights.pth', weights_only=True))
    return model.eval()


def outputs(network, project, image_id, mirrored=False):
    """Outputs of the backbone for a photograph at its own size, by hand."""
    steps = [TRANSFORMS.build(dict(type=name)) for name in ('LoadImageFromFile', 'PackWSSSInputs')]
    results = dict(img_path=str(project / f'data/JPEGImages/{image_id}.jpg'))
    for step in steps:
        results = step(results)
    image = results['inputs'].flip(2) if mirrored else results['inputs']
    batch = dict(inputs=[image], data_samples=[results['data_samples']])
    with torch.no_grad():
        return network.extract_feat(network.data_preprocessor(batch)['inputs'])


def features(network, project, image_id, mirrored=False):
    """Features of a photograph at its own size, by hand."""
    return outputs(network, project, image_id, mirrored)[-1][0].numpy()


def test_features_are_those_of_the_last_map_in_half_precision(store, network, project, capsys):
    folder = store()
    assert '3 files written, features of 3 images in' in capsys.readouterr().out
    for image_id, shape in dict(a=(4, 5), b=(5, 4), c=(4, 5)).items():
        stored = np.load(folder / f'{image_id}.npy', allow_pickle=False)
        assert stored.dtype == np.float16
        assert stored.shape == (32, *shape)
        expected = features(network, project, image_id)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-5)


def test_index_says_what_made_them_and_how_large_the_photographs_are(store, project):
    index = read_feature_index(store('--scale', 0.5))
    assert index.sizes == dict(a=(32, 40), b=(40, 32), c=(32, 40))
    assert index.settings['stride'] == STRIDE
    assert index.settings['checkpoint'] == hash_sha256(project / 'weights.pth')
    assert index.settings['resize']['scale_factor'] == 0.5
    assert index.settings['backbone']['type'] == 'ResNet'
    assert index.settings['config'].endswith('config.py')
    assert index.settings['mmdscnet']


def test_mirror_images_have_features_of_their_own(store, network, project):
    folder = store('--flip')
    stored = np.load(folder / 'a_flip.npy')
    expected = features(network, project, 'a', mirrored=True)
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-5)
    assert np.abs(stored[..., ::-1] - np.load(folder / 'a.npy')).max() > 0.01


@pytest.mark.parametrize(('in_index', 'levels'), [(-1, (0, 2)), (-1, (2, 1)), (0, (3,))])
def test_levels_are_resized_to_the_grid_of_the_head_and_come_first(
    store, network, project, in_index, levels
):
    folder = store(
        '--flip', '--levels', *levels, '--cfg-options', f'model.decode_head.in_index={in_index}'
    )
    for name, mirrored in dict(a=False, b=False, a_flip=True).items():
        maps = outputs(network, project, name[0], mirrored)
        size = maps[in_index].shape[2:]
        expected = [resize_level(maps[level], size) for level in levels] + [maps[in_index]]
        stored = torch.from_numpy(np.load(folder / f'{name}.npy'))
        assert stored.dtype == torch.float16
        parts = stored.float().split([part.shape[1] for part in expected])
        for part, by_hand in zip(parts, expected, strict=True):
            assert by_hand.abs().max() > 0.01
            torch.testing.assert_close(part, by_hand[0], rtol=2e-3, atol=1e-5)


def test_larger_levels_are_averaged(store, network, project):
    stored = np.load(store('--levels', 0) / 'a.npy')[:4]
    cells = outputs(network, project, 'a')[0][0].numpy().reshape(4, 4, 2, 5, 2)
    np.testing.assert_allclose(stored, cells.mean(axis=(2, 4)), rtol=2e-3, atol=1e-5)


def test_stored_levels_describe_pixels_as_the_backbone_does(store, network, project):
    stored = torch.from_numpy(np.load(store('--levels', 0, 1) / 'a.npy'))[None]
    adaptor = MODELS.build(dict(type='FeatureAdaptor', in_channels=32, level_channels=(4, 8)))
    maps = outputs(network, project, 'a')
    expected = stack_levels([maps[0], maps[1], maps[3]], (4, 5))
    torch.testing.assert_close(stack_levels(adaptor(stored), (4, 5)), expected, rtol=0, atol=2e-3)


def test_index_names_the_levels_and_their_channels(store):
    settings = read_feature_index(store('--levels', 0, 2)).settings
    assert settings['levels'] == [dict(index=0, channels=4), dict(index=2, channels=16)]
    assert settings['stride'] == STRIDE
    assert 'levels' not in read_feature_index(store(out='plain')).settings


@pytest.mark.parametrize('others', [(), ('--levels', 1), ('--levels', 2, 0)])
def test_folder_of_other_levels_is_refused(store, others):
    store('--levels', 0, 2)
    with pytest.raises(ValueError, match=r'other settings \(levels: .*give\s+a new folder'):
        store(*others)


@pytest.mark.parametrize('level', [-1, 4])
def test_level_is_an_output_of_the_backbone(store, project, level):
    with pytest.raises(ValueError, match=f'--levels {level} is no output .* from 0 to 3'):
        store('--levels', 0, level)
    assert not (project / 'features').exists()


def test_short_side_fixes_the_smaller_number_of_cells(store):
    folder = store('--short-side', 64)
    shapes = {name: np.load(folder / f'{name}.npy').shape[1:] for name in 'ab'}
    assert shapes == dict(a=(8, 10), b=(10, 8))


def test_second_run_writes_what_is_missing(store, project, capsys):
    folder = store()
    (folder / 'b.npy').unlink()
    (folder / 'index.json').unlink()
    before = (folder / 'a.npy').stat().st_mtime_ns
    capsys.readouterr()
    store()
    assert '1 files written, features of 3 images' in capsys.readouterr().out
    assert (folder / 'a.npy').stat().st_mtime_ns == before
    assert len(read_feature_index(folder).sizes) == 3
    store('--flip')
    assert '3 files written' in capsys.readouterr().out


def test_splits_share_a_folder(store, project, capsys):
    for name in 'ab':
        (project / f'data/{name}.txt').write_text(f'{name}\n')
    folder = store('--split', 'a.txt', 'b.txt')
    assert sorted(read_feature_index(folder).sizes) == ['a', 'b']
    store()
    assert sorted(read_feature_index(folder).sizes) == ['a', 'b', 'c']
    assert '1 files written, features of 3 images' in capsys.readouterr().out


def test_folder_of_other_settings_is_refused(store):
    folder = store()
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with pytest.raises(ValueError, match=r'other settings \(resize: .*give\s+a new folder'):
        store('--scale', 2)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_interrupted_run_leaves_no_index(store, project):
    (project / 'data/JPEGImages/c.jpg').write_bytes(b'no image')
    options = ('--cfg-options', 'test_dataloader.dataset.check_files=False')
    with pytest.raises(ValueError, match=r'c\.jpg'):
        store(*options)
    assert sorted(os.listdir(project / 'features')) == ['a.npy', 'b.npy', 'export.json']


def test_random_backbone_is_refused(store):
    with pytest.raises(ValueError, match='names no weights of its backbone'):
        store('--cfg-options', 'model.backbone.init_cfg=None')


@pytest.mark.parametrize('size', [('--scale', 0), ('--short-side', 0)])
def test_size_is_positive(store, size):
    with pytest.raises(ValueError, match=f'{size[0]} 0.* must be positive'):
        store(*size)


def test_what_half_precision_does_not_hold_is_refused(load_tool):
    tool = load_tool('store_features.py')

    class Network:
        decode_head = type('Head', (), dict(in_index=0))

        def __init__(self, *factors):
            self.factors = factors

        def extract_feat(self, inputs):
            return [factor * inputs for factor in self.factors]

    image = torch.ones(1, 3, 2, 2)
    message = r'features reach 1e\+05, which float16 does not hold'
    with pytest.raises(ValueError, match=message):
        tool.compute_features(Network(1e5), image)
    assert tool.compute_features(Network(1, 1e5), image).shape == (3, 2, 2)
    with pytest.raises(ValueError, match=message):
        tool.compute_features(Network(1, 1e5), image, levels=[1])


def test_settings_stand_beside_the_features_from_the_start(store):
    folder = store()
    settings = json.loads((folder / 'export.json').read_text())
    made_by = read_feature_index(folder).settings
    assert settings.items() <= made_by.items()


def test_every_second_cell_of_a_photograph_is_what_stride_32_sees(
    run_tool, repository, shared_dir, tmp_path
):
    data = shared_dir / 'data/voc_animals'
    weights = shared_dir / 'weights/mobilenet_v2_imagenet_mmpretrain.pth'
    (tmp_path / 'one.txt').write_text('2007_002445\n')
    stored = {}
    for stride, stages in {16: 1, 32: 2}.items():
        strides = f'(1,2,2,2,1,{stages},1)'
        dilations = '(1,1,1,1,1,2,2)' if stride == 16 else '(1,1,1,1,1,1,1)'
        run_tool(
            'store_features.py',
            repository / 'configs/cam/voc_animals.py',
            *('--out', tmp_path / str(stride), '--split', tmp_path / 'one.txt'),
            '--cfg-options',
            f'test_dataloader.dataset.data_root={data}',
            f'model.backbone.init_cfg.checkpoint={weights}',
            f'model.backbone.strides={strides}',
            f'model.backbone.dilations={dilations}',
        )
        stored[stride] = np.load(tmp_path / str(stride) / '2007_002445.npy').astype(np.float32)
        index = read_feature_index(tmp_path / str(stride))
        assert index.settings['stride'] == stride
        assert index.sizes == {'2007_002445': (320, 230)}
    assert stored[32].std() > 0.1
    np.testing.assert_allclose(stored[16][:, ::2, ::2], stored[32], rtol=2e-3, atol=0.02)
