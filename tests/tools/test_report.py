import json
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

SPLITS = """
val_dataloader = dict(
    dataset=dict(test_dataloader['dataset'], ann_file='ImageSets/Segmentation/train.txt'),
)
randomness = dict(seed=7)
"""
LOSSES = [
    dict(loss=2.0, lr=0.1, step=10, **{'decode.loss_cls': 1.5}),
    dict(loss=1.0, lr=0.1, step=20, **{'decode.loss_cls': 0.5}),
    dict(mIoU=30.0, step=1),
]


def write_log(run, name, rows):
    path = run / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def run_dir(export_project):
    """Work dir of a run of M0 whose threshold is chosen on c and judged on a and b."""
    folder = export_project(name='plain')
    splits = folder / 'data' / 'ImageSets' / 'Segmentation'
    (splits / 'train.txt').write_text('c\n')
    (splits / 'val.txt').write_text('a\nb\n')
    config = folder / 'config.py'
    config.write_text(config.read_text() + SPLITS)
    # A note of another machine.
    (folder / 'last_checkpoint').write_text('/elsewhere/weights.pth')
    write_log(folder, '20260101_000000', LOSSES)
    return folder


@pytest.fixture
def other_dir(run_dir, tmp_path):
    """Work dir of a run of M4 on the same data."""
    folder = tmp_path / 'dual'
    folder.mkdir()
    text = (run_dir / 'config.py').read_text()
    head = "type='DSCHead', embed_channels=8, in_channels"
    (folder / 'm4.py').write_text(text.replace("type='CAMHead', in_channels", head))
    model = MODELS.build(Config.fromfile(folder / 'm4.py').model)
    for parameter in model.decode_head.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(model.state_dict(), folder / 'epoch_2.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    return folder


@pytest.fixture
def report(run_tool):
    return lambda *args: run_tool('analysis_tools/report.py', *args)


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/report.py')


def titles_of(page):
    return re.findall(r'<b>([a-z]\.jpg)</b>', page)


def iou_of(page):
    return [float(value) for value in re.findall(r'data-iou="([\d.]+)"', page)]


def test_run_is_reported(report, run_dir, capsys):
    report(run_dir)
    page = (run_dir / 'report.html').read_text()
    assert len(page) < 1e7
    assert sorted(titles_of(page)) == ['a.jpg', 'b.jpg']
    assert len(iou_of(page)) == 2
    assert iou_of(page) == sorted(iou_of(page))
    assert '<h1>plain</h1>' in page
    for text in ('weights.pth, sha256 ', 'given', '1 images of val_dataloader (train)'):
        assert text in page
    assert '2 images of test_dataloader (val)' in page
    assert re.search(r'<th>seed</th><td>7</td>', page)
    assert 'decode.loss_cls over steps' in page
    captured = capsys.readouterr()
    assert 'report.html: 0.' in captured.out
    assert 'plain: 1 images of val_dataloader' in captured.err


def test_second_run_is_laid_beside(report, run_dir, other_dir, tmp_path):
    out = tmp_path / 'new' / 'page.html'
    report(other_dir, '--against', run_dir, '--out', out, '--names', 'M4', 'M0', '--images', 1)
    page = out.read_text()
    assert '<h1>M4 against M0</h1>' in page
    assert 'epoch_2.pth, sha256' in page
    assert 'weights.pth, sha256' in page
    assert len(iou_of(page)) == 1
    assert '1 more judged images are not shown' in page
    assert 'refined CAM' in page
    assert 'groups' in page


def test_worst_image_is_kept(report, run_dir, tmp_path):
    report(run_dir)
    everything = (run_dir / 'report.html').read_text()
    report(run_dir, '--images', 1)
    worst = (run_dir / 'report.html').read_text()
    assert iou_of(worst) == iou_of(everything)[:1]
    assert titles_of(worst) == titles_of(everything)[:1]


def test_labels_are_predicted_and_checkpoints_given(report, run_dir, other_dir):
    weights = shutil.copy(other_dir / 'epoch_2.pth', other_dir / 'mine.pth')
    other = shutil.copy(run_dir / 'weights.pth', run_dir / 'theirs.pth')
    args = ('--checkpoint', weights, '--against', run_dir, '--against-checkpoint', other)
    report(other_dir, *args, '--labels', 'predicted')
    page = (other_dir / 'report.html').read_text()
    assert '<th>image-level labels</th><td>predicted</td><td>predicted</td>' in page
    assert 'mine.pth' in page
    assert 'theirs.pth' in page
    assert '<h1>dual against plain</h1>' in page


def test_config_can_be_overwritten(report, run_dir):
    report(run_dir, '--cfg-options', 'randomness.seed=3')
    assert '<th>seed</th><td>3</td>' in (run_dir / 'report.html').read_text()


def test_losses_of_a_resumed_training_are_joined(tool, run_dir):
    write_log(
        run_dir,
        '20260102_000000',
        [dict(loss=0.8, step=20, **{'loss_er': 0.1}), dict(loss=float('nan'), step=30)],
    )
    write_log(run_dir, '20260103_000000', [dict(mIoU=31.0, step=0)])
    path = run_dir / '20260102_000000' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text() + '{"loss": 0.')
    losses = tool.read_losses(run_dir)
    assert losses['decode.loss_cls'] == ([10], [1.5])
    assert losses['loss_er'] == ([20], [0.1])
    assert losses['loss'][0] == [10, 20, 30]
    np.testing.assert_equal(losses['loss'][1], [2.0, 0.8, float('nan')])
    assert set(losses) == {'loss', 'decode.loss_cls', 'loss_er'}


