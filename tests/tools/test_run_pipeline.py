"""The whole pipeline without its work: the commands are recorded, and leave what they would."""

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from mmengine.config import Config

from mmdscnet.datasets import voc_palette
from mmdscnet.launch import read_run_config
from mmdscnet.pseudo_labels import open_label_map, write_cams, write_palette_png

CLASSES = ['cat', 'cow', 'dog', 'horse', 'sheep', 'person']
SPLITS = [f'ImageSets/Segmentation/mini_{name}.txt' for name in ('train', 'val')]
STAGES = [
    'train.py',
    *['export_cams.py'] * 2,
    'make_affinity_labels.py',
    'train.py',
    *['export_labels.py'] * 2,
    'train.py',
    *['export_labels.py'] * 4,
]
SIZE = (16, 16)


class Call(NamedTuple):
    """A command as its tool reads it."""

    tool: str
    args: Namespace
    processes: int | None


@pytest.fixture
def tool(load_tool, repository, monkeypatch):
    # The default configs are seen from here.
    monkeypatch.chdir(repository)
    return load_tool('run_pipeline.py')


@pytest.fixture
def root(make_voc_folder, tmp_path):
    """Images a and b that train, and c that does not."""
    images = {'a': (SIZE, ['cat']), 'b': (SIZE, ['dog']), 'c': (SIZE, ['cat'])}
    folder = make_voc_folder(tmp_path / 'data', images, CLASSES)
    for path, ids in zip(SPLITS, ('a\nb\n', 'c\n'), strict=True):
        (folder / path).write_text(ids)
    return folder


@pytest.fixture
def parse(tool, root, tmp_path, monkeypatch):
    """Read a command line of the pipeline."""

    def read(*args):
        options = ['--work-dir', tmp_path / 'work', '--data-options', f'data_root={root}']
        argv = ['run_pipeline.py', *map(str, (*options, *args))]
        monkeypatch.setattr(sys, 'argv', argv)
        return tool.parse_args()

    return read


def read_command(words, load_tool, monkeypatch):
    """Let the tool of a command read its words."""
    processes = None
    if words[0] == 'bash':
        assert Path(words[1]).name == 'dist_run.sh'
        name, processes, rest = words[2], int(words[3]), [*words[4:], '--launcher', 'pytorch']
    else:
        assert words[0] == sys.executable
        name, rest = Path(words[1]).name, words[2:]
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [name, *rest])
        return Call(name, load_tool(name).parse_args(), processes)


def finish_training(config, work_dir):
    """Leave what a training leaves."""
    loop = Config.fromfile(config).train_cfg
    name = f'epoch_{loop.max_epochs}' if 'max_epochs' in loop else f'iter_{loop.max_iters}'
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / f'{name}.pth').touch()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / f'{name}.pth'))


@pytest.fixture
def record(tool, load_tool, monkeypatch):
    """Calls of the commands, which are not run; that of the place ``fail_at`` fails."""
    record = SimpleNamespace(calls=[], commands=[], fail_at=None)

    def run(words, env, check):
        assert env['PYTHON'] == sys.executable
        record.commands.append(words)
        call = read_command(words, load_tool, monkeypatch)
        record.calls.append(call)
        if len(record.calls) - 1 == record.fail_at:
            return SimpleNamespace(returncode=1)
        if call.tool == 'train.py':
            finish_training(call.args.config, Path(call.args.work_dir))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(tool, 'subprocess', SimpleNamespace(run=run))
    return record


@pytest.fixture
def run_all(tool, parse, record):
    """Run all stages, and give the calls of this run."""

    def run(*args):
        before = len(record.calls)
        tool.Pipeline(parse(*args)).run()
        return record.calls[before:]

    return run


def of_tool(calls, name):
    return [call.args for call in calls if call.tool == name]


def test_stages_run_in_the_order_of_the_data_as_their_tools_read_them(run_all):
    assert [call.tool for call in run_all()] == STAGES


def test_every_training_learns_from_the_stage_before_it(run_all, tmp_path):
    work = tmp_path / 'work'
    cam, affinity, segmentation = of_tool(run_all(), 'train.py')
    key = 'train_dataloader.dataset.pseudo_label_folder'
    assert key not in cam.cfg_options
    assert affinity.cfg_options[key] == str(work / 'affinity_labels')
    assert segmentation.cfg_options[key] == str(work / 'walk')
    names = [Path(args.work_dir).relative_to(work) for args in (cam, affinity, segmentation)]
    assert list(map(str, names)) == ['cam', 'affinity', 'segmentation']
    assert all(args.resume for args in (cam, affinity, segmentation))


def test_trainings_see_the_training_split_and_are_not_validated(run_all, root):
    for args in of_tool(run_all(), 'train.py'):
        cfg = read_run_config(args.config, options=args.cfg_options)
        assert cfg.train_dataloader.dataset.ann_file == SPLITS[0]
        assert cfg.train_dataloader.dataset.data_root == str(root)
        assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None


