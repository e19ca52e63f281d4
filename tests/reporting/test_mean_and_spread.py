"""Statistics over seeds against SciPy and NumPy."""

import numpy as np
import pytest
from scipy import stats

from jaxprune.reporting import mean_and_spread, paired_difference
from jaxprune.reporting.spread import student_quantile


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_and_spread_are_numpys_with_divisor_n_minus_one(n):
    x = np.random.default_rng(n).normal(3, 2, n)
    mean, sd, count = mean_and_spread(list(x))
    np.testing.assert_allclose([mean, sd], [np.mean(x), np.std(x, ddof=1)], rtol=1e-14)
    assert count == n


def test_one_value_has_no_spread_and_no_nan():
    assert mean_and_spread([0.9]) == (0.9, None, 1)


def test_equal_values_have_no_spread():
    assert mean_and_spread([0.5, 0.5, 0.5]) == (0.5, 0.0, 3)


@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.95, 0.975, 0.995, 0.9995])
def test_the_students_quantile_is_scipys(probability):
    degrees = [*range(1, 41), 100, 999]
    ours = [student_quantile(probability, d) for d in degrees]
    np.testing.assert_allclose(ours, stats.t.ppf(probability, degrees), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "confidence"), [(2, 0.95), (5, 0.95), (12, 0.9), (33, 0.99)])
def test_the_interval_is_that_of_scipys_paired_test(n, confidence):
    rng = np.random.default_rng(n)
    a = rng.normal(size=n)
    b = a + rng.normal(0.2, 0.1, n)
    theirs = stats.ttest_rel(a, b).confidence_interval(confidence)
    mean, low, high = paired_difference(a, b, confidence=confidence)
    np.testing.assert_allclose([low, high], [theirs.low, theirs.high], rtol=1e-9)
    np.testing.assert_allclose(mean, np.mean(a) - np.mean(b), rtol=1e-12)


def test_pairing_removes_what_seeds_share():
    seeds = np.array([0.0, 10.0, 20.0, 30.0])
    mean, low, high = paired_difference(seeds + [1.0, 1.1, 0.9, 1.0], seeds)
    assert 0.8 < low < mean < high < 1.2  # unpaired, the seeds' spread of 10 would swamp 1


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 1.0, (2000, 4))
    covered = [
        low <= 1.0 <= high for _, low, high in (paired_difference(x, np.zeros(4)) for x in draws)
    ]
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0])]
)
def test_pairs_must_match_and_be_at_least_two(a, b):
    with pytest.raises(ValueError, match=f"got {len(a)} and {len(b)}"):
        paired_difference(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_run_is_an_error_that_names_its_position(bad):
    with pytest.raises(ValueError, match=f"holds {bad} at position 1"):
        mean_and_spread([1.0, bad])


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="at least one number"):
        mean_and_spread([])


@pytest.mark.parametrize("confidence", [-0.5, 1.0, 95])
def test_a_confidence_outside_zero_and_one_is_an_error(confidence):
    with pytest.raises(ValueError, match="confidence c in"):
        paired_difference([1.0, 2.0], [2.0, 1.0], confidence=confidence)
