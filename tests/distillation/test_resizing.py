"""Maps of two sizes are brought to one by adaptive average pooling, in graphs of any size."""

import numpy as np
import pytest
import tensorflow as tf
from feature_references import maps, pool
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtflite.distillation.losses.features.resizing import (
    average_pool,
    resize_nearest,
    to_common_size,
)

sizes = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(height=sizes, width=sizes, other_height=sizes, other_width=sizes)
def test_both_maps_take_the_smaller_size_of_each_axis(height, width, other_height, other_width):
    first, second = maps(0, 2, height, width, 3), maps(1, 2, other_height, other_width, 1)
    size = min(height, other_height), min(width, other_width)
    one, other = to_common_size(tf.constant(first), tf.constant(second))
    np.testing.assert_allclose(one, pool(first, *size), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other, pool(second, *size), rtol=1e-5, atol=1e-6)


def test_a_multiple_is_plain_average_pooling():
    values = maps(0, 2, 6, 9, 3)
    plain = tf.nn.avg_pool2d(values, (2, 3), (2, 3), "VALID")
    ours = average_pool(average_pool(tf.constant(values), 1, 3), 2, 3)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_equal_maps_and_vectors_are_left_as_they_are():
    first, second = tf.constant(maps(0, 2, 4, 4, 3)), tf.constant(maps(1, 2, 4, 4, 5))
    one, other = to_common_size(first, second)
    assert one is first
    assert other is second
    vectors = tf.constant(maps(0, 2, 3))
    assert to_common_size(vectors, vectors)[0] is vectors


@pytest.mark.parametrize("shape", [(2, 5, 2, 3), (2, 4, 4, 3), (0, 5, 4, 3)])
def test_sizes_that_only_the_graph_knows(shape):
    first, second = maps(0, *shape), maps(1, shape[0], 4, 4, 2)
    spec = tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, 4, None, 2))
    one, other = tf.function(to_common_size, input_signature=spec)(first, second)
    size = min(shape[1], 4), min(shape[2], 4)
    np.testing.assert_allclose(one, pool(first, *size), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other, pool(second, *size), rtol=1e-5, atol=1e-6)


def test_three_spatial_axes():
    first, second = maps(0, 2, 4, 2, 6, 1), maps(1, 2, 2, 2, 3, 1)
    one, _ = to_common_size(tf.constant(first), tf.constant(second))
    by_hand = first.reshape(2, 2, 2, 2, 3, 2, 1).mean(axis=(2, 5))
    np.testing.assert_allclose(one, by_hand, rtol=1e-5, atol=1e-6)


def test_the_nearest_values():
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    larger = resize_nearest(tf.constant(values), like=tf.zeros((1, 4, 6, 1)))
    by_hand = values.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(larger, by_hand)
    smaller = resize_nearest(tf.constant(values), like=tf.zeros((1, 1, 2, 1)))
    np.testing.assert_array_equal(smaller[0, 0, :, 0], [0, 1])
