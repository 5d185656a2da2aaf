"""SQNR, cosine, mean squared error and steps, worked by hand and against NumPy."""

import math

import numpy as np
import pytest

from kdtflite.errors import DataError
from kdtflite.evaluation.layers.tally import Grid, Tally


def counted(x, given, grid=None, **options):
    tally = Tally(grid, **options)
    tally.add(np.atleast_2d(np.float32(x)), np.atleast_2d(given))
    return tally


def test_two_values_by_hand():
    tally = counted([3, 4], np.float32([3, 3]))
    # signal 9 + 16, noise 1: 10 log10 25; product 21, lengths 5 and sqrt 18
    assert tally.sqnr == pytest.approx(13.9794, abs=1e-4)
    assert tally.cosine == pytest.approx(21 / (5 * math.sqrt(18)))
    assert tally.mse == 0.5
    assert tally.largest == 1
    assert (tally.largest_steps, tally.saturated, tally.clipped, tally.range_used) == (None,) * 4


@pytest.mark.parametrize(
    ("x", "given", "sqnr", "cosine"),
    [
        ([1, -2], [1, -2], math.inf, 1),
        ([0, 0], [0, 0], math.inf, 1),
        ([0, 0], [0, 1], -math.inf, 0),
        ([2, 1], [0, 0], 0, 0),
        ([1e-30, 0], [-1e-30, 0], 10 * math.log10(1 / 4), -1),
        ([3e38, 1], [1.5e38, 1], 10 * math.log10(4), 1),
    ],
)
def test_the_ends_of_every_measure(x, given, sqnr, cosine):
    tally = counted(x, np.float32(given))
    assert tally.sqnr == pytest.approx(sqnr, rel=1e-6)
    assert tally.cosine == pytest.approx(cosine, rel=1e-6)


def test_batches_of_any_size_add_up_to_what_numpy_finds():
    random = np.random.default_rng(0)
    x = random.normal(size=(37, 5, 401)).astype(np.float32)
    y = (x + random.normal(size=x.shape) * 0.01).astype(np.float32)
    tally = Tally(None)
    for start, end in ((0, 1), (1, 20), (20, 37)):
        tally.add(x[start:end], y[start:end], first=start)
    a, b = x.astype(np.float64), y.astype(np.float64)
    error = a - b
    assert tally.elements == x.size
    assert tally.mse == pytest.approx(np.mean(error**2), rel=1e-12)
    assert tally.sqnr == pytest.approx(20 * math.log10(np.linalg.norm(a) / np.linalg.norm(error)))
    cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert tally.cosine == pytest.approx(cosine, rel=1e-12)


def test_codes_are_read_on_the_tensors_grid():
    # Codes -128, 0, 127 stand for 0, 64, 127.5.
    grid = Grid(0.5, -128, "int8")
    tally = counted([0, 64.25, 200, -0.2], np.int8([[-128, 0, 127, -128]]), grid)
    assert tally.mse == pytest.approx((0.25**2 + 72.5**2 + 0.2**2) / 4)
    assert tally.largest_steps == pytest.approx(145)
    assert tally.saturated == 3 / 4
    assert tally.clipped == 1 / 4  # 200; -0.2 is within half a step
    assert tally.range_used == 1


def test_differences_are_counted_in_steps_and_the_largest_is_found():
    grid = Grid(0.5, 10, "int8")
    tally = Tally(grid, steps=True)
    # On the grid: codes 10, 12, 14, 16.
    x = np.float32([[0, 1], [2, 3]])
    tally.add(x, np.int8([[10, 12], [14, 17]]), first=0)
    tally.add(x, np.int8([[10, 11], [9, 18]]), first=2)
    # Differences 0 0 0 1 and 0 -1 -5 2.
    assert tally.differing == (4 / 8, 2 / 8, 1 / 8, 1 / 8)
    worst = tally.worst
    assert (worst.steps, worst.sample, worst.index) == (-5, 3, (0,))
    assert (worst.keras, worst.file) == (2.0, -0.5)


def test_what_saturates_in_both_is_no_difference():
    tally = counted([1e6, -1e6], np.int8([[127, -128]]), Grid(0.1, 0, "int8"), steps=True)
    assert tally.differing == (1, 0, 0, 0)
    assert tally.clipped == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(DataError, match="NaN or infinity"):
        counted([1, bad], np.float32([1, 1]))
    with pytest.raises(DataError, match="NaN or infinity"):
        counted([1, 1], np.float32([1, bad]))
