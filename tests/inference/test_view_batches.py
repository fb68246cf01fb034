import numpy as np
import pytest
import torch

from mmdscnet.inference.view_batches import (
    CAMBatch,
    ReadableImages,
    Unreadable,
    batch_by_size,
    collate_readable,
    collate_views,
    find_flip_axis,
    find_image_size,
    group_views,
)


class ImagesInMemory:
    """The smallest data set of images: two that are in no file."""

    metainfo = dict(classes=('background', 'cat'))
    images = [np.zeros((4, 6, 3), np.uint8), np.ones((8, 6, 3), np.uint8)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(index=index)

    def get_data_info(self, index):
        return dict(img_path=f'memory/{index}', img=self.images[index])


@pytest.fixture
def damaged_dataset(own_voc_folder, build_dataset):
    """The seven images, of which one is cut, one is text and one is missing."""
    dataset = build_dataset(own_voc_folder, views={})
    images = own_voc_folder / 'JPEGImages'
    (images / 'b.jpg').write_bytes((images / 'b.jpg').read_bytes()[:-100])
    (images / 'e.jpg').write_text('no image')
    (images / 'g.jpg').unlink()
    return dataset


def test_batches_hold_one_size_each_and_the_largest_come_first(build_dataset):
    dataset = build_dataset(views={})
    assert batch_by_size(dataset, range(7), 3) == ([[4], [0, 1, 3], [5], [2], [6]], [])
    assert batch_by_size(dataset, [6, 2], 1) == ([[2], [6]], [])
    assert batch_by_size(dataset, [], 3) == ([], [])


def test_views_of_one_size_go_together():
    views = [[torch.zeros(3, *size)] for size in ((4, 6), (4, 6), (8, 12), (4, 6))]
    assert list(group_views(views)) == [[0, 1, 3], [2]]


@pytest.mark.parametrize('batch_size', [0, -1])
def test_batch_without_images_is_refused(build_dataset, batch_size):
    with pytest.raises(ValueError, match=f'batch_size={batch_size} must be at least 1 image'):
        batch_by_size(build_dataset(views={}), range(7), batch_size)


def test_damaged_and_missing_files_are_in_no_batch(damaged_dataset):
    batches, unreadable = batch_by_size(damaged_dataset, range(7), 8)
    assert batches == [[0, 3, 5], [2]]
    assert [fault.image_id for fault in unreadable] == ['b', 'e', 'g']
    reasons = [fault.reason for fault in unreadable]
    assert 'b.jpg is truncated or no image' in reasons[0]
    assert 'e.jpg is truncated or no image' in reasons[1]
    assert 'No such file' in reasons[2]
    assert all(fault.image_path.endswith(f'{fault.image_id}.jpg') for fault in unreadable)


def test_size_of_an_image_in_memory_is_that_of_its_pixels():
    dataset = ImagesInMemory()
    assert find_image_size(dataset.get_data_info(1)) == (8, 6)
    assert batch_by_size(dataset, range(2), 2) == ([[1], [0]], [])
    assert ReadableImages(dataset)[1] == dict(index=1)


def test_image_that_cannot_be_read_is_an_item_and_no_exception(damaged_dataset):
    images = ReadableImages(damaged_dataset)
    items = [images[index] for index in range(7)]
    assert [isinstance(item, Unreadable) for item in items] == [i in (1, 4, 6) for i in range(7)]
    batch, unreadable = collate_readable([items[0], items[1], items[3]])
    assert isinstance(batch, CAMBatch)
    assert batch.image_ids == ['a', 'd']
    assert unreadable == [items[1]]
    assert collate_readable([items[1], items[6]]) == (None, [items[1], items[6]])


def test_file_that_the_reader_of_mmcv_refuses_is_unreadable(build_dataset, monkeypatch):
    dataset = build_dataset(views={})

    def refuse(index):
        raise AssertionError(f'cannot decode {index}')

    monkeypatch.setattr(dataset, 'prepare_data', refuse)
    assert ReadableImages(dataset)[2].reason == 'cannot decode 2'


def test_error_of_the_program_comes_through(build_dataset, monkeypatch):
    dataset = build_dataset(views={})
    monkeypatch.setattr(dataset, 'pipeline', lambda info: info['no such key'])
    with pytest.raises(KeyError, match='no such key'):
        ReadableImages(dataset)[0]


def test_views_of_images_are_collated(build_dataset):
    dataset = build_dataset(views=dict(scales=(0.5, 1.0), directions=('vertical',)))
    batch = collate_views([dataset[0], dataset[1]])
    assert [[tuple(image.shape) for image in view] for view in batch.inputs] == [
        [(3, 20, 28)] * 2,
        [(3, 20, 28)] * 2,
        [(3, 40, 56)] * 2,
        [(3, 40, 56)] * 2,
    ]
    assert batch.flip_axes == [None, 2, None, 2]
    assert batch.image_ids == ['a', 'b']
    assert batch.image_labels.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert batch.size == (40, 56)


def test_single_view_is_a_list_of_one(build_dataset):
    dataset = build_dataset()
    batch = collate_views([dataset[0], dataset[1]])
    views = collate_views([build_dataset(views=dict(scales=(1.0,), directions=()))[0]])
    assert len(batch.inputs) == 1
    assert batch.flip_axes == [None]
    assert batch.size == (40, 56)
    torch.testing.assert_close(batch.inputs[0][0], views.inputs[0][0], rtol=0, atol=0)


def test_axis_of_a_flip_is_found_or_refused():
    assert find_flip_axis({}) is None
    assert find_flip_axis(dict(flip=False, flip_direction='diagonal')) is None
    assert find_flip_axis(dict(flip=True, flip_direction='horizontal')) == 3
    assert find_flip_axis(dict(flip=True, flip_direction='vertical')) == 2
    with pytest.raises(
        ValueError, match=r"flip_direction='diagonal'.*\['horizontal', 'vertical'\]"
    ):
        find_flip_axis(dict(flip=True, flip_direction='diagonal'))
