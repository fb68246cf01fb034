"""Loading with checks and packing of image-level labels, alone and in stock pipelines."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS
from PIL import Image

from mmdscnet.datasets import VOCLayoutDataset
from mmdscnet.pseudo_labels import write_cams

LABEL = np.array([1, 0], np.float32)


@pytest.fixture(autouse=True)
def default_scope():
    """Build bare type names as a config with ``default_scope = 'mmseg'`` does."""
    init_default_scope('mmseg')


@pytest.fixture
def info(voc_folder):
    """Data info of an image without mask, as the data set hands it to a pipeline."""
    return {
        'img_path': str(voc_folder / 'JPEGImages/a_1.jpg'),
        'seg_map_path': str(voc_folder / 'SegmentationClass/a_1.png'),
        'label_map': None,
        'reduce_zero_label': False,
        'seg_fields': [],
        'gt_image_label': LABEL,
    }


@pytest.fixture
def cam_info(info, tmp_path):
    """Data info of an image whose CAMs of both classes were exported."""
    write_cams(tmp_path / 'cams/a_1.npz', np.random.rand(2, 24, 32), np.array([1, 2]))
    return dict(info, cam_path=str(tmp_path / 'cams/a_1.npz'))


def _build(*names):
    return Compose([TRANSFORMS.build(n if isinstance(n, dict) else {'type': n}) for n in names])


def test_image_equals_the_stock_transform(info):
    ours = _build('LoadCheckedImage')(dict(info))
    stock = _build('LoadImageFromFile')(dict(info))
    assert (ours['img'] == stock['img']).all()
    assert (ours['img'] == cv2.imread(info['img_path'])).all()
    assert ours['img_shape'] == ours['ori_shape'] == stock['ori_shape'] == (24, 32)
    assert ours.keys() == stock.keys()


def test_image_as_float(info):
    image = _build({'type': 'LoadCheckedImage', 'to_float32': True})(info)['img']
    assert image.dtype == np.float32
    assert image.max() > 1


def test_truncated_jpeg_error_names_the_file(info, voc_folder):
    path = voc_folder / 'JPEGImages/a_1.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    assert cv2.imread(str(path)) is not None, 'OpenCV alone says nothing'
    with pytest.raises(ValueError, match=r'a_1\.jpg is truncated.*Copy the file again'):
        _build('LoadCheckedImage')(info)


def test_jpeg_with_bytes_after_its_end_is_loaded(info, voc_folder):
    path = voc_folder / 'JPEGImages/a_1.jpg'
    path.write_bytes(path.read_bytes() + b'notes')
    assert _build('LoadCheckedImage')(info)['img'].shape == (24, 32, 3)


def test_missing_image_error_names_the_file(info):
    info['img_path'] += '.gone'
    with pytest.raises(FileNotFoundError, match=r'a_1\.jpg\.gone is missing. Add the file'):
        _build('LoadCheckedImage')(info)


@pytest.mark.parametrize('content', [b'', b'text', b'\xff\xd8 nothing \xff\xd9'])
def test_file_that_is_no_image_is_named(info, voc_folder, content):
    (voc_folder / 'JPEGImages/a_1.jpg').write_bytes(content)
    with pytest.raises(ValueError, match=r'a_1\.jpg (is truncated or no image|cannot be decoded)'):
        _build('LoadCheckedImage')(info)


def test_mask_keeps_palette_indices(info):
    results = _build('LoadCheckedImage', 'LoadCheckedMask')(info)
    expected = np.asarray(Image.open(info['seg_map_path']))
    assert (results['gt_seg_map'] == expected).all()
    assert results['seg_fields'] == ['gt_seg_map']


def test_mask_of_another_size_error_names_both(info, voc_folder, write_mask):
    write_mask(voc_folder / 'SegmentationClass/a_1.png', np.zeros((24, 30)))
    with pytest.raises(ValueError, match=r'a_1\.png .*\(24, 30\).*a_1\.jpg has \(24, 32\)'):
        _build('LoadCheckedImage', 'LoadCheckedMask')(info)


def test_mask_may_follow_a_resize_of_the_image(info):
    resize = {'type': 'Resize', 'scale': (64, 48)}
    results = _build('LoadCheckedImage', resize, 'LoadCheckedMask')(info)
    assert results['gt_seg_map'].shape == (24, 32)


def test_missing_mask_error_names_the_file(info):
    info['seg_map_path'] += '.gone'
    with pytest.raises(FileNotFoundError, match=r'a_1\.png\.gone is missing.*needs no masks'):
        _build('LoadCheckedImage', 'LoadCheckedMask')(info)


def test_image_without_a_named_mask_passes_through(info):
    del info['seg_map_path']
    results = _build('LoadCheckedImage', 'LoadCheckedMask')(info)
    assert 'gt_seg_map' not in results


def test_label_is_packed_into_the_metainfo(info):
    sample = _build('LoadCheckedImage', 'PackWSSSInputs')(info)['data_samples']
    assert (sample.metainfo['gt_image_label'] == LABEL).all()
    assert (sample.gt_image_label == LABEL).all()
    assert sample.img_path == info['img_path']


def test_sample_without_label_packs_as_stock_does(info):
    del info['gt_image_label']
    ours = _build('LoadCheckedImage', 'LoadCheckedMask', 'PackWSSSInputs')(
        dict(info, seg_fields=[])
    )
    stock = _build('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')(dict(info))
    assert (ours['inputs'] == stock['inputs']).all()
    ours, stock = ours['data_samples'], stock['data_samples']
    assert ours.metainfo.keys() == stock.metainfo.keys()
    assert (ours.gt_sem_seg.data == stock.gt_sem_seg.data).all()


def test_meta_keys_reach_the_stock_transform(info):
    pack = {'type': 'PackWSSSInputs', 'meta_keys': ('ori_shape',)}
    sample = _build('LoadCheckedImage', pack)(info)['data_samples']
    assert set(sample.metainfo_keys()) == {'ori_shape', 'gt_image_label'}


@pytest.mark.parametrize('masks', [(), ('LoadCheckedMask',)], ids=['no_masks', 'masks'])
def test_stock_training_pipeline_runs(info, masks):
    pipeline = _build(
        'LoadCheckedImage',
        *masks,
        {'type': 'RandomResize', 'scale': (64, 48), 'ratio_range': (0.5, 2.0), 'keep_ratio': True},
        {'type': 'RandomCrop', 'crop_size': (20, 20)},
        {'type': 'RandomFlip', 'prob': 0.5},
        'PhotoMetricDistortion',
        'PackWSSSInputs',
    )
    for _ in range(8):
        packed = pipeline(dict(info, seg_fields=[]))
        sample = packed['data_samples']
        assert packed['inputs'].shape == (3, 20, 20)
        assert (sample.gt_image_label == LABEL).all()
        assert ('gt_sem_seg' in sample) == bool(masks)


def test_stock_test_time_augmentation_runs_without_masks(info):
    pipeline = _build(
        'LoadCheckedImage',
        {
            'type': 'TestTimeAug',
            'transforms': [
                [
                    {'type': 'Resize', 'scale_factor': factor, 'keep_ratio': True}
                    for factor in (0.5, 1.0)
                ],
                [{'type': 'RandomFlip', 'prob': p, 'direction': 'horizontal'} for p in (0.0, 1.0)],
                [{'type': 'PackWSSSInputs'}],
            ],
        },
    )
    packed = pipeline(info)
    assert [tuple(x.shape) for x in packed['inputs']] == [(3, 12, 16)] * 2 + [(3, 24, 32)] * 2
    assert [s.flip for s in packed['data_samples']] == [False, True, False, True]
    assert all((s.gt_image_label == LABEL).all() for s in packed['data_samples'])


def test_data_set_feeds_a_data_loader_without_mask_folder(voc_folder):
    (voc_folder / 'SegmentationClass').rename(voc_folder / 'elsewhere')
    dataset = VOCLayoutDataset(
        data_root=str(voc_folder),
        ann_file='ImageSets/train.txt',
        image_labels='image_labels.json',
        pipeline=[{'type': 'LoadCheckedImage'}, {'type': 'PackWSSSInputs'}],
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=3, num_workers=1, collate_fn=lambda samples: samples
    )
    (batch,) = list(loader)
    labels = [item['data_samples'].gt_image_label.tolist() for item in batch]
    assert labels == [[1, 0], [1, 1], [0, 0]]


def test_cams_are_those_of_the_file(cam_info, tmp_path):
    cams = np.linspace(0, 1, 24 * 32).reshape(1, 24, 32)
    write_cams(tmp_path / 'cams/a_1.npz', cams, np.array([2]))
    results = _build('LoadCheckedImage', 'LoadCAMs')(cam_info)
    assert results['cams'].dtype == np.float16
    assert results['cam_classes'].dtype == np.uint8
    assert results['cam_classes'].tolist() == [2]
    np.testing.assert_array_equal(results['cams'], cams.astype(np.float16))


def test_cams_may_be_loaded_after_a_resize_of_the_image(cam_info):
    resize = {'type': 'Resize', 'scale': (64, 48)}
    results = _build('LoadCheckedImage', resize, 'LoadCAMs')(cam_info)
    assert results['img'].shape == (48, 64, 3)
    assert results['cams'].shape == (2, 24, 32)


def test_image_without_any_class_has_no_cams(cam_info, tmp_path):
    write_cams(tmp_path / 'cams/a_1.npz', np.zeros((0, 24, 32)), np.array([], int))
    results = _build('LoadCheckedImage', 'LoadCAMs', 'PackWSSSInputs')(cam_info)
    assert results['data_samples'].cams.shape == (0, 24, 32)
    assert results['data_samples'].cam_classes.shape == (0,)


def test_missing_cams_error_names_the_file(cam_info):
    cam_info['cam_path'] += '.gone'
    with pytest.raises(FileNotFoundError, match=r'a_1\.npz\.gone .*export the CAMs first'):
        _build('LoadCheckedImage', 'LoadCAMs')(cam_info)


def test_data_set_without_cams_error_says_where_to_name_them(info):
    with pytest.raises(ValueError, match=r'a_1\.jpg comes with no cam_path: .*cam_folder=\.\.\.'):
        _build('LoadCheckedImage', 'LoadCAMs')(info)


@pytest.mark.parametrize('size', [(32, 24), (12, 16)])
def test_cams_of_another_size_error_names_both(cam_info, tmp_path, size):
    write_cams(tmp_path / 'cams/a_1.npz', np.zeros((2, *size)), np.array([1, 2]))
    message = rf'a_1\.npz has CAMs of \({size[0]}, {size[1]}\).*a_1\.jpg has \(24, 32\)'
    with pytest.raises(ValueError, match=message):
        _build('LoadCheckedImage', 'LoadCAMs')(cam_info)


def test_cams_are_packed_into_the_metainfo(cam_info):
    packed = _build('LoadCheckedImage', 'LoadCAMs', 'PackWSSSInputs')(dict(cam_info))
    loaded = _build('LoadCheckedImage', 'LoadCAMs')(dict(cam_info))
    metainfo = packed['data_samples'].metainfo
    np.testing.assert_array_equal(metainfo['cams'], loaded['cams'])
    np.testing.assert_array_equal(metainfo['cam_classes'], loaded['cam_classes'])
    assert (metainfo['gt_image_label'] == LABEL).all()
    assert packed['inputs'].shape == (3, 24, 32)


def test_sample_without_cams_is_packed_without_them(info):
    sample = _build('LoadCheckedImage', 'PackWSSSInputs')(info)['data_samples']
    assert not {'cams', 'cam_classes'} & set(sample.metainfo_keys())


def test_data_set_with_a_cam_folder_feeds_the_loader_of_cams(voc_folder, tmp_path):
    ids = (voc_folder / 'ImageSets/train.txt').read_text().split()
    for index, image_id in enumerate(ids):
        cams = np.full((index, 24, 32), index / 4)
        write_cams(tmp_path / f'cams/{image_id}.npz', cams, np.arange(1, index + 1))
    dataset = VOCLayoutDataset(
        data_root=str(voc_folder),
        ann_file='ImageSets/train.txt',
        image_labels='image_labels.json',
        cam_folder=str(tmp_path / 'cams'),
        pipeline=[{'type': name} for name in ('LoadCheckedImage', 'LoadCAMs', 'PackWSSSInputs')],
    )
    samples = [item['data_samples'] for item in dataset]
    assert [sample.cam_classes.tolist() for sample in samples] == [[], [1], [1, 2]]
    assert [sample.cams.sum() / (24 * 32) for sample in samples] == [0, 0.25, 1.0]
