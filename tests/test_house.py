"""Rules of the house that no tool checks."""

from pathlib import Path

import pytest


def find_modules_without_test(repository: Path) -> list[str]:
    package = repository / 'mmdscnet'
    modules = [path.relative_to(package) for path in package.rglob('*.py')]
    return [
        str(module)
        for module in sorted(modules)
        if not {'__init__.py', 'version.py'} & {module.name}
        and '.mim' not in module.parts
        and not (repository / 'tests' / module.with_name(f'test_{module.name}')).is_file()
    ]


def test_every_module_has_a_test_file(repository):
    assert find_modules_without_test(repository) == []


def test_module_without_test_file_is_found(tmp_path):
    for name in ('mmdscnet/a/tested.py', 'mmdscnet/a/forgotten.py', 'tests/a/test_tested.py'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_modules_without_test(tmp_path) == [str(Path('a', 'forgotten.py'))]


@pytest.mark.parametrize('name', ['utils.py', 'misc.py', 'helpers.py', 'common.py'])
def test_no_file_is_named_after_nothing(repository, name):
    assert list((repository / 'mmdscnet').rglob(name)) == []
    assert list((repository / 'tests').rglob(name)) == []
