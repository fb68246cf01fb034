import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from mmdscnet import zoo
from mmdscnet.version import __version__


@pytest.fixture(scope='module')
def source(copy_sources):
    return copy_sources()


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


def test_wheel_and_source_archive_hold_metafiles_and_checkpoints(wheel, source, repository):
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, '-c', code], cwd=source, check=True, capture_output=True)
    with tarfile.open(next((source / 'dist').glob('*.tar.gz'))) as archive:
        archived = {name.partition('/')[2] for name in archive.getnames()}
    checkpoints = {f'mmdscnet/checkpoints/{path.name}' for path in zoo.SHIPPED_FOLDER.iterdir()}
    metafiles = [path.relative_to(repository) for path in repository.glob('configs/*/metafile.yml')]
    needed = checkpoints | {f'mmdscnet/.mim/{path.as_posix()}' for path in metafiles}
    assert len(checkpoints) > 0
    assert len(metafiles) > 4
    assert needed <= set(wheel.namelist())
    assert needed <= archived


@pytest.mark.slow
def test_published_model_loads_from_an_unpacked_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path / 'site')
    code = (
        'import mmdscnet; print(mmdscnet.__file__); from mmdscnet.apis import init_model; '
        "print(init_model('mmdscnet://dscnet_shapes').dataset_meta['classes'][1])"
    )
    environment = dict(PYTHONPATH=str(tmp_path / 'site'), TORCH_HOME=str(tmp_path / 'torch'))
    run = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].startswith(str(tmp_path / 'site'))
    assert run.stdout.splitlines()[-1] == 'target'
    assert not (tmp_path / 'torch').exists()


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


def test_both_stacks_take_torch_from_one_file(repository):
    """What is compiled for torch must fit it, and make installs it before the rest."""
    texts = {path.name: path.read_text() for path in (repository / 'requirements').glob('*.txt')}
    pinned = [name for name in texts if re.search('^torch(vision)?==', texts[name], re.MULTILINE)]
    assert pinned == ['torch.txt']
    assert all('-r torch.txt\n' in texts[name] for name in ('lite.txt', 'onedl.txt'))


def test_tools_for_tests_are_pinned(repository):
    for name in ('tests', 'dev'):
        lines = (repository / 'requirements' / f'{name}.txt').read_text().splitlines()
        assert all('==' in line for line in lines if line and not line.startswith('#'))


def test_setup_is_short(repository):
    assert len((repository / 'setup.py').read_text().splitlines()) < 40
