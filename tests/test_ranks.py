"""Two and three real processes that meet over gloo."""

import os
from uuid import uuid4

import pytest
import torch
from mmengine.config import Config
from torch import distributed

from mmdscnet.launch import check_same_config
from mmdscnet.ranks import check_ranks_agree, on_first_rank


def fail():
    raise FileNotFoundError('no such folder')


def run_rank(rank, ranks, rendezvous, work, queue):
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=ranks
    )
    try:
        queue.put((rank, 'result', work(rank)))
    except Exception as error:
        queue.put((rank, type(error).__name__, str(error)))
    # The answers of all are there, whoever ends first.
    distributed.barrier()


@pytest.fixture
def on_ranks(tmp_path):
    """Run a function of the rank on all ranks: kind and text of what each answers."""

    def run(work, ranks=2):
        context = torch.multiprocessing.get_context('fork')
        queue = context.Queue()
        args = (ranks, tmp_path / uuid4().hex, work, queue)
        processes = [
            context.Process(target=run_rank, args=(rank, *args), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        answers = sorted(queue.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(60)
        return [answer[1:] for answer in answers]

    return run


def test_first_rank_works_and_all_get_its_result(on_ranks):
    answers = on_ranks(lambda rank: on_first_rank(lambda: f'{rank} in {os.getpid()}'))
    assert answers[0] == answers[1]
    assert answers[0][1].startswith('0 in ')


def test_failure_of_the_first_rank_is_that_of_all(on_ranks):
    first, second = on_ranks(lambda rank: on_first_rank(fail))
    assert first == ('FileNotFoundError', 'no such folder')
    assert second == (
        'RuntimeError',
        'the first process failed: FileNotFoundError: no such folder',
    )


def test_single_process_just_works():
    assert on_first_rank(lambda: 7) == 7
    with pytest.raises(FileNotFoundError):
        on_first_rank(fail)
    check_ranks_agree('config', {'a': '1'})


def test_ranks_that_agree_go_on(on_ranks):
    parts = {f'image {index}': 'a.jpg' for index in range(1000)}
    assert on_ranks(lambda rank: check_ranks_agree('images', parts)) == [('result', None)] * 2


def test_every_rank_is_told_what_differs_and_where(on_ranks):
    def work(rank):
        check_ranks_agree('config', {'seed': '0', 'lr': '0.1' if rank < 2 else '0.2'})

    answers = on_ranks(work, ranks=3)
    text = (
        'the processes of this job do not have the same config: lr is 0.1 on rank 0 and 0.2 on '
        'rank 2. Start all of them with the same command, code and files'
    )
    assert answers == [('ValueError', text)] * 3


def test_missing_parts_are_named_and_many_are_counted(on_ranks):
    def work(rank):
        check_ranks_agree('images', {f'image {index}': 'x' for index in range(4 + 2 * rank)})

    text = on_ranks(work)[0][1]
    assert 'image 4 is not there on rank 0 and x on rank 1; image 5 is not there' in text

    def more(rank):
        check_ranks_agree('images', {f'image {index}': str(rank) for index in range(9)})

    assert '; and 6 more. Start all' in on_ranks(more)[0][1]


def test_order_of_the_parts_does_not_matter(on_ranks):
    def work(rank):
        check_ranks_agree('config', dict(a='1', b='2') if rank else dict(b='2', a='1'))

    assert on_ranks(work) == [('result', None)] * 2


def test_configs_are_compared_but_for_the_place_of_the_data(on_ranks):
    def work(rank, **differing):
        dataset = dict(data_root=f'/node{rank}/data')
        check_same_config(Config(dict(model=dict(depth=1), dataset=dataset, **differing)))

    assert on_ranks(work) == [('result', None)] * 2
    kind, text = on_ranks(lambda rank: work(rank, batch_size=2 + rank))[1]
    assert kind == 'ValueError'
    assert 'batch_size is 2 on rank 0 and 3 on rank 1' in text
