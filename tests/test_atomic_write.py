import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import typing
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.cam_file import write_cams
from mmdscnet.pseudo_labels.palette_png import write_palette_png

NOBODY = 65534
NOISE = np.random.default_rng(0).integers(0, 21, (600, 600), dtype=np.uint8)


def _write_text(path, text='x' * 2**20):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def _write_unbuffered(path):
    with atomic_path(path) as temporary, temporary.open('wb', buffering=0) as file:
        while file.write(b'x' * 2**12):
            pass


def _copy_file(path):
    with atomic_path(path) as temporary:
        shutil.copyfile(typing.__file__, temporary)


def _write_png(path):
    write_palette_png(path, NOISE, [[i, i, i] for i in range(21)])


def _write_cams(path):
    write_cams(path, np.full((2, 600, 600), 0.5, np.float32), np.array([1, 2]))


WRITERS = [_write_text, _write_unbuffered, _copy_file, _write_png, _write_cams]


@pytest.fixture
def small_disk():
    """A folder of 64 KiB of memory, and what mounts it anew as 'ro' or 'rw'."""
    if shutil.which('mount') is None:
        pytest.skip('no mount')
    folder = Path(tempfile.mkdtemp())

    def mount(options):
        return subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)], capture_output=True
        )

    try:
        if mount('size=64k').returncode:
            pytest.skip('this user may not mount')
        try:
            yield folder, lambda mode: mount(f'remount,{mode}').check_returncode()
        finally:
            subprocess.run(['umount', str(folder)], check=True)
    finally:
        folder.rmdir()


@contextmanager
def _file_size_limit(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def _write_as_nobody(path):
    # Root may write anywhere, whatever the mode of a folder.
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        _write_text(path)
    finally:
        os.seteuid(user)


def _refuse(write, target, number, pattern):
    """Check that a write fails with its number and mend, and changes nothing in the folder."""
    before = {path.name: path.read_bytes() for path in target.parent.iterdir() if path.is_file()}
    with pytest.raises(OSError, match=pattern) as caught:
        write(target)
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ''))
    assert str(target) in str(caught.value)
    after = {path.name: path.read_bytes() for path in target.parent.iterdir() if path.is_file()}
    assert after == before


def test_file_appears_whole_and_alone(tmp_path):
    target = tmp_path / 'made' / 'a.txt'
    with atomic_path(target) as temporary:
        temporary.write_text('whole')
        assert not target.exists()
    assert target.read_text() == 'whole'
    assert os.listdir(target.parent) == ['a.txt']


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    target = tmp_path / 'a.txt'
    target.write_text('old')

    def fail_halfway():
        with atomic_path(target) as temporary:
            temporary.write_text('half')
            raise RuntimeError('disk')

    with pytest.raises(RuntimeError, match='disk'):
        fail_halfway()
    assert target.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


def test_temporary_name_is_not_found_by_suffix(tmp_path):
    with atomic_path(tmp_path / 'a.png') as temporary:
        temporary.write_bytes(b'half')
        assert list(tmp_path.glob('*.png')) == []


def test_file_has_the_usual_permissions(tmp_path):
    (tmp_path / 'usual').write_text('')
    with atomic_path(tmp_path / 'atomic') as temporary:
        temporary.write_text('')
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('usual', 'atomic')]
    assert modes[0] == modes[1]


@pytest.mark.parametrize('write', WRITERS)
def test_full_disk_is_told_with_the_mend(small_disk, write):
    target = small_disk[0] / 'a.out'
    target.write_text('old')
    pattern = (
        r'a\.out cannot be written: No space left on device\. Free space or choose another folder; '
        'files written before are whole'
    )
    _refuse(write, target, errno.ENOSPC, pattern)
    _write_text(target, 'new')
    assert target.read_text() == 'new'


@pytest.mark.parametrize('write', WRITERS)
def test_read_only_disk_is_told_with_the_mend(small_disk, write):
    folder, remount = small_disk
    target = folder / 'a.out'
    target.write_text('old')
    remount('ro')
    pattern = r'a\.out cannot be written: Read-only file system.*mount it for writing, or choose'
    _refuse(write, target, errno.EROFS, pattern)


def test_missing_parent_on_a_read_only_disk_is_told_with_the_mend(small_disk):
    folder, remount = small_disk
    remount('ro')
    with pytest.raises(OSError, match=r'a\.txt cannot be written: Read-only.*or choose') as caught:
        _write_text(folder / 'new' / 'a.txt')
    assert caught.value.errno == errno.EROFS
    assert os.listdir(folder) == []


