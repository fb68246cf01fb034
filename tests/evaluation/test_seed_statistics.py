import math
import statistics

import pytest

from mmdscnet.evaluation.seed_statistics import pair_differences, spread, student_quantile


@pytest.mark.parametrize(
    ('values', 'text'),
    [([41.234], '41.23'), ([40.0, 42.0], '41.00 ± 1.41'), ([1.0, 1.0, 1.0], '1.00 ± 0.00')],
)
def test_spread_is_mean_and_standard_deviation(values, text):
    assert spread(values) == text


# Of any printed table.
@pytest.mark.parametrize(
    ('degrees', 'confidence', 'quantile'),
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (4, 0.95, 2.776),
        (5, 0.95, 2.571),
        (9, 0.95, 2.262),
        (30, 0.95, 2.042),
        (1, 0.99, 63.657),
        (2, 0.99, 9.925),
        (10, 0.9, 1.812),
    ],
)
def test_quantiles_of_the_tables(degrees, confidence, quantile):
    assert student_quantile(degrees, confidence) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize('confidence', [0.5, 0.95, 0.999])
def test_one_and_two_degrees_have_a_closed_form(confidence):
    expected = math.tan(math.pi * confidence / 2)
    assert student_quantile(1, confidence) == pytest.approx(expected, rel=1e-12)
    expected = confidence * math.sqrt(2 / (1 - confidence**2))
    assert student_quantile(2, confidence) == pytest.approx(expected, rel=1e-12)


def test_quantile_nears_that_of_the_normal_distribution():
    normal = statistics.NormalDist().inv_cdf(0.975)
    assert student_quantile(3000) == pytest.approx(normal, rel=1e-3)
    assert student_quantile(3001) == pytest.approx(normal, rel=1e-3)


def test_interval_by_hand():
    # Differences 1, 2 and 3: mean 2, standard deviation 1, and t = 4.3027 of two degrees.
    difference = pair_differences([41, 43, 44], [40, 41, 41])
    reach = 4.302653 / math.sqrt(3)
    assert difference == pytest.approx((2, 2 - reach, 2 + reach), rel=1e-6)


def test_what_seeds_share_does_not_widen_the_interval():
    narrow = pair_differences([10.0, 50.0], [9.0, 49.0])
    assert narrow == pytest.approx((1, 1, 1))


def test_fewer_than_two_seeds_are_an_error():
    with pytest.raises(ValueError, match='1 seeds have no confidence interval: run at least two'):
        pair_differences([1.0], [2.0])


def test_other_numbers_of_seeds_are_an_error():
    with pytest.raises(ValueError, match='values of 3 seeds cannot be paired with 2'):
        pair_differences([1.0, 2.0, 3.0], [2.0, 1.0])


@pytest.mark.parametrize('degrees', [0, -1])
def test_no_degree_of_freedom_is_an_error(degrees):
    with pytest.raises(ValueError, match=f'degrees={degrees} of freedom: give at least 1'):
        student_quantile(degrees)


@pytest.mark.parametrize('confidence', [0, 1, 95])
def test_confidence_error_names_the_value(confidence):
    with pytest.raises(ValueError, match=rf'confidence={confidence} is not in \(0, 1\)'):
        student_quantile(2, confidence)
