"""The model index is held against configs and shipped checkpoints: it must not drift."""

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.runner import load_checkpoint

from mmdscnet.apis.inferencer import find_metainfo
from mmdscnet.apis.model_loading import build_model
from mmdscnet.launch import run_name
from mmdscnet.provenance import hash_sha256
from mmdscnet.zoo import (
    SCHEME,
    SHIPPED_FOLDER,
    WEB,
    find_config,
    list_models,
    name_file,
    read_checkpoint,
)

ROOT = Path(__file__).resolve().parents[1]
MODELS = [pytest.param(entry, id=name) for name, entry in list_models().items()]
FOLDERS = sorted(path.parent.name for path in ROOT.glob('configs/*/*.py'))
FOLDERS = [name for name in dict.fromkeys(FOLDERS) if name != '_base_']


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding='utf-8'))


def shipped_file(entry):
    return SHIPPED_FOLDER / name_file(entry['Name'], entry['SHA256'])


def test_there_are_models_and_folders():
    assert 'dscnet_shapes' in list_models()
    assert {'cam', 'dscnet', 'seam', 'affinitynet', 'segmentation'} <= set(FOLDERS)


def test_every_folder_of_configs_is_imported_and_nothing_else():
    assert read('model-index.yml')['Import'] == [f'configs/{name}/metafile.yml' for name in FOLDERS]


def test_names_are_not_used_twice():
    metafiles = [read(path) for path in read('model-index.yml')['Import']]
    names = [entry['Name'] for metafile in metafiles for entry in metafile['Models']]
    assert sorted(names) == sorted(list_models())


@pytest.mark.parametrize('folder', FOLDERS)
def test_collection_is_described(folder):
    (collection,) = read(f'configs/{folder}/metafile.yml')['Collections']
    assert collection['Paper']['URL'].startswith('https://arxiv.org/abs/')
    assert collection['README'] == f'configs/{folder}/README.md'
    assert (ROOT / collection['README']).is_file()
    assert (ROOT / collection['Code']).is_file()


@pytest.mark.parametrize('folder', FOLDERS)
def test_collection_names_the_data_of_its_configs(folder):
    (collection,) = read(f'configs/{folder}/metafile.yml')['Collections']
    paths = (ROOT / 'configs' / folder).glob('*.py')
    configs = [Config.fromfile(path) for path in paths if path.name != 'study.py']
    roots = {Path(cfg.train_dataloader.dataset.data_root).name for cfg in configs}
    assert set(collection['Metadata']['Training Data']) == roots


@pytest.mark.parametrize('folder', FOLDERS)
def test_models_are_in_the_collection_of_their_folder(folder):
    metafile = read(f'configs/{folder}/metafile.yml')
    for entry in metafile['Models']:
        assert entry['In Collection'] == metafile['Collections'][0]['Name']
        assert entry['Config'].startswith(f'configs/{folder}/')


@pytest.mark.parametrize('entry', MODELS)
def test_model_is_named_after_its_config(entry):
    assert (ROOT / entry['Config']).is_file()
    assert entry['Name'] == run_name(str(ROOT / entry['Config']))
    assert find_config(entry['Name']).samefile(ROOT / entry['Config'])


@pytest.mark.parametrize('entry', MODELS)
def test_numbers_are_those_of_the_config(entry):
    cfg, metadata = Config.fromfile(ROOT / entry['Config']), entry['Metadata']
    assert metadata.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert metadata.get('Iterations') == cfg.train_cfg.get('max_iters')
    assert metadata['Batch Size'] == cfg.train_dataloader.batch_size
    assert tuple(metadata['Classes']) == find_metainfo(cfg)['classes']
    assert len(metadata['Classes']) == cfg.model.decode_head.num_classes
    parts = [cfg.model.type, cfg.model.backbone.type, cfg.model.decode_head.type]
    assert metadata['Architecture'] == parts
    assert metadata['Training Data'] == Path(cfg.train_dataloader.dataset.data_root).name


@pytest.mark.parametrize('entry', MODELS)
def test_results_say_on_what_and_by_what(entry):
    cfg = Config.fromfile(ROOT / entry['Config'])
    for result in entry['Results']:
        assert result['Dataset'] == Path(cfg.test_dataloader.dataset.data_root).name
        assert result['Split'] == Path(cfg.test_dataloader.dataset.ann_file).stem
        assert result['Metrics']
    assert {'Command', 'Test', 'Commit', 'Hardware', 'Date'} <= entry['Training'].keys()
    assert entry['Config'] in entry['Training']['Command']


@pytest.mark.parametrize('entry', MODELS)
def test_weights_are_shipped_or_on_the_web(entry):
    if entry['Weights'].startswith(WEB):
        assert entry['Weights'].endswith('/' + name_file(entry['Name'], entry['SHA256']))
    else:
        assert entry['Weights'] == SCHEME + name_file(entry['Name'], entry['SHA256'])
        assert shipped_file(entry).is_file()


@pytest.mark.parametrize('path', sorted(SHIPPED_FOLDER.glob('*')), ids=lambda path: path.name)
def test_shipped_file_is_the_one_of_an_entry_and_small(path):
    (entry,) = [entry for entry in list_models().values() if shipped_file(entry) == path]
    assert hash_sha256(path) == entry['SHA256']
    assert path.stat().st_size == entry['Size'] < 3.2e6


@pytest.mark.parametrize('entry', [e for e in MODELS if shipped_file(*e.values).is_file()])
def test_shipped_weights_are_those_of_the_config_and_nothing_else(entry):
    cfg, path = Config.fromfile(ROOT / entry['Config']), shipped_file(entry)
    load_checkpoint(build_model(cfg), str(path), strict=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.keys() == {'meta', 'state_dict'}
    assert checkpoint['meta']['epoch'] == entry['Metadata']['Epochs']
    assert checkpoint['meta']['dataset_meta']['classes'] == tuple(entry['Metadata']['Classes'])


def test_mmengine_reads_the_index_for_bases_of_ours():
    assert _get_cfg_metainfo(str(ROOT / 'mmdscnet'), 'dscnet/shapes.py')['Name'] == 'dscnet_shapes'
    with pytest.raises(ValueError, match='Expected configs'):
        _get_cfg_metainfo(str(ROOT / 'mmdscnet'), 'dscnet/voc.py')
