"""Package description. Everything that only tools read is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_requirements(name: str) -> list[str]:
    """Read requirements/<name>.txt without its comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.split(' #')[0].strip() for line in lines if line.strip() and line[0] != '#']


VERSION_FILE = (ROOT / 'mmdscnet' / 'version.py').read_text(encoding='utf-8')

setup(
    name='mmdscnet',
    version=re.findall(r"^__version__ = '(.+)'$", VERSION_FILE, re.MULTILINE)[0],
    description='DSCNet, weakly supervised semantic segmentation, for MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmdscnet', 'mmdscnet.*']),
    # mmdscnet/.mim links to configs/ and tools/: mmengine and mim look for them there.
    package_data={
        'mmdscnet': [
            'py.typed',
            'checkpoints/*.pth',
            '.mim/**/*.py',
            '.mim/**/*.sh',
            '.mim/**/*.yml',
        ]
    },
    install_requires=read_requirements('runtime'),
)
