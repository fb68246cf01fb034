import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mmdscnet.datasets import VOC2012Dataset, voc_palette

OBJECTS = {
    't_1': [('cat', 0)],
    't_2': [('dog', 0), ('dog', 0)],
    'v_1': [('person', 0)],
    's_1': [('bottle', 0), ('aeroplane', 1)],
    's_2': [('tvmonitor', 1)],
}
LABELS = {
    's_1': ['aeroplane', 'bottle'],
    's_2': ['tvmonitor'],
    't_1': ['cat'],
    't_2': ['dog'],
    'v_1': ['person'],
}
TRAIN_AUG = ['s_1', 's_2', 't_1', 't_2']
SIZE = (6, 8)


def label_map(image_id):
    values = np.zeros(SIZE, np.uint8)
    values[1:3, 2:5] = 1 + sorted(OBJECTS).index(image_id)
    values[0] = 255
    return values


def write_png(path, values):
    Image.fromarray(values).save(path)


def write_mat(path, values):
    savemat(path, {'GTcls': {'Boundaries': 0, 'Segmentation': values, 'CategoriesPresent': [1]}})


@pytest.fixture
def voc(tmp_path):
    """Two training images and one to judge by, and files of all five images."""
    folder = tmp_path / 'data/VOCdevkit/VOC2012'
    for name in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'):
        (folder / name).mkdir(parents=True)
    (folder / 'ImageSets/Segmentation/train.txt').write_text('t_1\nt_2\n')
    (folder / 'ImageSets/Segmentation/val.txt').write_text('v_1\n')
    for image_id, objects in OBJECTS.items():
        Image.new('RGB', SIZE[::-1]).save(folder / f'JPEGImages/{image_id}.jpg')
        entries = [
            f'<object><name>{name}</name><difficult>{difficult}</difficult>'
            '<part><name>head</name></part></object>'
            for name, difficult in objects
        ]
        text = f'<annotation>{"".join(entries)}</annotation>'
        (folder / f'Annotations/{image_id}.xml').write_text(text)
    for image_id in ('t_1', 't_2', 'v_1'):
        write_png(folder / f'SegmentationClass/{image_id}.png', label_map(image_id))
    return folder


@pytest.fixture
def sbd(tmp_path):
    """Four images: one of VOC's train, with another mask there, one of its val, two of neither."""
    folder = tmp_path / 'sbd/benchmark_RELEASE/dataset'
    (folder / 'cls').mkdir(parents=True)
    (folder / 'train.txt').write_text('t_1\ns_1\nv_1\n')
    (folder / 'val.txt').write_text('s_2\n')
    for image_id in ('s_1', 's_2', 'v_1'):
        write_mat(folder / f'cls/{image_id}.mat', label_map(image_id))
    write_mat(folder / 'cls/t_1.mat', np.ones(SIZE, np.uint8))
    return folder


@pytest.fixture
def png_folder(tmp_path):
    """The masks of SBD as grey PNGs, with VOC's val among them."""
    folder = tmp_path / 'SegmentationClassAug'
    folder.mkdir()
    for image_id in ('s_1', 's_2', 'v_1', 't_1'):
        write_png(folder / f'{image_id}.png', label_map(image_id))
    (folder / '._s_1.png').write_text('what a Mac adds')
    return folder


@pytest.fixture
def convert(load_tool, monkeypatch):
    """Run the tool in this process, by default on subsets."""
    tool = load_tool('dataset_converters/voc2012.py')

    def run(*args, counts=False):
        flags = [] if counts else ['--allow-counts']
        argv = ['voc2012.py', *map(str, args), *flags, '--jobs', '1']
        monkeypatch.setattr(sys, 'argv', argv)
        tool.main()

    return run


