import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from mmdscnet.datasets import voc_palette
from mmdscnet.inference import ImageList, add_image_labels, collate_views, find_images
from mmdscnet.inference.image_list import drop_annotation_loaders

METAINFO = dict(classes=('background', 'cat', 'dog'), palette=voc_palette(3))
PIPELINE = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
VIEWS = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in (0.5, 1.0)],
            [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackWSSSInputs')],
        ],
    ),
]
LABEL = np.array([0, 1], dtype=np.float32)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture
def write_image():
    def write(path, size=(12, 16)):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.mark.parametrize(('pipeline', 'views'), [(PIPELINE, 1), (VIEWS, 4)])
def test_file_and_array_are_the_same_image(write_image, tmp_path, pipeline, views):
    path = str(write_image(tmp_path / 'a.png'))
    infos = [dict(img_path=path), dict(img_path='array', img=mmcv.imread(path))]
    infos = [dict(info, gt_image_label=LABEL) for info in infos]
    batch = collate_views(list(ImageList(infos, pipeline, METAINFO)))
    assert batch.image_paths == [path, 'array']
    assert batch.size == (12, 16)
    assert batch.image_labels.tolist() == [[0, 1], [0, 1]]
    assert len(batch.inputs) == views
    for from_file, from_array in batch.inputs:
        torch.testing.assert_close(from_array, from_file, rtol=0, atol=0)


def test_images_stay_as_they_were_given():
    infos = [dict(img_path='array', img=np.zeros((8, 8, 3), np.uint8))]
    images = ImageList(infos, PIPELINE, METAINFO)
    assert len(images) == 1
    images[0]
    images.get_data_info(0).clear()
    assert infos[0].keys() == {'img_path', 'img'} == images.get_data_info(0).keys()


def test_labels_of_all_images_are_told():
    infos = [dict(img_path='a', gt_image_label=LABEL)] * 2
    assert ImageList(infos, PIPELINE, METAINFO).image_labels.tolist() == [[0, 1], [0, 1]]
    assert ImageList([dict(img_path='a')], PIPELINE, METAINFO).image_labels is None
    assert ImageList([], PIPELINE, METAINFO).image_labels is None


def test_labels_of_some_images_are_refused():
    infos = [dict(img_path='a.jpg', gt_image_label=LABEL), dict(img_path='b.jpg')]
    with pytest.raises(ValueError, match=r'b\.jpg has no gt_image_label .* or for none'):
        ImageList(infos, PIPELINE, METAINFO)


def test_array_without_loader_to_replace_is_refused():
    infos = [dict(img_path='array', img=np.zeros((8, 8, 3), np.uint8))]
    with pytest.raises(ValueError, match='PackWSSSInputs.* loads no image by LoadCheckedImage'):
        ImageList(infos, PIPELINE[1:], METAINFO)


def test_annotation_loaders_are_dropped_at_every_depth():
    steps = drop_annotation_loaders([*VIEWS, *PIPELINE])
    assert 'Annotations' not in str(steps)
    assert 'Mask' not in str(steps)
    assert len(steps[1]['transforms']) == 3
    assert len(VIEWS[1]['transforms']) == 4


def test_images_are_found_at_every_depth_and_sorted(write_image, tmp_path):
    for name in ('b.JPG', 'a.png', 'c/d.tiff', '._b.jpg', 'note.txt.png'):
        write_image(tmp_path / 'real.png').rename(_parent_made(tmp_path / name))
    (tmp_path / 'notes.txt').touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ['a.png', 'b.JPG', 'c/d.tiff', 'note.txt.png']


def _parent_made(path):
    path.parent.mkdir(exist_ok=True)
    return path


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(FileNotFoundError, match=r'has no images, .*\.jpg'):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'none is not a folder'):
        find_images(tmp_path / 'none')


def test_tags_of_a_file_are_added(tmp_path):
    tags = tmp_path / 'tags.csv'
    tags.write_text('image,classes\nb.png,dog;cat\na.jpg\n')
    infos = [dict(img_path='x/a.jpg'), dict(img_path='x/b.jpg')]
    add_image_labels(infos, tags, ('cat', 'dog'))
    assert [info['gt_image_label'].tolist() for info in infos] == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ('a,cat\nc,dog\nd,dog\n', "tags for 2 images that are not among .* first is 'c'"),
        ('b,cat\n', "1 of 2 images have no tags in .*'a'. Add a row .* an id alone is"),
        ('a,cat\nb,dgo\n', "unknown class 'dgo'.* Did you mean 'dog'"),
    ],
)
def test_tags_that_do_not_fit_are_refused(tmp_path, rows, message):
    tags = tmp_path / 'tags.csv'
    tags.write_text(rows)
    with pytest.raises(ValueError, match=message):
        add_image_labels([dict(img_path='a.jpg'), dict(img_path='b.jpg')], tags, ('cat', 'dog'))