def test_cams_of_both_splits_are_exported(run_all, tmp_path):
    work = tmp_path / 'work'
    exports = of_tool(run_all(), 'export_cams.py')
    assert [args.split for args in exports] == SPLITS
    assert {args.out for args in exports} == {str(work / 'cams')}
    assert {args.checkpoint for args in exports} == {str(work / 'cam' / 'epoch_8.pth')}
    assert {args.labels for args in exports} == {'given'}


def test_labels_for_affinity_are_made_of_the_training_split_only(run_all, root, tmp_path):
    calls = run_all('--alphas', 2, 8, '--crf', 'bilateral_sxy=20', 'num_steps=5')
    (args,) = of_tool(calls, 'make_affinity_labels.py')
    work = tmp_path / 'work'
    assert (args.cams, args.out) == (str(work / 'cams'), str(work / 'affinity_labels'))
    assert Path(args.images) == root / 'JPEGImages'
    assert Path(args.split) == root / SPLITS[0]
    assert args.alphas == [2, 8]
    assert args.crf == dict(bilateral_sxy=20, num_steps=5)


def test_cams_of_both_splits_walk(run_all, tmp_path):
    work = tmp_path / 'work'
    walks = of_tool(run_all(), 'export_labels.py')[:2]
    assert [args.split for args in walks] == SPLITS
    assert {args.out for args in walks} == {str(work / 'walk')}
    assert {args.cams for args in walks} == {str(work / 'cams')}
    assert {args.checkpoint for args in walks} == {str(work / 'affinity' / 'epoch_3.pth')}
    assert not any(args.crf or args.tta for args in walks)


def test_predictions_are_made_with_and_without_a_crf(run_all, tmp_path):
    work = tmp_path / 'work'
    exports = of_tool(run_all('--crf', 'num_steps=5'), 'export_labels.py')[2:]
    assert [args.split for args in exports] == SPLITS * 2
    assert [args.crf for args in exports] == [None, None, *[dict(num_steps=5)] * 2]
    names = [Path(args.out).relative_to(work).name for args in exports]
    assert names == ['predictions', 'predictions', 'predictions_crf', 'predictions_crf']
    assert all(args.tta and args.cams is None for args in exports)
    assert {args.checkpoint for args in exports} == {str(work / 'segmentation' / 'epoch_12.pth')}


def test_second_stage_is_never_told_the_labels(run_all):
    calls = run_all('--data-options', 'image_labels=image_labels.json')
    assert {args.labels for args in of_tool(calls, 'export_labels.py')[2:]} == {'predicted'}


def test_default_settings_of_the_crf_may_be_left_as_they_are(run_all):
    calls = run_all('--crf')
    assert of_tool(calls, 'make_affinity_labels.py')[0].crf == {}
    assert of_tool(calls, 'export_labels.py')[-1].crf == {}


def test_seed_reaches_every_training(run_all):
    options = [args.cfg_options for args in of_tool(run_all('--seed', 7), 'train.py')]
    assert [option['randomness.seed'] for option in options] == [7] * 3


def test_data_options_reach_every_data_set(run_all, root):
    calls = run_all('--data-options', 'allow_extra_labels=True')
    for call in calls:
        if call.tool == 'make_affinity_labels.py':
            continue
        loader = 'train' if call.tool == 'train.py' else 'test'
        options = call.args.cfg_options
        assert options[f'{loader}_dataloader.dataset.data_root'] == str(root)
        assert options[f'{loader}_dataloader.dataset.allow_extra_labels'] is True


def test_processes_are_those_of_exports_and_crfs(run_all):
    calls = run_all('--processes', 3)
    assert {call.processes for call in calls if call.tool.startswith('export')} == {3}
    assert of_tool(calls, 'make_affinity_labels.py')[0].jobs == 3


def test_stage_that_is_trained_to_its_end_is_not_trained_again(run_all):
    run_all()
    assert [call.tool for call in run_all()] == [name for name in STAGES if name != 'train.py']


def test_stage_that_stopped_midway_is_resumed(run_all, tmp_path):
    run_all()
    folder = tmp_path / 'work' / 'affinity'
    (folder / 'epoch_3.pth').rename(folder / 'epoch_2.pth')
    (args,) = of_tool(run_all(), 'train.py')
    assert args.work_dir == str(folder)
    assert args.resume


def test_training_may_be_counted_in_steps(run_all, tmp_path):
    config = tmp_path / 'steps.py'
    config.write_text(
        'train_cfg = dict(type="IterBasedTrainLoop", max_iters=20)\n'
        'train_dataloader = dict(batch_size=2)\n'
    )
    assert len(of_tool(run_all('--segmentation', config), 'train.py')) == 3
    calls = run_all('--segmentation', config)
    assert of_tool(calls, 'train.py') == []
    checkpoint = of_tool(calls, 'export_labels.py')[-1].checkpoint
    assert checkpoint == str(tmp_path / 'work' / 'segmentation' / 'iter_20.pth')


