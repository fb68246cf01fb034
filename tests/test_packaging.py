import re
import zipfile

import pytest

from mmdscnet.version import __version__


@pytest.fixture(scope='module')
def wheel(wheel_file):
    return zipfile.ZipFile(wheel_file)


def read_metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    return wheel.read(name).decode()


def test_wheel_has_the_version_and_python_bound(wheel):
    metadata = read_metadata(wheel)
    assert f'Version: {__version__}\n' in metadata
    assert 'Requires-Python: >=3.10\n' in metadata


def test_wheel_requires_nothing_that_forks_overwrite(wheel):
    required = re.findall(r'^Requires-Dist: ([\w-]+)', read_metadata(wheel), re.MULTILINE)
    assert 'numpy' in required
    assert not [name for name in required if name.startswith(('mm', 'onedl', 'openm', 'opencv'))]


def test_wheel_holds_configs_and_tools_where_mim_looks(wheel, repository):
    names = set(wheel.namelist())
    assert 'mmdscnet/.mim/model-index.yml' in names
    for folder, pattern in (('configs', '**/*.py'), ('tools', '**/*.py'), ('tools', '*.sh')):
        files = [path.relative_to(repository) for path in (repository / folder).glob(pattern)]
        assert files
        assert {f'mmdscnet/.mim/{path.as_posix()}' for path in files} <= names


def test_wheel_holds_every_module(wheel, repository):
    modules = (repository / 'mmdscnet').rglob('*.py')
    names = {path.relative_to(repository).as_posix() for path in modules}
    assert {name for name in names if '/.mim/' not in name} <= set(wheel.namelist())
    assert 'mmdscnet/py.typed' in wheel.namelist()


def test_every_requirement_has_its_reason(repository):
    """A comment behind the line, or one above the file's lines that holds for all."""
    for path in (repository / 'requirements').glob('*.txt'):
        lines = path.read_text().splitlines()
        for line in lines:
            if line and not line.startswith(('#', '-r')):
                assert ' # ' in line or lines[0].startswith('# Exact'), f'{path.name}: {line}'


def test_tools_for_tests_are_pinned(repository):
    for name in ('tests', 'dev'):
        lines = (repository / 'requirements' / f'{name}.txt').read_text().splitlines()
        assert all('==' in line for line in lines if line and not line.startswith('#'))


def test_setup_is_short(repository):
    assert len((repository / 'setup.py').read_text().splitlines()) < 40
