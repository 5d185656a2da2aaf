import math

import numpy as np
import pytest
from scipy import stats

from kdtflite.errors import DataError
from kdtflite.evaluation.paired import compare_paired


def make_pair(only_first, only_second, samples):
    """Returns what two models have right that differ on some samples and are right on the rest."""
    first, second = np.ones(samples, bool), np.ones(samples, bool)
    second[:only_first] = False
    first[only_first : only_first + only_second] = False
    return first, second


def test_only_samples_on_which_two_models_differ_make_the_error():
    # Differences: 2 of 1, 8 of 0. Mean 0.2; variance (2 - 10 · 0.04) / 9 = 1.6 / 9.
    found = compare_paired(*make_pair(2, 0, 10))
    assert found.difference == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(math.sqrt(1.6 / 9 / 10))
    assert found.low == 0  # 0.8¹⁰ = 11 % of the draws hold neither of the two samples
    assert not found.is_noise


def test_the_interval_of_many_samples_is_that_of_the_normal_distribution():
    # b = 60, c = 40: mean 0.02, and (b + c - (b - c)² / n) / (n - 1) = 99.6 / 999 its variance.
    found = compare_paired(*make_pair(60, 40, 1000))
    error = math.sqrt(99.6 / 999 / 1000)
    assert found.standard_error == pytest.approx(error)
    assert found.low == pytest.approx(0.02 - 1.96 * error, abs=1.5e-3)
    assert found.high == pytest.approx(0.02 + 1.96 * error, abs=1.5e-3)
    other = compare_paired(*make_pair(60, 40, 1000)[::-1])
    assert other.difference == -found.difference
    assert compare_paired(*make_pair(60, 40, 1000)) == found  # always the same draws


def test_interval_and_error_are_those_of_scipy():
    first, second = make_pair(9, 3, 200)
    apart = first.astype(float) - second
    found = compare_paired(first, second)
    assert found.standard_error == pytest.approx(stats.sem(apart))
    theirs = stats.bootstrap((apart,), np.mean, method="percentile", n_resamples=10_000)
    # Draws differ: by about one sample of 200 at the ends of the interval.
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.0051)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.0051)


def test_a_difference_is_noise_up_to_its_standard_error():
    # One sample apart: the mean is 1 / n, and so is sd / √n.
    assert compare_paired(*make_pair(1, 0, 50)).is_noise
    assert not compare_paired(*make_pair(2, 0, 50)).is_noise


def test_models_that_agree_differ_by_nothing_and_one_sample_tells_nothing():
    same = compare_paired(*make_pair(0, 0, 7))
    assert (same.difference, same.standard_error, same.low, same.high) == (0, 0, 0, 0)
    assert same.is_noise
    alone = compare_paired(*make_pair(1, 0, 1))
    assert (alone.difference, alone.low, alone.high) == (1, -1, 1)
    assert alone.is_noise
    assert alone.to_dict()["standard_error"] is None


@pytest.mark.parametrize("lengths", [(0, 0), (3, 4)])
def test_other_samples_are_refused(lengths):
    with pytest.raises(DataError, match="one value per sample"):
        compare_paired(*(np.ones(length, bool) for length in lengths))
