"""Colour jitter against Pillow, and what a random crop or canvas does to image and mask."""

import colorsys

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms.utils import cache_random_params
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS
from PIL import Image, ImageEnhance

from mmdscnet.datasets.augmentation import ADJUSTMENTS

MEAN_RGB = [123.675, 116.28, 103.53]
STD_RGB = [58.395, 57.12, 57.375]
MEAN_BGR = MEAN_RGB[::-1]


@pytest.fixture(autouse=True)
def default_scope():
    """Build bare type names as a config with ``default_scope = 'mmseg'`` does."""
    init_default_scope('mmseg')


@pytest.fixture
def image():
    """Smooth colours of every hue with some noise, BGR, shape (40, 60, 3)."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 2 * np.pi, 60)
    waves = 127 + 100 * np.stack([np.sin(ramp + shift) for shift in (0, 2, 4)], axis=-1)
    return (waves[None] + rng.uniform(-20, 20, (40, 60, 3))).clip(0, 255).astype(np.uint8)


def _jitter(**kwargs):
    nothing = {'brightness': 0, 'contrast': 0, 'saturation': 0, 'hue': 0}
    return TRANSFORMS.build({'type': 'RandomColorJitter', **nothing, **kwargs})


def _crop(crop_size, pad_value=MEAN_BGR, **kwargs):
    kwargs |= {'crop_size': crop_size, 'pad_value': pad_value}
    return TRANSFORMS.build({'type': 'RandomCropOrPad', **kwargs})


def _fix_draws(monkeypatch, end):
    """Let every uniform number be the lower (0) or the upper (1) end of its range."""
    monkeypatch.setattr(np.random, 'uniform', lambda *ends: ends[end])


def _pillow_hue(picture, shift):
    hue, saturation, value = picture.convert('HSV').split()
    turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


PILLOW = {
    'brightness': lambda picture, x: ImageEnhance.Brightness(picture).enhance(x),
    'contrast': lambda picture, x: ImageEnhance.Contrast(picture).enhance(x),
    'saturation': lambda picture, x: ImageEnhance.Color(picture).enhance(x),
}


@pytest.mark.parametrize('amount', [0, 0.7, 1.3, 2])
@pytest.mark.parametrize('name', list(PILLOW))
def test_blends_are_pillows_but_for_rounding(image, name, amount):
    ours = ADJUSTMENTS[name](image, amount)
    assert ours.dtype == np.uint8
    expected = np.asarray(PILLOW[name](Image.fromarray(image[..., ::-1]), amount))[..., ::-1]
    assert np.abs(ours.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('shift', [-0.5, -0.1, 0, 0.1, 0.5])
def test_hue_turns_exactly_but_for_rounding(image, shift):
    # One of the 256 hues of a byte is up to 6 grey levels wide; Pillow's error is larger still.
    exact = np.zeros(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place][::-1] / 255)
        exact[place] = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    error = np.abs(ADJUSTMENTS['hue'](image, shift) - 255 * exact[..., ::-1])
    assert error.max() < 9
    pillow = np.asarray(_pillow_hue(Image.fromarray(image[..., ::-1]), shift))
    assert error.mean() <= np.abs(pillow - 255 * exact).mean()


@pytest.mark.parametrize(('end', 'sign'), [(0, -1), (1, 1)])
@pytest.mark.parametrize(
    ('name', 'measure'),
    [
        ('brightness', np.mean),
        ('contrast', np.std),
        ('saturation', lambda pixels: np.ptp(pixels.astype(int), axis=2).mean()),
    ],
)
def test_factor_above_one_increases_the_property(image, monkeypatch, name, measure, end, sign):
    _fix_draws(monkeypatch, end)
    changed = _jitter(**{name: 0.3})({'img': image})['img']
    assert sign * (measure(changed) - measure(image)) > 1


@pytest.mark.parametrize(('end', 'channel'), [(1, 1), (0, 0)])
def test_positive_hue_shift_turns_red_to_green(monkeypatch, end, channel):
    _fix_draws(monkeypatch, end)
    red = np.full((2, 2, 3), (0, 0, 255), np.uint8)
    changed = _jitter(hue=1 / 3)({'img': red})['img'][0, 0]
    assert changed.argmax() == channel
    assert changed.max() == 255
    assert np.delete(changed, channel).max() < 12


def test_contrast_zero_is_the_grey_of_the_itu_weights(monkeypatch):
    _fix_draws(monkeypatch, 0)
    blue = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    assert (_jitter(contrast=1)({'img': blue})['img'] == round(0.114 * 200)).all()


def test_without_ranges_nothing_changes(image):
    assert np.array_equal(_jitter()({'img': image.copy()})['img'], image)


def test_black_and_white_survive_every_jitter():
    jitter = TRANSFORMS.build({'type': 'RandomColorJitter'})
    for value in (0, 255):
        pixels = np.full((3, 3, 3), value, np.uint8)
        changed = [jitter({'img': pixels})['img'] for _ in range(20)]
        assert {c.dtype for c in changed} == {np.dtype(np.uint8)}
        assert all(np.ptp(c) == 0 for c in changed)
        assert min(c.min() for c in changed) >= min(value, 255 * 0.7 - 1)


def test_range_above_one_stops_at_zero(image, monkeypatch):
    _fix_draws(monkeypatch, 0)
    assert not _jitter(brightness=2)({'img': image})['img'].any()


def test_same_seed_gives_the_same_jitter(image):
    jitter = TRANSFORMS.build({'type': 'RandomColorJitter'})

    def run(seed):
        np.random.seed(seed)
        return jitter({'img': image})['img']

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_draws_fill_the_ranges_and_every_order_comes():
    jitter = TRANSFORMS.build({'type': 'RandomColorJitter'})
    draws = [jitter._draw() for _ in range(600)]
    assert len({tuple(name for name, _ in draw) for draw in draws}) == 24
    for name, (low, high) in jitter.ranges.items():
        amounts = [dict(draw)[name] for draw in draws]
        assert low <= min(amounts) < low + 0.02 * (high - low)
        assert high >= max(amounts) > high - 0.02 * (high - low)
    assert jitter.ranges == {
        'brightness': (0.7, 1.3),
        'contrast': (0.7, 1.3),
        'saturation': (0.7, 1.3),
        'hue': (-0.1, 0.1),
    }


def test_jitter_obeys_neither_mmcvs_backend_nor_the_layout_of_the_array(image):
    jitter = TRANSFORMS.build({'type': 'RandomColorJitter'})
    with cache_random_params(jitter):
        expected = jitter({'img': image})['img']
        mmcv.use_backend('pillow')
        try:
            flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
            assert np.array_equal(jitter({'img': flipped})['img'], expected)
        finally:
            mmcv.use_backend('cv2')


def test_jitter_leaves_its_input_array_alone(image):
    before = image.copy()
    TRANSFORMS.build({'type': 'RandomColorJitter'})({'img': image})
    assert np.array_equal(image, before)


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation', 'hue'])
@pytest.mark.parametrize('reach', [-0.1, float('nan'), float('inf')])
def test_impossible_range_is_named(name, reach):
    with pytest.raises(ValueError, match=rf'{name}={reach} must be'):
        _jitter(**{name: reach})


def test_hue_range_beyond_half_the_circle_is_refused():
    with pytest.raises(ValueError, match=r'hue=0\.6 must be in \[0, 0\.5\]'):
        _jitter(hue=0.6)


def test_jitter_of_floats_is_refused(image):
    with pytest.raises(TypeError, match=r'img is float32.*needs uint8: place it before'):
        _jitter(hue=0.1)({'img': image.astype(np.float32)})


def _numbered(height, width):
    """Image and mask of which every pixel tells its own place."""
    mask = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    image = np.repeat(mask[..., None], 3, axis=2)
    return {'img': image, 'gt_seg_map': mask, 'seg_fields': ['gt_seg_map']}


def test_padding_is_exactly_zero_after_normalisation():
    pipeline = Compose([_crop((16, 20)), TRANSFORMS.build({'type': 'PackSegInputs'})])
    preprocessor = MODELS.build(
        {
            'type': 'SegDataPreProcessor',
            'mean': MEAN_RGB,
            'std': STD_RGB,
            'bgr_to_rgb': True,
            'size': (16, 20),
        }
    )
    packed = pipeline(_numbered(7, 9) | {'ori_shape': (7, 9)})
    batch = {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}
    batch = preprocessor(batch, training=True)
    padded = batch['data_samples'][0].gt_sem_seg.data[0] == 255
    assert padded.sum() == 16 * 20 - 7 * 9
    assert (batch['inputs'][0][:, padded] == 0).all()
    # The content is what the preprocessor alone makes of it: red first, mean and deviation of red.
    red = batch['inputs'][0][0][~padded].reshape(7, 9)
    values = torch.arange(63.0).reshape(7, 9)
    torch.testing.assert_close(red, (values - MEAN_RGB[0]) / STD_RGB[0])


@pytest.mark.parametrize('size', [(3, 4), (9, 4), (3, 12), (9, 12), (6, 8)])
def test_image_and_mask_move_together_and_keep_their_content(size):
    crop = _crop((6, 8), pad_value=[1000.0, 2000.0, 3000.0])
    kept = min(size[0], 6) * min(size[1], 8)
    for _ in range(20):
        results = crop(_numbered(*size))
        image, mask = results['img'], results['gt_seg_map']
        assert image.dtype == np.float32
        assert image.shape == (6, 8, 3)
        assert mask.dtype == np.uint8
        assert mask.shape == results['img_shape'] == results['pad_shape'] == (6, 8)
        inside = mask != 255
        assert inside.sum() == kept
        assert (image[inside] == mask[inside][:, None]).all()
        assert (image[~inside] == [1000, 2000, 3000]).all()
        rows, columns = np.nonzero(inside)
        window = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(int)
        assert window.size == kept
        assert (np.diff(window, axis=1) == 1).all()
        assert (np.diff(window, axis=0) == size[1]).all()


@pytest.mark.parametrize('size', [(5, 6), (9, 6), (5, 10), (9, 10)])
def test_every_offset_is_reached_equally_often(size):
    crop = _crop((7, 8))
    places = [crop(_numbered(*size))['gt_seg_map'].tobytes() for _ in range(900)]
    counts = [places.count(place) for place in set(places)]
    assert len(counts) == 9
    assert min(counts) > 60


def test_image_of_the_size_of_the_canvas_stays():
    results = _crop((6, 8))(_numbered(6, 8))
    assert np.array_equal(results['gt_seg_map'], _numbered(6, 8)['gt_seg_map'])


def test_image_without_mask_and_another_void_id():
    image = {'img': np.zeros((2, 2, 3), np.uint8)}
    assert _crop((4, 4))(image)['img'].shape == (4, 4, 3)
    mask = _crop((4, 4), seg_pad_value=0)(_numbered(2, 2) | {'gt_seg_map': np.ones((2, 2))})
    assert mask['gt_seg_map'].sum() == 4


def test_same_seed_gives_the_same_place():
    crop = _crop((5, 20))

    def run(seed):
        np.random.seed(seed)
        return crop(_numbered(9, 9))['img']

    assert np.array_equal(run(1), run(1))
    assert any(not np.array_equal(run(1), run(seed)) for seed in range(2, 6))


def test_shared_random_numbers_place_two_images_alike():
    crop = _crop((5, 20))
    with cache_random_params(crop):
        first, second = crop(_numbered(9, 9)), crop(_numbered(9, 9))
    assert np.array_equal(first['img'], second['img'])


@pytest.mark.parametrize('size', [448, (448,), (0, 8), (8, -1), (8.0, 8), (True, 8), '88', None])
def test_crop_size_that_is_no_size_is_named(size):
    with pytest.raises(ValueError, match=r'crop_size=.* must be two positive integers'):
        _crop(size)


@pytest.mark.parametrize('value', [0, [0, float('nan'), 0], [[0, 0, 0]]])
def test_pad_value_that_is_no_colour_is_named(value):
    with pytest.raises(ValueError, match=r'pad_value=.* must be a list of one finite number'):
        _crop((4, 4), pad_value=value)


@pytest.mark.parametrize('shape', [(4, 4), (4, 4, 1)])
def test_pad_value_of_other_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r'pad_value=.* has 3 values but the image has the shape'):
        _crop((4, 4))({'img': np.zeros(shape, np.uint8)})


def test_mask_of_another_size_is_refused():
    results = _numbered(4, 4) | {'gt_seg_map': np.zeros((4, 5))}
    with pytest.raises(ValueError, match=r'gt_seg_map has the shape \(4, 5\) but the image \(4, 4'):
        _crop((4, 4))(results)