@pytest.mark.parametrize('place', [0, 2, 3, 11])
def test_command_that_fails_ends_the_run_which_may_then_go_on(run_all, record, place):
    record.fail_at = place
    with pytest.raises(SystemExit, match='mend what it says and run the same command again'):
        run_all()
    assert [call.tool for call in record.calls] == STAGES[: place + 1]
    again = [call.tool for call in run_all()]
    trained = STAGES[:place].count('train.py')
    assert again.count('train.py') == 3 - trained
    assert again[-4:] == STAGES[-4:]


def test_commands_are_printed_as_a_shell_takes_them(run_all, record, capsys):
    run_all()
    lines = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith('$ ')]
    assert list(map(shlex.split, lines)) == record.commands


def test_split_that_cannot_be_judged_is_found_before_the_first_training(run_all, root, record):
    (root / 'SegmentationClass' / 'c.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 1 masks .*c\.png'):
        run_all()
    (root / SPLITS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r'split file .*mini_val\.txt'):
        run_all()
    assert record.calls == []


def write_maps(folder, root, maps):
    """Write the truth as label maps, or only background where it is named."""
    for image_id, only_background in maps.items():
        truth = np.array(open_label_map(root / 'SegmentationClass' / f'{image_id}.png'))
        truth[truth == 255] = 0
        write_palette_png(
            folder / f'{image_id}.png', 0 * truth if only_background else truth, voc_palette(7)
        )


@pytest.fixture
def results(root, tmp_path):
    """CAMs whose best threshold is 0.25 on train and 0.5 on val, and label maps."""
    # Of the 14 rows that are judged 2 are background.
    work = tmp_path / 'work'
    for image_id, class_id, low, high in (
        ('a', 1, 0.25, 0.5),
        ('b', 3, 0.25, 0.5),
        ('c', 1, 0.5, 0.75),
    ):
        cams = np.full((1, *SIZE), low, dtype=np.float32)
        cams[:, 4:] = high
        write_cams(work / 'cams' / f'{image_id}.npz', cams, np.array([class_id]))
    write_maps(work / 'walk', root, dict(a=False, b=False, c=True))
    write_maps(work / 'predictions', root, dict(a=True, b=False, c=False))
    write_maps(work / 'predictions_crf', root, dict(a=True, b=True, c=False))
    return work


# c has 2 rows of background and 12 of its class: IoU when all is class, and when nothing is.
ALL_CLASS = 100 * (0 + 12 / 14) / 2
NO_CLASS = 100 * (2 / 14 + 0) / 2
ROWS = [
    ('CAMs, bg_thr 0.25 chosen on train', 'given', 100, ALL_CLASS),
    ('random walk', 'given', 100, NO_CLASS),
    # Background 4 of 16 rows, cat none, dog all; then background 4 of 28, and no animal.
    ('second stage, scales and flips', 'predicted', 100 * (4 / 16 + 0 + 1) / 3, 100),
    ('second stage, scales, flips, CRF', 'predicted', 100 * (4 / 28 + 0 + 0) / 3, 100),
]


def test_threshold_of_train_judges_val_and_label_maps_are_judged_as_they_are(tool, parse, results):
    rows = list(tool.Pipeline(parse()).judge())
    assert [row[:2] for row in rows] == [row[:2] for row in ROWS]
    for row, (*_, train, val) in zip(rows, ROWS, strict=True):
        assert (row.train, row.val) == (pytest.approx(train), pytest.approx(val))


def test_stage_that_is_not_there_cannot_be_judged(tool, parse, results):
    (results / 'walk' / 'c.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'walk.*run the export again'):
        list(tool.Pipeline(parse()).judge())


def test_table_has_a_row_a_stage(tool):
    rows = [tool.Row('walk', 'given', 61.234, 60), tool.Row('last', 'predicted', 5, 0.005)]
    assert tool.table(rows).splitlines() == [
        '| stage | labels | train | val |',
        '|---|---|---|---|',
        '| walk | given | 61.23 | 60.00 |',
        '| last | predicted | 5.00 | 0.01 |',
    ]


def test_table_is_printed_and_written(tool, parse, record, results, capsys):
    pytest.importorskip('pydensecrf')
    parse()
    tool.main()
    assert [call.tool for call in record.calls] == STAGES
    table = (results / 'table.md').read_text()
    assert capsys.readouterr().out.endswith(f'\n{table}')
    assert f'| random walk | given | 100.00 | {NO_CLASS:.2f} |' in table
    rows = json.loads((results / 'table.json').read_text())
    assert [(row['stage'], row['labels']) for row in rows] == [row[:2] for row in ROWS]


def test_missing_crf_is_found_before_anything_is_trained(
    tool, parse, record, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    parse()
    with pytest.raises(ImportError, match='pip install pydensecrf2'):
        tool.main()
    assert record.calls == []
    assert not (tmp_path / 'work').exists()


def test_work_dir_of_another_seed_is_refused(run_all):
    run_all('--seed', 0)
    with pytest.raises(ValueError, match=r'other settings \(seed: 0 there, 1 now\)'):
        run_all('--seed', 1)


def test_config_for_several_gpus_is_refused_before_training(run_all):
    with pytest.raises(ValueError, match=r'dscnet/voc\.py has train_dataloader\.batch_size=1'):
        run_all('--cam', 'configs/dscnet/voc.py')
