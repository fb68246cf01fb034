import numpy as np
import pytest

from mmdscnet.visualization.grid_row import check_row


def test_row_that_fits_passes(make_row):
    check_row(make_row(groups=np.zeros((30, 40), np.uint8)), 3)
    check_row(make_row(refined_cams=None, truth=None), 3)
    check_row(make_row(truth=np.full((30, 40), 255)), 3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'image': np.zeros((30, 40), np.uint8)}, r'cow\.jpg: image is uint8 .*RGB'),
        ({'image': np.zeros((30, 40, 3))}, r'cow\.jpg: image is float64'),
        ({'cams': np.zeros((3, 30, 40))}, r'cow\.jpg: cams has shape .* not \(2, 30, 40\)'),
        ({'refined_cams': np.zeros((2, 3, 4))}, r'cow\.jpg: refined_cams has shape'),
        ({'cams': np.full((2, 30, 40), 7.0)}, r'cow\.jpg: cams runs from 7 to 7.*normalise'),
        ({'cams': np.full((2, 30, 40), np.nan)}, r'cow\.jpg: cams runs from nan'),
        ({'groups': np.zeros((3, 4), np.uint8)}, r'cow\.jpg: groups has shape \(3, 4\).*resize'),
        ({'groups': np.full((30, 40), 9)}, r'cow\.jpg: groups has ids \[9\]'),
        ({'truth': np.zeros((3, 4), np.uint8)}, r'cow\.jpg: truth has shape \(3, 4\)'),
        ({'pseudo_label': np.full((30, 40), 3)}, r'cow\.jpg: pseudo_label has ids \[3\]'),
        ({'truth': np.full((30, 40), -1)}, r'cow\.jpg: truth has ids \[-1\]'),
    ],
)
def test_map_that_does_not_fit_is_named(make_row, changes, message):
    with pytest.raises(ValueError, match=message):
        check_row(make_row(**changes), 3)
