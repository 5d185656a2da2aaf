"""Ranges of kernels, one per channel."""

import numpy as np
import pytest

from kdtflite.errors import ConfigurationError, DataError
from kdtflite.quantization.calibration import weight_range

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 8, 5)).astype(np.float32)


def squared_error(x, a, bits):
    step = a / (2 ** (bits - 1) - 1)
    x = np.asarray(x, np.float64)
    return (
        (x - np.clip(np.rint(x / step), -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step) ** 2
    ).sum()


def test_the_range_of_a_channel_is_its_largest_size():
    kernel = np.array([[1.0, -4.0, 0.0], [-2.0, 3.0, 0.0]])
    np.testing.assert_array_equal(weight_range(kernel, -1), [2, 4, 0])
    np.testing.assert_array_equal(weight_range(kernel, 0), [4, 3])
    assert weight_range(kernel, None) == 4
    assert weight_range(kernel, None).shape == ()


def test_depthwise_channels_have_two_axes():
    given = weight_range(KERNEL, (-2, -1))
    assert given.shape == (8, 5)
    np.testing.assert_array_equal(given, np.abs(KERNEL).max(axis=(0, 1)))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_least_squares_are_found_as_by_a_dense_search(bits):
    kernel = KERNEL.copy()
    kernel[0, 0, 0] *= [1, 3, 6, 12, 25]  # outliers of growing size
    for channel, a in enumerate(weight_range(kernel, -1, "mse", bits=bits)):
        x = kernel[..., channel]
        tried = np.abs(x).max() * np.linspace(0.01, 1, 400)
        least = min(squared_error(x, one, bits) for one in tried)
        assert squared_error(x, float(a), bits) <= 1.02 * least
        assert a <= np.abs(x).max()


def test_each_channel_is_searched_for_itself():
    together = weight_range(KERNEL, -1, "mse", bits=4)
    alone = [weight_range(KERNEL[..., i], None, "mse", bits=4) for i in range(5)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_unit_of_the_weights_does_not_matter(scale):
    given = weight_range(KERNEL.astype(np.float64) * scale, -1, "mse", bits=4)
    np.testing.assert_allclose(given, weight_range(KERNEL, -1, "mse", bits=4) * scale, rtol=0.02)


def test_what_rounds_to_itself_keeps_its_range():
    kernel = np.array([[-127.0, 5.0], [64.0, 127.0], [0.0, -3.0], [1.0, 100.0]]) * 0.01
    np.testing.assert_allclose(weight_range(kernel, -1, "mse"), [1.27, 1.27], rtol=1e-6)
    assert weight_range(np.zeros((2, 3)), None, "mse") == 0


def test_what_has_no_range_is_refused():
    with pytest.raises(ConfigurationError, match="Expected one of: min_max, mse"):
        weight_range(KERNEL, -1, "entropy")
    with pytest.raises(ConfigurationError, match=r"axes of a kernel of shape \(3, 3, 8, 5\)"):
        weight_range(KERNEL, 4)
    with pytest.raises(ConfigurationError, match=r"Received: \(3, -1\)"):
        weight_range(KERNEL, (3, -1))
    with pytest.raises(ConfigurationError, match=r"from 2 to 16\. Received: 1"):
        weight_range(KERNEL, -1, bits=1)
    with pytest.raises(DataError, match="infinity in 2 of 3"):
        weight_range([1.0, np.nan, np.inf], None)
    with pytest.raises(DataError, match=r"shape \(3, 0\)"):
        weight_range(np.zeros((3, 0)), -1)
