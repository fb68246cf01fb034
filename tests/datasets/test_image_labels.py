"""Reading and writing of image-level labels."""

import collections
import csv
import json
import os
import pickle
import re

import numpy as np
import pytest

from mmdscnet.datasets.image_labels import (
    read_image_labels,
    read_label_classes,
    to_multi_hot,
    write_image_labels,
)

CLASSES = ('cat', 'dog', 'potted plant')
EXPECTED = {'2007_000001': ('dog',), 'b': ('cat', 'potted plant'), 'c': ()}


def _vectors(labels, dtype=np.float32):
    return {i: np.array([c in names for c in CLASSES], dtype) for i, names in labels.items()}


def _write_json(folder):
    path = folder / 'labels.json'
    path.write_text(json.dumps({i: list(names) for i, names in EXPECTED.items()}))
    return path


def _write_json_with_classes(folder):
    path = folder / 'labels.json'
    path.write_text(json.dumps({'classes': CLASSES, 'labels': EXPECTED}))
    return path


def _write_txt(folder):
    path = folder / 'labels.txt'
    path.write_text(
        '# id, classes\n\n2007_000001 dog\nb\tpotted plant, cat  # two\n  c  \n', encoding='utf-8'
    )
    return path


def _write_csv(folder):
    path = folder / 'labels.csv'
    path.write_text('2007_000001.jpg,dog\nsub/b.png,"potted plant, cat"\nc\n')
    return path


def _write_marks(folder):
    path = folder / 'labels.csv'
    path.write_text('Image,dog,cat,potted plant\n2007_000001.jpg,1,0,0\nb,0,1,1\nc,,,\n')
    return path


def _write_npy(folder):
    np.save(folder / 'cls_labels.npy', _vectors(EXPECTED))
    return folder / 'cls_labels.npy'


def _write_xml(folder):
    for image_id, names in EXPECTED.items():
        objects = ''.join(
            f'<object><name> {name} </name><difficult>1</difficult>'
            '<part><name>head</name></part></object>'
            for name in names
        )
        (folder / f'{image_id}.xml').write_text(f'<annotation>{objects}</annotation>')
    return folder


@pytest.fixture
def write_masks(write_mask):
    def write(folder):
        for image_id, names in EXPECTED.items():
            values = np.zeros((6, 8))
            values[0] = 255
            for name in names:
                values[1 + CLASSES.index(name)] = 1 + CLASSES.index(name)
            write_mask(folder / f'{image_id}.png', values)
        return folder

    return write


@pytest.mark.parametrize(
    'write',
    [
        _write_json,
        _write_json_with_classes,
        _write_txt,
        _write_csv,
        _write_marks,
        _write_npy,
        _write_xml,
    ],
)
def test_every_source_gives_the_same_labels(tmp_path, write):
    assert read_image_labels(write(tmp_path), CLASSES) == EXPECTED


def test_masks_give_the_same_labels(tmp_path, write_masks):
    assert read_image_labels(write_masks(tmp_path), CLASSES) == EXPECTED


def test_only_the_asked_files_of_a_folder_are_read(tmp_path):
    _write_xml(tmp_path)
    (tmp_path / 'broken.xml').write_text('<annotation>')
    assert read_image_labels(tmp_path, CLASSES, ['b', 'c']) == {'b': EXPECTED['b'], 'c': ()}


def test_written_labels_are_read_back(tmp_path):
    path = tmp_path / 'labels.json'
    write_image_labels(path, EXPECTED, CLASSES)
    assert read_image_labels(path, CLASSES) == EXPECTED
    assert read_label_classes(path) == CLASSES
    assert os.listdir(tmp_path) == ['labels.json']


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'labels.json'
    path.write_text('{}')
    with pytest.raises(ValueError, match="labels of image 'a': unknown class 'cow'"):
        write_image_labels(path, {'a': ['cow']}, CLASSES)
    assert path.read_text() == '{}'
    assert os.listdir(tmp_path) == ['labels.json']


def test_labels_are_written_as_json_only(tmp_path):
    with pytest.raises(ValueError, match=r'labels\.txt must end in \.json'):
        write_image_labels(tmp_path / 'labels.txt', EXPECTED, CLASSES)


def test_multi_hot_follows_the_order_of_classes():
    vector = to_multi_hot(['potted plant', 'cat'], CLASSES)
    assert vector.tolist() == [1, 0, 1]
    assert vector.dtype == np.float32
    assert to_multi_hot([], CLASSES).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="unknown class 'cow'"):
        to_multi_hot(['cow'], CLASSES)


