"""Holds ``register_all_modules`` and nothing else, because of its address.

``mmengine.hub.get_model`` and mmseg's inferencer call ``<package>.utils.register_all_modules`` of
the package that a config belongs to. The house has no ``utils`` otherwise.
"""

from mmengine.registry import DefaultScope


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register the classes of this package and of mmseg.

    Importing this module has registered ours already.

    Args:
        init_default_scope: Whether bare type names are looked up in the scope ``mmdscnet`` from
            now on, if no scope is chosen yet.
    """
    from mmseg.utils import register_all_modules as register_mmseg

    register_mmseg(init_default_scope=False)
    if init_default_scope and DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('mmdscnet', scope_name='mmdscnet')
