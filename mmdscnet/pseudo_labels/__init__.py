"""Pseudo labels on disk."""

from mmdscnet.pseudo_labels.palette_png import read_label_map, write_palette_png

__all__ = ['read_label_map', 'write_palette_png']
