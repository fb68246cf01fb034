import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mmdscnet.pseudo_labels import PseudoLabelStore, read_version, write_palette_png

CLASSES = ('background', 'cat', 'dog')
PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
IDS = ['a', 'b', 'c.d', '2007_000032']
# Of one label map: 3 of the background, 2 cats, 1 dog, 2 void.
LABEL_MAP = np.array([[0, 0, 1, 1], [0, 2, 255, 255]], np.uint8)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'store'


def begin(folder, kind='old', classes=CLASSES):
    return PseudoLabelStore(folder).begin(dict(kind=kind), classes, PALETTE)


def fill(draft, image_ids=IDS):
    for shift, image_id in enumerate(image_ids):
        draft.write(image_id, np.roll(LABEL_MAP, shift, axis=1))
    return draft


def write_all(draft, image_ids, label_map):
    for image_id in image_ids:
        draft.write(image_id, label_map)


def publish(folder, kind='old', image_ids=IDS):
    return fill(begin(folder, kind), image_ids).publish(image_ids)


def current(folder):
    """The current version, compared with its manifest byte by byte."""
    version = PseudoLabelStore(folder).current()
    if version is not None:
        version.verify()
    return version


def settings_of(version):
    return version.manifest['settings']['kind']


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_store_without_a_version_has_no_current_one(folder):
    empty = PseudoLabelStore(folder)
    assert empty.current() is None
    assert empty.numbers() == []
    # Who only looks leaves nothing behind.
    assert not folder.exists()


def test_first_version(folder):
    draft = begin(folder)
    assert draft.number == 1
    assert draft.export.missing(IDS) == IDS
    version = fill(draft).publish(IDS)
    assert version.number == 1
    assert version.folder == folder / 'v0001'
    assert sorted(os.listdir(folder)) == ['current', 'v0001']
    names = ['export.json', 'manifest.json', *(f'{image_id}.png' for image_id in IDS)]
    assert sorted(os.listdir(folder / 'v0001')) == sorted(names)
    assert current(folder).manifest == version.manifest


def test_readers_go_through_the_link(folder):
    publish(folder)
    # Relative, so that a store can be moved.
    assert os.readlink(folder / 'current') == 'v0001'
    with Image.open(folder / 'current' / 'b.png') as image:
        assert image.mode == 'P'
        np.testing.assert_array_equal(image, np.roll(LABEL_MAP, 1, axis=1))
    moved = folder.with_name('moved')
    folder.rename(moved)
    assert current(moved).number == 1
    assert read_version(moved / 'current').manifest == current(moved).manifest


def test_manifest_says_what_is_there(folder):
    draft = fill(begin(folder), IDS[:3])
    version = draft.publish(IDS, {'2007_000032': 'is truncated'})
    manifest = json.loads((folder / 'v0001' / 'manifest.json').read_text())
    assert manifest == version.manifest
    assert manifest['version'] == 1
    assert manifest['classes'] == list(CLASSES)
    assert manifest['palette'] == [list(colour) for colour in PALETTE]
    assert manifest['settings'] == dict(kind='old', classes=list(CLASSES))
    assert manifest['pixels'] == dict(background=9, cat=6, dog=3, void=6)
    assert manifest['skipped'] == {'2007_000032': 'is truncated'}
    assert manifest['files'] == {
        image_id: hashlib.sha256((folder / 'v0001' / f'{image_id}.png').read_bytes()).hexdigest()
        for image_id in IDS[:3]
    }
    assert version.coverage == 18 / 24
    content = (folder / 'v0001' / 'manifest.json').read_bytes()
    assert version.digest() == hashlib.sha256(content).hexdigest()
    version.verify()


def test_version_of_no_images_covers_everything(folder):
    version = begin(folder).publish([])
    assert version.coverage == 1
    assert version.manifest['pixels'] == dict(background=0, cat=0, dog=0, void=0)


def test_palette_of_numpy_goes_into_the_manifest(folder):
    draft = PseudoLabelStore(folder).begin({}, CLASSES, np.array(PALETTE))
    assert fill(draft).publish(IDS).manifest['palette'] == [list(colour) for colour in PALETTE]


def test_second_version_becomes_current(folder):
    first = publish(folder)
    second = publish(folder, 'new')
    assert second.number == 2
    assert settings_of(current(folder)) == 'new'
    assert PseudoLabelStore(folder).numbers() == [1, 2]
    # Who reads the first one goes on reading it.
    first.verify()
    assert first.digest() != second.digest()


