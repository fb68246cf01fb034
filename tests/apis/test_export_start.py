import os

import pytest

from mmdscnet.apis import export_start, image_ids, start_export

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
    assert [image_ids(dataset)[index] for index in missing] == list('bcef')


def test_subset_has_indices_of_its_own(build_dataset, tmp_path):
    dataset = build_dataset(indices=[4, 2])
    assert image_ids(dataset) == ['e', 'c']
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


@pytest.mark.parametrize('rank', [0, 1])
def test_no_rank_writes_before_all_have_looked(dataset, tmp_path, monkeypatch, rank):
    events = []
    monkeypatch.setattr(export_start, 'get_rank', lambda: rank)

    class Folder(export_start.ExportFolder):
        def __init__(self, *args):
            super().__init__(*args)
            events.append('open')

        def missing(self, ids):
            events.append('look')
            return super().missing(ids)

    monkeypatch.setattr(export_start, 'ExportFolder', Folder)
    monkeypatch.setattr(export_start, 'barrier', lambda: events.append('wait'))
    start_export(tmp_path, '.png', SETTINGS, dataset)
    # The first rank makes the folder, while the others wait for it.
    assert events == ['open'] * (rank == 0) + ['wait', 'open', 'look', 'wait']
