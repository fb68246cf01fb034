"""Data sets in VOC layout: what they hold, and what they refuse before training."""

import json
import re
import shutil

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.datasets import PascalVOCDataset
from mmseg.registry import DATASETS
from PIL import Image

from mmdscnet.datasets import VOC2012Dataset, VOCLayoutDataset, voc_palette
from mmdscnet.pseudo_labels import PseudoLabelStore

CLASSES = ('background', 'cat', 'dog')


def _build(folder, **kwargs):
    arguments = {
        'type': 'VOCLayoutDataset',
        'data_root': str(folder),
        'ann_file': 'ImageSets/train.txt',
        'image_labels': 'image_labels.json',
    }
    return DATASETS.build(arguments | kwargs)


def test_folder_with_a_json_needs_nothing_else(voc_folder):
    dataset = _build(voc_folder)
    assert isinstance(dataset, VOCLayoutDataset)
    assert dataset.metainfo['classes'] == CLASSES
    assert dataset.metainfo['palette'] == voc_palette(3)
    assert dataset.foreground_classes == ('cat', 'dog')
    info = dataset[1]
    assert info['img_path'] == str(voc_folder / 'JPEGImages/a_2.jpg')
    assert info['seg_map_path'] == str(voc_folder / 'SegmentationClass/a_2.png')
    assert info['gt_image_label'].tolist() == [1, 1]
    assert info['gt_image_label'].dtype == np.float32
    assert info['label_map'] is None
    assert info['reduce_zero_label'] is False
    assert info['seg_fields'] == []


def test_order_is_that_of_the_split(voc_folder):
    (voc_folder / 'ImageSets/train.txt').write_text('a_3\n\na_1\n')
    dataset = _build(voc_folder)
    assert [info['img_path'][-7:-4] for info in dataset] == ['a_3', 'a_1']
    assert dataset.get_image_labels().tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize('serialize_data', [True, False])
@pytest.mark.parametrize('lazy_init', [True, False])
@pytest.mark.parametrize(
    ('indices', 'kept'), [(None, [0, 1, 2]), (2, [0, 1]), (-1, [2]), ([2, 0], [2, 0])]
)
def test_labels_follow_the_subset(voc_folder, serialize_data, lazy_init, indices, kept):
    dataset = _build(
        voc_folder, serialize_data=serialize_data, lazy_init=lazy_init, indices=indices
    )
    dataset.full_init()
    expected = np.array([[1, 0], [1, 1], [0, 0]], np.float32)[kept]
    labels = dataset.get_image_labels()
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, expected)


def test_labels_follow_a_later_subset(voc_folder):
    dataset = _build(voc_folder)
    assert dataset.get_subset([1]).get_image_labels().tolist() == [[1, 1]]


def test_lazy_data_set_reads_no_split(voc_folder):
    dataset = _build(voc_folder, ann_file='gone.txt', lazy_init=True)
    assert dataset.metainfo['classes'] == CLASSES


def test_data_set_without_labels_has_none(voc_folder):
    dataset = _build(voc_folder, image_labels=None, metainfo={'classes': CLASSES})
    assert 'gt_image_label' not in dataset[0]
    with pytest.raises(ValueError, match=r'image_labels=None.*Name a label source'):
        dataset.get_image_labels()


def test_labels_from_masks_equal_labels_from_the_json(voc_folder):
    masks = _build(
        voc_folder, image_labels='SegmentationClass', metainfo={'classes': list(CLASSES)}
    )
    np.testing.assert_array_equal(masks.get_image_labels(), _build(voc_folder).get_image_labels())


def test_training_neither_needs_nor_opens_masks(voc_folder):
    for path in (voc_folder / 'SegmentationClass').iterdir():
        path.write_bytes(b'no mask')
    assert len(_build(voc_folder)) == 3
    shutil.rmtree(voc_folder / 'SegmentationClass')
    assert len(_build(voc_folder)) == 3


def test_judging_without_a_mask_folder_is_refused(voc_folder):
    shutil.rmtree(voc_folder / 'SegmentationClass')
    with pytest.raises(FileNotFoundError, match='3 of 3 masks.*leave seg_map_path out'):
        _build(voc_folder, test_mode=True)


def test_data_prefix_without_masks_gives_infos_without_masks(voc_folder):
    dataset = _build(voc_folder, data_prefix={'img_path': 'JPEGImages'}, test_mode=True)
    assert 'seg_map_path' not in dataset.get_data_info(0)


