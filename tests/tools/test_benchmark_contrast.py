import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

CPU = torch.device('cpu')
CONFIG = """
custom_imports = dict(imports=['mmdscnet'])
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.0], std=[255.0], size=(64, 64)),
    backbone=dict(
        type='ContractedMobileNetV2',
        widen_factor=0.1,
        strides=(1, 2, 2, 2, 1, 2, 1),
        norm_eval=True,
        norm_cfg=dict(type='BN'),
        out_indices=(1, 6),
    ),
    decode_head=dict(
        type='DSCHead',
        in_channels=32,
        in_index=1,
        num_classes=4,
        pgcl=dict(type='PGCLLoss'),
        sgcl=dict(type='SGCLLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
"""


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/benchmark_contrast.py')


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'tiny.py').write_text(CONFIG)
    return str(tmp_path / 'tiny.py')


@pytest.fixture
def read_args(tool, config, monkeypatch):
    """The command line of small batches, with further options."""

    def read(*options):
        words = [config, '--batch-size=4', '--repeats=1', '--device=cpu', '--sizes=3', *options]
        monkeypatch.setattr(tool.sys, 'argv', ['benchmark_contrast.py', *words])
        return tool.parse_args()

    return read


@pytest.fixture
def maps(tool, read_args):
    return tool.make_maps(read_args('--foreground=0.5'), 6, CPU)


def cells_of(line):
    return line.strip('| ').split(' | ')


@pytest.mark.parametrize(('size', 'crop'), [(3, 48), (28, 448), (29, 232), (56, 448)])
def test_crop_gives_maps_of_the_size(tool, read_args, size, crop):
    cfg = tool.make_config(read_args(), 'baseline', size)
    assert cfg.model.data_preprocessor.size == (crop, crop)
    backbone = tool.MODELS.build(cfg.model.backbone | dict(_scope_='mmseg'))
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, crop, crop))[-1].shape[2:] == (size, size)


def test_arms_differ_in_the_contrast_only(tool, read_args):
    losses = {arm: tool.make_arm(read_args(), arm, 3, CPU)() for arm in tool.ARMS}
    names = {arm: {name for name in loss if 'loss_' in name} for arm, loss in losses.items()}
    assert names == {
        'baseline': {'decode.loss_cls'},
        'pixel': {'decode.loss_cls', 'decode.loss_pixel_contrast'},
        'group': {'decode.loss_cls', 'decode.loss_pgcl'},
    }
    assert losses['pixel']['decode.loss_pixel_contrast'] > 0
    assert losses['group']['decode.loss_pgcl'] > 0


def test_dense_arm_pays_for_no_groups(tool, read_args, monkeypatch):
    def refuse(*_):
        raise AssertionError('pixels were grouped')

    monkeypatch.setattr(tool.DSCHead, 'describe_images', refuse)
    tool.make_arm(read_args(), 'pixel', 3, CPU)()
    with pytest.raises(AssertionError, match='pixels were grouped'):
        tool.make_arm(read_args(), 'group', 3, CPU)()


def test_dense_contrast_trains_the_projection(tool, read_args, monkeypatch):
    models = []
    settle = tool.build_training_step.__globals__['settle_statistics']

    def record(model, batch):
        models.append(model)
        settle(model, batch)

    monkeypatch.setitem(tool.build_training_step.__globals__, 'settle_statistics', record)
    step = tool.make_arm(read_args(), 'pixel', 3, CPU)
    before = models[0].decode_head.projection.weight.clone()
    step()
    assert not torch.equal(models[0].decode_head.projection.weight, before)


@pytest.mark.parametrize(('chunk', 'expected'), [(0, None), (7, 7)])
def test_chunk_reaches_the_loss(tool, read_args, chunk, expected):
    cfg = tool.make_config(read_args(f'--chunk={chunk}'), 'pixel', 3)
    assert cfg.model.decode_head.pixel_contrast.chunk == expected


