import json
import shutil
from argparse import Namespace

import pytest

from mmdscnet.apis import Judgement

MODES = ('single scale', 'scales and flips')


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/compare_methods.py')


@pytest.fixture
def args(tmp_path):
    return Namespace(work_dir=tmp_path / 'work', cfg_options=None, tta=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'cam' / 'toy.py'
    path.parent.mkdir()
    path.write_text('lr = 1.0\nrandomness = dict(seed=7, deterministic=True)\n')
    return str(path)


@pytest.fixture
def trained(tool, monkeypatch):
    """Record the configs instead of training them."""
    configs = []

    def train_and_judge(cfg):
        configs.append(cfg)
        return None, judged(40.0 + cfg.randomness.seed)

    monkeypatch.setattr(tool, 'train_and_judge', train_and_judge)
    return configs


def judged(value, bg_thr=0.3):
    return Judgement(bg_thr, chosen_on=50.0, judged=value, best=60.0, labels='labels_given')


@pytest.mark.parametrize(
    ('values', 'text'),
    [([41.234], '41.23'), ([40.0, 42.0], '41.00 ± 1.41'), ([1.0, 1.0, 1.0], '1.00 ± 0.00')],
)
def test_spread_is_mean_and_standard_deviation(tool, values, text):
    assert tool.spread(values) == text


def test_table_by_hand(tool):
    table = tool.table(
        {
            'cam_a': [{MODES[0]: judged(40.0)}, {MODES[0]: judged(42.0, 0.25)}],
            'dscnet_a': [{MODES[0]: judged(41.0)}, {MODES[0]: judged(45.0)}],
        }
    )
    assert table.splitlines()[2:] == [
        '| single scale, labels given | cam_a | 41.00 ± 1.41 | 0.00 ± 0.00 | 40.00, 42.00 '
        '| 0.30, 0.25 |',
        '| single scale, labels given | dscnet_a | 43.00 ± 2.83 | 2.00 ± 1.41 | 41.00, 45.00 '
        '| 0.30, 0.30 |',
    ]
    header, rule = table.splitlines()[:2]
    assert header.count('|') == rule.count('|') == 7


def test_table_compares_within_a_protocol(tool):
    first = dict(zip(MODES, (judged(40.0), judged(43.0)), strict=True))
    second = dict(zip(MODES, (judged(41.0), judged(45.0)), strict=True))
    rows = tool.table({'cam_a': [first], 'dscnet_a': [second]}).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split('|')[1:5]] for row in rows]
    assert cells == [
        ['single scale, labels given', 'cam_a', '40.00', '0.00'],
        ['single scale, labels given', 'dscnet_a', '41.00', '1.00'],
        ['scales and flips, labels given', 'cam_a', '43.00', '0.00'],
        ['scales and flips, labels given', 'dscnet_a', '45.00', '2.00'],
    ]


def test_run_takes_seed_options_and_a_folder_of_its_own(tool, args, config, trained):
    args.cfg_options = dict(lr=0.5)
    assert tool.run_seed(config, 2, args) == {MODES[0]: judged(42.0)}
    (cfg,) = trained
    assert cfg.randomness == dict(seed=2, deterministic=True)
    assert cfg.lr == 0.5
    assert cfg.work_dir == str(args.work_dir / 'cam_toy' / 'seed_2')
    # By this name mmengine tells two runs of one process apart.
    assert cfg.experiment_name == 'cam_toy_2'


def test_a_run_that_is_judged_is_not_trained_again(tool, args, config, trained):
    first = tool.run_seed(config, 1, args)
    assert tool.run_seed(config, 1, args) == first
    assert len(trained) == 1
    tool.run_seed(config, 2, args)
    assert len(trained) == 2


def test_judgement_of_an_earlier_call_is_read(tool, args, config, trained):
    path = args.work_dir / 'cam_toy' / 'seed_0' / 'single_scale.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(judged(12.5)._asdict()))
    assert tool.run_seed(config, 0, args) == {MODES[0]: judged(12.5)}
    assert trained == []


def test_judgement_of_another_config_is_refused(tool, args, config, trained):
    tool.run_seed(config, 0, args)
    args.cfg_options = dict(lr=0.5)
    folder = 'cam_toy/seed_0'
    with pytest.raises(ValueError, match=f'{folder}/config.txt is another.* --work-dir, or delete'):
        tool.run_seed(config, 0, args)
    assert len(trained) == 1
    shutil.rmtree(args.work_dir / folder)
    tool.run_seed(config, 0, args)
    assert len(trained) == 2


def test_judgement_is_reused_where_the_work_dir_was_moved_to(tool, args, config, trained):
    first = tool.run_seed(config, 0, args)
    args.work_dir = args.work_dir.rename(args.work_dir.with_name('moved'))
    assert tool.run_seed(config, 0, args) == first
    assert len(trained) == 1


def test_config_is_kept_before_the_run(tool, args, config, monkeypatch):
    path = args.work_dir / 'cam_toy' / 'seed_0' / 'config.txt'
    texts = []

    def train_and_judge(cfg):
        texts.append(path.read_text())
        return None, judged(40.0)

    monkeypatch.setattr(tool, 'train_and_judge', train_and_judge)
    tool.run_seed(config, 0, args)
    assert 'lr = 1.0' in texts[0]
    assert 'seed=0' in texts[0]


def test_an_interrupted_run_leaves_no_judgement(tool, args, config, monkeypatch):
    def interrupt(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'train_and_judge', interrupt)
    with pytest.raises(KeyboardInterrupt):
        tool.run_seed(config, 0, args)
    assert not list(args.work_dir.rglob('*.json'))


def test_augmented_judgement_stands_beside_the_plain_one(tool, args, config, trained, monkeypatch):
    args.tta = True
    monkeypatch.setattr(tool, 'judge_augmented', lambda cfg: judged(49.0))
    expected = {MODES[0]: judged(40.0), MODES[1]: judged(49.0)}
    assert tool.run_seed(config, 0, args) == expected
    assert tool.run_seed(config, 0, args) == expected
    assert len(trained) == 1


def test_augmented_judgement_is_added_to_an_earlier_plain_one(
    tool, args, config, trained, monkeypatch
):
    tool.run_seed(config, 0, args)
    args.tta = True
    monkeypatch.setattr(tool, 'judge_augmented', lambda cfg: judged(49.0))
    assert tool.run_seed(config, 0, args)[MODES[1]] == judged(49.0)
    assert len(trained) == 1


def test_missing_config_error_names_it(tool, args):
    with pytest.raises(FileNotFoundError, match=r"config 'no\.py' is not a file"):
        tool.run_seed('no.py', 0, args)


def test_comparison_prints_a_row_a_config(tool, args, config, trained, monkeypatch, capsys):
    options = ['--seeds', '0', '2', '--work-dir', str(args.work_dir)]
    monkeypatch.setattr(tool.sys, 'argv', ['compare_methods.py', config, *options])
    tool.main()
    assert '| cam_toy | 41.00 ± 1.41 |' in capsys.readouterr().out
