import json
import os
import re
import sys
import tarfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from PIL import Image

from mmdscnet.datasets import VOC2012Dataset
from mmdscnet.pseudo_labels import DenseCRF

VOC_CLASSES = VOC2012Dataset.METAINFO['classes'][1:]


@pytest.fixture
def project(export_project):
    return export_project()


@pytest.fixture
def export(run_tool, project):
    def run(*args, folder=project, checkpoint='weights.pth', out='labels'):
        paths = (folder / 'config.py', folder / checkpoint, '--out', folder / out)
        run_tool('export_labels.py', *paths, '--num-workers', 0, *args)

    return run


def read_label(path):
    with Image.open(path) as image:
        assert image.mode == 'P'
        return np.array(image)


def test_labels_are_written_and_judged(export, project, capsys):
    export()
    assert sorted(os.listdir(project / 'labels')) == ['a.png', 'b.png', 'c.png', 'export.json']
    assert read_label(project / 'labels' / 'a.png').shape == (32, 40)
    out = capsys.readouterr().out
    assert '3 label maps written by this process, 3 in' in out
    (score,) = re.findall(r'mIoU (.*) over 3 images \(labels given\)', out)
    hits, union = np.zeros(3), np.zeros(3)
    for image_id in 'abc':
        labels = read_label(project / 'labels' / f'{image_id}.png')
        truth = read_label(project / 'data' / 'SegmentationClass' / f'{image_id}.png')
        for k in range(3):
            hits[k] += ((labels == k) & (truth == k)).sum()
            union[k] += (((labels == k) | (truth == k)) & (truth != 255)).sum()
    assert float(score) == pytest.approx(100 * (hits / union).mean(), abs=0.01)


def test_given_labels_mask_absent_classes(export, project):
    export()
    assert 1 not in read_label(project / 'labels' / 'a.png')
    assert not read_label(project / 'labels' / 'c.png').any()


def test_second_run_writes_what_is_missing_and_judges_all(export, project, capsys):
    export()
    (project / 'labels' / 'b.png').unlink()
    first = capsys.readouterr().out
    export()
    second = capsys.readouterr().out
    assert '1 label maps written' in second
    assert re.findall('mIoU.*', first) == re.findall('mIoU.*', second)


@pytest.mark.parametrize('flag', [('--labels', 'predicted'), ('--tta',)])
def test_labels_of_another_kind_are_not_mixed(export, flag):
    export()
    with pytest.raises(ValueError, match='an export with other settings'):
        export(*flag)


def test_views_are_merged(export, project, capsys):
    export('--tta')
    assert 'over 3 images (labels given)' in capsys.readouterr().out
    export(out='one_view')
    assert any(
        (read_label(project / 'labels' / name) != read_label(project / 'one_view' / name)).any()
        for name in ('a.png', 'b.png')
    )


def test_crf_is_a_choice(export, project):
    pytest.importorskip('pydensecrf')
    export('--crf')
    assert '"num_steps": 10' in (project / 'labels' / 'export.json').read_text()
    assert len(list((project / 'labels').glob('*.png'))) == 3


def test_settings_of_the_crf_are_a_choice(export, project):
    pytest.importorskip('pydensecrf')
    export('--crf', out='default')
    options = ('bilateral_sxy=9.5', 'bilateral_compat=90', 'num_steps=3')
    export('--crf', *options)
    crf = json.loads((project / 'labels' / 'export.json').read_text())['crf']
    changed = dict(bilateral_sxy=9.5, bilateral_compat=90, num_steps=3)
    assert crf == vars(DenseCRF(**changed))
    maps = [read_label(project / out / 'b.png') for out in ('default', 'labels')]
    assert (maps[0] != maps[1]).any()
    with pytest.raises(ValueError, match=r'other settings \(crf: '):
        export('--crf')


@pytest.mark.parametrize('option', ['bilateral_xy=9', 'bilateral_sxy=wide', 'num_steps=2.5'])
def test_setting_that_the_crf_does_not_have_is_named(export, project, option):
    name = option.split('=')[0]
    message = rf"--crf .*'{name}'.*Give numbers for some of .*'bilateral_sxy': 80"
    with pytest.raises(ValueError, match=message):
        export('--crf', option, checkpoint='none.pth')
    assert not (project / 'labels').exists()


