import os
import stat

import pytest

from mmdscnet.atomic_write import atomic_path


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