def snapshot(folder):
    """Time and content of every file."""
    files = (path for path in folder.rglob('*') if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def assert_complete(voc):
    assert (voc / 'ImageSets/Segmentation/train_aug.txt').read_text().split() == TRAIN_AUG
    masks = sorted((voc / 'SegmentationClassAug').iterdir())
    assert [path.name for path in masks] == [f'{i}.png' for i in TRAIN_AUG]
    for path in masks:
        with Image.open(path) as mask:
            assert np.array_equal(mask, label_map(path.stem))
    content = json.loads((voc / 'image_labels.json').read_text())
    assert content['labels'] == LABELS
    assert content['classes'] == list(VOC2012Dataset.METAINFO['classes'][1:])


def test_devkit_is_completed(convert, voc, sbd, capsys):
    before = snapshot(voc)
    convert(voc, '--sbd', sbd)
    assert_complete(voc)
    after = snapshot(voc)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 6
    said = capsys.readouterr().out
    assert 'warning: train has 2 images where the full data have 1464' in said
    assert 'train_aug.txt: 4 images, written' in said
    assert "4 masks written, 0 kept (2 are VOC's own, 2 SBD's)" in said
    assert '5 images, 1.20 classes an image' in said
    assert 'difficult ones included, written' in said


def test_masks_of_sbd_have_vocs_palette_and_vocs_own_are_copied(convert, voc, sbd):
    convert(voc, '--sbd', sbd)
    with Image.open(voc / 'SegmentationClassAug/s_1.png') as mask:
        assert mask.mode == 'P'
        assert mask.getpalette()[: 21 * 3] == np.ravel(voc_palette(21)).tolist()
    for image_id in ('t_1', 't_2'):
        own = (voc / f'SegmentationClass/{image_id}.png').read_bytes()
        assert (voc / f'SegmentationClassAug/{image_id}.png').read_bytes() == own


@pytest.mark.parametrize('above', [0, 1, 2])
def test_folders_are_found_from_above(convert, voc, sbd, above):
    convert([voc, *voc.parents][above], '--sbd', [sbd, *sbd.parents][above])
    assert_complete(voc)


def test_folder_of_pngs_serves_as_sbd(convert, voc, png_folder):
    convert(voc, '--sbd', png_folder)
    assert_complete(voc)
    with Image.open(voc / 'SegmentationClassAug/s_1.png') as mask:
        assert mask.mode == 'P'


def test_circulating_masks_that_lie_in_the_devkit_are_kept(convert, voc, png_folder):
    (png_folder / '._s_1.png').unlink()
    write_png(png_folder / 't_2.png', label_map('t_2'))
    masks = voc / 'SegmentationClassAug'
    shutil.move(png_folder, masks)
    before = snapshot(masks)
    convert(voc, '--sbd', masks)
    assert snapshot(masks) == before
    (masks / 'v_1.png').unlink()
    assert_complete(voc)


def test_result_is_a_data_set(convert, voc, sbd):
    convert(voc, '--sbd', sbd)
    dataset = VOC2012Dataset(
        data_root=str(voc),
        ann_file='ImageSets/Segmentation/train_aug.txt',
        image_labels='image_labels.json',
        data_prefix={'img_path': 'JPEGImages', 'seg_map_path': 'SegmentationClassAug'},
        test_mode=True,
    )
    assert dataset.get_image_labels().sum(axis=1).tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize('with_sbd', [True, False])
def test_second_run_writes_nothing(convert, voc, sbd, capsys, with_sbd):
    convert(voc, '--sbd', sbd)
    before = snapshot(voc)
    capsys.readouterr()
    convert(voc, *(['--sbd', sbd] if with_sbd else []))
    assert snapshot(voc) == before
    said = capsys.readouterr().out
    assert 'train_aug.txt: 4 images, kept' in said
    assert '4 kept' in said or '4 masks kept' in said
    assert 'difficult ones included, kept' in said


def test_interrupted_run_goes_on(convert, voc, sbd, capsys):
    convert(voc, '--sbd', sbd)
    masks = voc / 'SegmentationClassAug'
    for name in ('SegmentationClassAug/s_2.png', 'SegmentationClassAug/t_1.png'):
        (voc / name).unlink()
    (voc / 'ImageSets/Segmentation/train_aug.txt').unlink()
    (voc / 'image_labels.json').unlink()
    kept = snapshot(masks)
    convert(voc, '--sbd', sbd)
    assert_complete(voc)
    assert {path: snapshot(masks)[path] for path in kept} == kept
    assert '2 masks written, 2 kept' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('ImageSets/Segmentation/train_aug.txt', '1 of its images do not belong.*4 are missing'),
        ('image_labels.json', 'holds other labels than the XML files'),
        ('SegmentationClassAug/s_1.png', r'is not the mask of .*s_1\.mat'),
        ('SegmentationClassAug/t_1.png', r'is not the mask of .*t_1\.png'),
    ],
)
@pytest.mark.parametrize('content', ['other\n', None])
def test_what_differs_is_never_overwritten(convert, voc, sbd, name, message, content):
    path = voc / name
    path.parent.mkdir(exist_ok=True)
    if content:
        path.write_text(content)
    elif path.suffix == '.png':
        write_png(path, label_map('s_2'))
    elif path.suffix == '.json':
        path.write_text(json.dumps({'labels': {**LABELS, 's_1': ['bottle']}}))
    else:
        path.write_text('s_9\n')
    before = snapshot(voc)
    with pytest.raises(ValueError, match=rf'{path.name} exists and .*{message}.*move it away'):
        convert(voc, '--sbd', sbd)
    assert snapshot(voc) == before


