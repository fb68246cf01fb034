import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmseg.apis import inference_model
from mmseg.apis import init_model as init_model_of_mmseg
from PIL import Image

from mmdscnet.apis import init_model
from mmdscnet.zoo import fetch

ADDRESS = 'mmdscnet://dscnet_shapes'
CLASSES = ('background', 'target', 'checker', 'cross', 'dots', 'zigzag')


@pytest.fixture(autouse=True)
def fresh_cache(cache, monkeypatch):
    """As on a machine that was just set up, without a network."""
    monkeypatch.setattr('mmdscnet.zoo.download', lambda *args: pytest.fail('network'))
    yield
    assert not cache.exists()


@pytest.fixture
def config(repository):
    return str(repository / 'configs' / 'dscnet' / 'shapes.py')


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    return str(tmp_path / 'image.png')


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_published_model_needs_its_address_only(image):
    model = init_model(ADDRESS)
    assert not any(module.training for module in model.modules())
    assert model.dataset_meta['classes'] == CLASSES
    assert len(model.dataset_meta['palette']) == len(CLASSES)
    assert model.cfg.train_dataloader.batch_size == 16
    result = inference_model(model, image)
    assert result.pred_sem_seg.shape == (64, 96)
    assert result.seg_logits.data.shape == (6, 64, 96)


def test_mmseg_loads_it_too_and_predicts_the_same(config, image):
    theirs = init_model_of_mmseg(config, ADDRESS, device='cpu')
    ours = init_model(config, ADDRESS)
    assert same_weights(theirs, ours)
    assert theirs.dataset_meta == ours.dataset_meta
    maps = [inference_model(model, image).seg_logits.data for model in (theirs, ours)]
    assert torch.equal(*maps)


@pytest.mark.filterwarnings('ignore:pkg_resources')
def test_hub_of_mmengine_finds_config_and_weights():
    name = 'mmdscnet::dscnet/shapes.py'
    assert get_config(name).model.decode_head.type == 'DSCHead'
    assert get_config(name, pretrained=True).model_path == f'mmdscnet://{fetch(ADDRESS).name}'
    assert same_weights(get_model(name, pretrained=True), init_model(ADDRESS))


def test_config_and_file_make_a_model(config, tmp_path):
    path = shutil.copy(fetch(ADDRESS), tmp_path / 'a.pth')
    cfg = Config.fromfile(config)
    before = cfg.to_dict()
    model = init_model(cfg, path)
    assert same_weights(model, init_model(ADDRESS))
    assert model.cfg is cfg
    assert cfg.to_dict() == before


def test_address_of_a_model_takes_other_weights(tmp_path):
    state = init_model(ADDRESS).state_dict()
    state['decode_head.classifier.weight'] += 1
    torch.save(state, tmp_path / 'a.pth')
    model = init_model(ADDRESS, tmp_path / 'a.pth')
    assert torch.equal(model.decode_head.classifier.weight, state['decode_head.classifier.weight'])


def test_weights_alone_get_the_classes_of_the_config(config, tmp_path):
    torch.save(init_model(ADDRESS).state_dict(), tmp_path / 'a.pth')
    assert tuple(init_model(config, tmp_path / 'a.pth').dataset_meta['classes']) == CLASSES


def test_model_without_weights_has_no_classes(config):
    model = init_model(config)
    assert not hasattr(model, 'dataset_meta')
    assert not model.training


def test_weights_of_another_network_are_an_error(repository):
    config = repository / 'configs' / 'cam' / 'shapes.py'
    with pytest.raises(
        ValueError, match='checkpoint mmdscnet://dscnet_shapes is damaged or not of'
    ):
        init_model(config, ADDRESS)


def test_unknown_model_and_missing_config_are_named():
    with pytest.raises(ValueError, match='mmdscnet://no_model is not known, there are'):
        init_model('mmdscnet://no_model')
    with pytest.raises(FileNotFoundError, match=r"config 'no\.py' is not a file"):
        init_model('no.py')