@pytest.mark.parametrize('write', [_write_json, _write_txt, _write_marks, _write_npy, _write_xml])
def test_only_a_json_with_classes_carries_classes(tmp_path, write):
    assert read_label_classes(write(tmp_path)) is None


def test_json_without_classes_but_with_labels_carries_no_classes(tmp_path):
    path = tmp_path / 'labels.json'
    path.write_text('{"labels": {"a": ["dog"]}}')
    assert read_label_classes(path) is None
    assert read_image_labels(path, CLASSES) == {'a': ('dog',)}


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('l.json', '{"a": ["dgo"]}'),
        ('l.txt', 'a dgo'),
        ('l.csv', 'a.jpg,dgo'),
        ('a.xml', '<annotation><object><name>dgo</name></object></annotation>'),
    ],
)
def test_unknown_class_error_names_file_image_known_and_nearest(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    source = tmp_path if name == 'a.xml' else tmp_path / name
    pattern = rf"{name}.*unknown class 'dgo'; known are \['cat', .*Did you mean 'dog'.*Correct"
    with pytest.raises(ValueError, match=pattern):
        read_image_labels(source, CLASSES)


def test_missing_source_error_lists_the_forms(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.json does not exist.*\.csv or \.npy'):
        read_image_labels(tmp_path / 'gone.json', CLASSES)


def test_unknown_suffix_is_refused(tmp_path):
    (tmp_path / 'labels.xlsx').touch()
    with pytest.raises(ValueError, match=r"labels\.xlsx ends in '\.xlsx'.*\.csv.*Convert"):
        read_image_labels(tmp_path / 'labels.xlsx', CLASSES)


@pytest.mark.parametrize(
    ('content', 'pattern'),
    [
        ('{"a": ["dog"],\n "b" ["cat"]}', r'labels\.json, line 2: malformed JSON'),
        ('["dog"]', r'labels\.json holds a list; write an object'),
        ('{"a": "dog"}', r"image 'a' are 'dog'; write a list"),
        ('{"a": [1, 0, 0]}', r"image 'a' are \[1, 0, 0\]; write a list"),
        ('{"a": ["dog"], "a": ["cat"]}', r"'a' appears twice"),
        ('{"classes": ["cat", "dog"], "labels": {}}', r"\['cat', 'dog'\] but .* Make both lists"),
        ('{"classes": ["dog", "cat", "potted plant"], "labels": {}}', 'order included'),
        ('{"classes": ["cat", "cat"], "labels": {}}', 'list of different names'),
        ('{"classes": "cat", "labels": {}}', 'list of different names'),
        ('{"classes": ["background", "cat"], "labels": {}}', 'lists the background; take it out'),
    ],
)
def test_bad_json_is_refused(tmp_path, content, pattern):
    path = tmp_path / 'labels.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=pattern):
        read_image_labels(path, CLASSES)


@pytest.mark.parametrize(
    ('content', 'pattern'),
    [
        ('a dog\nb dog,,cat\n', r"labels\.txt, line 2, image 'b': malformed line"),
        ('a dog,', r'line 1.*malformed line'),
        ('a dog cat', r"unknown class 'dog cat'"),
        ('a dog\n\na cat\n', r"line 3, image 'a': the image has a line already"),
    ],
)
def test_bad_txt_is_refused_with_the_line(tmp_path, content, pattern):
    path = tmp_path / 'labels.txt'
    path.write_text(content)
    with pytest.raises(ValueError, match=pattern):
        read_image_labels(path, CLASSES)


@pytest.mark.parametrize('name', ['labels.txt', 'labels.csv'])
def test_text_of_another_encoding_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes('a \xe9'.encode('latin-1'))
    with pytest.raises(ValueError, match=rf'{re.escape(name)} is not UTF-8'):
        read_image_labels(tmp_path / name, CLASSES)


def _read_csv(folder, content, classes=CLASSES):
    path = folder / 'labels.csv'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_image_labels(path, classes)


@pytest.mark.parametrize('header', ['', 'image,classes\n', 'FileName,class 1,class 2\n', 'id\n'])
@pytest.mark.parametrize(
    'line', ['a.jpg,dog,cat', 'a.jpg,"dog,cat"', 'a.jpg,dog;cat', 'a, "dog; cat;",,', 'a,,cat,dog']
)
def test_csv_cells_hold_one_class_or_several(tmp_path, header, line):
    assert _read_csv(tmp_path, f'{header}{line}\n') == {'a': ('cat', 'dog')}


@pytest.mark.parametrize('head', ['image', 'ID', 'File', 'filename', 'NAME', 'path'])
def test_csv_header_is_known_by_its_first_cell(tmp_path, head):
    assert _read_csv(tmp_path, f'{head},tags\na.jpg,dog') == {'a': ('dog',)}


@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('write', [_write_csv, _write_marks])
def test_csv_of_any_separator_gives_the_same_labels(tmp_path, separator, write):
    content = re.sub(r',(?! )', separator, write(tmp_path).read_text())
    assert _read_csv(tmp_path, content) == EXPECTED


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        ('a\nb;cat', {'a': (), 'b': ('cat',)}),
        ('a;cat,dog\nb;cat', {'a': ('cat', 'dog'), 'b': ('cat',)}),
        ('a,cat;dog\nb,cat', {'a': ('cat', 'dog'), 'b': ('cat',)}),
        ('"a";"cat,dog"\n', {'a': ('cat', 'dog')}),
        ('a.jpg\tcat;dog', {'a': ('cat', 'dog')}),
    ],
)
def test_csv_separator_is_that_of_the_first_line_that_has_one(tmp_path, content, expected):
    assert _read_csv(tmp_path, content) == expected