def test_same_settings_go_on(folder):
    fill(begin(folder), IDS[:2])
    before = times(folder / 'v0001')
    draft = begin(folder)
    assert draft.number == 1
    assert draft.export.missing(IDS) == IDS[2:]
    fill(draft, IDS[2:])
    after = times(draft.publish(IDS).folder)
    assert {name: after[name] for name in before} == before


def test_settings_are_compared_as_json_has_them(folder):
    opened = PseudoLabelStore(folder)
    first = opened.begin(dict(alphas=(4, 24)), CLASSES, PALETTE)
    assert opened.begin(dict(alphas=[4, 24]), list(CLASSES), PALETTE).number == first.number


def test_other_settings_begin_another_version(folder):
    publish(folder)
    draft = fill(begin(folder, 'new'), IDS[:2])
    assert draft.number == 2
    assert settings_of(current(folder)) == 'old'
    # And a draft that was left does not stand in the way.
    assert begin(folder, 'newest').number == 3
    assert begin(folder, 'new').export.missing(IDS) == IDS[2:]


def test_newest_of_the_same_settings_goes_on(folder):
    publish(folder)
    shutil.copytree(folder / 'v0001', folder / 'v0012')
    (folder / 'v0012' / 'manifest.json').unlink()
    assert begin(folder).number == 12
    assert begin(folder, 'new').number == 13


def test_complete_version_is_given_again(folder):
    publish(folder)
    publish(folder, 'new')
    before = times(folder / 'v0001')
    draft = begin(folder)
    assert draft.number == 1
    assert draft.export.missing(IDS) == []
    assert current(folder).number == 2
    assert draft.publish(IDS).number == 1
    assert times(folder / 'v0001') == before
    assert settings_of(current(folder)) == 'old'


def test_complete_version_that_was_changed_does_not_become_current(folder):
    publish(folder)
    publish(folder, 'new')
    (folder / 'v0001' / 'a.png').write_bytes(b'else')
    with pytest.raises(ValueError, match=r'are not those of its manifest, the first is a\.png'):
        begin(folder).publish(IDS)
    assert current(folder).number == 2


def test_all_ranks_open_one_draft(folder):
    draft = begin(folder)
    opened = PseudoLabelStore(folder).open_draft(1, dict(kind='old'), CLASSES, PALETTE)
    fill(opened, IDS[:2])
    fill(draft, IDS[2:])
    assert draft.publish(IDS).number == 1
    with pytest.raises(ValueError, match=r"other settings \(kind: 'old' there, 'new' now\)"):
        PseudoLabelStore(folder).open_draft(1, dict(kind='new'), CLASSES, PALETTE)


def test_version_with_missing_maps_is_refused(folder):
    publish(folder)
    draft = fill(begin(folder, 'new'), IDS[:1])
    with pytest.raises(ValueError, match=r"lacks 2 of 3 label maps, the first is 'b': run the"):
        draft.publish(IDS, {'c.d': 'is truncated'})
    assert settings_of(current(folder)) == 'old'
    with pytest.raises(FileNotFoundError, match=r'v0002 has no manifest\.json.*it goes on'):
        read_version(folder / 'v0002')
    fill(draft, IDS[1:])
    assert draft.publish(IDS).number == 2


def test_map_with_an_id_outside_the_classes_is_refused(folder):
    publish(folder)
    draft = fill(begin(folder, 'new'))
    path = draft.export.path('b')
    write_palette_png(path, np.full((2, 4), 7, np.uint8), [(0, 0, 0)] * 9)
    with pytest.raises(ValueError, match=r'v0002 .*the ids \[7\], which are none of the 3 classes'):
        draft.publish(IDS)
    assert settings_of(current(folder)) == 'old'


def test_truncated_map_is_refused(folder):
    draft = fill(begin(folder))
    content = draft.export.path('b').read_bytes()
    draft.export.path('b').write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r'b\.png is truncated'):
        draft.publish(IDS)
    assert current(folder) is None


def test_map_of_no_image_is_refused(folder):
    draft = fill(begin(folder), [*IDS, 'e'])
    with pytest.raises(ValueError, match=r'1 label maps are of none of its images.*e\.png'):
        draft.publish(IDS)
    assert current(folder) is None
    draft.export.path('e').unlink()
    assert draft.publish(IDS).number == 1


