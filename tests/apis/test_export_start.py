import hashlib
import json
import os

import pytest
from mmengine.config import Config

from mmdscnet.apis import build_split, describe_export, export_start, start_export
from mmdscnet.apis.export_start import identify
from mmdscnet.inference import list_image_ids
from mmdscnet.pseudo_labels import ExportFolder
from mmdscnet.zoo import fetch

SETTINGS = dict(kind='test')


@pytest.fixture
def dataset(build_dataset):
    return build_dataset()


def test_new_export_has_everything_to_do(dataset, tmp_path):
    export, missing = start_export(tmp_path / 'out', '.png', SETTINGS, dataset)
    assert missing == list(range(7))
    assert export.path('a') == tmp_path / 'out' / 'a.png'
    assert os.listdir(tmp_path / 'out') == ['export.json']


def test_indices_of_missing_images_are_those_of_the_data_set(dataset, tmp_path):
    export, _ = start_export(tmp_path, '.png', SETTINGS, dataset)
    for image_id in 'adg':
        export.path(image_id).touch()
    _, missing = start_export(tmp_path, '.png', SETTINGS, dataset)
    assert [list_image_ids(dataset)[index] for index in missing] == list('bcef')


def test_subset_has_indices_of_its_own(build_dataset, tmp_path):
    dataset = build_dataset(indices=[4, 2])
    assert list_image_ids(dataset) == ['e', 'c']
    export, _ = start_export(tmp_path, '.png', SETTINGS, dataset)
    export.path('e').touch()
    assert start_export(tmp_path, '.png', SETTINGS, dataset)[1] == [1]


def test_other_settings_are_refused(dataset, tmp_path):
    start_export(tmp_path, '.png', SETTINGS, dataset)
    with pytest.raises(ValueError, match='other settings'):
        start_export(tmp_path, '.png', dict(kind='new'), dataset)


def test_image_listed_twice_is_refused_before_the_folder_is_made(
    build_dataset, own_voc_folder, tmp_path
):
    (own_voc_folder / 'split.txt').write_text('a\nb\na\n')
    dataset = build_dataset(own_voc_folder, ann_file='split.txt')
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.jpg would both be 'a'.*list every"):
        start_export(tmp_path / 'out', '.png', SETTINGS, dataset)
    assert not (tmp_path / 'out').exists()


def test_no_rank_writes_before_all_have_looked(dataset, tmp_path, monkeypatch):
    events = []

    class Folder(ExportFolder):
        def missing(self, ids):
            events.append('look')
            return super().missing(ids)

    monkeypatch.setattr(export_start, 'open_together', Folder)
    monkeypatch.setattr(export_start, 'barrier', lambda: events.append('wait'))
    start_export(tmp_path, '.png', SETTINGS, dataset)
    assert events == ['look', 'wait']


def test_source_is_known_by_its_content_and_an_address_or_folder_by_itself(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'weights')
    expected = hashlib.sha256(b'weights').hexdigest()[:16]
    assert identify(str(tmp_path / 'a.pth')) == expected
    assert identify('openmmlab://resnet50') == 'openmmlab://resnet50'
    assert identify(str(tmp_path)) == str(tmp_path)


def test_checkpoint_of_an_address_is_known_by_its_content(web, cache):
    content = b'weights'
    digest = hashlib.sha256(content).hexdigest()
    web.files[f'/a-{digest[:8]}.pth'] = content
    assert identify(f'{web.url}/a-{digest[:8]}.pth') == digest[:16]
    shipped = fetch('mmdscnet://dscnet_shapes').read_bytes()
    assert identify('mmdscnet://dscnet_shapes') == hashlib.sha256(shipped).hexdigest()[:16]


@pytest.fixture
def describe(build_config, dataset_config, own_voc_folder, tmp_path):
    """Describe an export of the seven images by the weights ``a.pth``."""
    (tmp_path / 'a.pth').write_bytes(b'weights')

    def make(labels='given', **model):
        cfg = Config(
            dict(
                model=build_config('dscnet', **model),
                test_dataloader=dict(dataset=dataset_config(own_voc_folder)),
            )
        )
        dataset = build_split(cfg, None, labels)
        return describe_export(cfg, str(tmp_path / 'a.pth'), dataset, labels)

    return make


def change(path):
    path.write_bytes(path.read_bytes() + b' ')


def test_export_is_described_by_all_that_its_files_depend_on(describe, own_voc_folder, tmp_path):
    settings = describe()
    keys = ['model', 'pipeline', 'checkpoint', 'classes', 'labels', 'label_source']
    assert list(settings) == keys
    assert settings['model']['decode_head']['type'] == 'DSCHead'
    assert settings['pipeline'][-1] == dict(type='PackWSSSInputs')
    assert settings['checkpoint'] == identify(str(tmp_path / 'a.pth'))
    assert settings['classes'] == ('background', 'cat', 'dog', 'cow')
    assert settings['labels'] == 'given'
    assert settings['label_source'] == identify(str(own_voc_folder / 'image_labels.json'))


def test_export_without_labels_has_no_source_of_them(describe):
    settings = describe('predicted')
    assert settings['labels'] == 'predicted'
    assert settings['label_source'] is None


def test_data_set_of_mmseg_has_no_source_of_labels(build_config):
    class Plain:
        metainfo = dict(classes=('background', 'cat'))

    cfg = Config(dict(model=build_config('cam'), test_dataloader=dict(dataset=dict(pipeline=[]))))
    assert describe_export(cfg, 'openmmlab://b', Plain(), 'predicted')['label_source'] is None


@pytest.mark.parametrize(
    ('key', 'name'), [('label_source', 'data/image_labels.json'), ('checkpoint', 'a.pth')]
)
def test_file_that_changes_is_another_export(describe, tmp_path, key, name):
    before = describe()
    change(tmp_path / name)
    after = describe()
    assert {k for k in before if before[k] != after[k]} == {key}


def test_description_comes_back_from_the_file_of_an_export(describe, tmp_path):
    folder = ExportFolder(tmp_path / 'out', '.png', describe())
    assert json.loads((tmp_path / 'out' / 'export.json').read_text()) == folder.settings
    ExportFolder(tmp_path / 'out', '.png', describe())
    with pytest.raises(ValueError, match=r"other settings \(model: .*'slide'"):
        ExportFolder(tmp_path / 'out', '.png', describe(test_cfg=dict(mode='slide')))