@pytest.mark.parametrize(
    ('file_name', 'image_id'),
    [
        ('a.jpg', 'a'),
        ('sub/deep/a.JPEG', 'a'),
        ('C:\\images\\a.png', 'a'),
        ('./a', 'a'),
        ('a b.tif', 'a b'),
        ('a.v2.jpg', 'a.v2'),
        ('a.v2', 'a.v2'),
    ],
)
def test_csv_image_id_is_the_file_name_without_folder_and_suffix(tmp_path, file_name, image_id):
    assert _read_csv(tmp_path, f'{file_name},dog') == {image_id: ('dog',)}


def test_csv_of_excel_is_read(tmp_path):
    content = '\ufeffimage;cat;dog\r\nä.jpg;1;0\r\n;;\r\n\r\nb.jpg;;1\r\n'
    assert _read_csv(tmp_path, content) == {'ä': ('cat',), 'b': ('dog',)}


@pytest.mark.parametrize('content', ['', '\n', 'image\n', 'image,cat,dog\n', '\ufeff'])
def test_csv_without_images_gives_no_labels(tmp_path, content):
    assert _read_csv(tmp_path, content) == {}


def test_csv_columns_of_marks_may_be_some_of_the_classes(tmp_path):
    content = 'image,potted plant\na,1\nb,0\nc\n'
    assert _read_csv(tmp_path, content) == {'a': ('potted plant',), 'b': (), 'c': ()}


def test_csv_header_of_classes_over_names_is_only_a_header(tmp_path):
    assert _read_csv(tmp_path, 'image,cat,dog\na,dog\n') == {'a': ('dog',)}


def test_csv_class_may_be_named_as_a_mark_or_hold_a_separator(tmp_path):
    classes = ('0', '1', 'bus, red')
    assert _read_csv(tmp_path, 'image,tags\na,0\nb,1;0', classes) == {'a': ('0',), 'b': ('0', '1')}
    assert _read_csv(tmp_path, 'image,tags\na,0\nb,1', classes) == {'a': ('0',), 'b': ('1',)}
    assert _read_csv(tmp_path, 'image,0,1\na,0,1', classes) == {'a': ('1',)}
    assert _read_csv(tmp_path, 'a,"bus, red"', classes) == {'a': ('bus, red',)}


@pytest.mark.parametrize(
    ('content', 'pattern'),
    [
        ('image,tags\na,dog\n\nb,cta\n', r"labels\.csv, line 4, image 'b': unknown class 'cta'"),
        ('x/a.jpg,dog\nb\ny/a.png,cat', r"line 3, image 'a': line 1 has the image already.*Keep"),
        ('a,dog\na,dog', r"line 2, image 'a': line 1 has the image already"),
        (',dog', r"labels\.csv, line 1: '' where the file name .*Begin the line"),
        ('a,dog\nsub/,dog', r"line 2: 'sub/' where the file name"),
        (
            'a,dog\nb.jpg;cat',
            r"line 2: 'b\.jpg;cat' where .* separate the cells as the",
        ),
        ('a;b.jpg\tcat,dog', r"line 1: 'a;b\.jpg' where the file name"),
        ('"a,b.jpg";cat', r"line 1: 'a,b\.jpg' where the file name"),
        ('a,dog\nb,"cat\nc,dog', r'labels\.csv, line 2: malformed CSV: .*Correct the quotes'),
        ('a,"dog\ncat"\nb,"dog" x', 'line 3: malformed CSV'),
        ('a,0,1', r"line 1, image 'a': '0' where class names belong\. .* need a header"),
        ('image\na,1', r"line 2, image 'a': '1' where class names belong"),
        ('image,tags\na,dog\nb,1', r"line 3, image 'b': '1' where class names belong"),
        ('\nid,cta,dog\na,1,0', r"line 2, header: unknown class 'cta'.*mean 'cat'"),
        ('id,cat,cat\na,1,0', r"line 1, header: \['cat', 'cat'\] has a class twice\. Keep one"),
        ('id,cat,dog\na,1,0\nb,0.5,', r"line 3, image 'b': value '0\.5' where only 0, 1 and blank"),
        ('id,cat,dog\na,1,0,1', r"image 'a': 3 labels where the header names 2 classes\. Name"),
    ],
)
def test_bad_csv_is_refused_with_the_line(tmp_path, content, pattern):
    with pytest.raises(ValueError, match=pattern):
        _read_csv(tmp_path, content)