def test_palette_is_vocs():
    assert voc_palette(21) == PascalVOCDataset.METAINFO['palette']
    assert len({tuple(colour) for colour in voc_palette(256)}) == 256
    for bad in (0, 257):
        with pytest.raises(ValueError, match=f'num_classes={bad} must be in'):
            voc_palette(bad)


def test_voc_2012_has_the_classes_of_mmseg():
    assert VOC2012Dataset.METAINFO['classes'] == PascalVOCDataset.METAINFO['classes']


def test_voc_2012_reads_masks_as_labels(voc_folder, write_mask):
    write_mask(voc_folder / 'SegmentationClass/a_1.png', np.full((24, 32), 20))
    dataset = _build(voc_folder, type='VOC2012Dataset', image_labels='SegmentationClass')
    labels = dataset.get_image_labels()
    assert labels.shape == (3, 20)
    assert np.flatnonzero(labels[0]).tolist() == [19]
    assert len(dataset.metainfo['palette']) == 21


def test_subset_of_voc_2012_maps_masks_and_drops_other_labels(voc_folder, write_mask):
    write_mask(voc_folder / 'SegmentationClass/a_1.png', np.full((24, 32), 20))
    dataset = _build(
        voc_folder,
        type='VOC2012Dataset',
        image_labels='SegmentationClass',
        metainfo={'classes': ('background', 'bicycle', 'aeroplane')},
        test_mode=True,
    )
    assert dataset.get_image_labels().tolist() == [[0, 0], [1, 1], [0, 0]]
    info = dataset.get_data_info(0)
    assert [info['label_map'][i] for i in (0, 1, 2, 20)] == [0, 2, 1, 255]


@pytest.mark.parametrize('classes', [('cat', 'dog'), ('background',), ('background', 'cat', 'cat')])
def test_class_list_without_background_first_is_refused(voc_folder, classes):
    with pytest.raises(
        ValueError, match=rf"classes={re.escape(str(classes))} must be 'background'"
    ):
        _build(voc_folder, metainfo={'classes': classes})


@pytest.mark.parametrize('image_labels', [None, 'SegmentationClass'])
def test_data_set_without_any_class_list_is_refused(voc_folder, image_labels):
    with pytest.raises(ValueError, match=r'has no classes .* Give metainfo=dict'):
        _build(voc_folder, image_labels=image_labels)


def test_classes_in_conflict_with_the_json_are_refused(voc_folder):
    with pytest.raises(ValueError, match=r'image_labels\.json.*Make both lists equal'):
        _build(voc_folder, metainfo={'classes': ('background', 'dog', 'cat')})


def test_missing_split_is_named(voc_folder):
    with pytest.raises(
        FileNotFoundError, match=r"ImageSets/gone\.txt' does not exist. Set ann_file"
    ):
        _build(voc_folder, ann_file='ImageSets/gone.txt')


@pytest.mark.parametrize('content', ['', '\n \n'])
def test_empty_split_is_refused(voc_folder, content):
    (voc_folder / 'ImageSets/train.txt').write_text(content)
    with pytest.raises(ValueError, match=r'train\.txt is empty. Write an image id a line'):
        _build(voc_folder)