def test_missing_crf_is_found_before_the_folder_is_made(export, project, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    with pytest.raises(ImportError, match='pip install pydensecrf2'):
        export('--crf')
    assert not (project / 'labels').exists()


def test_config_that_names_no_labels_has_them_predicted(export, capsys):
    export('--cfg-options', 'test_dataloader.dataset.image_labels=None')
    assert '(labels predicted)' in capsys.readouterr().out


def test_labels_that_are_not_there_cannot_be_given(export, project):
    with pytest.raises(ValueError, match=r"labels='given', but .* no image_labels"):
        export('--labels', 'given', '--cfg-options', 'test_dataloader.dataset.image_labels=None')
    assert not (project / 'labels').exists()


def test_split_without_masks_needs_a_flag(export, project, capsys):
    for path in (project / 'data' / 'SegmentationClass').iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match='3 of 3 masks'):
        export()
    assert not (project / 'labels').exists()
    export('--no-masks')
    assert len(list((project / 'labels').glob('*.png'))) == 3
    assert 'mIoU' not in capsys.readouterr().out


def test_archive_holds_the_predictions_of_the_21_classes_of_voc(export, export_project, capsys):
    folder = export_project(VOC_CLASSES, 'voc')
    archive = folder / 'results.tar.gz'
    export('--no-masks', '--voc-archive', archive, '--labels', 'predicted', folder=folder)
    inside = 'results/VOC2012/Segmentation/comp6_test_cls'
    with tarfile.open(archive) as packed:
        assert packed.getnames() == [f'{inside}/{image_id}.png' for image_id in 'abc']
        content = packed.extractfile(f'{inside}/a.png').read()
    assert content == (folder / 'labels' / 'a.png').read_bytes()
    assert 'is ready for the VOC test server' in capsys.readouterr().out


def test_archive_of_other_classes_is_refused_before_the_export(export, project):
    with pytest.raises(ValueError, match=r'--voc-archive=.* 21 classes of VOC .* set has 3'):
        export('--voc-archive', project / 'results.tar.gz')
    assert not (project / 'labels').exists()


def test_missing_checkpoint_is_named(export, project):
    with pytest.raises(FileNotFoundError, match=r"checkpoint '.*none\.pth' is not a file"):
        export(checkpoint='none.pth')
    assert not (project / 'labels').exists()


def test_checkpoint_of_another_network_is_named(export, project):
    torch.save({'layer.weight': torch.ones(1)}, project / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth is damaged or not of the network of this'):
        export(checkpoint='other.pth')
    assert not (project / 'labels').exists()


@pytest.mark.parametrize('key', ['tta_model', 'tta_pipeline'])
def test_config_without_views_is_refused(export, project, key):
    text = (project / 'config.py').read_text()
    (project / 'config.py').write_text(f'{text}\ndel {key}\n')
    with pytest.raises(ValueError, match=key):
        export('--tta')
    assert not (project / 'labels').exists()


AFFINITY = """
model.update(
    decode_head=dict(
        type='AffinityHead',
        in_channels=(16, 32),
        in_index=(2, 3),
        channels=(4, 4),
        num_classes=3,
        num_steps=8,
    )
)
test_pipeline.insert(2, dict(type='LoadCAMs'))
"""


@pytest.fixture
def walk(export, project, run_tool):
    """Export CAMs, and let them walk by an AffinityNet of random weights."""
    cams = ('--out', project / 'cams', '--num-workers', 0)
    run_tool('export_cams.py', project / 'config.py', project / 'weights.pth', *cams)
    text = (project / 'config.py').read_text()
    (project / 'config.py').write_text(text + AFFINITY)
    model = MODELS.build(Config.fromfile(project / 'config.py').model)
    torch.save(model.state_dict(), project / 'affinity.pth')

    def run(*args):
        export(*args, checkpoint='affinity.pth', out='walk')

    return run


def test_exported_cams_walk(walk, project):
    walk('--cams', project / 'cams')
    assert len(list((project / 'walk').glob('*.png'))) == 3
    assert set(np.unique(read_label(project / 'walk' / 'a.png'))) <= {0, 2}


@pytest.mark.parametrize('how', ['flag', 'config'])
def test_walks_of_other_cams_are_not_mixed(walk, project, how):
    flag = ('--cams', project / 'cams')
    if how == 'config':
        flag = ('--cfg-options', f'test_dataloader.dataset.cam_folder={project / "cams"}')
    walk(*flag)
    settings = project / 'cams' / 'export.json'
    settings.write_text(settings.read_text().replace('float32', 'bfloat16'))
    with pytest.raises(ValueError, match=r'other settings \(cams: '):
        walk(*flag)


def test_walk_without_cams_says_what_to_do(walk, project):
    (project / 'cams' / 'b.npz').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 3 CAM files .*b\.npz. Run the export'):
        walk('--cams', project / 'cams')
    with pytest.raises(FileNotFoundError, match=r'3 of 3 CAM files .*Run the export'):
        walk('--cams', project / 'nowhere')
    assert not (project / 'walk').exists()
