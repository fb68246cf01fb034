import pytest

from mmdscnet.apis.kept_config import keep_config


def test_first_config_is_written_and_the_same_is_accepted(tmp_path):
    path = tmp_path / 'run' / 'config.txt'
    keep_config(path, 'lr = 1 ± 1\n')
    keep_config(path, 'lr = 1 ± 1\n')
    assert path.read_text(encoding='utf-8') == 'lr = 1 ± 1\n'


def test_another_config_is_refused_and_the_first_stays(tmp_path):
    path = tmp_path / 'config.txt'
    keep_config(path, 'lr = 1\n')
    with pytest.raises(ValueError, match=f'{path} is another config.*--work-dir, or delete'):
        keep_config(path, 'lr = 2\n')
    assert path.read_text() == 'lr = 1\n'
