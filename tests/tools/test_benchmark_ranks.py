import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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
    decode_head=dict(type={head!r}, in_channels=32, num_classes=4),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
"""


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/benchmark_ranks.py')


@pytest.fixture
def write_config(tmp_path):
    """Write the config of a small network with a head of some type."""

    def write(head='DSCHead'):
        (tmp_path / 'tiny.py').write_text(TINY.format(head=head))
        return str(tmp_path / 'tiny.py')

    return write


@pytest.fixture
def paper():
    """Command line of what is computed."""
    return argparse.Namespace(
        paper_ranks=[2, 4], images_a_rank=3, num_classes=5, embed_channels=7, gbit=8.0, latency=1.0
    )


def test_bytes_of_a_rank_at_the_size_of_voc(tool):
    assert tool.gathered_width(21, 128) == 279
    own = 16 * 21 * 279 * 4
    assert tool.count_bytes(16, 21, 128, ranks=8) == dict(all_gather=own + 8, all_reduce=8 * own)


def test_operations_are_those_that_torch_counts(tool):
    images, classes, channels = 6, 4, 16
    head, batch = tool.build_head(classes, channels), tool.make_context(images, classes, channels)
    with FlopCounterMode(display=False) as counter:
        tool.compare_slots(head, batch).backward()
    slots = images * classes
    pairs = tool.count_pairs(slots, classes) * tool.pair_flops(classes, channels)
    # What is done once a slot: the nodes and their profiles, and the layer of the messages.
    nodes = slots * classes * (4 * channels + 2 * classes)
    message = 6 * slots * channels**2
    assert counter.get_total_flops() == pairs + nodes + message


def test_operations_grow_with_the_square_of_the_ranks(tool, paper):
    slots = 3 * 5
    assert tool.similarity_flops(paper, 2) == 2 * slots * (2 * slots + 5) * (24 * 7 + 2 * 5)


def test_ring_passes_the_bytes_of_a_rank_on(tool):
    seconds = tool.ring_seconds(ranks=4, own_bytes=100, bandwidth=10.0, latency=0.5)
    assert seconds['all_reduce'] == pytest.approx(6 * (0.5 + 10))
    assert seconds['all_gather'] == pytest.approx(3 * (0.5 + 10) + 3 * (0.5 + 0.8))


def test_estimate_puts_the_formulas_into_relation_to_a_step(tool, paper):
    row, wider = tool.estimate_scale(paper, step=50.0, flops=1e4, saved=3.0)
    own = 3 * 5 * (2 * 7 + 5 + 2) * 4
    assert row['ranks'] == 2
    assert row['slots'] == 30
    assert row['gathered_bytes'] == 2 * own
    ring = tool.ring_seconds(2, own, bandwidth=1e9, latency=1.0)
    assert row['exchange_share'] == pytest.approx(sum(ring.values()) / 50)
    assert row['similarity_share'] == tool.similarity_flops(paper, 2) / 1e4 / 50
    assert row['saved_bytes'] == 3.0 * 30 * 35
    assert wider['ranks'] == 4


def test_limit_is_where_one_percent_is_passed(tool, paper):
    step, flops = 1.0, 100.0 * tool.similarity_flops(paper, 5)
    assert tool.find_limit(paper, step, flops) == 6
    assert tool.find_limit(paper, step, flops - 1) == 5


def test_what_backward_keeps_grows_with_the_pairs(tool):
    few, many = (tool.measure_saved_bytes(images, 5, 8) for images in (20, 40))
    assert many == pytest.approx(few, rel=0.1)
    # At least one float32 of each pair, for each of two contrasts and the graph.
    assert many > 12


def test_time_is_that_of_a_pair(tool, monkeypatch):
    monkeypatch.setattr(tool, 'median_seconds', lambda call, repeats: call() or 12.0 * repeats)
    assert tool.measure_pair_seconds(2, 3, 4, repeats=5) == 60 / (6 * 9)


def test_median_leaves_the_first_call_out(tool, monkeypatch):
    clock, waits = [0.0], iter([100.0, 1.0, 5.0, 2.0])
    monkeypatch.setattr(tool.time, 'perf_counter', lambda: clock[0])

    def call():
        clock[0] += next(waits)

    assert tool.median_seconds(call, 3) == 2.0


def test_meter_counts_what_a_rank_gives(tool, monkeypatch):
    clock = [0.0]

    def wait(*_):
        clock[0] += 2.0

    monkeypatch.setattr(tool.time, 'perf_counter', lambda: clock[0])
    for name in ('all_gather', 'all_reduce'):
        monkeypatch.setattr(tool.dist, name, wait)
    meter = tool.Meter()
    meter.all_gather([], torch.zeros(3, 2))
    meter.all_gather([], torch.zeros(1, dtype=torch.int64))
    meter.all_reduce(torch.zeros(5))
    assert meter.sent == dict(all_gather=24 + 8, all_reduce=20)
    assert meter.seconds == 6.0
    assert meter.get_world_size is torch.distributed.get_world_size
    meter.clear()
    assert meter.seconds == sum(meter.sent.values()) == 0


def cost_of(step, shares=(0.1,), exchange=0.0, sent=None):
    return dict(step=step, shares=list(shares), exchange=exchange, sent=sent or {})


def test_ratio_of_steps_is_the_median_over_rounds(tool):
    first = [cost_of(step) for step in (1.0, 1.0, 8.0)]
    other = [cost_of(step) for step in (2.0, 1.0, 4.0)]
    lines = tool.describe_steps({'ranks': first, 'one': other}, 16).splitlines()
    assert lines[2] == '| ranks | 1.0000 | 1.0000 to 4.5000 | 1.000 | 1.000 to 1.000 |'
    assert lines[3] == '| one | 2.0000 | 1.5000 to 3.0000 | 1.000 | 0.750 to 1.500 |'


def test_exchange_says_who_waits_and_what_was_counted(tool):
    sent = dict(all_gather=1000, all_reduce=2000)
    rounds = [cost_of(2.0, shares=(0.05, 0.01), exchange=0.002, sent=sent)]
    text = tool.describe_exchange(rounds, dict(all_gather=1000, all_reduce=2000))
    assert '1.00% (the later one) to 5.00% (the earlier one' in text
    assert 'takes 2.00 ms, 0.10% of a step' in text
    assert '| all_reduce | 2,000 | 2,000 |' in text


def test_slowest_rank_is_the_step(tool):
    answers = [dict(step=step, gather=1.0, sent={}, exchange=step) for step in (2.0, 4.0)]
    script = 'import sys; input(); print(sys.argv[1])'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes = [
        subprocess.Popen([sys.executable, '-c', script, json.dumps(answer)], **pipes)
        for answer in answers
    ]
    cost = tool.take_step(processes)
    assert (cost['step'], cost['exchange'], cost['shares']) == (4.0, 4.0, [0.5, 0.25])
    for process in processes:
        process.communicate()


def test_process_that_ended_is_noticed(tool):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with (
        subprocess.Popen([sys.executable, '-c', 'input()'], **pipes) as process,
        pytest.raises(RuntimeError, match='a process of the benchmark ended early'),
    ):
        tool.take_step([process])


def test_head_that_gathers_nothing_is_refused(tool, write_config):
    job = tool.Job(write_config('CAMHead'), 2, rank=0, ranks=1, threads=1, folder='')
    with pytest.raises(ValueError, match=r'tiny\.py has a CAMHead, which gathers nothing'):
        tool.make_step(job)


def test_batch_that_the_ranks_cannot_share_is_refused(tool, write_config, monkeypatch):
    argv = ['benchmark_ranks.py', write_config(), '--batch-size', '3']
    monkeypatch.setattr(tool.sys, 'argv', argv)
    with pytest.raises(ValueError, match='--batch-size 3 is not a multiple of --ranks 2'):
        tool.main()


def test_step_of_one_process_trains_without_an_exchange(tool, write_config):
    step, exchange = tool.make_step(tool.Job(write_config(), 2, 0, ranks=1, threads=1, folder=''))
    assert {'decode.loss_cls', 'decode.loss_cls_refined'} <= set(step())
    assert exchange() >= 0


@pytest.mark.slow
def test_benchmark_counts_the_bytes_of_the_formula(
    tool, write_config, monkeypatch, capsys, tmp_path
):
    options = ['--batch-size', '4', '--repeats', '2', '--threads', '1', '--out', 'out.json']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, 'SIMILARITY_IMAGES', 2)
    monkeypatch.setattr(tool.sys, 'argv', ['benchmark_ranks.py', write_config(), *options])
    tool.main()
    text = capsys.readouterr().out
    assert '| 2 ranks of 1 thread |' in text
    assert '| 1 process of 1 threads |' in text
    assert '| 512 |' in text
    content = json.loads((tmp_path / 'out.json').read_text())
    ranks, one = content['costs'].values()
    assert content['formula'] == tool.count_bytes(2, 4, 128, ranks=2)
    assert [cost['sent'] for cost in ranks] == [content['formula']] * 2
    assert [sum(cost['sent'].values()) for cost in one] == [0, 0]
    assert all(0 < share < 1 for cost in ranks for share in cost['shares'])
    assert np.isfinite([row['similarity_share'] for row in content['scale']]).all()
