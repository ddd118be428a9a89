"""Intervals against published numbers, and against how often they hold what they should."""

import numpy as np
import pytest

from min_llm.evals.intervals import Accuracy, ratio, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, count, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)
    assert Accuracy(successes, count).interval == wilson(successes, count)


def test_a_ratio_of_equal_sizes_is_a_mean():
    values = np.array([1.0, 4.0, 2.0, 5.0])
    half = 1.959964 * values.std(ddof=1) / 2
    assert ratio(values, np.ones(4)) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert ratio(values[:1], np.ones(1)) is None


def test_the_interval_of_a_ratio_holds_it_as_often_as_promised():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        sizes = rng.integers(5, 50, 60).astype(float)
        low, high = ratio(sizes * rng.gamma(4.0, 0.5, 60), sizes)
        held += low <= 2.0 <= high
    assert 0.92 < held / 2000 < 0.97
