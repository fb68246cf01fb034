"""Checks of image and mask files."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdscnet.datasets.file_checks import (
    check_all,
    check_image_complete,
    check_image_ids,
    check_mask,
    read_image_size,
    read_mask_ids,
)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp'])
def test_complete_image_passes_and_its_size_is_height_width(tmp_path, write_jpeg, suffix):
    path = tmp_path / f'image{suffix}'
    write_jpeg(path, (24, 32)) if suffix == '.jpg' else Image.new('RGB', (32, 24)).save(path)
    assert read_image_size(path) == (24, 32)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp'])
def test_truncated_image_error_names_the_file(tmp_path, write_jpeg, suffix):
    path = tmp_path / f'image{suffix}'
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f'image{suffix} is truncated or no image.*Copy the file'):
        read_image_size(path)


def test_bytes_after_the_end_marker_are_allowed(tmp_path, write_jpeg):
    path = tmp_path / 'image.jpg'
    write_jpeg(path)
    path.write_bytes(path.read_bytes() + b'camera maker notes')
    assert read_image_size(path) == (24, 32)


@pytest.mark.parametrize('content', [b'', b'no image', b'\xff\xd8\xff\xd9'])
def test_file_that_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / 'image.jpg'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'image\.jpg (is truncated|has no readable header)'):
        read_image_size(path)


def test_bytes_in_memory_are_checked_as_files_are():
    with pytest.raises(ValueError, match='here is truncated or no image'):
        check_image_complete(io.BytesIO(b'\xff\xd8 half'), 'here')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_size_follows_the_exif_rotation_as_opencv_does(tmp_path, orientation):
    path = tmp_path / 'image.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (32, 24)).save(path, exif=exif)
    assert read_image_size(path) == cv2.imread(str(path)).shape[:2]


def test_damaged_exif_is_ignored(tmp_path):
    path = tmp_path / 'image.jpg'
    Image.new('RGB', (32, 24)).save(path, exif=b'Exif\x00\x00garbage that is no TIFF')
    assert read_image_size(path) == (24, 32)


def test_mask_ids_equal_unique_values(tmp_path, write_mask):
    values = np.random.default_rng(0).choice([0, 3, 7, 255], (24, 32))
    write_mask(tmp_path / 'mask.png', values)
    ids, size = read_mask_ids(tmp_path / 'mask.png')
    assert ids.tolist() == np.unique(values).tolist()
    assert size == (24, 32)


def test_colour_mask_is_refused(tmp_path):
    Image.new('RGB', (32, 24)).save(tmp_path / 'mask.png')
    with pytest.raises(ValueError, match=r"mask\.png has mode 'RGB'.*Convert colours to ids"):
        read_mask_ids(tmp_path / 'mask.png')


def test_truncated_mask_is_refused(tmp_path, write_mask):
    path = tmp_path / 'mask.png'
    write_mask(path, np.random.default_rng(0).integers(0, 9, (24, 32)))
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(ValueError, match=r'mask\.png is truncated or no image'):
        read_mask_ids(path)


def test_mask_of_another_size_error_names_both(tmp_path, write_mask):
    write_mask(tmp_path / 'mask.png', np.zeros((24, 30)))
    with pytest.raises(ValueError, match=r'mask\.png is 24x30 .*image\.jpg is 24x32'):
        check_mask(tmp_path / 'mask.png', 'image.jpg', (24, 32), {0, 1, 255})


def test_mask_ids_outside_the_classes_are_named(tmp_path, write_mask):
    write_mask(tmp_path / 'mask.png', np.full((24, 32), 7))
    with pytest.raises(ValueError, match=r'mask\.png holds the ids \[7\].*\[0, 1, 255\]'):
        check_mask(tmp_path / 'mask.png', 'image.jpg', (24, 32), {0, 1, 255})


def test_missing_mask_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'mask\.png'):
        read_mask_ids(tmp_path / 'mask.png')


def test_check_all_reports_the_first_failure_in_order_and_the_number():
    def check(number: int) -> None:
        if number % 2:
            raise ValueError(f'{number} is odd.')

    with pytest.raises(ValueError, match=r'^3 is odd\. \(2 more files have a fault\.\)$'):
        check_all(check, [2, 3, 4, 5, 7])
    assert check_all(check, [2, 4]) is None


def test_check_all_does_not_hide_other_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r'gone\.jpg'):
        check_all(read_image_size, [tmp_path / 'gone.jpg'])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    'line',
    ['/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png', '2007_000032 -1', '/a'],
)
def test_split_line_that_is_no_id_is_named(line):
    with pytest.raises(ValueError, match=r'split file all\.txt has the line .*no image id\. Keep'):
        check_image_ids(['2007_000033', line], 'all.txt')


def test_ids_may_name_a_folder():
    check_image_ids(['2007_000032', 'more/a'], 'all.txt')
