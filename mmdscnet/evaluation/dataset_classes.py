"""The classes of the data set that a metric judges."""

from collections.abc import Mapping, Sequence
from typing import Any


def read_classes(dataset_meta: Mapping[str, Any] | None) -> Sequence[str]:
    """Read the classes that mmengine hands to a metric.

    Args:
        dataset_meta: Meta information of the data set, as ``metric.dataset_meta`` holds it.

    Returns:
        Their names, background first.

    Raises:
        ValueError: If there are none.
    """
    if not dataset_meta or 'classes' not in dataset_meta:
        raise ValueError(
            'dataset_meta has no classes: set metric.dataset_meta = dict(classes=(...)), '
            'background first, or give the data set metainfo=dict(classes=(...))'
        )
    return dataset_meta['classes']
