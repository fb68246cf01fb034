"""What a few seeds say: mean, standard deviation, and paired differences with an interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class PairedDifference(NamedTuple):
    """What one method has over another on the same seeds.

    Attributes:
        mean: Mean of the differences.
        low: Lower end of the confidence interval of the mean.
        high: Its upper end.
    """

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> str:
    """Format the mean and, of two values or more, the sample standard deviation.

    Args:
        values: At least one value.

    Returns:
        Text with two decimals.

    Example:
        >>> spread([40.0, 42.0])
        '41.00 ± 1.41'
    """
    mean = statistics.mean(values)
    return f'{mean:.2f} ± {statistics.stdev(values):.2f}' if len(values) > 1 else f'{mean:.2f}'


def pair_differences(
    values: Sequence[float], reference: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Compare two methods seed by seed, by Student's t over the differences.

    Args:
        values: One value a seed.
        reference: Values of the other method, on the same seeds in the same order.
        confidence: Share of such intervals that hold the true mean, in (0, 1).

    Returns:
        Mean difference and its interval.

    Raises:
        ValueError: If there are fewer than two seeds, the numbers of seeds differ, or
            ``confidence`` is out of range.
    """
    if len(values) != len(reference):
        raise ValueError(
            f'values of {len(values)} seeds cannot be paired with {len(reference)}: give both for '
            'the same seeds'
        )
    if len(values) < 2:
        raise ValueError(f'{len(values)} seeds have no confidence interval: run at least two seeds')
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = student_quantile(len(differences) - 1, confidence) * error
    return PairedDifference(mean, mean - reach, mean + reach)


def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Find the t that a variable of Student's distribution exceeds either way by chance.

    For a whole number of degrees of freedom the distribution function is a finite sum of powers of
    a cosine (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4), which
    is inverted by bisection to the last bit that a float holds.

    Args:
        degrees: Degrees of freedom, at least 1.
        confidence: Probability of -t to t, in (0, 1).

    Returns:
        t, above 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(student_quantile(2), 3)
        4.303
    """
    if degrees < 1:
        raise ValueError(f'degrees={degrees} of freedom: give at least 1, that is two seeds')
    if not 0 < confidence < 1:
        raise ValueError(f'confidence={confidence} is not in (0, 1): give a share such as 0.95')
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _probability_within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(high)


def _probability_within(angle: float, degrees: int) -> float:
    """Of -t to t, where tan(angle) = t / sqrt(degrees)."""
    cosine = math.cos(angle)
    is_odd = degrees % 2
    # Odd: cos + 2/3 cos^3 + 2*4/(3*5) cos^5 ...; even: 1 + 1/2 cos^2 + 1*3/(2*4) cos^4 ...
    term, total = (cosine if is_odd else 1.0), 0.0
    for power in range(is_odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
