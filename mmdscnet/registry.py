"""Registries that make ``mmdscnet`` a scope.

Our classes register in mmseg's registries, so that nobody's config needs a prefix. But mmengine
stamps ``_scope_='mmdscnet'`` on every part of a config that is inherited as
``_base_ = 'mmdscnet::dscnet/voc.py'``, and then looks for registries of that name. They are empty
children of mmseg's: whatever is not found in them is found in their parents.
"""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from mmseg import registry as mmseg_registry


def make_child_registries() -> dict[str, Registry]:
    """Make a child of scope ``mmdscnet`` for every registry of mmseg.

    And for those of mmengine that mmseg has no child of (functions that collate, strategies), in
    which mmengine would look for our scope in vain, with a warning in every log.

    Returns:
        The children by the name that the parent has in its module, such as ``MODELS``.
    """
    return {
        name: Registry(
            parent.name, parent=parent, scope='mmdscnet', locations=list(parent._locations)
        )
        for name, parent in {**vars(mmengine_registry), **vars(mmseg_registry)}.items()
        if isinstance(parent, Registry)
    }


CHILD_REGISTRIES = make_child_registries()
