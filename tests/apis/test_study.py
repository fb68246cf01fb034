import pytest

from mmdscnet.apis.study import read_study, select_parts, spell_config

BASE = """
model = dict(type='A', head=dict(type='B', weight=1.0, loss=None))
randomness = dict(seed=7, deterministic=True)
"""


@pytest.fixture
def read(tmp_path):
    """Read a study whose part ``p`` is the usual one with changes; None takes a key away."""
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'other.py').write_text(BASE + "lr = 0.5\nmodel['type'] = 'C'\n")

    def read_part(name='p', more=None, **changes):
        part = dict(title='T', base='base.py', seeds=[3, 4], judge='train', arms=dict(M0=dict()))
        part = {key: value for key, value in {**part, **changes}.items() if value is not None}
        path = tmp_path / 'study.py'
        path.write_text(f'parts = { ({name: part} | (more or {}))!r}')
        return read_study(path)

    return read_part


def test_every_arm_runs_with_the_first_seed_before_the_second(read):
    (part,) = read(arms=dict(M0=dict(), M1={'model.head.weight': 2.0}))
    assert [(run.arm, run.seed) for run in part.runs] == [
        ('M0', 3),
        ('M1', 3),
        ('M0', 4),
        ('M1', 4),
    ]
    assert [str(run.place) for run in part.runs][:2] == ['p/M0/seed_3', 'p/M1/seed_3']


def test_seed_is_part_of_the_config(read):
    (part,) = read()
    assert part.runs[0].cfg['randomness'] == dict(seed=3, deterministic=True)
    assert 'randomness.seed = 3\n' in part.runs[0].text
    assert part.runs[0].name != part.runs[1].name


def test_arm_goes_before_the_options_of_the_part(read):
    options = {'model.head.weight': 3.0, 'model.head.type': 'D'}
    (part,) = read(options=options, arms=dict(M0=dict(), M1={'model.head.weight': 2.0}))
    heads = {run.arm: run.cfg['model']['head'] for run in part.runs}
    assert heads['M0'] == dict(type='D', weight=3.0, loss=None)
    assert heads['M1'] == dict(type='D', weight=2.0, loss=None)


def test_value_may_be_a_dict_that_is_merged_or_replaces(read):
    arms = dict(
        merged={'model.head': dict(weight=2.0)},
        replaced={'model.head': dict(_delete_=True, type='D')},
        filled={'model.head.loss': dict(_delete_=True, type='L')},
        emptied={'model.head': None},
    )
    (part,) = read(arms=arms)
    heads = {(run.arm, run.seed): run.cfg['model']['head'] for run in part.runs}
    for seed in (3, 4):
        assert heads['merged', seed] == dict(type='B', weight=2.0, loss=None)
        assert heads['replaced', seed] == dict(type='D')
        assert heads['filled', seed] == dict(type='B', weight=1.0, loss=dict(type='L'))
        assert heads['emptied', seed] is None


def test_arm_may_have_a_base_of_its_own(read):
    (part,) = read(arms=dict(M0=dict(), M1=dict(base='other.py')))
    assert {run.arm: run.cfg['model']['type'] for run in part.runs} == dict(M0='A', M1='C')
    assert 'base' not in part.runs[1].cfg


def test_equal_configs_of_two_parts_share_a_name(read):
    other = dict(title='U', base='base.py', seeds=[4, 5], judge='val', arms=dict(plain=dict()))
    first, second = read(more=dict(q=other))
    assert first.runs[1].name == second.runs[0].name
    assert first.runs[0].name != second.runs[1].name


def test_name_does_not_depend_on_the_order_of_keys():
    assert spell_config(dict(a=dict(b=1, c=2), d=3)) == spell_config(dict(d=3, a=dict(c=2, b=1)))


def test_grid_has_an_arm_a_cell(read):
    x = ('weight', 'model.head.weight', [0.0, 0.5])
    y = ('margin', 'model.head.margin', [1, 2])
    (part,) = read(arms=None, grid=dict(x=x, y=y))
    assert list(part.arms) == ['x=0.0,y=1', 'x=0.5,y=1', 'x=0.0,y=2', 'x=0.5,y=2']
    head = part.runs[1].cfg['model']['head']
    assert (head['weight'], head['margin']) == (0.5, 1)
    assert (part.grid[0].label, part.grid[1].values) == ('weight', [1, 2])