def test_csv_of_random_labels_agrees_with_python_csv(tmp_path):
    rng = np.random.default_rng(0)
    labels = {
        f'image_{i}': tuple(name for name in CLASSES if rng.random() < 0.5) for i in range(50)
    }
    for separator in (',', ';', '\t'):
        with (tmp_path / 'labels.csv').open('w', newline='') as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerows((f'{i}.jpg', ', '.join(names)) for i, names in labels.items())
        assert read_image_labels(tmp_path / 'labels.csv', CLASSES) == labels


@pytest.mark.parametrize('dtype', [np.float64, np.int64, np.uint8, bool, '>f4'])
def test_npy_vectors_of_any_number_type_are_read(tmp_path, dtype):
    np.save(tmp_path / 'l.npy', _vectors(EXPECTED, dtype))
    assert read_image_labels(tmp_path / 'l.npy', CLASSES) == EXPECTED


@pytest.mark.parametrize('key', [2007000001, np.int64(2007000001), np.int32(2007000001)])
def test_voc_ids_saved_as_numbers_become_file_names(tmp_path, key):
    np.save(tmp_path / 'l.npy', {key: np.array([0, 1, 0], np.float32)})
    assert read_image_labels(tmp_path / 'l.npy', CLASSES) == {'2007_000001': ('dog',)}


def test_other_numbers_as_ids_are_refused(tmp_path):
    np.save(tmp_path / 'l.npy', {9: np.array([0, 1, 0], np.float32)})
    with pytest.raises(ValueError, match='image id 9 tells no file name.*write_image_labels'):
        read_image_labels(tmp_path / 'l.npy', CLASSES)


def test_id_given_as_number_and_as_name_is_refused(tmp_path):
    vector = np.array([0, 1, 0], np.float32)
    np.save(tmp_path / 'l.npy', {2007000001: vector, '2007_000001': vector})
    with pytest.raises(ValueError, match="'2007_000001' appears twice"):
        read_image_labels(tmp_path / 'l.npy', CLASSES)