def test_missing_images_are_counted_and_the_first_is_named(voc_folder):
    (voc_folder / 'JPEGImages/a_2.jpg').unlink()
    (voc_folder / 'JPEGImages/a_3.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'2 of 3 images .*first is .*a_2\.jpg. Add'):
        _build(voc_folder)


def test_missing_image_folder_is_named(voc_folder):
    shutil.rmtree(voc_folder / 'JPEGImages')
    with pytest.raises(FileNotFoundError, match=r'3 of 3 images .*JPEGImages/a_1\.jpg'):
        _build(voc_folder)


def _rewrite_labels(folder, labels):
    (folder / 'image_labels.json').write_text(
        json.dumps({'classes': ['cat', 'dog'], 'labels': labels})
    )


def test_image_without_label_is_named(voc_folder):
    _rewrite_labels(voc_folder, {'a_1': ['cat'], 'a_3': []})
    with pytest.raises(ValueError, match=r"1 of 3 images .*train\.txt.*no label .*'a_2'. Add"):
        _build(voc_folder)


def test_label_without_image_is_named_or_allowed(voc_folder):
    _rewrite_labels(voc_folder, {'a_1': [], 'a_2': [], 'a_3': [], 'b_1': ['dog']})
    with pytest.raises(
        ValueError, match=r"labels 1 images .*JPEGImages.*'b_1'.*allow_extra_labels"
    ):
        _build(voc_folder)
    assert len(_build(voc_folder, allow_extra_labels=True)) == 3


def test_label_of_an_image_of_another_split_is_no_extra(voc_folder):
    (voc_folder / 'ImageSets/train.txt').write_text('a_1\n')
    assert len(_build(voc_folder)) == 1


def test_unknown_class_is_named(voc_folder):
    _rewrite_labels(voc_folder, {'a_1': ['dgo'], 'a_2': [], 'a_3': []})
    with pytest.raises(ValueError, match=r"image_labels\.json, image 'a_1': unknown class 'dgo'"):
        _build(voc_folder)


@pytest.mark.parametrize('test_mode', [True, False])
def test_truncated_jpeg_is_refused_before_training(voc_folder, test_mode):
    path = voc_folder / 'JPEGImages/a_2.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r'a_2\.jpg is truncated.*Copy the file again'):
        _build(voc_folder, test_mode=test_mode)
    assert len(_build(voc_folder, test_mode=test_mode, check_files=False)) == 3


def test_mask_of_another_size_is_refused_where_it_judges(voc_folder, write_mask):
    write_mask(voc_folder / 'SegmentationClass/a_2.png', np.zeros((24, 30)))
    with pytest.raises(ValueError, match=r'a_2\.png is 24x30 .*a_2\.jpg is 24x32.*Resize'):
        _build(voc_folder, test_mode=True)


def test_mask_ids_outside_the_classes_are_refused_where_they_judge(voc_folder, write_mask):
    write_mask(voc_folder / 'SegmentationClass/a_2.png', np.full((24, 32), 9))
    with pytest.raises(ValueError, match=r'a_2\.png holds the ids \[9\].*\[0, 1, 2, 255\]'):
        _build(voc_folder, test_mode=True)


def test_missing_masks_are_counted_where_they_judge(voc_folder):
    (voc_folder / 'SegmentationClass/a_2.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 3 masks .*a_2\.png. Add them, or leave'):
        _build(voc_folder, test_mode=True)


@pytest.fixture
def pseudo_labels(voc_folder, tmp_path_factory):
    """Label maps of all images, outside of the data set."""
    folder = tmp_path_factory.mktemp('export') / 'pseudo_labels'
    shutil.move(voc_folder / 'SegmentationClass', folder)
    return folder


@pytest.mark.parametrize('relative', [True, False])
def test_pseudo_labels_are_seen_from_the_current_folder(
    voc_folder, pseudo_labels, relative, monkeypatch
):
    monkeypatch.chdir(pseudo_labels.parent)
    folder = 'pseudo_labels' if relative else str(pseudo_labels)
    dataset = _build(voc_folder, pseudo_label_folder=folder)
    assert not dataset.test_mode
    assert dataset[2]['seg_map_path'] == str(pseudo_labels / 'a_3.png')


def test_interrupted_label_export_is_told_to_go_on(voc_folder, pseudo_labels):
    (pseudo_labels / 'a_2.png').unlink()
    options = dict(pseudo_label_folder=str(pseudo_labels))
    with pytest.raises(FileNotFoundError, match=r'1 of 3 masks .*a_2\.png.* it goes on where'):
        _build(voc_folder, **options)
    assert len(_build(voc_folder, **options, check_files=False)) == 3


def test_missing_pseudo_labels_name_the_earlier_stage(voc_folder):
    with pytest.raises(FileNotFoundError, match=r'3 of 3 masks .*nothing/a_1.*Run the export that'):
        _build(voc_folder, pseudo_label_folder='nothing')


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.zeros((24, 30)), r'a_2\.png is 24x30 .*a_2\.jpg is 24x32.*Resize'),
        (np.full((24, 32), 9), r'a_2\.png holds the ids \[9\].*\[0, 1, 2, 255\]'),
    ],
)
def test_pseudo_labels_must_fit(voc_folder, pseudo_labels, write_mask, mask, message):
    write_mask(pseudo_labels / 'a_2.png', mask)
    with pytest.raises(ValueError, match=message):
        _build(voc_folder, pseudo_label_folder=str(pseudo_labels))


