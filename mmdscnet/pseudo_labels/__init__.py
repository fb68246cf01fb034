"""Pseudo labels on disk, and what sharpens them on the way."""

from mmdscnet.pseudo_labels import dense_crf
from mmdscnet.pseudo_labels.affinity_labels import label_for_affinity
from mmdscnet.pseudo_labels.cam_file import CAMs, read_cams, write_cams
from mmdscnet.pseudo_labels.dense_crf import DenseCRF, read_dense_crf, require_dense_crf
from mmdscnet.pseudo_labels.export_folder import SETTINGS_FILE, ExportFolder, hash_file
from mmdscnet.pseudo_labels.label_map_files import find_label_maps, open_label_map
from mmdscnet.pseudo_labels.labeler import PseudoLabeler, Walk
from mmdscnet.pseudo_labels.palette_png import write_palette_png
from mmdscnet.pseudo_labels.store import PseudoLabelStore, StoreDraft, StoreVersion, read_version
from mmdscnet.pseudo_labels.voc_archive import write_voc_archive

__all__ = [
    'CAMs',
    'SETTINGS_FILE',
    'DenseCRF',
    'ExportFolder',
    'PseudoLabelStore',
    'PseudoLabeler',
    'StoreDraft',
    'StoreVersion',
    'Walk',
    'dense_crf',
    'hash_file',
    'label_for_affinity',
    'find_label_maps',
    'open_label_map',
    'read_cams',
    'read_dense_crf',
    'read_version',
    'require_dense_crf',
    'write_cams',
    'write_palette_png',
    'write_voc_archive',
]