def test_training_from_the_start_replaces_an_older_one(tool, run_dir):
    write_log(run_dir, '20260102_000000', [dict(loss=5.0, step=5)])
    assert tool.read_losses(run_dir) == {'loss': ([5], [5.0])}


def test_run_without_log_has_no_losses(report, tool, run_dir):
    shutil.rmtree(run_dir / '20260101_000000')
    assert tool.read_losses(run_dir) == {}
    report(run_dir)
    assert 'No losses were given' in (run_dir / 'report.html').read_text()


def test_checkpoint_in_the_folder_comes_first(tool, tmp_path):
    moved, old = tmp_path / 'moved', tmp_path / 'old'
    for folder in (moved, old):
        folder.mkdir()
        (folder / 'a.pth').touch()
    (moved / 'last_checkpoint').write_text(f'{old / "a.pth"}\n')
    assert tool.find_checkpoint(moved) == moved / 'a.pth'
    (moved / 'a.pth').unlink()
    assert tool.find_checkpoint(moved) == old / 'a.pth'


def test_missing_parts_are_named(report, run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing has no config.*tools/train.py'):
        report(tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        report(run_dir, '--checkpoint', run_dir / 'absent.pth')
    (run_dir / 'weights.pth').unlink()
    with pytest.raises(FileNotFoundError, match='neither there nor in .*give --checkpoint'):
        report(run_dir)
    (run_dir / 'last_checkpoint').unlink()
    with pytest.raises(FileNotFoundError, match='has no file last_checkpoint'):
        report(run_dir)
    (run_dir / 'second.py').touch()
    with pytest.raises(ValueError, match=r"several configs, \['config.py', 'second.py'\]: move"):
        report(run_dir)


def test_judging_on_the_images_of_the_threshold_is_refused(report, run_dir):
    (run_dir / 'data' / 'ImageSets' / 'Segmentation' / 'train.txt').write_text('c\nb\n')
    with pytest.raises(ValueError, match="1 images are in val_dataloader and in .* such as 'b'"):
        report(run_dir)


def test_data_without_masks_is_refused(report, run_dir):
    prefix = 'test_dataloader.dataset.data_prefix.img_path=JPEGImages'
    with pytest.raises(ValueError, match='test_dataloader come without masks'):
        report(run_dir, '--cfg-options', prefix)


def test_runs_on_different_images_are_refused(report, run_dir, other_dir):
    config = other_dir / 'm4.py'
    (run_dir / 'data' / 'ImageSets' / 'Segmentation' / 'a.txt').write_text('a\n')
    config.write_text(config.read_text().replace('/val.txt', '/a.txt'))
    with pytest.raises(ValueError, match=r'different images \(1 and 2\)'):
        report(other_dir, '--against', run_dir)


def test_runs_of_different_classes_are_refused(report, run_dir, export_project):
    other = export_project(('dog', 'cat', 'cow'), name='more')
    shutil.copytree(
        run_dir / 'data' / 'ImageSets', other / 'data' / 'ImageSets', dirs_exist_ok=True
    )
    (other / 'config.py').write_text((other / 'config.py').read_text() + SPLITS)
    (other / 'last_checkpoint').write_text('weights.pth')
    with pytest.raises(ValueError, match='different classes'):
        report(run_dir, '--against', other)


def test_names_tell_runs_apart(tool, tmp_path):
    one, two = tmp_path / 'one' / 'seed_0', tmp_path / 'two' / 'seed_0'
    assert tool.name_runs([one], None) == ['seed_0']
    assert tool.name_runs([one, two], None) == [str(one), str(two)]
    assert tool.name_runs([one, one], ['new', 'old']) == ['new', 'old']
    for folders, names in (([one, one], None), ([one, two], ['one']), ([one, two], ['x', 'x'])):
        with pytest.raises(ValueError, match='give --names, one a run'):
            tool.name_runs(folders, names)


@pytest.mark.parametrize('args', [['--images', '-1'], ['--against-checkpoint', 'a.pth']])
def test_command_line_is_checked(report, run_dir, args, capsys):
    with pytest.raises(SystemExit):
        report(run_dir, *args)
    assert args[0] in capsys.readouterr().err


def test_commit_is_unknown_outside_a_repository(tool, tmp_path, monkeypatch):
    assert re.fullmatch(r'[0-9a-f]{12}|unknown', tool.read_commit())
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    assert tool.read_commit() == 'unknown'
    monkeypatch.setenv('PATH', str(tmp_path))
    assert tool.read_commit() == 'unknown'
