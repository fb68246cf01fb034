"""What the tests of this folder share beside tests/conftest.py."""

import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def mmseg_scope():
    """Let mmseg find its own classes, as ``default_scope`` of a config does."""
    init_default_scope('mmseg')