def test_unsorted_list_is_refused_with_sbd_and_taken_without(convert, voc, sbd):
    path = voc / 'ImageSets/Segmentation/train_aug.txt'
    path.write_text('t_2\nt_1\ns_1\ns_2\n')
    with pytest.raises(ValueError, match='0 are missing, or the order is not sorted'):
        convert(voc, '--sbd', sbd)
    convert(voc)
    assert path.read_text().startswith('t_2')


def test_without_sbd_the_list_is_needed(convert, voc):
    with pytest.raises(
        FileNotFoundError, match=r'train_aug\.txt, which --sbd makes.*Semantic Boundaries.*benchm'
    ):
        convert(voc)


def test_without_sbd_only_labels_are_written(convert, voc, capsys):
    (voc / 'ImageSets/Segmentation/train_aug.txt').write_text('\n'.join(TRAIN_AUG))
    before = snapshot(voc)
    convert(voc)
    assert snapshot(voc).keys() - before.keys() == {voc / 'image_labels.json'}
    assert 'SegmentationClassAug: not there; weak training needs none' in capsys.readouterr().out


def test_without_sbd_half_of_the_masks_are_refused(convert, voc, sbd):
    convert(voc, '--sbd', sbd)
    (voc / 'SegmentationClassAug/s_2.png').unlink()
    with pytest.raises(
        FileNotFoundError, match=r'1 of 4 \.png files in .*s_2\.png: run again with --sbd'
    ):
        convert(voc)


def test_without_sbd_masks_are_checked(convert, voc, sbd):
    convert(voc, '--sbd', sbd)
    write_png(voc / 'SegmentationClassAug/s_2.png', np.full(SIZE, 21, np.uint8))
    with pytest.raises(ValueError, match=r's_2\.png holds the ids \[21\]'):
        convert(voc)


def test_list_with_images_of_val_is_refused(convert, voc):
    (voc / 'ImageSets/Segmentation/train_aug.txt').write_text('t_1\nv_1\n')
    with pytest.raises(ValueError, match='holds 1 images of val, which must not be trained on'):
        convert(voc)


def test_everything_missing_is_in_one_message(convert, voc, sbd):
    shutil.rmtree(voc / 'Annotations')
    for path in ('JPEGImages/s_1.jpg', 'JPEGImages/t_1.jpg', 'SegmentationClass/v_1.png'):
        (voc / path).unlink()
    (sbd / 'cls/s_2.mat').unlink()
    before = snapshot(voc)
    with pytest.raises(FileNotFoundError, match='nothing was written') as error:
        convert(voc, '--sbd', sbd, counts=True)
    lines = str(error.value).splitlines()[1:]
    expected = [
        f'missing: Annotations in {voc}: extract VOCtrainval',
        f'missing: 1 of 2 .mat files in {sbd / "cls"}, the first is s_2.mat: give all',
        f'missing: 2 of 5 .jpg files in {voc / "JPEGImages"}, the first is s_1.jpg: extract',
        f'missing: 1 of 3 .png files in {voc / "SegmentationClass"}, the first is v_1.png: ext',
        'train has 2 images where the full data have 1464: complete it, or give --allow-counts',
        'val has 1 images where the full data have 1449: ',
        'train_aug has 4 images where the full data have 10582: ',
    ]
    assert len(lines) == len(expected)
    assert all(a.startswith(b) for a, b in zip(lines, expected, strict=True))
    assert snapshot(voc) == before


@pytest.mark.parametrize('part', ['cls', 'train.txt', 'val.txt'])
def test_missing_part_of_sbd_is_named(convert, voc, sbd, part):
    path = sbd / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=rf'missing: {part} in .*give --sbd .*benchmark'):
        convert(voc, '--sbd', sbd)


