import os

import numpy as np
import pytest
from PIL import Image

from mmdscnet.pseudo_labels import PseudoLabelStore, read_cams

TAGS = 'image,class\na.jpg,dog\nb.jpg,cat;dog\nc.jpg\n'


@pytest.fixture
def project(export_project):
    folder = export_project()
    (folder / 'tags.csv').write_text(TAGS)
    return folder


@pytest.fixture
def label(run_tool, project):
    def run(*args, tags=True, out='store'):
        files = (project / 'config.py', project / 'weights.pth', project / 'data' / 'JPEGImages')
        tags = ('--tags', project / 'tags.csv') if tags else ('--labels', 'predicted')
        common = ('--out', project / out, '--num-workers', 0, '--device', 'cpu')
        run_tool('label_images.py', *files, *tags, *common, *args)
        return PseudoLabelStore(project / out).current()

    return run


def read(version, image_id):
    with Image.open(version.folder / f'{image_id}.png') as image:
        return np.asarray(image)


def test_folder_with_tags_becomes_a_store(label, project, capsys):
    version = label('--keep-cams', project / 'cams', '--overlays', project / 'overlays')
    assert version.folder.name == 'v0001'
    assert sorted(version.manifest['files']) == ['a', 'b', 'c']
    settings = version.manifest['settings']
    assert (settings['labels'], settings['precision']) == ('given', 'float32')
    assert read(version, 'a').shape == (32, 40)
    assert set(np.unique(read(version, 'a'))) <= {0, 2}
    assert not read(version, 'c').any()
    assert read_cams(project / 'cams' / 'b.npz').class_ids.tolist() == [1, 2]
    assert sorted(os.listdir(project / 'overlays')) == ['a.jpg', 'b.jpg', 'c.jpg']
    with Image.open(project / 'overlays' / 'b.jpg') as image:
        assert image.size == (32, 40)
    out, err = capsys.readouterr()
    assert 'store/v0001: 3 images' in out
    assert '100.00 % of the pixels not void' in out
    assert 'shares (%): background' in out
    assert '3/3' in err


def test_second_run_goes_on_with_the_first(label, project):
    first = label()
    before = {i: (first.folder / f'{i}.png').stat().st_mtime_ns for i in 'abc'}
    content = read(first, 'b')
    (first.folder / 'b.png').unlink()
    (first.folder / 'manifest.json').unlink()
    second = label('--batch-size', 1)
    assert second.folder == first.folder
    assert {i for i in 'abc' if (first.folder / f'{i}.png').stat().st_mtime_ns != before[i]} == {
        'b'
    }
    assert (read(second, 'b') != content).mean() < 0.01


def test_other_rules_are_another_version(label):
    label()
    version = label('--bg-thr', 0.9, '--fg-thr', 0.95, '--no-tta')
    assert version.number == 2
    assert version.coverage < 1
    assert version.manifest['settings']['labeler']['bg_thr'] == 0.9


def test_classes_may_be_predicted(label):
    version = label(tags=False)
    assert version.manifest['settings']['labels'] == 'predicted'
    assert read(version, 'c').any()


def test_unreadable_image_stops_or_is_skipped(label, project, capsys):
    (project / 'data' / 'JPEGImages' / 'b.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'b\.jpg cannot be read: .*--skip-unreadable'):
        label()
    version = label('--skip-unreadable', '--overlays', project / 'overlays')
    assert sorted(version.manifest['files']) == ['a', 'c']
    assert sorted(os.listdir(project / 'overlays')) == ['a.jpg', 'c.jpg']
    assert 'skipped b: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('tags', 'message'),
    [
        (TAGS + 'd.jpg,cat\n', "1 images that are not among the 3 images, the first is 'd'"),
        ('a.jpg,dog\nc.jpg\n', "1 of 3 images have no tags in .*'b'"),
        (TAGS.replace('dog', 'dgo'), "Did you mean 'dog'"),
    ],
)
def test_tags_that_do_not_fit_are_refused(label, project, tags, message):
    (project / 'tags.csv').write_text(tags)
    with pytest.raises(ValueError, match=message):
        label()


def test_results_among_the_images_are_refused(label, project):
    with pytest.raises(ValueError, match='--out .* lies in'):
        label(out='data/JPEGImages/store')
    with pytest.raises(ValueError, match='--overlays .* lies in'):
        label('--overlays', project / 'data' / 'JPEGImages')


def test_tags_or_prediction_must_be_chosen(label, capsys):
    with pytest.raises(SystemExit):
        label('--labels', 'predicted')
    assert 'not allowed with' in capsys.readouterr().err
    with pytest.raises(ValueError, match="device='gpu' cannot be used"):
        label('--device', 'gpu')
