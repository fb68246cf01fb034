import numpy as np
import pytest
import torch

CPU = torch.device('cpu')
TINY = """
custom_imports = dict(imports=['mmdscnet'])
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.0], std=[255.0], size=(32, 40)),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=4,
        norm_eval=True,
        norm_cfg=dict(type='BN'),
        init_cfg=dict(type='Pretrained', checkpoint='no_such_file.pth'),
    ),
    decode_head=dict(type='CAMHead', in_channels=32, num_classes=4),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
"""
REFINED = """
_base_ = 'plain.py'
model = dict(
    decode_head=dict(type='DSCHead', pgcl=dict(type='PGCLLoss'), sgcl=dict(type='SGCLLoss'))
)
"""


@pytest.fixture
def tool(load_tool, monkeypatch):
    module = load_tool('analysis_tools/benchmark_step.py')
    monkeypatch.setattr(module, 'MAP_SIZES', (3, 6))
    return module


@pytest.fixture
def configs(tmp_path):
    (tmp_path / 'plain.py').write_text(TINY)
    (tmp_path / 'refined.py').write_text(REFINED)
    return [str(tmp_path / 'plain.py'), str(tmp_path / 'refined.py')]


def numbers_of(table):
    """Cells of the rows below the header."""
    rows = [line.strip('| ').split(' | ') for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_calls_are_timed_in_turns_after_a_warm_up(tool):
    order = []
    calls = [lambda: order.append('a'), lambda: order.append('b')]
    assert tool.time_in_turns(calls, 3, CPU).shape == (3, 2)
    assert ''.join(order) == 'ab' * (3 + tool.WARM_UP_ROUNDS)


def test_time_of_a_call_is_its_own(tool, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tool.time, 'perf_counter', lambda: clock[0])

    def wait(seconds):
        clock[0] += seconds

    seconds = tool.time_in_turns([lambda: wait(1.0), lambda: wait(4.0)], 2, CPU)
    assert np.array_equal(seconds, [[1.0, 4.0]] * 2)


def test_another_clock_can_be_asked(tool, monkeypatch):
    monkeypatch.setattr(tool.time, 'process_time', iter(range(100)).__next__)
    assert np.array_equal(tool.time_in_turns([int], 2, CPU, 'process_time'), [[1.0]] * 2)


def test_a_step_trains_without_pretrained_weights(tool, configs):
    step = tool.make_training_step(configs[1], 2, CPU)
    first, later = step(), [step() for _ in range(20)][-1]
    assert {'decode.loss_cls', 'decode.loss_pgcl'} <= set(first)
    assert all(value.isfinite() for value in later.values())
    assert later['decode.loss_cls'] < first['decode.loss_cls']


def test_features_of_the_untrained_network_do_not_vanish(tool, configs, monkeypatch):
    features = []

    def record(model, batch):
        settle(model, batch)
        model.train()
        features.append(model.extract_feat(model.data_preprocessor(batch, True)['inputs'])[-1])

    settle = tool.settle_statistics
    monkeypatch.setattr(tool, 'settle_statistics', record)
    tool.make_training_step(configs[0], 4, CPU)
    assert 0.1 < features[0].std() < 10


def test_batch_has_images_of_the_size_and_neighbours_that_share_a_class(tool):
    batch = tool.make_batch(5, 3, (8, 12), CPU)
    labels = np.stack([sample.gt_image_label for sample in batch['data_samples']])
    assert [tuple(image.shape) for image in batch['inputs']] == [(3, 8, 12)] * 5
    assert set(labels.sum(axis=1)) <= {1, 2}
    assert (labels[0:4:2] * labels[1:4:2]).any(axis=1).all()


def test_parts_of_the_method_give_the_embeddings_gradient(tool):
    gradient = tool.make_method_step(2, 6, CPU)()
    assert gradient.shape == (2, tool.EMBED_CHANNELS, 6, 6)
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() > 0


def test_naive_context_is_the_mean_correlation(tool):
    embeddings = tool.make_maps(1, 3, CPU)[0].detach()
    expected = torch.corrcoef(embeddings[0].flatten(1).T).mean(dim=1)
    rows = tool.standardize_pixels(embeddings)
    torch.testing.assert_close(tool.naive_pixel_context(rows)[0], expected)


def test_ratio_of_steps_is_the_median_over_rounds(tool, configs, monkeypatch):
    rounds = np.array([[1.0, 1.5], [1.0, 1.0], [4.0, 8.0]])
    monkeypatch.setattr(tool, 'make_training_step', lambda *_: None)
    monkeypatch.setattr(tool, 'time_in_turns', lambda *_: rounds)
    args = tool.argparse.Namespace(configs=configs, batch_size=1, repeats=3)
    folder = configs[0].split('/')[-2]
    assert numbers_of(tool.compare_steps(args, CPU)) == {
        f'{folder}/plain': ['1.0000', '1.000', '1.000 to 1.000'],
        f'{folder}/refined': ['1.5000', '1.500', '1.250 to 1.750'],
    }


def test_time_per_pixel_is_constant_for_linear_cost(tool, monkeypatch):
    monkeypatch.setattr(tool, 'time_in_turns', lambda *_: np.array([[9e-6, 36e-6]]))
    args = tool.argparse.Namespace(batch_size=2, repeats=1)
    numbers = numbers_of(tool.compare_sizes(args, CPU))
    assert numbers == {'3x3': ['0.00001', '500'], '6x6': ['0.00004', '500']}


def test_missing_config_error_names_it(tool):
    with pytest.raises(FileNotFoundError, match=r"config 'no\.py' is not a file"):
        tool.make_training_step('no.py', 1, CPU)


def test_benchmark_prints_three_tables(tool, configs, monkeypatch, capsys):
    options = ['--batch-size', '2', '--repeats', '1', '--device', 'cpu']
    monkeypatch.setattr(tool.sys, 'argv', ['benchmark_step.py', *configs, *options])
    tool.main()
    head, *tables = capsys.readouterr().out.strip().split('\n\n')
    assert f'torch {torch.__version__}, cpu' in head
    assert f'{torch.get_num_threads()} threads' in head
    assert [len(numbers_of(table)) for table in tables] == [2, 2, 2]
    assert all(float(row[-1]) < 1e-5 for row in numbers_of(tables[2]).values())
