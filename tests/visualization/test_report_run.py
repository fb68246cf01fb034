import numpy as np
import pytest

from mmdscnet.visualization.report_run import check_runs

THRESHOLDS = np.arange(100) / 100
ERRORS = {'false_positive': [10, 30, 0], 'false_negative': [10, 30, 95]}


def test_lists_become_arrays(make_run, errors):
    loss = {'loss': ([1, 2, 3, 3], [1, np.inf, -np.inf, np.nan])}
    one, two = check_runs([make_run(losses=loss, **errors), make_run('M0', losses={})], 3)
    np.testing.assert_array_equal(one.iou, [80, 40, 5])
    np.testing.assert_array_equal(one.errors, [[10, 30, 0], [10, 30, 95]])
    np.testing.assert_array_equal(one.losses['loss'], [[1, 2, 3, 3], [1, np.nan, np.nan, np.nan]])
    assert two.errors is None
    assert two.losses == {}


def test_class_that_does_not_occur_may_lack_its_shares(make_run, errors):
    nothing = {name: [shares[0], np.nan, shares[2]] for name, shares in errors.items()}
    check_runs([make_run(iou=[80, np.nan, 5], **nothing)], 3)


def test_threshold_in_low_precision_is_within_its_range(make_run):
    thresholds = np.float32([0.1, 0.2, 0.95])
    assert float(thresholds[-1]) < 0.95
    check_runs([make_run(thresholds=thresholds, mean_iou=[1, 2, 3], chosen_thr=0.95)], 3)


@pytest.mark.parametrize('number', [0, 3])
def test_number_of_runs_is_one_or_two(make_run, number):
    with pytest.raises(ValueError, match=f'runs has {number} runs'):
        check_runs([*(make_run(f'M{i}') for i in range(number))], 3)


def test_runs_of_one_name_are_refused(make_run):
    with pytest.raises(ValueError, match="both runs are named 'M4'"):
        check_runs([make_run(), make_run()], 3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'thresholds': THRESHOLDS[::-1]}, 'M4: thresholds of shape .*do not ascend'),
        ({'thresholds': []}, r'M4: thresholds of shape \(0,\)'),
        ({'mean_iou': [1, 2]}, r'M4: mean_iou has shape \(2,\), thresholds \(100,\)'),
        ({'mean_iou': np.full(100, np.nan)}, 'M4: mean_iou has values that are not finite'),
        ({'chosen_thr': 1.5}, 'M4: chosen_thr 1.5 is outside the thresholds 0 to 0.99'),
        ({'chosen_thr': np.nan}, 'M4: chosen_thr nan is outside'),
        ({'iou': [1, 2]}, r'M4: iou has shape \(2,\) for 3 classes'),
        ({'iou': [1, 2, 101]}, r'M4: iou has values outside \[0, 100\]'),
        ({'false_positive': [1, 2, 3]}, 'M4: give false_positive and false_negative, or neither'),
        ({**ERRORS, 'false_negative': [1]}, r'M4: false_negative has shape \(1,\)'),
        ({**ERRORS, 'iou': [0.8, 0.4, 0.05]}, r'M4: iou, .* sum to \[20.8.*per cent of the union'),
        ({**ERRORS, 'false_positive': [np.nan, 30, 0]}, r'M4: iou, .* sum to \[nan\]'),
        ({'losses': {'a': ([1, 2], [1])}}, r"M4: loss 'a' has values of shape \(1,\)"),
        ({'losses': {'a': ([2, 1], [1, 1])}}, "M4: loss 'a' has steps that descend"),
        ({'losses': {'a': ([1, np.nan], [1, 1])}}, "M4: loss 'a' has steps that .*not finite"),
    ],
)
def test_run_that_does_not_fit_is_named(make_run, changes, message):
    with pytest.raises(ValueError, match=message):
        check_runs([make_run(**changes)], 3)
