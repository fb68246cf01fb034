"""Stored pseudo labels: what is read, when another version is, and who reads."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, ConcatDataset, RepeatDataset, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.datasets import MultiImageMixDataset
from mmseg.models import SegDataPreProcessor
from mmseg.registry import TRANSFORMS
from PIL import Image
from torch.utils.data import DataLoader, Subset

from mmdscnet.datasets import (
    LoadStoredLabels,
    StoredVersion,
    VOCLayoutDataset,
    find_stored_labels,
)

IMAGE, STORED, PACK = (
    dict(type=name) for name in ('LoadCheckedImage', 'LoadStoredLabels', 'PackWSSSInputs')
)


@pytest.fixture(autouse=True)
def default_scope():
    """Build bare type names as a config with ``default_scope = 'mmseg'`` does."""
    init_default_scope('mmseg')


@pytest.fixture
def store(tmp_path, write_mask):
    """Write versions 1 and 2 of the label maps of all images: constant maps of 1 and of 2."""
    folder = tmp_path / 'store'
    for version in (1, 2):
        (folder / f'v{version:04d}').mkdir(parents=True)
        for image_id in ('a_1', 'a_2', 'a_3'):
            path = folder / f'v{version:04d}/{image_id}.png'
            write_mask(path, np.full((24, 32), version))
    return folder


@pytest.fixture
def results(voc_folder):
    """What the image loader gives of an image."""
    info = dict(img_path=str(voc_folder / 'JPEGImages/a_1.jpg'), seg_fields=[])
    return TRANSFORMS.build(IMAGE)(info)


@pytest.fixture
def build_dataset(voc_folder):
    """Build a training data set with image-level labels and the given transforms."""

    def build(*transforms):
        return VOCLayoutDataset(
            data_root=str(voc_folder),
            ann_file='ImageSets/train.txt',
            image_labels='image_labels.json',
            pipeline=list(transforms),
        )

    return build


def _reader(folder=None, version=0):
    transform = TRANSFORMS.build(dict(STORED, folder=None if folder is None else str(folder)))
    transform.version.set(version)
    return transform


# ----------------------------------------------------------------------------------- the transform


def test_label_map_of_the_version_becomes_the_mask(results, store, write_mask):
    label_map = np.random.randint(0, 3, (24, 32)).astype(np.uint8)
    label_map[0] = 255
    write_mask(store / 'v0002/a_1.png', label_map)
    loaded = _reader(store, 2)(results)
    assert loaded['gt_seg_map'].dtype == np.uint8
    assert (loaded['gt_seg_map'] == label_map).all()
    assert loaded['seg_fields'] == ['gt_seg_map']


def test_grey_label_map_is_read(results, store):
    Image.fromarray(np.full((24, 32), 3, np.uint8)).save(store / 'v0001/a_1.png')
    assert (_reader(store, 1)(results)['gt_seg_map'] == 3).all()


@pytest.mark.parametrize('named', [True, False])
def test_before_the_first_version_everything_is_void(results, store, named):
    loaded = _reader(store if named else None)(results)
    assert loaded['gt_seg_map'].dtype == np.uint8
    assert loaded['gt_seg_map'].shape == (24, 32)
    assert (loaded['gt_seg_map'] == 255).all()
    assert loaded['seg_fields'] == ['gt_seg_map']


def test_data_info_needs_no_list_of_masks(results):
    del results['seg_fields']
    assert _reader()(results)['seg_fields'] == ['gt_seg_map']


def test_version_without_folder_is_refused(results):
    with pytest.raises(ValueError, match=r'folder=None.*version 3: name the folder'):
        _reader(None, 3)(results)


def test_missing_label_map_error_names_path_and_mend(results, store):
    (store / 'v0002/a_1.png').unlink()
    with pytest.raises(
        FileNotFoundError, match=r'v0002/a_1\.png is missing: version 2.*a_1\.jpg.*again'
    ):
        _reader(store, 2)(results)


def test_label_map_of_another_size_error_names_both(results, store, write_mask):
    write_mask(store / 'v0001/a_1.png', np.zeros((24, 30)))
    with pytest.raises(ValueError, match=r'a_1\.png .*\(24, 30\).*a_1\.jpg has \(24, 32\)'):
        _reader(store, 1)(results)


def test_place_after_a_resize_is_refused(results, store):
    resized = TRANSFORMS.build(dict(type='Resize', scale=(64, 48)))(results)
    with pytest.raises(ValueError, match=r'right after the image loader'):
        _reader(store, 1)(resized)


def test_colours_are_no_label_map(results, store):
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(store / 'v0001/a_1.png')
    with pytest.raises(ValueError, match=r"a_1\.png has mode 'RGB'"):
        _reader(store, 1)(results)


def test_truncated_label_map_is_named(results, store):
    path = store / 'v0001/a_1.png'
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r'a_1\.png is truncated'):
        _reader(store, 1)(results)


@pytest.mark.parametrize('version', [0, 1])
def test_second_mask_is_refused(results, store, version):
    results['gt_seg_map'] = np.zeros((24, 32), np.uint8)
    with pytest.raises(ValueError, match=r'a_1\.jpg has a mask already'):
        _reader(store, version)(results)


def test_transform_says_what_it_reads(store):
    assert repr(_reader('store', 2)) == "LoadStoredLabels(folder='store', version=2)"


# ------------------------------------------------------------------------------- in real pipelines


def _stock_pipeline(cat_max_ratio=1.0):
    return [
        IMAGE,
        STORED,
        dict(type='RandomResize', scale=(128, 96), ratio_range=(0.5, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=cat_max_ratio),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        PACK,
    ]


def _seam_pipeline():
    canvas = dict(type='RandomCropOrPad', crop_size=(112, 112), pad_value=(0.0, 0.0, 0.0))
    return [
        IMAGE,
        STORED,
        dict(type='RandomResize', scale=(128, 96), ratio_range=(0.7, 1.3), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        canvas,
        PACK,
    ]


@pytest.fixture
def draw_alike(tmp_path):
    """Draw an image of dark and bright blocks, and its label map: 1 where it is bright."""

    def draw():
        bright = np.kron(np.random.default_rng(2).integers(0, 2, (3, 4)), np.ones((32, 32)))
        pixels = np.where(bright, 200, 30).astype(np.uint8)
        Image.fromarray(pixels).convert('RGB').save(tmp_path / 'picture.png')
        (tmp_path / 'store/v0001').mkdir(parents=True)
        Image.fromarray(bright.astype(np.uint8)).save(tmp_path / 'store/v0001/picture.png')
        return dict(img_path=str(tmp_path / 'picture.png'), seg_fields=[], gt_image_label=[1.0])

    return draw


@pytest.mark.parametrize(
    'transforms',
    [_stock_pipeline(), _stock_pipeline(cat_max_ratio=0.75), _seam_pipeline()],
    ids=['stock', 'cat_max_ratio', 'seam'],
)
def test_label_maps_follow_the_image_through_augmentation(draw_alike, tmp_path, transforms):
    info, pipeline = draw_alike(), Compose([TRANSFORMS.build(t) for t in transforms])
    (reader,) = find_stored_labels(pipeline)
    reader.folder = str(tmp_path / 'store')
    reader.version.set(1)
    flips, compared = set(), 0
    for _ in range(20):
        packed = pipeline(copy.deepcopy(info))
        sample = packed['data_samples']
        image, labels = packed['inputs'].float().mean(dim=0), sample.gt_sem_seg.data[0]
        assert labels.dtype == torch.int64
        assert labels.shape == image.shape
        image, labels = image[labels != 255], labels[labels != 255]
        middle = (image.min() + image.max()) / 2
        if labels.unique().numel() == 2:
            compared += 1
            assert ((image > middle) == (labels == 1)).float().mean() > 0.9
        flips.add(sample.flip)
    assert compared >= 10
    assert flips == {True, False}


@pytest.mark.parametrize(
    'transforms',
    [_stock_pipeline(), _stock_pipeline(cat_max_ratio=0.75), _seam_pipeline()],
    ids=['stock', 'cat_max_ratio', 'seam'],
)
def test_void_maps_pass_augmentation(draw_alike, transforms):
    info, pipeline = draw_alike(), Compose([TRANSFORMS.build(t) for t in transforms])
    labels = pipeline(info)['data_samples'].gt_sem_seg.data
    assert (labels == 255).all()


def test_padding_of_canvas_and_batch_is_void(build_dataset, store):
    canvas = dict(type='RandomCropOrPad', crop_size=(30, 36), pad_value=(0.0, 0.0, 0.0))
    dataset = build_dataset(IMAGE, dict(STORED, folder=str(store)), canvas, PACK)
    find_stored_labels(dataset)[0].version.set(2)
    preprocess = SegDataPreProcessor(size=(40, 40), pad_val=0, seg_pad_val=255)
    data = preprocess(pseudo_collate([dataset[0], dataset[1]]), training=True)
    labels = torch.cat([sample.gt_sem_seg.data for sample in data['data_samples']])
    assert labels.shape == (2, 40, 40)
    assert (labels == 2).sum(dim=(1, 2)).tolist() == [24 * 32] * 2
    assert set(labels.unique().tolist()) == {2, 255}


# ----------------------------------------------------------------------------------- the version


def test_number_is_read_as_it_was_set():
    version = StoredVersion()
    assert version.get() == 0
    version.set(12345)
    assert version.get() == 12345
    assert type(version.get()) is int


def test_negative_number_is_refused():
    with pytest.raises(ValueError, match='number=-1 is no version'):
        StoredVersion().set(-1)


def test_two_readers_have_versions_of_their_own():
    first, second = _reader(), _reader()
    first.version.set(3)
    assert second.version.get() == 0


def test_copies_follow_the_original():
    reader = _reader()
    copies = [copy.copy(reader), copy.deepcopy(reader), copy.deepcopy([reader])[0]]
    reader.version.set(7)
    assert [other.version.get() for other in copies] == [7, 7, 7]


def test_plain_pickle_is_a_number_of_its_own():
    version = StoredVersion()
    version.set(2)
    other = pickle.loads(pickle.dumps(version))
    version.set(3)
    assert other.get() == 2


@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_that_live_see_the_version_that_is_set(build_dataset, store, start):
    dataset = build_dataset(IMAGE, STORED, PACK)
    (reader,) = find_stored_labels(dataset)
    reader.folder = str(store)
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=start,
        collate_fn=pseudo_collate,
    )
    workers = []
    for version, expected in ((0, 255), (1, 1), (2, 2), (1, 1), (0, 255)):
        reader.version.set(version)
        samples = [batch['data_samples'][0] for batch in loader]
        assert len(samples) == 3
        assert all((sample.gt_sem_seg.data == expected).all() for sample in samples)
        workers.append([worker.pid for worker in loader._iterator._workers])
    assert workers == workers[:1] * 5


# ------------------------------------------------------------------------------ finding transforms


def test_reader_of_a_data_set_is_found(build_dataset):
    dataset = build_dataset(IMAGE, STORED, PACK)
    (found,) = find_stored_labels(dataset)
    assert found is dataset.pipeline.transforms[1]


def test_data_set_without_reader_has_none(build_dataset):
    assert find_stored_labels(build_dataset(IMAGE, PACK)) == []
    assert find_stored_labels(torch.utils.data.TensorDataset(torch.zeros(1))) == []


def test_readers_are_found_through_wrappers(build_dataset):
    datasets = [build_dataset(IMAGE, STORED, PACK) for _ in range(2)]
    readers = [dataset.pipeline.transforms[1] for dataset in datasets]
    assert find_stored_labels(ConcatDataset(datasets)) == readers
    assert find_stored_labels(RepeatDataset(datasets[1], 2)) == readers[1:]
    assert find_stored_labels(Subset(datasets[0], [0])) == readers[:1]


@pytest.mark.parametrize(
    'wrap',
    [
        lambda reader: dict(type='RandomApply', transforms=[reader], prob=1.0),
        lambda reader: dict(type='RandomChoice', transforms=[[reader], [reader]]),
        lambda reader: dict(type='TransformBroadcaster', transforms=[reader]),
    ],
    ids=['RandomApply', 'RandomChoice', 'TransformBroadcaster'],
)
def test_readers_are_found_within_transforms(build_dataset, wrap):
    found = find_stored_labels(build_dataset(IMAGE, wrap(STORED), PACK))
    assert found
    assert all(isinstance(transform, LoadStoredLabels) for transform in found)
    assert len({id(transform) for transform in found}) == len(found)


def test_reader_of_a_mix_of_images_is_found(build_dataset):
    inner = build_dataset(IMAGE, STORED)
    mixed = MultiImageMixDataset(ConcatDataset([inner]), [dict(type='RandomFlip', prob=0.5), PACK])
    assert find_stored_labels(mixed) == [inner.pipeline.transforms[1]]
