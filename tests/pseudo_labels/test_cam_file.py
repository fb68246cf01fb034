import os

import numpy as np
import pytest

from mmdscnet.pseudo_labels.cam_file import read_cams, write_cams

CAMS = np.linspace(0, 1, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
IDS = np.array([3, 20])


def test_cams_survive_the_round_trip_in_half_precision(tmp_path):
    write_cams(tmp_path / 'sub' / 'a.npz', CAMS, IDS)
    read = read_cams(tmp_path / 'sub' / 'a.npz')
    assert read.cams.dtype == np.float16
    assert read.class_ids.dtype == np.uint8
    np.testing.assert_array_equal(read.class_ids, IDS)
    np.testing.assert_array_equal(read.cams, CAMS.astype(np.float16))
    np.testing.assert_allclose(read.cams, CAMS, atol=0.00025)
    assert os.listdir(tmp_path / 'sub') == ['a.npz']


def test_image_with_no_class_keeps_its_size(tmp_path):
    write_cams(tmp_path / 'a.npz', np.zeros((0, 3, 4)), np.array([]))
    read = read_cams(tmp_path / 'a.npz')
    assert read.cams.shape == (0, 3, 4)
    assert read.class_ids.shape == (0,)


def test_file_takes_two_bytes_a_pixel_and_class(tmp_path):
    write_cams(tmp_path / 'a.npz', np.zeros((2, 375, 500), np.float32), IDS)
    size = (tmp_path / 'a.npz').stat().st_size
    assert 0 < size - 2 * 2 * 375 * 500 < 1000


@pytest.mark.parametrize('value', [np.nan, -0.01, 1.01, np.inf])
def test_value_outside_the_range_is_refused_and_nothing_written(tmp_path, value):
    cams = CAMS.copy()
    cams[1, 1, 1] = value
    with pytest.raises(ValueError, match=r'a\.npz: cams run from .*not within \[0, 1\]'):
        write_cams(tmp_path / 'a.npz', cams, IDS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('ids', [[0, 1], [1, 255], [2, 2], [-1, 1], [1, 300]])
def test_ids_that_have_no_cam_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match=r'a\.npz: class_ids=\[.*all different and in 1\.\.254'):
        write_cams(tmp_path / 'a.npz', CAMS, np.array(ids))


@pytest.mark.parametrize(
    ('cams', 'ids'),
    [
        (CAMS, np.array([1])),
        (CAMS, np.array([[1, 2]])),
        (CAMS[0], IDS),
        (CAMS[None], IDS),
        (CAMS[:, :0], IDS),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path, cams, ids):
    with pytest.raises(ValueError, match=r'a\.npz: cams of shape .*do not fit: \(k, H, W\)'):
        write_cams(tmp_path / 'a.npz', cams, ids)


def test_other_types_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r'a\.npz: cams is int64, not floating'):
        write_cams(tmp_path / 'a.npz', CAMS.astype(int), IDS)
    with pytest.raises(TypeError, match=r'a\.npz: class_ids is float64, not integer'):
        write_cams(tmp_path / 'a.npz', CAMS, IDS.astype(float))


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'a\.npz does not exist: export the CAMs first'):
        read_cams(tmp_path / 'a.npz')


@pytest.mark.parametrize('share', [0, 0.3, 0.9])
def test_truncated_file_is_named(tmp_path, share):
    path = tmp_path / 'a.npz'
    write_cams(path, CAMS, IDS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r'a\.npz is truncated or no CAM file: .*export'):
        read_cams(path)


def test_damaged_values_are_found(tmp_path):
    path = tmp_path / 'a.npz'
    write_cams(path, CAMS, IDS)
    content = bytearray(path.read_bytes())
    where = content.find(CAMS.astype(np.float16)[0, 1].tobytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.npz is truncated or no CAM file'):
        read_cams(path)


@pytest.mark.parametrize(
    'arrays', [dict(x=CAMS), dict(cams=CAMS), dict(cams=np.array([{}]), class_ids=IDS)]
)
def test_foreign_file_is_named_and_not_unpickled(tmp_path, arrays):
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(ValueError, match=r'a\.npz is truncated or no CAM file'):
        read_cams(tmp_path / 'a.npz')


def test_file_of_a_single_array_is_named(tmp_path):
    np.save(tmp_path / 'a.npy', CAMS)
    with pytest.raises(ValueError, match=r'a\.npy is truncated or no CAM file'):
        read_cams(tmp_path / 'a.npy')


def test_arrays_of_other_types_or_shapes_are_named(tmp_path):
    np.savez(tmp_path / 'a.npz', cams=CAMS, class_ids=IDS)
    with pytest.raises(ValueError, match=r'a\.npz holds float32 and int64, not float16'):
        read_cams(tmp_path / 'a.npz')
    np.savez(tmp_path / 'b.npz', cams=CAMS[0].astype(np.float16), class_ids=IDS.astype(np.uint8))
    with pytest.raises(ValueError, match=r'b\.npz: cams of shape \(3, 4\) .*do not fit'):
        read_cams(tmp_path / 'b.npz')
