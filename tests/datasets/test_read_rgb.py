import numpy as np
import pytest
from PIL import Image

from mmdscnet.datasets.read_rgb import read_rgb


def test_image_is_read_as_it_is_shown(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / 'a.jpg', exif=exif, quality=100)
    image = read_rgb(tmp_path / 'a.jpg')
    assert image.shape == (24, 16, 3)
    assert image.dtype == np.uint8
    # The top is on the right, in the order red, green, blue.
    assert image[12, 12].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert image[12, 4].tolist() == pytest.approx([0, 0, 0], abs=4)
    # As a CRF in compiled code wants it.
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK'])
def test_image_of_any_mode_becomes_rgb(tmp_path, mode):
    name = 'a.jpg' if mode == 'CMYK' else 'a.png'
    Image.new('RGB', (5, 3), (200, 200, 200)).convert(mode).save(tmp_path / name)
    image = read_rgb(tmp_path / name)
    assert image.shape == (3, 5, 3)
    assert np.abs(image.astype(int) - 200).max() <= 4


def test_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'image .*a\.jpg is missing: give the folder'):
        read_rgb(tmp_path / 'a.jpg')
