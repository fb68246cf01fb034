import hashlib
import os
import shutil

import pytest

from mmdscnet.pseudo_labels import ExportFolder, hash_file

SETTINGS = dict(model=dict(type='A', channels=(1, 2)), classes=('background', 'cat'), crf=None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'some' / 'export'


@pytest.fixture
def filled(folder):
    """A folder of an export that was interrupted after two images."""
    export = ExportFolder(folder, '.png', SETTINGS)
    for image_id in 'ac':
        export.path(image_id).write_text(image_id)
    return export


def test_new_folder_is_made_and_holds_its_settings_only(folder):
    export = ExportFolder(folder, '.png', SETTINGS)
    assert os.listdir(folder) == ['export.json']
    assert export.missing(['b', 'a']) == ['b', 'a']


def test_folder_that_is_empty_is_taken(folder):
    folder.mkdir(parents=True)
    ExportFolder(folder, '.png', SETTINGS)
    assert os.listdir(folder) == ['export.json']


def test_export_with_equal_settings_goes_on(folder, filled):
    before = (folder / 'export.json').stat().st_mtime_ns
    export = ExportFolder(folder, '.png', SETTINGS)
    assert export.missing(['d', 'c', 'b', 'a']) == ['d', 'b']
    assert (folder / 'export.json').stat().st_mtime_ns == before


def test_folder_may_be_named_by_a_string(folder, filled):
    assert ExportFolder(str(folder), '.png', SETTINGS).path('a') == folder / 'a.png'


def test_tuples_and_lists_order_and_kind_of_number_make_no_difference(folder):
    ExportFolder(folder, '.png', dict(a=(1, 2.0), b=dict(c=(3,))))
    ExportFolder(folder, '.png', dict(b=dict(c=[3]), a=[1.0, 2]))


@pytest.mark.parametrize(
    ('change', 'difference'),
    [
        (dict(crf=dict(num_steps=5)), r"crf: None there, \{'num_steps': 5\} now"),
        (dict(classes=['background', 'dog']), r"classes: \['background', 'cat'\] there, .*'dog'"),
        (
            dict(model=dict(type='A', channels=[1, 3])),
            r'model: .*\[1, 2\]\} there, .*\[1, 3\]\} now',
        ),
        (dict(labels='given'), "labels: None there, 'given' now"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_changes(folder, filled, change, difference):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    message = rf'export holds an export with other settings \({difference}.*\): give a new folder'
    with pytest.raises(ValueError, match=message):
        ExportFolder(folder, '.png', SETTINGS | change)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_setting_that_is_gone_is_a_difference(folder, filled):
    fewer = {key: value for key, value in SETTINGS.items() if key != 'classes'}
    with pytest.raises(ValueError, match=r"classes: \['background', 'cat'\] there, None now"):
        ExportFolder(folder, '.png', fewer)


def test_equal_settings_are_not_listed(folder, filled):
    with pytest.raises(ValueError, match='other settings') as error:
        ExportFolder(folder, '.png', SETTINGS | dict(crf=1))
    assert 'classes' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'{"model":', b'\xff\xfe\x00', b'\x00' * 100])
def test_damaged_settings_are_named(folder, filled, content):
    (folder / 'export.json').write_bytes(content)
    with pytest.raises(ValueError, match=r'export\.json is no JSON: .*Give a new folder'):
        ExportFolder(folder, '.png', SETTINGS)
    assert (folder / 'a.png').is_file()


@pytest.mark.parametrize('content', ['[1, 2]', '"text"', 'null'])
def test_settings_of_another_form_are_refused(folder, filled, content):
    (folder / 'export.json').write_text(content)
    with pytest.raises(ValueError, match=r'export\.json holds no settings .*Give a new folder'):
        ExportFolder(folder, '.png', SETTINGS)


def test_files_of_unknown_origin_are_not_taken_for_those_of_the_export(folder, filled):
    (folder / 'export.json').unlink()
    with pytest.raises(ValueError, match=r'export holds \.png files but no export\.json'):
        ExportFolder(folder, '.png', SETTINGS)
    assert not (folder / 'export.json').exists()


def test_other_files_do_not_count(folder):
    folder.mkdir(parents=True)
    (folder / 'notes.txt').touch()
    (folder / 'a.npz').touch()
    assert ExportFolder(folder, '.png', SETTINGS).missing(['a']) == ['a']


def test_file_that_was_being_written_is_missing(folder, filled):
    shutil.move(folder / 'a.png', folder / '.a.png.0123.tmp')
    assert filled.missing(['a', 'c']) == ['a']


def test_image_ids_may_hold_dots_and_signs(folder):
    export = ExportFolder(folder, '.png', SETTINGS)
    for image_id in ('2007.000032', 'a[1]', 'a b'):
        export.path(image_id).touch()
    assert export.missing(['2007.000032', 'a[1]', 'a b', '2007', 'a1']) == ['2007', 'a1']


def test_settings_that_json_cannot_hold_leave_no_file(folder):
    with pytest.raises(TypeError, match='not JSON serializable'):
        ExportFolder(folder, '.png', dict(a=object()))
    assert not folder.exists()


def test_hash_is_the_start_of_sha256_over_all_blocks(tmp_path):
    content = os.urandom(2**20 + 3)
    (tmp_path / 'a').write_bytes(content)
    assert hash_file(tmp_path / 'a') == hashlib.sha256(content).hexdigest()[:16]
    (tmp_path / 'b').write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert hash_file(str(tmp_path / 'b')) != hash_file(tmp_path / 'a')
    (tmp_path / 'b').write_bytes(b'')
    assert hash_file(tmp_path / 'b') == 'e3b0c44298fc1c14'