def test_map_that_the_palette_does_not_fit_is_not_written(folder):
    draft = begin(folder)
    with pytest.raises(ValueError, match=r'a\.png: ids \[3\] have no colour'):
        draft.write('a', np.full((2, 4), 3, np.uint8))
    assert draft.export.missing(['a']) == ['a']


@pytest.mark.parametrize('classes', [CLASSES[:2], (*CLASSES, 'cow'), ('background', 'dog', 'cat')])
def test_other_classes_are_refused(folder, classes):
    version = publish(folder)
    before = sorted(os.listdir(folder))
    with pytest.raises(ValueError, match=r'v0001 was written for the classes .*a folder of their'):
        begin(folder, 'new', classes)
    with pytest.raises(ValueError, match='an id would change its meaning'):
        version.check_classes(classes)
    version.check_classes(list(CLASSES))
    assert sorted(os.listdir(folder)) == before


def copy_beside(path):
    shutil.copy(path, path.with_name(f'x{path.name}'))


def change_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1] + b'?')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (os.unlink, r'2 label maps are missing, the first is a\.png'),
        (change_last_byte, r'2 label maps are not those of its manifest, the first is a\.png'),
        (copy_beside, r'2 label maps are not in its manifest, the first is xa\.png'),
    ],
)
def test_version_that_was_changed_is_found(folder, change, message):
    publish(folder)
    for image_id in ('b', 'a'):
        change(folder / 'v0001' / f'{image_id}.png')
    with pytest.raises(ValueError, match=f'{message}.*Delete the folder and label'):
        read_version(folder / 'current').verify()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"version": 1, "cla', r'manifest\.json is damaged: .*Delete the folder'),
        (b'', r'manifest\.json is damaged'),
        (b'\xff\xfe', r'manifest\.json is damaged'),
        (b'[1, 2]', r'manifest\.json is no manifest of pseudo labels'),
        (b'{"version": 1}', r'manifest\.json is no manifest of pseudo labels'),
    ],
)
def test_damaged_manifest_is_named(folder, content, message):
    draft = fill(begin(folder))
    manifest = draft.publish(IDS).folder / 'manifest.json'
    manifest.write_bytes(content)
    for read in (
        lambda: read_version(folder / 'v0001'),
        PseudoLabelStore(folder).current,
        lambda: begin(folder, 'new'),
        lambda: draft.publish(IDS),
    ):
        with pytest.raises(ValueError, match=message):
            read()


def test_deleted_version_can_be_made_again(folder):
    publish(folder)
    shutil.rmtree(folder / 'v0001')
    # What is left is a link to nothing.
    assert PseudoLabelStore(folder).current() is None
    assert publish(folder).number == 1
    assert current(folder).number == 1
    publish(folder, 'new')
    (folder / 'v0002' / 'manifest.json').unlink()
    draft = begin(folder, 'new')
    assert (draft.number, draft.export.missing(IDS)) == (2, [])
    assert draft.publish(IDS).number == 2


@pytest.mark.parametrize('content', [None, b'', b'\xff', b'{'])
def test_version_of_unknown_origin_is_left_alone(folder, content):
    fill(begin(folder))
    settings = folder / 'v0001' / 'export.json'
    settings.unlink()
    if content is not None:
        settings.write_bytes(content)
    assert begin(folder).number == 2
    assert len(os.listdir(folder / 'v0001')) == len(IDS) + (content is not None)


def test_other_names_are_no_versions(folder):
    folder.mkdir()
    for name in ('v1', 'v00012.bak', 'xv0003', '.v0004.ab.tmp'):
        (folder / name).mkdir()
    (folder / 'notes.txt').touch()
    (folder / 'v0005').touch()
    assert begin(folder).number == 6
    assert begin(folder, 'new').number == 7


def test_numbers_do_not_end_at_four_digits(folder):
    publish(folder)
    (folder / 'v9999').mkdir()
    assert publish(folder, 'new').folder == folder / 'v10000'
    assert PseudoLabelStore(folder).numbers() == [1, 9999, 10000]
    assert current(folder).number == 10000


