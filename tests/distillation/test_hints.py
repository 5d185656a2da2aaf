"""Hints is FitNets' equation 3, with a regressor only where one is needed."""

import numpy as np
import pytest
import tensorflow as tf
from feature_references import assert_gradient, by_name, maps, pool

from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.errors import ConfigurationError, ShapeMismatchError


def reference(student, teacher, weights=None):
    student, teacher = np.float64(student), np.float64(teacher)
    if weights:
        student = student @ weights[0] + weights[1]
    squares = (teacher - student) ** 2
    return np.array([0.5 * sample.mean() for sample in squares])


def test_the_value_worked_by_hand():
    # Differences 0 and 2: half of the mean of 0 and 4.
    loss = Hints("a", "b")([np.array([[1.0, 2.0]])], [np.array([[1.0, 4.0]])])
    np.testing.assert_allclose(loss, [1.0])
    assert loss.dtype == tf.float32


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 7, 6), (4, 6)])
def test_equal_widths_need_no_regressor(scale, shape):
    student, teacher = maps(0, *shape, scale=scale), maps(1, *shape, scale=scale)
    loss = Hints("a", "b")
    np.testing.assert_allclose(loss([student], [teacher]), reference(student, teacher), rtol=1e-5)
    assert loss.variables == []


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 7), (4,)])
@pytest.mark.parametrize(("adapter", "width"), [("auto", 6), ("always", 8)])
def test_other_widths_go_through_a_regressor_which_is_a_1x1_convolution(
    scale, shape, adapter, width
):
    student, teacher = maps(0, *shape, width, scale=scale), maps(1, *shape, 8, scale=scale)
    loss = Hints("a", "b", adapter=adapter)
    value = loss([student], [teacher])
    kernel, bias = loss.trainable_variables
    assert kernel.shape == (width, 8)
    assert bias.shape == (8,)
    bias.assign(maps(2, 8, scale=scale))
    weights = [np.float64(v) for v in loss.trainable_variables]
    assert not np.allclose(value, loss([student], [teacher]))
    expected = reference(student, teacher, weights)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)


@pytest.mark.parametrize("sizes", [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 6), (3, 9))])
def test_maps_of_other_sizes_are_averaged_to_the_smaller_of_each_axis(sizes):
    student, teacher = maps(0, 2, *sizes[0], 3), maps(1, 2, *sizes[1], 5)
    loss = Hints("a", "b")
    value = loss([student], [teacher])
    size = np.minimum(*sizes)
    weights = by_name(loss._adapters[0])
    expected = reference(pool(student, *size), pool(teacher, *size), weights)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_losses_of_several_pairs_add_up():
    student, teacher = [maps(0, 2, 3), maps(1, 2, 4, 4, 2)], [maps(2, 2, 3), maps(3, 2, 4, 4, 2)]
    expected = sum(map(reference, student, teacher))
    np.testing.assert_allclose(Hints(["a", "b"], ["c", "d"])(student, teacher), expected, rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give_by_features_and_regressor():
    student, teacher = maps(0, 2, 4, 2, 3), maps(1, 2, 2, 2, 4)
    loss = Hints("a", "b")
    loss([student], [teacher])
    weights = by_name(loss._adapters[0])
    smaller = pool(teacher, 2, 2)
    assert_gradient(
        loss, [student], [teacher], lambda s: reference(pool(s[0], 2, 2), smaller, weights)
    )
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss([student], [teacher]))
    given = tape.gradient(value, loss.trainable_variables)
    # Half the mean over 16 elements of (t - s K - b)²: -sᵀ(t - s K - b) / 16.
    pooled = pool(student, 2, 2)
    residual = smaller - pooled @ weights[0] - weights[1]
    kernel = -np.einsum("nhwi,nhwo->io", pooled, residual) / 16
    np.testing.assert_allclose(given[0], kernel, rtol=1e-4)
    np.testing.assert_allclose(given[1], -residual.sum((0, 1, 2)) / 16, rtol=1e-4)


def test_layers_that_cannot_be_joined_are_named_with_their_shapes():
    with pytest.raises(ShapeMismatchError, match=r"'a' \(None, 4, 4, 3\).*'b' \(None, 3\)"):
        Hints("a", "b").build({"a": (None, 4, 4, 3)}, {"b": (None, 3)})
    with pytest.raises(ShapeMismatchError, match="adapter='auto'"):
        Hints("a", "b", adapter="none").build({"a": (None, 3)}, {"b": (None, 4)})
    with pytest.raises(ShapeMismatchError, match="known size"):
        Hints("a", "b").build({"a": (None, None)}, {"b": (None, 4)})
    with pytest.raises(ConfigurationError, match="always, auto, none"):
        Hints("a", "b", adapter="allways")
