import json

import numpy as np
import pytest
from PIL import Image

from mmdscnet.datasets import voc_palette
from mmdscnet.pseudo_labels import DenseCRF, ExportFolder, write_cams


@pytest.fixture
def project(make_voc_folder, tmp_path):
    """Images of VOC's layout, and exported CAMs of two of three."""
    sizes = {'a': (20, 24), 'b': (24, 20), 'c': (20, 20)}
    images = {image_id: (size, ['cat']) for image_id, size in sizes.items()}
    make_voc_folder(tmp_path / 'data', images, ['cat', 'dog'])
    export = ExportFolder(tmp_path / 'cams', '.npz', dict(kind='test'))
    rng = np.random.default_rng(0)
    for image_id in 'ab':
        cams = rng.random((1, *sizes[image_id]), dtype=np.float32)
        write_cams(export.path(image_id), cams, np.array([1]))
    return tmp_path


@pytest.fixture
def label(run_tool, project):
    def run(*args, cams='cams'):
        folders = ('--images', project / 'data' / 'JPEGImages', '--out', project / 'labels')
        run_tool('make_affinity_labels.py', project / cams, *folders, *args)

    return run


@pytest.fixture
def written(project):
    return lambda: sorted(path.stem for path in (project / 'labels').glob('*.png'))


@pytest.fixture(autouse=True)
def needs_crf():
    pytest.importorskip('pydensecrf')


def test_images_with_cams_are_labelled_in_the_colours_of_voc(label, project, written, capsys):
    label()
    assert written() == ['a', 'b']
    with Image.open(project / 'labels' / 'b.png') as image:
        assert image.size == (20, 24)
        assert image.getpalette()[:63] == np.ravel(voc_palette(21)).tolist()
        assert image.getpalette()[-3:] == [224, 224, 192]
        assert set(np.unique(np.array(image))) <= {0, 1, 255}
    assert f'2 label maps written to {project / "labels"}' in capsys.readouterr().out


def test_second_run_writes_what_is_missing(label, project, written, capsys):
    label()
    (project / 'labels' / 'a.png').unlink()
    before = (project / 'labels' / 'b.png').stat().st_mtime_ns
    capsys.readouterr()
    label()
    assert written() == ['a', 'b']
    assert (project / 'labels' / 'b.png').stat().st_mtime_ns == before
    assert '1 label maps written' in capsys.readouterr().out


def test_split_chooses_the_images(label, project, written):
    # As VOC's files may end: with an empty line, or in the way of Windows.
    (project / 'split.txt').write_bytes(b'b\r\n \n\n')
    label('--split', project / 'split.txt')
    assert written() == ['b']


def test_split_with_images_without_cams_is_refused(label, project, written):
    (project / 'split.txt').write_text('a\nb\nc\n')
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no CAMs .* 'c': run tools"):
        label('--split', project / 'split.txt')
    assert written() == []


def test_missing_or_empty_split_is_named(label, project):
    with pytest.raises(FileNotFoundError, match=r'--split=.*none\.txt is not a file'):
        label('--split', project / 'none.txt')
    (project / 'empty.txt').write_text('\n')
    with pytest.raises(ValueError, match=r'--split=.*empty\.txt is empty'):
        label('--split', project / 'empty.txt')


def test_stage_without_cams_says_what_to_do(label):
    with pytest.raises(FileNotFoundError, match=r'nowhere holds no exported CAMs.*export_cams'):
        label(cams='nowhere')


def test_exponents_are_a_choice_and_not_mixed(label, project, written):
    label('--alphas', 2, 8)
    assert '2.0' in (project / 'labels' / 'export.json').read_text()
    (project / 'labels' / 'a.png').unlink()
    with pytest.raises(ValueError, match=r'other settings \(alphas: \[2\.0, 8\.0\] there'):
        label()
    assert written() == ['b']


def test_exponents_must_ascend(label):
    with pytest.raises(ValueError, match=r'alphas=\(24\.0, 4\.0\) must be positive'):
        label('--alphas', 24, 4)


def test_settings_of_the_crf_are_a_choice(label, project):
    label()
    with Image.open(project / 'labels' / 'a.png') as image:
        before = np.array(image)
    (project / 'labels').rename(project / 'default')
    label('--crf', 'bilateral_sxy=9.5', 'bilateral_compat=90', 'num_steps=3')
    crf = json.loads((project / 'labels' / 'export.json').read_text())['crf']
    assert crf == vars(DenseCRF(bilateral_sxy=9.5, bilateral_compat=90, num_steps=3))
    with Image.open(project / 'labels' / 'a.png') as image:
        assert (np.array(image) != before).any()
    with pytest.raises(ValueError, match=r'other settings \(crf: '):
        label()


@pytest.mark.parametrize('option', ['bilateral_xy=9', 'bilateral_sxy=wide', 'num_steps=2.5'])
def test_setting_that_the_crf_does_not_have_is_named(label, project, option):
    name = option.split('=')[0]
    message = rf"--crf .*'{name}'.*Give numbers for some of .*'bilateral_sxy': 80"
    with pytest.raises(ValueError, match=message):
        label('--crf', option)
    assert not (project / 'labels').exists()
