import importlib
import math
import multiprocessing
import operator
import os

import pytest

from mmdscnet.parallel import IN_FLIGHT_PER_PROCESS, map_over_images

# What a process can import: the modules of the tests themselves it cannot.
JOBS = """
import os, signal, time

def sleep_then_echo(seconds):
    time.sleep(seconds)
    return seconds

def process_id(item):
    return os.getpid()

def ignores_interrupts(item):
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN

def die(item):
    os._exit(1)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / 'jobs_of_test_parallel.py').write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module('jobs_of_test_parallel')


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize('num_processes', [0, 1, 2])
def test_every_item_has_its_result(num_processes):
    items = [9.0, 4.0, 1.0] * 7
    assert list(map_over_images(math.sqrt, iter(items), num_processes)) == [3.0, 2.0, 1.0] * 7


def test_slow_items_keep_their_place(jobs):
    seconds = [0.2, 0.0, 0.1, 0.0]
    assert list(map_over_images(jobs.sleep_then_echo, seconds, 2)) == seconds


@pytest.mark.parametrize('num_processes', [0, 2])
def test_no_items_give_no_results(num_processes):
    assert list(map_over_images(math.sqrt, [], num_processes)) == []


@pytest.mark.parametrize('num_processes', [0, 1])
def test_one_process_is_the_calling_one(num_processes):
    # A lambda could not travel.
    assert list(map_over_images(lambda _: os.getpid(), 'ab', num_processes)) == [os.getpid()] * 2


def test_several_processes_are_others_and_not_more(jobs):
    used = set(map_over_images(jobs.process_id, range(20), 2))
    assert os.getpid() not in used
    assert len(used) <= 2


def test_processes_leave_interrupts_to_the_caller(jobs):
    assert list(map_over_images(jobs.ignores_interrupts, 'a', 2)) == [True]


@pytest.mark.parametrize('num_processes', [0, 2])
def test_items_are_drawn_as_needed(num_processes):
    drawn = []
    items = (drawn.append(i) or i for i in range(1000))
    results = map_over_images(operator.neg, items, num_processes)
    assert drawn == []
    for taken in range(1, 30):
        next(results)
        assert len(drawn) <= taken + IN_FLIGHT_PER_PROCESS * num_processes
    results.close()


@pytest.mark.parametrize('num_processes', [0, 2])
@pytest.mark.parametrize(
    ('function', 'item', 'kind', 'message'),
    [
        (math.sqrt, -1.0, ValueError, r'^item -1\.0: .*(domain|nonnegative)'),
        (math.sqrt, 'x', TypeError, '^item x: must be real number'),
        (os.listdir, 'nowhere', FileNotFoundError, '^item nowhere: .*No such file'),
        (operator.inv, 1.5, TypeError, r'^item 1\.5: bad operand'),
        (importlib.import_module, 'nowhere', RuntimeError, '^item nowhere: ModuleNotFoundError:'),
    ],
)
def test_exception_keeps_its_kind_and_names_the_item(num_processes, function, item, kind, message):
    with pytest.raises(kind, match=message) as caught:
        list(map_over_images(function, [item], num_processes, name_of='item {}'.format))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize('num_processes', [0, 2])
def test_results_before_an_exception_are_given(num_processes):
    results = map_over_images(math.sqrt, [4.0, 'x', 1.0], num_processes)
    assert next(results) == 2.0
    with pytest.raises(TypeError, match='^x: '):
        next(results)


@pytest.mark.parametrize('num_processes', [0, 2])
def test_interrupt_ends_the_work(num_processes):
    def items():
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_over_images(operator.neg, items(), num_processes))


def test_leaving_early_ends_the_work(jobs):
    results = map_over_images(jobs.sleep_then_echo, [0.0] + [0.05] * 1000, 2)
    assert next(results) == 0.0
    results.close()


def test_death_of_a_process_is_explained(jobs):
    with pytest.raises(RuntimeError, match=r'a process died while 7 or .*use fewer processes'):
        list(map_over_images(jobs.die, [7], 2))


def test_number_of_processes_is_checked_before_any_work():
    with pytest.raises(ValueError, match='num_processes=-1 is negative: give 0'):
        map_over_images(math.sqrt, [1.0], -1)
    with pytest.raises(TypeError, match=r'num_processes=2\.0 is not an integer'):
        map_over_images(math.sqrt, [1.0], 2.0)
