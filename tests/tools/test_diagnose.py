import json

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS


@pytest.fixture
def project(export_project):
    """Folder with images a, b and c, the config of M4 and two checkpoints."""
    folder = export_project()
    config = folder / 'config.py'
    head = "type='DSCHead', embed_channels=8, in_channels"
    config.write_text(config.read_text().replace("type='CAMHead', in_channels", head))
    for name in ('epoch_1', 'epoch_2'):
        model = MODELS.build(Config.fromfile(config).model)
        for parameter in model.decode_head.parameters():
            torch.nn.init.normal_(parameter)
        torch.save(model.state_dict(), folder / f'{name}.pth')
    return folder


@pytest.fixture
def diagnose(run_tool, project):
    def run(*args, checkpoints=('epoch_1', 'epoch_2')):
        paths = [project / f'{name}.pth' for name in checkpoints]
        small = ['--split', 'ImageSets/Segmentation/val.txt', '--batch-size', 2, '--size', 32]
        out = ['--out', project / 'out']
        run_tool('analysis_tools/diagnose.py', project / 'config.py', *paths, *small, *out, *args)
        return project / 'out'

    return run


@pytest.mark.slow
def test_numbers_tables_and_figures_are_written(diagnose, capsys):
    out = diagnose('--shown', 1)
    found = json.loads((out / 'diagnosis.json').read_text())
    assert list(found['checkpoints']) == ['epoch_1', 'epoch_2']
    assert found['checkpoints']['epoch_1'] != found['checkpoints']['epoch_2']
    assert found['facts']['images'].startswith('2 of ImageSets/Segmentation/val.txt at 32 x 32')
    text = (out / 'diagnosis.md').read_text()
    value = found['checkpoints']['epoch_2']['groups']['miou']
    assert '| measure | epoch_1 | epoch_2 | how to read it |' in text
    assert f'| {value:.2f} | The groups taken as a segmentation' in text
    page = (out / 'diagnosis.html').read_text()
    assert page.count('data:image/png') == 4
    names = {path.name for path in out.iterdir()}
    assert names == {
        *(f'diagnosis.{ending}' for ending in ('json', 'md', 'html')),
        *(f'{name}.png' for name in ('curves', 'similarities', 'places', 'changes')),
    }
    assert 'diagnosis.html' in capsys.readouterr().out


def test_checkpoint_named_twice_is_refused(diagnose):
    with pytest.raises(ValueError, match='name one twice'):
        diagnose(checkpoints=('epoch_1', 'epoch_1'))


def test_missing_checkpoint_is_named_before_anything_is_built(diagnose, project):
    (project / 'config.py').write_text('model = dict()')
    with pytest.raises(FileNotFoundError, match=r'epoch_9\.pth'):
        diagnose(checkpoints=('epoch_1', 'epoch_9'))


def test_checkpoints_of_equal_names_are_told_apart_by_their_paths(load_tool):
    tool = load_tool('analysis_tools/diagnose.py')
    assert tool.name_checkpoints(['a/epoch_1.pth', 'a/epoch_2.pth']) == ['epoch_1', 'epoch_2']
    paths = ['a/epoch_1.pth', 'b/epoch_1.pth']
    assert tool.name_checkpoints(paths) == paths


@pytest.mark.parametrize('name', ['--size', '--shown'])
def test_sizes_below_1_are_refused(name, diagnose, capsys):
    with pytest.raises(SystemExit):
        diagnose(name, 0)
    assert f'{name} 0 must be at least 1' in capsys.readouterr().err