def test_drawn_labels_are_classes_of_the_image_at_the_share(tool):
    image_labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    labels = tool.draw_labels(image_labels, (60, 50), 0.3)
    assert labels.shape == (2, 60, 50)
    assert labels.dtype == torch.int64
    assert set(labels[0].unique().tolist()) == {0, 1, 3}
    assert set(labels[1].unique().tolist()) == {0, 2}
    assert (labels > 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_both_dense_contrasts_are_the_same_loss(tool, maps):
    expected = tool.with_gradient(tool.contrast_pixels_by_masks, maps)
    for chunk in (None, 5):
        gradient = tool.with_gradient(lambda x, chunk=chunk: tool.contrast_pixels(x, chunk), maps)
        torch.testing.assert_close(gradient, expected)
    assert expected.count_nonzero() > 0


def test_group_contrast_has_partners(tool, maps):
    assert tool.contrast_groups(maps) > 0
    assert tool.with_gradient(tool.contrast_groups, maps).count_nonzero() > 0


def test_estimate_is_of_anchors_by_pixels(tool):
    matrices = tool.LIVE_MATRICES['blocks']
    assert tool.estimate_gigabytes(10_000, 500, 'blocks') == pytest.approx(matrices * 0.02)
    assert tool.estimate_gigabytes(10_000, 10**9, 'blocks') == pytest.approx(matrices * 0.4)


@pytest.mark.parametrize('kind', ['blocks', 'masks'])
def test_estimate_is_the_memory_that_is_used(tool, read_args, kind):
    """By what autograd and the contrast allocate, which the process's peak holds as well."""
    args = read_args('--chunk=256', '--batch-size=4', '--foreground=1')
    size = 24
    maps = tool.make_maps(args, size, CPU)
    contrast = dict(
        masks=tool.contrast_pixels_by_masks, blocks=lambda x: tool.contrast_pixels(x, 256)
    )[kind]
    tool.reset_peak(CPU)
    before = tool.read_peak(CPU)
    tool.with_gradient(contrast, maps)
    used = (tool.read_peak(CPU) - before) / 1e9
    pixels = 4 * size**2
    estimate = tool.estimate_gigabytes(pixels, 256 if kind == 'blocks' else pixels, kind)
    assert used < 2 * estimate + 0.02


def test_what_does_not_fit_is_said_instead_of_run(tool, read_args, monkeypatch):
    monkeypatch.setattr(tool, 'measure_peak', lambda *_: 5_000_000)
    args = read_args('--memory-limit=1e-9')
    row = tool.compare_steps(args, 3, CPU)
    assert row[2].startswith('does not fit: about')
    assert row[4:] == ['-', '-', '5', '-', '5']
    alone = tool.compare_contrasts(args, 3, CPU)
    assert [cell.startswith('does not fit') for cell in alone[2:5]] == [True, True, False]
    assert alone[5:] == ['-', '-']


def test_ratio_is_the_median_over_rounds(tool):
    cells = tool.ratio_cells(np.array([1.5, 1.0, 8.0]), np.array([1.0, 1.0, 4.0]))
    assert cells == ['1.50', '1.25 to 1.75']


def test_row_holds_the_times_of_the_arms_and_their_ratio(tool, read_args, monkeypatch):
    monkeypatch.setattr(tool, 'make_arm', lambda *_: None)
    monkeypatch.setattr(tool, 'time_in_turns', lambda *_: np.array([[1.0, 4.0, 2.0]]))
    monkeypatch.setattr(tool, 'measure_peak', lambda _, arm, __: 1e6 * len(arm))
    row = tool.compare_steps(read_args(), 3, CPU)
    assert row == ['3x3', '1.0000', '4.0000', '2.0000', '2.00', '2.00 to 2.00', '8', '5', '5']


PEAKS = """
import runpy, torch
tool = runpy.run_path('tools/analysis_tools/benchmark_contrast.py')
reset, read, cpu = tool['reset_peak'], tool['read_peak'], torch.device('cpu')
reset(cpu)
before = read(cpu)
kept = torch.ones(10_000_000)
grown = read(cpu) - before
del kept
reset(cpu)
print(grown, read(cpu) - before)
"""


def test_peak_is_that_since_the_reset(repository):
    # In a process of its own, as the tool measures: this one may have memory to spare.
    output = subprocess.run(
        [sys.executable, '-c', PEAKS], cwd=repository, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    grown, left = map(int, output.split()[-2:])
    assert grown == pytest.approx(40e6, rel=0.2)
    assert left < 20e6


def test_peak_is_asked_of_another_process_with_the_same_options(tool, read_args, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout='a warning\n1234\n')

    monkeypatch.setattr(tool.subprocess, 'run', run)
    args = read_args('--chunk=7', '--foreground=0.5')
    assert tool.measure_peak(args, 'group', 5) == 1234
    monkeypatch.setattr(tool.sys, 'argv', commands[0][1:])
    expected = vars(args) | dict(sizes=[5], peak_of='group')
    # Neither timed nor estimated there.
    assert vars(tool.parse_args()) | dict(repeats=1) == expected


def test_failed_process_is_not_reported_as_memory(tool, read_args, monkeypatch):
    monkeypatch.setattr(tool.sys, 'executable', shutil.which('false'))
    with pytest.raises(subprocess.CalledProcessError):
        tool.measure_peak(read_args(), 'baseline', 3)


@pytest.mark.slow
def test_benchmark_prints_two_tables(tool, read_args, capsys):
    read_args('--clock=cpu', '--sizes', '3')
    tool.main()
    head, steps, alone = capsys.readouterr().out.strip().split('\n\n')
    assert f'torch {torch.__version__}, cpu' in head
    assert 'batch of 4, 1 rounds' in head
    assert 'cpu time' in head
    row = cells_of(steps.splitlines()[2])
    assert row[0] == '3x3'
    assert all(float(cell) > 0 for cell in (*row[1:5], *row[6:]))
    # Python and its libraries alone hold more than this.
    assert all(100 < float(cell) < 4000 for cell in row[6:])
    row = cells_of(alone.splitlines()[2])
    assert row[:2] == ['3x3', '36']
    assert all(math.isfinite(float(cell)) and float(cell) > 0 for cell in row[2:6])