def test_exported_cams_are_named_and_needed(voc_folder, tmp_path):
    (tmp_path / 'cams').mkdir()
    for image_id in ('a_1', 'a_2', 'a_3'):
        (tmp_path / 'cams' / f'{image_id}.npz').touch()
    dataset = _build(voc_folder, cam_folder=str(tmp_path / 'cams'))
    assert dataset[1]['cam_path'] == str(tmp_path / 'cams/a_2.npz')
    (tmp_path / 'cams/a_2.npz').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 3 CAM files .*a_2\.npz.*Run the export'):
        _build(voc_folder, cam_folder=str(tmp_path / 'cams'))


def test_images_of_other_formats_are_read(voc_folder):
    for path in (voc_folder / 'JPEGImages').iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix('.png'))
    assert len(_build(voc_folder, img_suffix='.png', test_mode=True)) == 3


@pytest.mark.parametrize('split', ['mini_train', 'val'])
def test_real_data_pass_every_check(shared_dir, split):
    dataset = _build(
        shared_dir / 'data/voc_animals',
        ann_file=f'ImageSets/Segmentation/{split}.txt',
        test_mode=True,
    )
    labels = dataset.get_image_labels()
    assert labels.shape == ({'mini_train': 582, 'val': 223}[split], 6)
    assert (labels.sum(axis=1) >= 1).all()


def test_list_of_pairs_of_files_is_refused(voc_folder):
    (voc_folder / 'ImageSets/train.txt').write_text('/JPEGImages/a_1.jpg /Labels/a_1.png\n')
    with pytest.raises(ValueError, match='which is no image id'):
        _build(voc_folder)


class TestStoreOfPseudoLabels:
    CLASSES = ('background', 'cat', 'dog')

    @pytest.fixture
    def build(self, make_voc_folder, tmp_path):
        images = {'a': ((8, 10), ['cat']), 'b': ((8, 10), ['dog'])}
        root = make_voc_folder(tmp_path / 'data', images, ['cat', 'dog'])

        def build(classes=self.CLASSES):
            return VOCLayoutDataset(
                data_root=str(root),
                ann_file='ImageSets/Segmentation/val.txt',
                metainfo=dict(classes=classes),
                pseudo_label_folder=str(tmp_path / 'store' / 'current'),
            )

        return build

    @pytest.fixture
    def version(self, tmp_path):
        draft = PseudoLabelStore(tmp_path / 'store').begin({}, self.CLASSES, voc_palette(3))
        for image_id in 'ab':
            draft.write(image_id, np.ones((8, 10), dtype=np.uint8))
        return draft.publish('ab')

    def test_current_version_stands_in_for_the_masks(self, build, version):
        assert build().get_data_info(0)['seg_map_path'].endswith('store/v0001/a.png')

    def test_store_of_other_classes_is_refused(self, build, version):
        with pytest.raises(ValueError, match=r"was written for .*'dog'.* is used for .*'cow'"):
            build(('background', 'cat', 'cow'))

    def test_version_in_use_stays_when_a_newer_one_becomes_current(self, build, version, tmp_path):
        dataset = build()
        draft = PseudoLabelStore(tmp_path / 'store').begin(
            dict(step=2), self.CLASSES, voc_palette(3)
        )
        for image_id in 'ab':
            draft.write(image_id, np.zeros((8, 10), dtype=np.uint8))
        assert draft.publish('ab').number == 2
        assert dataset.get_data_info(0)['seg_map_path'].endswith('store/v0001/a.png')

    def test_choice_among_the_classes_of_voc_reads_its_own_ids(self, make_voc_folder, tmp_path):
        init_default_scope('mmseg')
        names = VOC2012Dataset.METAINFO['classes'][1:]
        root = make_voc_folder(tmp_path / 'voc', {'a': ((8, 10), ['dog'])}, list(names))
        classes = ('background', 'cat', 'dog')
        draft = PseudoLabelStore(tmp_path / 'store').begin({}, classes, voc_palette(3))
        draft.write('a', np.full((8, 10), 2, dtype=np.uint8))
        draft.publish('a')
        dataset = VOC2012Dataset(
            data_root=str(root),
            ann_file='ImageSets/Segmentation/val.txt',
            metainfo=dict(classes=classes),
            pseudo_label_folder=str(tmp_path / 'store' / 'current'),
            pipeline=[dict(type='LoadCheckedImage'), dict(type='LoadCheckedMask')],
        )
        assert (dataset[0]['gt_seg_map'] == 2).all()

    def test_changed_label_map_is_refused(self, build, version):
        content = (version.folder / 'a.png').read_bytes()
        (version.folder / 'b.png').write_bytes(content + b' ')
        with pytest.raises(ValueError, match=r'not those of its manifest, the first is b\.png'):
            build()