@pytest.mark.parametrize('module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_npy_of_numpy_1_and_2_are_read(tmp_path, module):
    header = _write_npy(tmp_path).read_bytes().split(b'\n')[0] + b'\n'
    # Protocol 3 writes module names as plain lines, so that they can be exchanged.
    content = pickle.dumps(np.array(_vectors(EXPECTED), dtype=object), protocol=3)
    content = re.sub(rb'cnumpy\._?core\.multiarray\n', b'c' + module + b'\n', content)
    assert b'c' + module in content
    (tmp_path / 'l.npy').write_bytes(header + content)
    assert read_image_labels(tmp_path / 'l.npy', CLASSES) == EXPECTED


@pytest.mark.parametrize(
    ('labels', 'pattern'),
    [
        ({'a': np.ones(2)}, r"l\.npy, image 'a': shape \[2\] where a vector of 3"),
        ({'a': np.ones((1, 3))}, r'shape \[1, 3\] where'),
        ({'a': [0, 1, 0]}, r'\[0, 1, 0\] where a vector of 3'),
        ({'a': np.array([0, 0.5, 1])}, r"image 'a': value 0\.5 where only 0 and 1"),
        ({'a': np.array([0, np.nan, 1])}, 'value nan where only 0 and 1'),
        ({'a': np.array(['x', 'y', 'z'])}, 'it holds <U1 where label arrays hold numbers'),
        (['a', 'b'], 'holds an array object'),
        ({1, 2}, 'asks for builtins.set|holds a set, not a dict'),
    ],
)
def test_bad_npy_is_refused(tmp_path, labels, pattern):
    np.save(tmp_path / 'l.npy', np.array(labels, dtype=object))
    with pytest.raises(ValueError, match=pattern):
        read_image_labels(tmp_path / 'l.npy', CLASSES)


def test_npy_of_plain_numbers_is_refused(tmp_path):
    np.save(tmp_path / 'l.npy', np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r'l\.npy is no readable.*float32\[4, 3\]'):
        read_image_labels(tmp_path / 'l.npy', CLASSES)


@pytest.mark.parametrize('share', [0.0, 0.05, 0.5, 0.9])
def test_damaged_npy_is_refused(tmp_path, share):
    path = _write_npy(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'cls_labels\.npy is no readable label file'):
        read_image_labels(path, CLASSES)


class _Command:
    """Unpickling it creates a folder: harmless, but it is code that runs."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    target = tmp_path / 'made_by_the_pickle'
    np.save(tmp_path / 'l.npy', {'a': _Command(str(target))})
    forbidden = rf'l\.npy.*{os.mkdir.__module__}\.mkdir.*could run code.*write_image_labels'
    with pytest.raises(ValueError, match=forbidden):
        read_image_labels(tmp_path / 'l.npy', CLASSES)
    assert not target.exists()


def test_harmless_classes_are_refused_too(tmp_path):
    np.save(tmp_path / 'l.npy', {'a': collections.OrderedDict()})
    with pytest.raises(ValueError, match=r'asks for collections\.OrderedDict'):
        read_image_labels(tmp_path / 'l.npy', CLASSES)


class _ForgedDtype:
    """A float32 whose flags claim that it holds Python objects."""

    def __reduce__(self):
        return np.dtype, ('f4', False, True), (3, '<', None, None, None, -1, -1, 63)


class _ForgedArray:
    def __reduce__(self):
        reconstruct, arguments = np.empty(0).__reduce__()[:2]
        return reconstruct, arguments, (1, (3,), _ForgedDtype(), False, b'\x00' * 12)


def test_forged_dtype_flags_reach_no_numpy_object(tmp_path):
    header = _write_npy(tmp_path).read_bytes().split(b'\n')[0] + b'\n'
    array = np.empty((), dtype=object)
    array[()] = {'a': _ForgedArray()}
    (tmp_path / 'l.npy').write_bytes(header + pickle.dumps(array, protocol=4))
    assert read_image_labels(tmp_path / 'l.npy', CLASSES) == {'a': ()}


def test_asked_image_without_xml_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image 'd' has no label file .*d\.xml.*Add"):
        read_image_labels(_write_xml(tmp_path), CLASSES, ['b', 'd'])


def test_asked_image_without_mask_is_named(tmp_path, write_masks):
    with pytest.raises(FileNotFoundError, match=r"image 'd' has no label file .*d\.png.*Add"):
        read_image_labels(write_masks(tmp_path), CLASSES, ['b', 'd'])


def test_unreadable_xml_is_named(tmp_path):
    (tmp_path / 'a.xml').write_text('<annotation><object>')
    with pytest.raises(ValueError, match=r'a\.xml is no readable XML'):
        read_image_labels(tmp_path, CLASSES)


def test_object_without_name_is_an_unknown_class(tmp_path):
    (tmp_path / 'a.xml').write_text('<annotation><object/></annotation>')
    with pytest.raises(ValueError, match=r"a\.xml: unknown class ''"):
        read_image_labels(tmp_path, CLASSES)


def test_mask_ids_outside_the_classes_are_named(tmp_path, write_mask):
    write_mask(tmp_path / 'a.png', np.array([[0, 1, 9]]))
    with pytest.raises(ValueError, match=r'a\.png holds the ids \[9\].*only 3 foreground'):
        read_image_labels(tmp_path, CLASSES)


def test_folder_of_both_kinds_or_neither_is_refused(tmp_path, write_mask):
    with pytest.raises(ValueError, match=r'neither \.xml nor \.png files'):
        read_image_labels(tmp_path, CLASSES)
    write_mask(_write_xml(tmp_path) / 'a.png', np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\['\.png', '\.xml'\] files; give a folder"):
        read_image_labels(tmp_path, CLASSES)


def test_labels_of_the_real_data_agree_with_their_masks(shared_dir):
    root = shared_dir / 'data/voc_animals'
    classes = read_label_classes(root / 'image_labels.json')
    assert classes == ('cat', 'cow', 'dog', 'horse', 'sheep', 'person')
    val = (root / 'ImageSets/Segmentation/val.txt').read_text().split()
    labels = read_image_labels(root / 'image_labels.json', classes)
    masks = read_image_labels(root / 'SegmentationClass', classes, val)
    assert np.mean([masks[image_id] == labels[image_id] for image_id in val]) > 0.95