@pytest.mark.parametrize(
    ('changes', 'kept'),
    [
        (dict(judge='train'), [True, False]),
        (dict(judge='val'), [True, True]),
        (dict(judge='train', keep_checkpoints='all'), [True, True]),
        (dict(judge='val', keep_checkpoints='none'), [False, False]),
    ],
)
def test_which_checkpoints_stay(read, changes, kept):
    (part,) = read(**changes)
    assert [run.keeps_checkpoint for run in part.runs] == kept


def test_parts_are_selected_in_the_order_of_the_study(read):
    other = dict(title='U', base='base.py', seeds=[4, 5], judge='val', arms=dict(plain=dict()))
    parts = read(more=dict(q=other))
    assert select_parts(parts, None) == parts
    assert select_parts(parts, ['q', 'p']) == parts
    assert select_parts(parts, ['q']) == parts[1:]
    with pytest.raises(ValueError, match=r"--only names \['r'\].*\['p', 'q'\]"):
        select_parts(parts, ['r'])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(name='a/b'), "'a/b' cannot be a folder"),
        (dict(name='runs'), "'runs' cannot be a folder"),
        (dict(arms={'M 0': {}}), "arm 'M 0' cannot be a folder"),
        (dict(arms={}), "part 'p' has no arms"),
        (dict(arms=None), 'needs either arms or a grid'),
        (dict(grid={}), 'needs either arms or a grid'),
        (dict(arms=None, grid=dict(x=('a', 'b', [1]))), r'grid=.*write grid=dict\(x='),
        (dict(seeds=[1]), r'seeds=\[1\]: give two different ones'),
        (dict(seeds=[1, 1]), r'seeds=\[1, 1\]: give two different ones'),
        (dict(judge='test'), "judge='test': give 'train' or 'val'"),
        (dict(keep_checkpoints='some'), "keep_checkpoints='some': give one of"),
        (dict(title=None), r"lacks \['title'\]"),
        (dict(seed=1), r"has \['seed'\], which nothing reads"),
        (dict(arms=dict(M0={'modle.head': 1})), r"arm 'M0': .*base.py has nothing.*\['modle'\]"),
        (dict(arms=dict(M0={'model.type': {'a': 1}})), r"arm 'M0': .*_delete_=True"),
        (dict(arms=dict(M0={'model.neck': {'_delete_': True}})), 'stands where its base has noth'),
        (dict(arms=dict(M0={}, M1={})), "arms 'M0' and 'M1' are the same config"),
    ],
)
def test_what_cannot_be_run_is_an_error_that_says_why(read, changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_arm_may_judge_the_weights_of_another(read):
    arms = dict(M0=dict(), M4={'weights_of': 'M0', 'model.head.weight': 2.0})
    (part,) = read(arms=arms)
    trained, judged = part.runs[:2]
    assert (trained.weights, judged.weights) == (None, trained.name)
    assert judged.text.endswith(f'weights_of = {trained.name}\n')
    assert 'weights_of' not in judged.cfg
    # Trained on its own it is another run.
    (part,) = read(arms=dict(arms, M4={'model.head.weight': 2.0}))
    assert part.runs[1].name != judged.name


@pytest.mark.parametrize('source', ['M5', 'M4', 'M1'])
def test_arm_that_judges_weights_of_none_is_refused(read, source):
    arms = dict(M0=dict(), M1={'weights_of': 'M0', 'model.head.weight': 3.0})
    arms['M4'] = {'weights_of': source, 'model.head.weight': 2.0}
    with pytest.raises(ValueError, match=f"weights_of='{source}': name another arm of the part"):
        read(arms=arms)


def test_key_that_only_the_runner_knows_is_accepted(read):
    (part,) = read(arms=dict(M0={'custom_hooks': [dict(type='H')]}))
    assert part.runs[0].cfg['custom_hooks'] == [dict(type='H')]


def test_missing_base_is_named_with_its_arm(read):
    with pytest.raises(FileNotFoundError, match=r"part 'p', arm 'M0': config '.*no\.py'"):
        read(base='no.py')


def test_missing_study_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'study .*no\.py is not a file'):
        read_study(tmp_path / 'no.py')


def test_study_without_parts_is_an_error(tmp_path):
    (tmp_path / 'study.py').write_text('seeds = [1]\n')
    with pytest.raises(ValueError, match='has no parts: write parts'):
        read_study(tmp_path / 'study.py')
