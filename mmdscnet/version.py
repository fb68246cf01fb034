"""The version of the package, and the module by which mmengine finds the package on disk."""

__version__ = '0.1.0'
