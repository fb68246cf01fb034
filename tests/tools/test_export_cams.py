import json
import os

import numpy as np
import pytest
import torch

from mmdscnet.pseudo_labels import hash_file, read_cams


@pytest.fixture
def project(export_project):
    return export_project()


@pytest.fixture
def export(run_tool, project):
    def run(*args, checkpoint='weights.pth'):
        folders = (project / 'config.py', project / checkpoint, '--out', project / 'cams')
        run_tool('export_cams.py', *folders, '--num-workers', 0, *args)

    return run


def test_cams_of_the_given_classes_are_written_at_the_size_of_the_image(export, project, capsys):
    export()
    assert sorted(os.listdir(project / 'cams')) == ['a.npz', 'b.npz', 'c.npz', 'export.json']
    cams, class_ids = read_cams(project / 'cams' / 'b.npz')
    assert cams.shape == (2, 40, 32)
    assert class_ids.tolist() == [1, 2]
    assert read_cams(project / 'cams' / 'a.npz').class_ids.tolist() == [2]
    assert read_cams(project / 'cams' / 'c.npz').cams.shape == (0, 32, 40)
    assert '3 CAM files written, 3 images in' in capsys.readouterr().out


def test_second_run_writes_what_is_missing(export, project, capsys):
    export()
    (project / 'cams' / 'b.npz').unlink()
    before = (project / 'cams' / 'a.npz').stat().st_mtime_ns
    capsys.readouterr()
    export()
    assert '1 CAM files written, 3 images in' in capsys.readouterr().out
    assert (project / 'cams' / 'a.npz').stat().st_mtime_ns == before
    # How fast it goes is no matter of the content.
    export('--batch-size', 1)
    assert '0 CAM files written' in capsys.readouterr().out


def test_splits_may_share_a_folder(export, project):
    (project / 'data' / 'one.txt').write_text('b\n')
    export('--split', 'one.txt')
    assert sorted(os.listdir(project / 'cams')) == ['b.npz', 'export.json']
    export()
    assert sorted(os.listdir(project / 'cams')) == ['a.npz', 'b.npz', 'c.npz', 'export.json']


def test_classes_may_be_predicted(export, project):
    export('--labels', 'predicted')
    for image_id in 'abc':
        assert len(read_cams(project / 'cams' / f'{image_id}.npz').class_ids) > 0


def test_precision_is_a_choice(export, project, run_tool):
    export()
    out = ('--out', project / 'half', '--num-workers', 0, '--precision', 'bfloat16')
    run_tool('export_cams.py', project / 'config.py', project / 'weights.pth', *out)
    exact, close = (read_cams(project / name / 'b.npz').cams for name in ('cams', 'half'))
    np.testing.assert_allclose(close.astype(float), exact.astype(float), rtol=0, atol=0.15)
    assert (close != exact).any()


@pytest.mark.parametrize(
    ('change', 'name'),
    [
        (('--labels', 'predicted'), 'labels'),
        (('--precision', 'bfloat16'), 'precision'),
        (('--cfg-options', 'model.decode_head.score_thr=0.1'), 'model'),
    ],
)
def test_cams_of_another_kind_are_not_mixed(export, project, change, name):
    export()
    before = (project / 'cams' / 'export.json').read_bytes()
    (project / 'cams' / 'a.npz').unlink()
    with pytest.raises(
        ValueError, match=rf'cams holds an export with other settings \((.*; )?{name}: '
    ):
        export(*change)
    assert (project / 'cams' / 'export.json').read_bytes() == before
    assert not (project / 'cams' / 'a.npz').exists()


def test_cams_of_another_checkpoint_are_not_mixed(export, project):
    export()
    state = torch.load(project / 'weights.pth')
    state['decode_head.classifier.weight'] *= 2
    torch.save(state, project / 'weights.pth')
    with pytest.raises(ValueError, match=r'other settings \(checkpoint: '):
        export()


def test_cams_of_other_labels_are_not_mixed(export, project):
    export()
    labels = project / 'data' / 'image_labels.json'
    content = json.loads(labels.read_text())
    content['labels']['a'] = ['cat']
    labels.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'other settings \(label_source: '):
        export()


def test_settings_tell_how_the_files_were_made(export, project):
    export()
    settings = json.loads((project / 'cams' / 'export.json').read_text())
    assert settings['classes'] == ['background', 'cat', 'dog']
    assert settings['labels'] == 'given'
    assert settings['model']['decode_head']['type'] == 'CAMHead'
    assert settings['pipeline'][1]['type'] == 'TestTimeAug'
    assert settings['precision'] == 'float32'
    labels = project / 'data' / 'image_labels.json'
    assert settings['label_source'] == hash_file(labels)
    assert settings['checkpoint'] == hash_file(project / 'weights.pth')


def test_masks_are_not_needed(export, project):
    for path in (project / 'data' / 'SegmentationClass').iterdir():
        path.unlink()
    export()
    assert len(list((project / 'cams').glob('*.npz'))) == 3


def test_missing_checkpoint_is_named(export, project):
    with pytest.raises(FileNotFoundError, match=r"checkpoint '.*none\.pth' is not a file"):
        export(checkpoint='none.pth')
    assert not (project / 'cams').exists()


def test_checkpoint_of_another_network_is_named(export, project):
    torch.save({'layer.weight': torch.ones(1)}, project / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth is damaged or not of the network of this'):
        export(checkpoint='other.pth')
    assert not (project / 'cams').exists()


def test_config_without_views_is_refused(export, project):
    text = (project / 'config.py').read_text()
    (project / 'config.py').write_text(text + '\ndel tta_pipeline\n')
    with pytest.raises(ValueError, match=r'config\.py has no tta_pipeline.*voc\.py has'):
        export()
    assert not (project / 'cams').exists()


def test_labels_that_are_not_there_cannot_be_given(export, project):
    with pytest.raises(ValueError, match=r"labels='given', but .* no image_labels"):
        export('--cfg-options', 'test_dataloader.dataset.image_labels=None')
    assert not (project / 'cams').exists()


def test_missing_split_is_named(export, project):
    with pytest.raises(FileNotFoundError, match=r'split file .*none\.txt'):
        export('--split', 'none.txt')
    assert not (project / 'cams').exists()


def test_missing_image_is_named(export, project):
    (project / 'data' / 'JPEGImages' / 'b.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 3 images .*b\.jpg'):
        export()
    assert not (project / 'cams').exists()