def test_leftovers_of_killed_writers_are_removed(folder):
    draft = fill(begin(folder))
    (folder / '.current.ab.tmp').symlink_to('v0001')
    (folder / '.v0002.ab.tmp').mkdir()
    (folder / '.v0002.ab.tmp' / '.export.json.cd.tmp').touch()
    (folder / 'v0001' / '.a.png.ab.tmp').touch()
    (folder / 'v0001' / '.manifest.json.ab.tmp').touch()
    draft.publish(IDS)
    begin(folder, 'new')
    assert sorted(os.listdir(folder)) == ['current', 'v0001', 'v0002']
    assert not list(folder.rglob('*.tmp'))


def test_same_labels_have_same_files(folder, tmp_path):
    assert publish(folder).manifest['files'] == publish(tmp_path / 'b').manifest['files']


def test_manifest_that_cannot_be_written_leaves_the_version_before(folder, monkeypatch):
    publish(folder)
    draft = fill(begin(folder, 'new'))

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr('pathlib.Path.write_text', fail)
        with pytest.raises(OSError, match=r'manifest\.json cannot be written.*Free space'):
            draft.publish(IDS)
    assert settings_of(current(folder)) == 'old'
    assert not list(folder.rglob('*.tmp'))
    assert draft.publish(IDS).number == 2


def test_link_that_cannot_be_replaced_says_what_to_do(folder, monkeypatch):
    publish(folder)
    draft = fill(begin(folder, 'new'))

    def fail(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target, None, str(self))

    with monkeypatch.context() as patch:
        patch.setattr('pathlib.Path.symlink_to', fail)
        with pytest.raises(OSError, match=r'current cannot be written.*Free space'):
            draft.publish(IDS)
    assert settings_of(current(folder)) == 'old'
    assert begin(folder, 'new').publish(IDS).number == 2
    assert settings_of(current(folder)) == 'new'


@pytest.fixture
def small_disk(tmp_path):
    """A folder of 256 KiB of memory, and what mounts it anew as 'ro' or 'rw'."""
    if shutil.which('mount') is None:
        pytest.skip('no mount')
    folder = tmp_path / 'disk'
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)], capture_output=True
        )

    if mount('size=256k').returncode:
        pytest.skip('this user may not mount')
    try:
        yield folder, lambda mode: mount(f'remount,{mode}').check_returncode()
    finally:
        subprocess.run(['umount', str(folder)], check=True)


def test_full_disk_leaves_the_current_version(small_disk):
    disk, _ = small_disk
    folder = disk / 'store'
    publish(folder)
    draft = begin(folder, 'new')
    noise = np.random.default_rng(0).integers(0, 3, (128, 128), dtype=np.uint8)
    many = [f'{number:03d}' for number in range(100)]
    with pytest.raises(OSError, match=r'png cannot be written: No space.*Free space') as caught:
        write_all(draft, many, noise)
    assert caught.value.errno == errno.ENOSPC
    assert settings_of(current(folder)) == 'old'
    missing = begin(folder, 'new').export.missing(many)
    assert 0 < len(missing) < len(many)
    # What is written is whole.
    for image_id in set(many) - set(missing):
        with Image.open(draft.export.path(image_id)) as image:
            np.testing.assert_array_equal(image, noise)
    with pytest.raises(ValueError, match='lacks'):
        draft.publish(many)

    # Less than a block is left: another version, or this one's manifest, finds no room either.
    # The kernel keeps some blocks of a small disk to each CPU, hence more than one filler.
    for number in range(3):
        with contextlib.suppress(OSError), (disk / f'filler{number}').open('wb', 0) as filler:
            while filler.write(bytes(4096)):
                pass
    for act in (
        lambda: begin(folder, 'newest'),
        lambda: draft.publish(sorted(set(many) - set(missing))),
    ):
        with pytest.raises(OSError, match=r'cannot be written: No space.*Free space'):
            act()
        assert settings_of(current(folder)) == 'old'
    for filler in disk.glob('filler*'):
        filler.unlink()
    version = draft.publish(sorted(set(many) - set(missing)))
    assert version.number == 2
    assert current(folder).number == 2
    assert not list(folder.rglob('*.png.*.tmp'))


def test_read_only_store_can_be_read(small_disk):
    disk, remount = small_disk
    folder = disk / 'store'
    publish(folder)
    publish(folder, 'new')
    draft = fill(begin(folder, 'newest'))
    remount('ro')
    try:
        for act in (
            lambda: begin(folder, 'yet another'),
            lambda: draft.write('a', LABEL_MAP),
            lambda: draft.publish(IDS),
            lambda: begin(folder).publish(IDS),
        ):
            with pytest.raises(OSError, match=r'cannot be written.*file system is read-only') as e:
                act()
            assert e.value.errno == errno.EROFS
            assert settings_of(current(folder)) == 'new'
        # A run that finds its version complete and current has nothing to write.
        again = begin(folder, 'new')
        assert again.export.missing(IDS) == []
        assert again.publish(IDS).manifest == current(folder).manifest
    finally:
        remount('rw')
    assert draft.publish(IDS).number == 3


