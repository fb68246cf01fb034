"""Registries that make ``mmdscnet`` a scope.

Our classes register in mmseg's registries, so that nobody's config needs a prefix. But mmengine
stamps ``_scope_='mmdscnet'`` on every part of a config that is inherited as
``_base_ = 'mmdscnet::dscnet/voc.py'``, and then looks for registries of that name. They are empty
children of mmseg's: whatever is not found in them is found in their parents.
"""

from mmengine.registry import Registry
from mmseg import registry as mmseg_registry


def make_child_registries() -> dict[str, Registry]:
    """Make a child of scope ``mmdscnet`` for every registry of mmseg.

    Returns:
        The children by the name that the parent has in ``mmseg.registry``, such as ``MODELS``.
    """
    return {
        name: Registry(
            parent.name, parent=parent, scope='mmdscnet', locations=list(parent._locations)
        )
        for name, parent in vars(mmseg_registry).items()
        if isinstance(parent, Registry)
    }


CHILD_REGISTRIES = make_child_registries()
