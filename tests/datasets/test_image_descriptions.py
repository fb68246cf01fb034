import json
import shutil

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from mmdscnet.datasets.image_descriptions import describe_images, hash_images


@pytest.fixture
def voc_folder(own_voc_folder):
    """The seven images of all rooms, and not those of this one."""
    return own_voc_folder


@pytest.fixture
def build_dataset(dataset_config):
    init_default_scope('mmseg')
    return lambda *args, **kwargs: DATASETS.build(dataset_config(*args, **kwargs))


def test_copies_of_the_data_are_alike(build_dataset, make_voc_folder, voc_folder, tmp_path):
    copy = shutil.copytree(voc_folder, tmp_path / 'copy')
    assert describe_images(build_dataset()) == describe_images(build_dataset(copy))


def test_copies_are_alike_within_wrappers(build_dataset, voc_folder, tmp_path):
    # Its name begins with that of the other.
    copy = shutil.copytree(voc_folder, tmp_path / f'{voc_folder.name}2')
    one, other = (
        ConcatDataset([build_dataset(folder), build_dataset()]) for folder in (voc_folder, copy)
    )
    assert describe_images(one) == describe_images(other)
    assert describe_images(one)['image 0'].startswith('JPEGImages/a.jpg ')
    one, other = (RepeatDataset(build_dataset(folder), 2) for folder in (voc_folder, copy))
    assert describe_images(one) == describe_images(other)


def test_other_labels_are_seen(build_dataset, own_voc_folder):
    before = describe_images(build_dataset(own_voc_folder))
    path = own_voc_folder / 'image_labels.json'
    content = json.loads(path.read_text())
    content['labels']['g'] = ['cat']
    path.write_text(json.dumps(content))
    after = describe_images(build_dataset(own_voc_folder))
    assert before.keys() == after.keys()
    assert sum(before[key] != after[key] for key in before) == 1


def test_another_order_is_seen(build_dataset):
    assert describe_images(build_dataset()) != describe_images(build_dataset(indices=[1, 0, 2]))


def test_label_of_every_class_counts():
    class Labelled(list):
        def get_data_info(self, index):
            return dict(img_path='a.jpg', gt_image_label=self[index])

    one, other = np.zeros((2, 2000))
    other[1000] = 1
    assert describe_images(Labelled([one])) != describe_images(Labelled([other]))


def test_without_data_infos_the_length_is_compared():
    assert describe_images([1, 2, 3]) == {'number of images': '3'}


def test_hash_is_that_of_the_descriptions(build_dataset, voc_folder, tmp_path):
    copy = shutil.copytree(voc_folder, tmp_path / 'copy')
    assert hash_images(build_dataset()) == hash_images(build_dataset(copy))
    assert hash_images(build_dataset()) != hash_images(build_dataset(indices=[1, 0, 2]))