MANY = [f'{number:02d}' for number in range(12)]


def publish_next(folder):
    """Go on with the version after the current one."""
    opened = PseudoLabelStore(folder)
    version = opened.current()
    number = 1 if version is None else version.number + 1
    draft = opened.begin(dict(number=number), CLASSES, PALETTE)
    for image_id in draft.export.missing(MANY):
        draft.write(image_id, np.full((9, 7), (number + int(image_id)) % 3, np.uint8))
    return draft.publish(MANY)


def publish_forever(folder):
    while True:
        publish_next(folder)


def publish_until_step(folder, step):
    """Publish one version after the other, and be killed before a step on the file system."""
    steps = itertools.count(1)
    for name in ('mkdir', 'rename', 'replace', 'symlink', 'unlink'):
        setattr(os, name, partial(kill_before, getattr(os, name), steps, step))
    publish_forever(folder)


def kill_before(original, steps, step, *args, **kwargs):
    if next(steps) == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


def start_child(target, *args):
    # Of a fork, to be at work within a millisecond.
    child = multiprocessing.get_context('fork').Process(target=target, args=args, daemon=True)
    child.start()
    return child


def check_killed_store(folder):
    """Check that a reader sees whole versions only.

    Returns:
        Number of the current version, or 0, and what there is of the one after it.
    """
    opened, version = PseudoLabelStore(folder), current(folder)
    number = 0 if version is None else version.number
    if version is not None:
        assert version.manifest['settings']['number'] == number
        assert list(version.manifest['files']) == MANY
        assert sum(version.manifest['pixels'].values()) == len(MANY) * 9 * 7
        assert version.coverage == 1
    # No number is ever lost, and at most one version is on its way.
    assert opened.numbers() in (list(range(1, number + 1)), list(range(1, number + 2)))
    newest = opened.version_folder(number + 1)
    if not newest.exists():
        return number, 'no folder'
    assert json.loads((newest / 'export.json').read_text())['number'] == number + 1
    if (newest / 'manifest.json').is_file():
        return number, 'not current'
    if len(list(newest.glob('*.png'))) == len(MANY):
        return number, 'no manifest'
    return number, 'not all label maps'


@pytest.mark.slow
def test_store_survives_being_killed_at_any_moment(folder):
    rng = random.Random(0)
    numbers, stages = [0], []
    for _ in range(80):
        child = start_child(publish_forever, folder)
        time.sleep(rng.uniform(0.001, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        # It was at work until then.
        assert child.exitcode == -signal.SIGKILL
        number, stage = check_killed_store(folder)
        assert number >= numbers[-1]
        numbers.append(number)
        stages.append(stage)
    # It went on all the time, and the kills came while a version was on its way.
    assert numbers[-1] >= 10
    assert len(set(numbers)) >= 5
    assert stages.count('not all label maps') >= 5
    assert len(set(stages)) >= 2
    for number in range(1, numbers[-1] + 1):
        version = read_version(PseudoLabelStore(folder).version_folder(number))
        assert version.number == number
        version.verify()
    assert publish_next(folder).number == numbers[-1] + 1
    assert publish_next(folder).number == numbers[-1] + 2
    assert not list(folder.rglob('*.tmp'))


@pytest.mark.slow
def test_store_survives_being_killed_before_any_step(tmp_path):
    seen = []
    for step in itertools.count(1):
        folder = tmp_path / str(step) / 'store'
        child = start_child(publish_until_step, folder, step)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        number, stage = check_killed_store(folder)
        seen.append((number, stage))
        # Whatever it was, the next run mends it.
        assert publish_next(folder).number == number + 1
        assert check_killed_store(folder)[0] == number + 1
        if number == 2:
            break
    stages = ['no folder', 'not all label maps', 'no manifest', 'not current']
    expected = [(number, stage) for number in range(2) for stage in stages]
    assert list(dict.fromkeys(seen)) == [*expected, (2, 'no folder')]
