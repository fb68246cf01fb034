import numpy as np
import pytest

from mmdscnet.pseudo_labels import open_label_map, read_cams

SIZES = ((30, 40), (40, 30))


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/benchmark_sweep.py')


@pytest.fixture
def image_ids(tool, tmp_path):
    return tool.write_folder(tmp_path, 6, SIZES)


@pytest.mark.parametrize('number', [1, 16, 60])
def test_both_ways_count_the_same_pixels(tool, tmp_path, image_ids, number):
    thresholds = (np.arange(number) / number).astype(np.float32)
    one, many = (
        way(tmp_path, image_ids, thresholds)
        for way in (tool.sweep_in_one_pass, tool.sweep_in_many_passes)
    )
    assert one.shape == (number, 21, 21)
    assert one.dtype == many.dtype == np.int64
    np.testing.assert_array_equal(one, many)
    # Neither all right nor all wrong, or equality would say little.
    assert 0 < np.trace(one[0]) < one[0].sum()


def test_images_are_like_those_of_voc(tool, tmp_path, image_ids):
    shapes, numbers, ids = set(), set(), set()
    for image_id in image_ids:
        cams, class_ids = read_cams(tmp_path / f'cams/{image_id}.npz')
        truth = np.asarray(open_label_map(tmp_path / f'truth/{image_id}.png'))
        assert cams.shape[1:] == truth.shape
        assert set(np.unique(truth)) <= {0, 255, *class_ids}
        shapes.add(truth.shape)
        numbers.add(len(class_ids))
        ids |= set(np.unique(truth).tolist())
    assert shapes == set(SIZES)
    assert len(numbers) > 1
    assert {0, 255} < ids
    shares = tool.CLASSES_AN_IMAGE
    assert sum(number * share for number, share in shares.items()) == pytest.approx(1.5)


def test_images_are_the_same_in_every_run(tool, tmp_path, image_ids):
    assert tool.write_folder(tmp_path / 'again', 6, SIZES) == image_ids
    for image_id in image_ids:
        first, again = (
            read_cams(path / f'cams/{image_id}.npz') for path in (tmp_path, tmp_path / 'again')
        )
        np.testing.assert_array_equal(first.cams, again.cams)


def test_ways_that_differ_are_not_timed(tool):
    confusions = np.zeros((3, 2, 2), dtype=np.int64)
    other = confusions.copy()
    other[1] = [[4, -4], [0, 0]]
    tool.check_equal(confusions, confusions.copy())
    with pytest.raises(ValueError, match='differ at 1 of 3 thresholds, first at index 1, .* 4 pix'):
        tool.check_equal(confusions, other)


def test_report_has_times_and_the_median_ratio(tool, capsys):
    tool.report(np.array([[0.5, 40.0], [1.0, 60.0], [2.0, 200.0]]), num_images=100)
    rows = capsys.readouterr().out.splitlines()
    assert rows[2:] == [
        '| one pass for all thresholds | 1.0000 | 10.00 |',
        '| one pass a threshold | 60.0000 | 600.00 |',
        'ratio 80.0 (60.0 to 100.0), confusions bit-identical',
    ]


def test_benchmark_runs(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'SIZES', SIZES)
    args = ['--images', '2', '--thresholds', '8', '--repeats', '2']
    monkeypatch.setattr(tool.sys, 'argv', ['benchmark_sweep.py', *args])
    monkeypatch.setattr(tool.torch, 'set_num_threads', lambda _: None)
    tool.main()
    out = capsys.readouterr().out
    assert out.startswith('2 images, 8 thresholds, 2 rounds in turns, medians; one process')
    assert 'bit-identical' in out
