"""From trained networks and images to CAMs and pseudo labels, in the order of the data.

:mod:`view_batches` puts images of one size together, :mod:`batch_cams` makes their CAMs,
:mod:`cam_stream` does so for many images on all ranks, :mod:`labeling` labels them into a store.
"""

from mmdscnet.inference.affinity_walk import AffinityWalk
from mmdscnet.inference.batch_cams import check_model, compute_cams
from mmdscnet.inference.cam_stream import ImageCAMs, Throughput, stream_cams
from mmdscnet.inference.image_list import ImageList, add_image_labels, find_images
from mmdscnet.inference.labeling import Finishing, label_images, list_image_ids, open_together
from mmdscnet.inference.view_batches import CAMBatch, Images, Unreadable, collate_views

__all__ = [
    'AffinityWalk',
    'CAMBatch',
    'Finishing',
    'ImageCAMs',
    'ImageList',
    'Images',
    'Throughput',
    'Unreadable',
    'add_image_labels',
    'check_model',
    'collate_views',
    'compute_cams',
    'find_images',
    'label_images',
    'list_image_ids',
    'open_together',
    'stream_cams',
]