def test_disk_that_turns_read_only_does_not_hide_the_first_error(small_disk):
    folder, remount = small_disk

    def fail():
        with atomic_path(folder / 'a.txt') as temporary:
            temporary.write_text('half')
            remount('ro')
            raise RuntimeError('first')

    with pytest.raises(RuntimeError, match='first'):
        fail()


@pytest.mark.parametrize('write', WRITERS)
def test_limit_on_the_size_of_files_is_told_with_the_mend(tmp_path, write):
    target = tmp_path / 'a.out'
    target.write_text('old')
    pattern = r'a\.out cannot be written: File too large\. Raise the limit .*ulimit -f'

    def write_limited(path):
        with _file_size_limit(2**13):
            write(path)

    _refuse(write_limited, target, errno.EFBIG, pattern)


def test_folder_without_permission_is_told_with_the_mend():
    folder = Path(tempfile.mkdtemp())
    try:
        target = folder / 'a.txt'
        target.write_text('old')
        folder.chmod(0o555)
        pattern = r'a\.txt cannot be written: Permission denied\. Allow this user'
        _refuse(_write_as_nobody, target, errno.EACCES, pattern)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ('parent', 'number'), [('file', errno.EEXIST), ('file/sub', errno.ENOTDIR)]
)
def test_file_in_place_of_a_parent_is_told_with_the_mend(tmp_path, parent, number):
    (tmp_path / 'file').write_text('old')
    target = tmp_path / parent / 'a.txt'
    with pytest.raises(OSError, match=r'a\.txt cannot be written: .*stands where a folder') as info:
        _write_text(target)
    assert info.value.errno == number
    assert (tmp_path / 'file').read_text() == 'old'
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs a folder that makes none')
def test_other_failure_to_make_the_parent_is_told_with_a_mend():
    with pytest.raises(FileNotFoundError, match=r'a\.txt cannot be written: .*another folder'):
        _write_text(Path('/proc/no_such_folder/a.txt'))


def test_folder_in_place_of_the_file_is_told_with_the_mend(tmp_path):
    (tmp_path / 'a.txt').mkdir()
    _refuse(_write_text, tmp_path / 'a.txt', errno.EISDIR, r'A folder has that name: move it')


def test_name_may_be_38_characters_shorter_than_the_file_system_takes(tmp_path):
    longest = os.pathconf(tmp_path, 'PC_NAME_MAX')
    _write_text(tmp_path / ('n' * (longest - 38)))
    target = tmp_path / ('n' * (longest - 37))
    _refuse(_write_text, target, errno.ENAMETOOLONG, r'Choose a shorter name; .* 38 characters')


@pytest.mark.parametrize(
    'error',
    [
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), 'image.jpg'),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'image.jpg'),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'other', None, 'another'),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ENOSPC, 'explained'),
        OSError('image file is truncated'),
    ],
)
def test_error_about_anything_else_passes_unchanged(tmp_path, error):
    text = str(error)

    def fail():
        with atomic_path(tmp_path / 'a.txt') as temporary:
            temporary.write_text('half')
            raise error

    with pytest.raises(OSError, match=re.escape(text)) as caught:
        fail()
    assert caught.value is error
    assert str(error) == text
    assert error.__cause__ is None
    assert os.listdir(tmp_path) == []


def test_missing_input_within_the_block_passes_unchanged(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r'No such file .*image\.jpg') as caught,
        atomic_path(tmp_path / 'a.jpg') as temporary,
    ):
        shutil.copyfile(tmp_path / 'image.jpg', temporary)
    assert caught.value.filename == str(tmp_path / 'image.jpg')


@pytest.mark.parametrize('parent', ['', '.', 'made/..'])
@pytest.mark.parametrize('is_absolute', [False, True])
def test_temporary_file_is_recognised_however_it_is_named(
    tmp_path, monkeypatch, parent, is_absolute
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'made').mkdir()

    def fail():
        with atomic_path(Path(parent, 'a.txt')) as temporary:
            name = temporary.absolute() if is_absolute else temporary
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))

    with pytest.raises(PermissionError, match=r'a\.txt cannot be written: Permission denied'):
        fail()


def test_error_of_an_inner_block_is_told_once(small_disk, tmp_path):
    with (
        pytest.raises(OSError, match='No space left') as caught,
        atomic_path(tmp_path / 'outer.txt'),
    ):
        _write_text(small_disk[0] / 'inner.txt')
    assert str(caught.value).count('cannot be written') == 1
    assert 'inner.txt' in str(caught.value)
    assert os.listdir(tmp_path) == []
