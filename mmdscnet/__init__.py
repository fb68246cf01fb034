"""DSCNet for MMSegmentation: dense supervision for segmentation from image-level labels.

Importing the package mends the stack (:mod:`mmdscnet.stack`) and registers every class in
MMSegmentation's registries and the checkpoint addresses ``mmdscnet://`` (:mod:`mmdscnet.zoo`). A
config of any project needs one line for it::

    custom_imports = dict(imports=['mmdscnet'])
"""

from mmdscnet import stack
from mmdscnet.version import __version__

# The stack must be mended before the first import of mmseg, which every import below leads to.
stack.prepare()

from mmdscnet import (  # noqa: E402
    datasets,
    engine,
    evaluation,
    functional,
    models,
    pseudo_labels,
    registry,
    visualization,
    zoo,
)

__all__ = [
    '__version__',
    'datasets',
    'engine',
    'evaluation',
    'functional',
    'models',
    'pseudo_labels',
    'registry',
    'stack',
    'visualization',
    'zoo',
]
