"""Calibration methods against brute force, other implementations and the paper's numbers."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdtflite.errors import ConfigurationError, DataError
from kdtflite.quantization.calibration import CALIBRATIONS, get_calibration
from kdtflite.quantization.calibration.entropy import divergence

GAUSSIAN = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
WITH_OUTLIERS = np.concatenate([GAUSSIAN, [25.0, -15.0]]).astype(np.float32)
RELU = np.maximum(GAUSSIAN, 0)


def calibrated(name, *batches, **options):
    observer = get_calibration(name, **options)()
    for batch in batches:
        observer.update(batch)
    return observer.range()


def mean_squared_error(x, low, high, *, bits=8, symmetric=False):
    """The error of rounding x, in float64, on the grid of the integer kernels."""
    x = np.asarray(x, np.float64)
    if symmetric:
        step, zero, least, greatest = high / (2 ** (bits - 1) - 1), 0, 1 - 2 ** (bits - 1), None
        greatest = -least
    else:
        step = (high - low) / (2**bits - 1)
        zero, least, greatest = round(-low / step), 0, 2**bits - 1
    codes = np.clip(np.rint(x / step) + zero, least, greatest)
    return np.mean((x - (codes - zero) * step) ** 2)


@pytest.mark.parametrize("name", CALIBRATIONS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0], (0.0, 0.0)),
        ([2.5], (0.0, 2.5)),
        ([-2.5], (-2.5, 0.0)),
        ([3.0] * 1000, (0.0, 3.0)),
        ([-3.0] * 1000, (-3.0, 0.0)),
    ],
    ids=["zeros", "one", "one negative", "constant", "constant negative"],
)
def test_nothing_is_clipped_where_all_values_are_equal(name, values, expected):
    assert calibrated(name, values) == pytest.approx(expected, rel=2e-3)
    largest = max(np.abs(expected))
    assert calibrated(name, values, symmetric=True) == pytest.approx((-largest, largest), rel=2e-3)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_all_negative_values_end_at_zero(name):
    low, high = calibrated(name, -1 - np.abs(GAUSSIAN))
    assert high == 0
    assert -6 < low < -2


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_batch_without_values_changes_nothing(name):
    empty = np.zeros((0, 4, 4), np.float32)
    assert calibrated(name, empty, GAUSSIAN, empty) == calibrated(name, GAUSSIAN)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_without_any_value_there_is_no_range(name):
    with pytest.raises(DataError, match=r"at least one value .* Received: none"):
        calibrated(name, np.zeros(0))


@pytest.mark.parametrize("name", CALIBRATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e60])
def test_a_value_that_is_not_finite_is_refused_with_its_whole_batch(name, bad):
    observer = get_calibration(name)()
    observer.update([1.0, -2.0])
    before = observer.range()
    with pytest.raises(DataError, match="NaN or infinity in 1 of 3 values"):
        observer.update([100.0, bad, -100.0])
    assert observer.range() == before


@pytest.mark.parametrize("name", CALIBRATIONS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_the_unit_of_the_values_does_not_matter(name, scale):
    low, high = calibrated(name, GAUSSIAN)
    given = calibrated(name, GAUSSIAN.astype(np.float64) * scale)
    assert given == pytest.approx((low * scale, high * scale), rel=1e-6)


@pytest.mark.parametrize("name", CALIBRATIONS)
@pytest.mark.parametrize("largest", [2.0**-124, 3e38])  # a quarter of 2^-124 is still normal
def test_the_limits_of_float32_work(name, largest):
    low, high = calibrated(name, np.array([-0.5, 0.0, 0.25, 1.0]) * largest)
    assert -0.51 * largest <= low < 0 < high <= 1.01 * largest


def test_outliers_are_clipped_by_all_but_min_max():
    assert calibrated("min_max", WITH_OUTLIERS) == (-15.0, 25.0)
    # Two values of 200,000: least squares weighs (25 - high)² of one against the rounding of all.
    for name, reach in (("percentile", 4.0), ("mean_std", 4.1), ("entropy", 6.0), ("mse", 20.0)):
        low, high = calibrated(name, WITH_OUTLIERS)
        assert -reach < low < -3.4, name
        assert 3.4 < high < reach, name
        assert calibrated(name, WITH_OUTLIERS, symmetric=True)[1] < reach, name
    # The outlier is in one batch of ten only.
    low, high = calibrated("moving_average", *[GAUSSIAN] * 9, WITH_OUTLIERS)
    assert -8 < low < -4
    assert 4 < high < 8


def test_one_huge_outlier_does_not_hide_the_rest():
    x = np.concatenate([GAUSSIAN, [1e4]]).astype(np.float32)
    # The histogram's bin with the percentile is 2.4 wide.
    assert calibrated("percentile", x) == pytest.approx(calibrated("percentile", GAUSSIAN), abs=2.5)
    x[-1] = 300
    low, high = calibrated("mse", x)
    assert mean_squared_error(x, low, high) < 0.9 * mean_squared_error(x, x.min(), x.max())
    # The smallest range of relative entropy is an eighth of the whole.
    assert calibrated("entropy", np.append(GAUSSIAN, 100.0))[1] < 100 / 7


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(max_dims=2, min_side=0, max_side=12),
            elements=st.floats(-(2.0**100), 2.0**100, width=32),
        ),
        min_size=1,
        max_size=4,
    ),
    symmetric=st.booleans(),
    bits=st.sampled_from([4, 8, 16]),
)
def test_every_range_contains_zero_and_stays_within_the_values(batches, symmetric, bits):
    values = np.concatenate([batch.ravel() for batch in batches])
    if not values.size:
        return
    least, greatest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        greatest = max(-least, greatest)
        least = -greatest
    for name in CALIBRATIONS:
        if name == "entropy" and bits > 8:
            continue
        low, high = calibrated(name, *batches, symmetric=symmetric, bits=bits)
        assert least <= low <= 0 <= high <= greatest, name
        if symmetric:
            assert low == -high, name
        if greatest > least:
            assert high > low, name


@settings(max_examples=20, deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        st.integers(2, 60),
        elements=st.one_of(st.floats(-3, 3, width=32), st.floats(-(2.0**80), 2.0**80, width=32)),
    ),
    data=st.data(),
)
def test_batches_of_any_size_and_order_give_the_same_range(values, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    order = data.draw(st.permutations(range(len(values))))
    for name in ("min_max", "percentile", "mse", "entropy"):
        for symmetric in (False, True):
            at_once = calibrated(name, values, symmetric=symmetric)
            streamed = calibrated(name, *np.split(values[order], cuts), symmetric=symmetric)
            assert streamed == at_once, name


@pytest.mark.parametrize("name", ["min_max", "percentile", "mse", "entropy", "moving_average"])
@pytest.mark.parametrize("tiny", [1.4e-45, 1e-39, 2.0**-126])
def test_numbers_that_some_processors_flush_to_zero_change_no_range(name, tiny):
    # 2^-126 is the least normal number: divided by the width of a bin it must not become denormal.
    batches = [[-tiny], [8191.0], [0.0]]
    at_once = calibrated(name, [value for batch in batches for value in batch])
    assert calibrated(name, *batches[::-1]) == at_once or name == "moving_average"
    if tiny < 2.0**-126:
        assert calibrated(name, [-tiny, tiny]) == (0.0, 0.0)
        assert calibrated(name, [0.0, 8191.0, -tiny]) == calibrated(name, [0.0, 8191.0, 0.0])


def test_the_bins_of_small_negative_values_do_not_depend_on_denormals():
    from kdtflite.quantization.calibration.histogram import Histogram

    values = np.array([-(2.0**-126), -(2.0**-120), 8191.0], np.float32)
    histogram = Histogram()
    histogram.add(values)
    assert histogram.counts[: -histogram.first].sum() == 2


def test_mean_and_deviation_are_joined_over_batches():
    x = GAUSSIAN.astype(np.float64) * 3 + 50  # from 35 to 65
    shifted = np.concatenate([x, -x]).astype(np.float32)
    low, high = calibrated("mean_std", *np.array_split(shifted, 7), deviations=0.5)
    assert low == pytest.approx(-0.5 * np.std(shifted, dtype=np.float64), rel=1e-4)
    assert high == pytest.approx(0.5 * np.std(shifted, dtype=np.float64), rel=1e-4)


def test_min_max_includes_zero_and_mirrors_where_symmetric():
    assert calibrated("min_max", [1.0, 2.0], [0.5, 7.0]) == (0.0, 7.0)
    assert calibrated("min_max", [-9.0, 2.0], symmetric=True) == (-9.0, 9.0)


def test_a_moving_average_starts_without_bias():
    # d = 0.9: highs 1, 2, 4 weigh 0.081, 0.09, 0.1, which sum to 1 - 0.9³ = 0.271
    low, high = calibrated("moving_average", [-1.0, 1.0], [0.5, 2.0], [-3.0, 4.0], decay=0.9)
    assert high == pytest.approx((0.081 * 1 + 0.09 * 2 + 0.1 * 4) / 0.271)
    # The second batch stops at 0, which every range contains.
    assert low == pytest.approx(-(0.081 * 1 + 0.1 * 3) / 0.271)
    assert calibrated("moving_average", [-1.0, 1.0], decay=0.999) == pytest.approx((-1, 1))
    # Sizes 5, 3: (0.09 · 5 + 0.1 · 3) / 0.19
    assert calibrated("moving_average", [-5.0, 1.0], [3.0], decay=0.9, symmetric=True)[
        1
    ] == pytest.approx(0.75 / 0.19)
    assert calibrated("moving_average", [9.0], [3.0], decay=0.0) == (0.0, 3.0)


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize(
    "x",
    [GAUSSIAN, RELU, -RELU, GAUSSIAN[:7], np.repeat([-2.0, 0.0, 5.0], [40, 30, 30])],
    ids=["gaussian", "relu", "-relu", "seven", "steps"],
)
def test_percentiles_are_numpys_but_for_a_bin(x, percentile):
    low, high = calibrated("percentile", np.asarray(x, np.float32), percentile=percentile)
    expected = np.percentile(x, [100 - percentile, percentile])
    bin_width = float(max(x.max(), 0) - min(x.min(), 0)) / 4096
    assert low == pytest.approx(min(expected[0], 0), abs=bin_width)
    assert high == pytest.approx(max(expected[1], 0), abs=bin_width)
    size = np.percentile(np.abs(x), percentile)
    assert calibrated("percentile", x, percentile=percentile, symmetric=True)[1] == pytest.approx(
        size, abs=bin_width
    )


def test_three_point_nine_two_deviations_are_best_for_a_gaussian_at_eight_bits():
    """Banner et al., arXiv 1810.05723: 3.92 at 8 bits, 2.55 at 4."""
    x = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
    assert calibrated("mse", x, symmetric=True)[1] == pytest.approx(3.92, abs=0.08)
    # Codes ±7 leave one of 16 unused.
    assert calibrated("mse", x, symmetric=True, bits=4)[1] == pytest.approx(2.55, abs=0.1)
    assert calibrated("mean_std", x) == pytest.approx((-3.92, 3.92), abs=0.01)


SAMPLES = {
    "gaussian": GAUSSIAN[:20_000],
    "outliers": np.concatenate([GAUSSIAN[:20_000], [12.0, -9.0]]),
    "relu": RELU[:20_000],
    "lognormal": np.exp(1.5 * GAUSSIAN[:20_000]),
    "swish": (3 * GAUSSIAN / (1 + np.exp(-3 * GAUSSIAN)))[:20_000],
    "relu6": np.clip(4 * GAUSSIAN[:20_000] + 2, 0, 6),
    "negative": -(np.abs(GAUSSIAN[:20_000]) ** 1.5),
    "few": np.array([-1.0, 0.3, 0.31, 0.7, 8.0]),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sample", SAMPLES)
def test_least_squares_are_found_as_by_a_dense_search_on_the_values(sample, bits):
    x = SAMPLES[sample].astype(np.float32)
    low, high = calibrated("mse", x, bits=bits)
    shares = np.linspace(0, 1, 41)
    least = min(
        mean_squared_error(x, a * min(x.min(), 0), b * max(x.max(), 0), bits=bits)
        for a in (shares if x.min() < 0 else [0])
        for b in (shares if x.max() > 0 else [0])
        if a * x.min() < b * x.max()
    )
    # The search is finer than this one; its only inaccuracy is the histogram's bins.
    assert mean_squared_error(x, low, high, bits=bits) <= 1.01 * least


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("sample", ["gaussian", "outliers", "relu", "lognormal"])
def test_symmetric_least_squares_are_found_as_by_a_dense_search(sample, bits):
    x = SAMPLES[sample].astype(np.float32)
    _, high = calibrated("mse", x, bits=bits, symmetric=True)
    errors = [
        mean_squared_error(x, -a, a, bits=bits, symmetric=True)
        for a in np.abs(x).max() * np.linspace(0.005, 1, 200)
    ]
    found = mean_squared_error(x, -high, high, bits=bits, symmetric=True)
    assert found <= 1.01 * min(errors)


def test_at_sixteen_bits_least_squares_hardly_clip():
    low, high = calibrated("mse", WITH_OUTLIERS, bits=16)
    assert (low, high) == pytest.approx((-15, 25), rel=0.01)


def test_values_that_are_on_the_grid_already_keep_their_range():
    pixels = np.tile(np.arange(256, dtype=np.float32) / 255, 50)
    assert calibrated("mse", pixels) == (0.0, 1.0)
    assert calibrated("mse", np.minimum(np.maximum(3 * GAUSSIAN, 0), 6)) == (0.0, 6.0)


def tensorrt(sizes, bins, width, levels=128):
    """The calibrator of Migacz' slides and NVIDIA's pytorch-quantization, bin by bin.

    Gives the divergence for each end of the range that has one.
    """
    counts = np.zeros(bins)
    for number in (sizes / width).astype(int):
        counts[number] += 1
    divergences = {}
    for end in range(levels, bins + 1):
        if counts[end - 1] == 0 and counts[end:].sum():
            continue  # Q is 0 where P is not
        reference = counts[:end].copy()
        reference[-1] += counts[end:].sum()
        candidate = np.zeros(end)
        which = np.digitize(range(end), np.linspace(0, end, levels + 1)) - 1
        for level in range(levels):
            members = np.flatnonzero((which == level) & (counts[:end] > 0))
            candidate[members] = counts[members].sum() / max(len(members), 1)
        divergences[end] = scipy.stats.entropy(reference, candidate)
    return divergences


RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize(
    "x",
    [
        np.append(RANDOM.triangular(-1, 0, 1, 200_000), [2.1, -2.2, 1.7] * 3),
        np.append(RANDOM.uniform(-1, 1, 50_000), RANDOM.uniform(-3, 3, 40)),
        RANDOM.beta(2, 5, 50_000),
    ],
    ids=["triangular", "uniform", "beta"],
)
def test_relative_entropy_is_least_where_tensorrt_finds_it(x):
    x = x.astype(np.float32)
    largest = float(np.abs(x).max())
    width = 2.0 ** np.ceil(np.log2(largest / 2048))
    bins = int(largest / width) + 1
    expected = tensorrt(np.abs(x), bins, width)
    observer = get_calibration("entropy", symmetric=True)()
    observer.update(x)
    counts, first, given_width = observer.histogram.coarsen(2048)
    assert (len(counts), first, given_width) == (bins, 0, width)
    for end, wanted in expected.items():
        assert divergence(counts, 0, end, 128) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    # Limits in gaps, which TensorRT's rule leaves out, may be even better.
    end = np.ceil(observer.range()[1] / width)
    assert divergence(counts, 0, int(end), 128) <= min(expected.values()) * (1 + 1e-9)
    if end in expected:
        assert end == min(expected, key=expected.get)
    assert abs(end - min(expected, key=expected.get)) <= 16


def test_relative_entropy_searches_each_limit_by_itself():
    # The lower tail is long and thin, the upper one short.
    random = np.random.default_rng(4)
    x = np.concatenate([random.uniform(-1, 1, 100_000), random.uniform(-8, -1, 30)])
    low, high = calibrated("entropy", x)
    assert -2.5 < low <= -0.99
    assert high == pytest.approx(1, abs=0.02)
    mirrored = calibrated("entropy", -x)
    assert mirrored == pytest.approx((-high, -low), abs=0.3)


def test_an_unknown_calibration_lists_the_known_ones():
    with pytest.raises(
        ConfigurationError,
        match=r"no calibration 'minmax'. Did you mean 'min_max'\? Expected one of: entropy, "
        r"mean_std, min_max, moving_average, mse, percentile\.",
    ):
        get_calibration("minmax")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(
        ConfigurationError,
        match=r"'percentile' has no option 'share'. Expected: percentile, symmetric, bits\.",
    ):
        get_calibration("percentile", share=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("percentile", {"percentile": 50}, "above 50, up to 100. Received: 50"),
        ("percentile", {"percentile": 100.1}, "Received: 100.1"),
        ("moving_average", {"decay": 1.0}, "from 0 to below 1. Received: 1.0"),
        ("mean_std", {"deviations": 0}, "positive number. Received: 0"),
        ("mse", {"bits": 17}, "from 2 to 16. Received: 17"),
        ("mse", {"bits": 8.5}, "bits= to be a whole number. Received: 8.5"),
        ("entropy", {"bits": 16}, "from 2 to 8 for the calibration 'entropy'. Received: 16"),
    ],
)
def test_a_value_out_of_bounds_is_refused_before_any_data(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        get_calibration(name, **options)


def test_a_factory_makes_observers_that_share_nothing():
    new = get_calibration("percentile", percentile=100)
    one, other = new(), new(symmetric=True)
    one.update([1.0, 5.0])
    other.update([-2.0])
    assert one.range() == (0.0, 5.0)
    assert other.range() == (-2.0, 2.0)