@pytest.mark.parametrize('name', ['train', 'val'])
def test_missing_split_of_the_devkit_is_named(convert, voc, sbd, name):
    (voc / f'ImageSets/Segmentation/{name}.txt').unlink()
    with pytest.raises(FileNotFoundError, match=rf'Segmentation/{name}\.txt in') as error:
        convert(voc, '--sbd', sbd)
    assert 'train_aug' not in str(error.value)


def test_folder_without_any_devkit_or_sbd_is_named(convert, voc, tmp_path):
    with pytest.raises(FileNotFoundError, match='JPEGImages, Annotations, .* in .*nowhere'):
        convert(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match=r'cls, train\.txt, val\.txt in .*nowhere'):
        convert(voc, '--sbd', tmp_path / 'nowhere')


def test_wrong_counts_alone_are_refused_before_anything_is_written(convert, voc, sbd):
    before = snapshot(voc)
    with pytest.raises(ValueError, match='train_aug has 4 images where the full data have 10582'):
        convert(voc, '--sbd', sbd, counts=True)
    assert snapshot(voc) == before


def no_struct(path):
    savemat(path, {'other': 1})


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def text(path):
    path.write_text('not found')


def unknown_id(path):
    write_mat(path, np.full(SIZE, 30, np.uint8))


def fractions(path):
    write_mat(path, np.full(SIZE, 0.5))


@pytest.mark.parametrize('damage', [no_struct, truncated, text, unknown_id, fractions])
def test_damaged_mat_is_named_and_the_others_are_written(convert, voc, sbd, damage):
    damage(sbd / 'cls/s_1.mat')
    with pytest.raises(ValueError, match=r's_1\.mat is (damaged or no label map|no label map of)'):
        convert(voc, '--sbd', sbd)
    names = sorted(path.name for path in (voc / 'SegmentationClassAug').iterdir())
    assert names == ['s_2.png', 't_1.png', 't_2.png']
    assert not (voc / 'ImageSets/Segmentation/train_aug.txt').exists()
    write_mat(sbd / 'cls/s_1.mat', label_map('s_1'))
    convert(voc, '--sbd', sbd)
    assert_complete(voc)


def test_coloured_png_is_refused(convert, voc, png_folder):
    Image.new('RGB', SIZE[::-1]).save(png_folder / 's_1.png')
    with pytest.raises(ValueError, match=r's_1\.png is damaged or no label map.*mode is RGB'):
        convert(voc, '--sbd', png_folder)


def test_mask_of_another_size_is_refused(convert, voc, sbd):
    write_mat(sbd / 'cls/s_1.mat', np.zeros((5, 8), np.uint8))
    write_mat(sbd / 'cls/s_2.mat', np.zeros((5, 8), np.uint8))
    with pytest.raises(
        ValueError, match=r's_1\.mat is 5x8 .*s_1\.jpg is 6x8.*\(1 more masks have a fault'
    ):
        convert(voc, '--sbd', sbd)


def test_unknown_class_in_the_xml_is_refused_before_masks_are_written(convert, voc, sbd):
    path = voc / 'Annotations/s_1.xml'
    path.write_text(path.read_text().replace('bottle', 'botle'))
    with pytest.raises(ValueError, match=r"s_1\.xml: unknown class 'botle'"):
        convert(voc, '--sbd', sbd)
    assert not (voc / 'SegmentationClassAug').exists()


def test_processes_do_the_same(run_tool, voc, sbd):
    args = [voc, '--sbd', sbd, '--allow-counts', '--jobs', '2']
    run_tool('dataset_converters/voc2012.py', *args)
    assert_complete(voc)
    run_tool('dataset_converters/voc2012.py', *args)


def test_full_data_pass_the_counts(load_tool):
    tool = load_tool('dataset_converters/voc2012.py')
    splits = {'train': range(1464), 'val': range(1449), 'train_aug': range(10582)}
    assert tool.list_wrong_splits(splits) == []
    assert len(tool.list_wrong_splits({**splits, 'val': range(1450)})) == 1


def test_list_of_pairs_of_files_is_refused(convert, voc):
    pairs = '/JPEGImages/t_1.jpg /SegmentationClassAug/t_1.png\n'
    (voc / 'ImageSets/Segmentation/train_aug.txt').write_text(pairs)
    with pytest.raises(ValueError, match=r'train_aug\.txt has the line .*which is no image id'):
        convert(voc)
