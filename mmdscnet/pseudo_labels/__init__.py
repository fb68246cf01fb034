"""Pseudo labels on disk."""

from mmdscnet.pseudo_labels.palette_png import write_palette_png

__all__ = ['write_palette_png']
