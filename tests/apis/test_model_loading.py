import hashlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import DATASETS, MODELS

from mmdscnet.apis import build_split, drop_masks, load_model
from mmdscnet.apis.model_loading import find_model_files
from mmdscnet.models.segmentors import CAMTTAModel

CPU = torch.device('cpu')


@pytest.fixture
def cfg(build_config, dataset_config):
    return Config(
        dict(
            default_scope='mmseg',
            model=build_config('dscnet'),
            tta_model=dict(type='CAMTTAModel'),
            test_dataloader=dict(dataset=dataset_config()),
        )
    )


@pytest.fixture
def save(build_model, tmp_path):
    """Write a checkpoint of a network, as training does or the weights alone."""

    def save_model(network, in_full=True):
        state = build_model(network).state_dict()
        path = tmp_path / f'{network}.pth'
        torch.save(dict(meta=dict(epoch=1), state_dict=state) if in_full else state, path)
        return str(path), state

    return save_model


@pytest.mark.parametrize('in_full', [True, False])
def test_model_has_the_weights_of_the_checkpoint(cfg, save, in_full):
    path, state = save('dscnet', in_full)
    model = load_model(cfg, path, CPU)
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert not any(module.training for module in model.modules())


def test_weights_of_the_start_of_a_training_are_not_needed(cfg, save):
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='no/such.pth')
    before = cfg.to_dict()
    load_model(cfg, save('dscnet')[0], CPU)
    assert cfg.to_dict() == before


def test_model_is_wrapped_for_views(cfg, save):
    path, state = save('dscnet')
    model = load_model(cfg, path, CPU, tta=True)
    assert isinstance(model, CAMTTAModel)
    assert not model.module.training
    assert torch.equal(model.module.decode_head.memory, state['decode_head.memory'])


def test_config_without_tta_model_is_refused_before_the_model_is_built(cfg, save, monkeypatch):
    path, _ = save('dscnet')
    cfg.pop('tta_model')
    monkeypatch.setattr(MODELS, 'build', lambda *args: pytest.fail('built'))
    with pytest.raises(ValueError, match='no tta_model.*add one, or leave --tta out'):
        load_model(cfg, path, CPU, tta=True)


def test_missing_checkpoint_is_named_before_the_model_is_built(cfg, monkeypatch):
    monkeypatch.setattr(MODELS, 'build', lambda *args: pytest.fail('built'))
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no/such\.pth' is not a file"):
        load_model(cfg, 'no/such.pth', CPU)


@pytest.mark.parametrize(('network', 'what'), [('cam', 'memory'), ('fcn', 'conv_seg')])
def test_checkpoint_of_another_network_is_named(cfg, save, network, what):
    path, _ = save(network)
    message = rf'checkpoint .*{network}\.pth is damaged or not of the network .*(?s:.*){what}'
    with pytest.raises(ValueError, match=message):
        load_model(cfg, path, CPU)


def test_checkpoint_of_other_classes_is_named(cfg, save):
    path, _ = save('dscnet')
    cfg.model.decode_head.num_classes = 7
    message = r'checkpoint .*dscnet\.pth is damaged or not of .*num_classes=4'
    with pytest.raises(ValueError, match=message):
        load_model(cfg, path, CPU)


@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_damaged_checkpoint_is_named(cfg, save, share):
    path, _ = save('dscnet')
    with open(path, 'rb+') as file:
        file.truncate(int(share * file.seek(0, 2)))
    with pytest.raises(ValueError, match=r'dscnet\.pth is damaged or no checkpoint, download'):
        load_model(cfg, path, CPU)


def test_file_that_is_no_checkpoint_is_named(cfg, tmp_path):
    (tmp_path / 'notes.pth').write_text('no checkpoint at all')
    with pytest.raises(ValueError, match=r'notes\.pth is damaged or no checkpoint, download'):
        load_model(cfg, str(tmp_path / 'notes.pth'), CPU)
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(
        ValueError, match=r'list\.pth holds a list and no weights: give a checkpoint'
    ):
        load_model(cfg, str(tmp_path / 'list.pth'), CPU)


def test_split_is_that_of_the_config_or_another(cfg, own_voc_folder):
    cfg.test_dataloader.dataset.data_root = str(own_voc_folder)
    (own_voc_folder / 'few.txt').write_text('c\na\n')
    before = cfg.to_dict()
    assert len(build_split(cfg, None)) == 7
    few = build_split(cfg, 'few.txt')
    assert [few[i]['data_samples'].img_path[-5:] for i in range(2)] == ['c.jpg', 'a.jpg']
    assert cfg.to_dict() == before
    with pytest.raises(FileNotFoundError, match=r'split file .*none\.txt'):
        build_split(cfg, 'none.txt')


def test_model_is_told_the_labels_or_not(cfg):
    before = cfg.to_dict()
    assert 'gt_image_label' in build_split(cfg, None)[0]['data_samples']
    assert 'gt_image_label' in build_split(cfg, None, 'given')[0]['data_samples']
    assert 'gt_image_label' not in build_split(cfg, None, 'predicted')[0]['data_samples']
    assert cfg.to_dict() == before


@pytest.mark.parametrize('how', ['none', 'absent'])
def test_labels_that_the_data_set_does_not_have_cannot_be_given(cfg, how):
    if how == 'none':
        cfg.test_dataloader.dataset.image_labels = None
    else:
        cfg.test_dataloader.dataset.pop('image_labels')
    with pytest.raises(ValueError, match=r"labels='given', but .* no image_labels.*'predicted'"):
        build_split(cfg, None)
    assert len(build_split(cfg, None, 'predicted')) == 7


def test_data_set_of_mmseg_needs_no_labels(cfg):
    dataset = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(
        type='BaseSegDataset',
        data_root=dataset.data_root,
        ann_file=dataset.ann_file,
        metainfo=dataset.metainfo,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        pipeline=[],
        test_mode=True,
    )
    assert 'BaseSegDataset' in DATASETS
    assert len(build_split(cfg, None, 'predicted')) == 7


def test_masks_that_are_not_there_can_be_left_out(cfg, own_voc_folder):
    cfg.test_dataloader.dataset.data_root = str(own_voc_folder)
    for path in (own_voc_folder / 'SegmentationClass').iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match='7 of 7 masks'):
        build_split(cfg, None)
    drop_masks(cfg)
    sample = build_split(cfg, None)[0]['data_samples']
    assert 'gt_sem_seg' not in sample
    assert 'gt_image_label' in sample


def test_folder_of_images_stays_when_masks_are_left_out(cfg):
    cfg.test_dataloader.dataset.data_prefix = dict(img_path='Photographs', seg_map_path='Masks')
    drop_masks(cfg)
    assert cfg.test_dataloader.dataset.data_prefix == dict(img_path='Photographs')
    cfg.test_dataloader.dataset.data_prefix = None
    drop_masks(cfg)
    assert cfg.test_dataloader.dataset.data_prefix == dict(img_path='JPEGImages')


class TestAddresses:
    @pytest.fixture
    def published(self, web, cache, save):
        """URL of a checkpoint, and its state."""
        path, state = save('dscnet')
        content = Path(path).read_bytes()
        name = f'a-{hashlib.sha256(content).hexdigest()[:8]}.pth'
        web.files[f'/{name}'] = content
        return f'{web.url}/{name}', state

    def test_url_is_checked_and_loaded(self, cfg, published, web, cache):
        url, state = published
        model = load_model(cfg, url, CPU)
        assert torch.equal(model.decode_head.memory, state['decode_head.memory'])
        assert [path.name for path in cache.glob('*.pth')] == [url.rpartition('/')[2]]

    def test_address_of_a_zoo_is_loaded(self, cfg, published, web, monkeypatch):
        monkeypatch.setenv('MMDSCNET_ZOO', web.url)
        url, state = published
        model = load_model(cfg, f'mmdscnet://{url.rpartition("/")[2]}', CPU)
        assert torch.equal(model.decode_head.memory, state['decode_head.memory'])

    def test_changed_file_is_refused_before_the_model_is_built(
        self, cfg, published, web, monkeypatch
    ):
        (name,) = web.files
        web.files[name] += b'0'
        monkeypatch.setattr(MODELS, 'build', lambda *args: pytest.fail('built'))
        with pytest.raises(ValueError, match=r'^http.*\.pth has the SHA-256 .* and not'):
            load_model(cfg, published[0], CPU)

    def test_checkpoint_that_would_run_code_is_named_as_such(self, cfg, tmp_path):
        class RunsCode:
            def __reduce__(self):
                return print, ('run',)

        torch.save(dict(state_dict={}, meta=RunsCode()), tmp_path / 'harm.pth')
        with pytest.raises(ValueError, match=r'^.*harm\.pth would run code: it asks for .*print'):
            load_model(cfg, f'mmdscnet://{tmp_path}/harm.pth', CPU)
        with pytest.raises(ValueError, match=r'harm\.pth would run code: it asks for .*print'):
            load_model(cfg, str(tmp_path / 'harm.pth'), CPU)


def test_published_model_is_found_by_its_address():
    cfg, weights = find_model_files('mmdscnet://dscnet_shapes', None)
    assert cfg.model.decode_head.type == 'DSCHead'
    assert weights == 'mmdscnet://dscnet_shapes'
    assert find_model_files('mmdscnet://dscnet_shapes', 'own.pth')[1] == 'own.pth'
    assert find_model_files(cfg, None) == (cfg, None)
