"""Fake quantization: values, gradients and moving ranges, against NumPy."""

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from kdtflite.quantization.quantizers import (
    ActivationQuantizer,
    FixedQuantizer,
    LearnedQuantizer,
    LearnedWeightQuantizer,
    WeightQuantizer,
    as_config,
    from_config,
)

finite = st.floats(-1e4, 1e4, width=32)


def held(quantizer, *, weight=None):
    """Returns the variables of a quantizer on a layer of its own."""
    layer = keras.layers.Layer()
    if weight is None:
        return quantizer.build("x", layer)
    variables = quantizer.build(weight, "w", layer)
    quantizer.set_from(weight, variables)
    return variables


def symmetric(weight, axes):
    """w rounded to -127..127 steps, with one scale per position of the axes that stay."""
    end = np.abs(weight).max(axis=axes, keepdims=True)
    step = np.where(end > 0, end, 1) / 127
    return np.round(weight / step) * step


@pytest.mark.parametrize(
    ("shape", "kept", "reduced"),
    [
        ((3, 3, 2, 5), (-1,), (0, 1, 2)),
        ((3, 3, 4, 2), (-2, -1), (0, 1)),
        ((3, 3, 5, 2), (-2,), (0, 1, 3)),
        ((6, 5), (), None),
        ((6, 5), (-1,), (0,)),
    ],
)
def test_a_weight_is_rounded_on_the_grid_of_each_of_its_channels(shape, kept, reduced):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight *= np.linspace(0.01, 10, shape[-1])
    for kind in (WeightQuantizer, LearnedWeightQuantizer):
        quantizer = kind(kept)
        variable = tf.Variable(weight)
        given = quantizer(variable, held(quantizer, weight=variable)).numpy()
        np.testing.assert_allclose(given, symmetric(weight, reduced), atol=1e-5)


def test_a_weight_of_zeros_stays_zero():
    for quantizer in (WeightQuantizer(), WeightQuantizer((-1,)), LearnedWeightQuantizer((-1,))):
        zeros = tf.Variable(tf.zeros((2, 2, 3, 4)))
        rounded = quantizer(zeros, held(quantizer, weight=zeros))
        np.testing.assert_array_equal(rounded, zeros)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (4, 3), elements=finite))
def test_a_rounded_weight_is_half_a_step_away_at_most(weight):
    rounded = WeightQuantizer((-1,))(weight).numpy()
    step = np.abs(weight).max(axis=0) / 127
    assert (np.abs(rounded - weight) <= 0.501 * step + 1e-6 * np.abs(weight)).all()


def test_the_gradient_of_a_weight_passes_straight_through():
    weight = tf.Variable(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    up = np.arange(12, dtype=np.float32).reshape(4, 3)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(WeightQuantizer((-1,))(weight) * up)
    np.testing.assert_array_equal(tape.gradient(total, weight), up)


def test_a_moving_range_starts_as_the_plain_mean_and_forgets_its_start():
    quantizer = ActivationQuantizer()
    variables = held(quantizer)
    ends = [(-1.0, 2.0), (-3.0, 4.0), (-2.0, 9.0)]
    low = high = weight = 0.0
    for least, most in ends:
        quantizer(tf.constant([least, 0.5, most]), True, variables)
        # Σ dᵗ⁻ⁱ xᵢ / Σ dᵗ⁻ⁱ with d = 0.99
        low, high, weight = 0.99 * low + least, 0.99 * high + most, 0.99 * weight + 1
        np.testing.assert_allclose(float(variables["min"]), low / weight, rtol=1e-5)
        np.testing.assert_allclose(float(variables["max"]), high / weight, rtol=1e-5)
    quantizer(tf.constant([-100.0, 100.0]), False, variables)
    np.testing.assert_allclose(float(variables["max"]), high / weight, rtol=1e-5)


def test_a_calibrated_range_moves_by_a_hundredth():
    quantizer = ActivationQuantizer()
    variables = held(quantizer)
    assert quantizer.read_range(variables) is None
    quantizer.set_range(variables, -2.0, 2.0)
    quantizer(tf.constant([-4.0, 3.0]), True, variables)
    np.testing.assert_allclose(quantizer.read_range(variables), (-2.02, 2.01), rtol=1e-5)


def test_a_range_holds_zero_whatever_the_values():
    quantizer = ActivationQuantizer()
    for values, expected in (([-5.0, -3.0], (-5.0, 0.0)), ([3.0, 5.0], (0.0, 5.0))):
        variables = held(quantizer)
        quantizer(tf.constant(values), True, variables)
        np.testing.assert_allclose(quantizer.read_range(variables), expected, atol=1e-5)


def test_after_a_relu_the_low_end_is_zero():
    quantizer = ActivationQuantizer(non_negative=True)
    variables = held(quantizer)
    quantizer(tf.constant([0.0, 7.0]), True, variables)
    np.testing.assert_allclose(quantizer.read_range(variables), (0.0, 7.0), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (9,), elements=finite), st.integers(1, 254))
def test_a_learned_grid_is_that_of_the_integer_codes(values, zero):
    quantizer = LearnedQuantizer()
    variables = held(quantizer)
    step = 0.05
    quantizer.set_range(variables, -zero * step, (255 - zero) * step)
    given = quantizer(tf.constant(values), False, variables).numpy()
    codes = np.clip(np.floor(values / np.float32(step) + zero + 0.5), 0, 255)
    # Within one step: exact halves and float32 may fall either way.
    assert np.abs(given / step - (codes - zero)).max() <= 1 + 1e-3


def test_the_gradients_of_a_learned_step_are_those_of_the_paper():
    # s = 0.5, z = 2: codes 0..255, values -1..126.5
    values = np.array([[-3.0, -0.2, 0.3, 200.0]], np.float32)
    up = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    quantizer = LearnedQuantizer()
    variables = held(quantizer)
    quantizer.set_range(variables, -1.0, 126.5)
    x = tf.Variable(values)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(x, True, variables) * up)
    by_value, by_step = tape.gradient(total, [x, variables["step"]])
    # Outside the range nothing passes; there the slope is the least or the greatest code.
    np.testing.assert_allclose(by_value, [[0, 2, 3, 0]])
    # -2 · 1; round(-0.4) + 0.4 = 0.4 · 2; round(0.6) - 0.6 = 0.4 · 3; 253 · 4
    expected = (-2 + 0.8 + 1.2 + 1012) / np.sqrt(253 * 4)
    np.testing.assert_allclose(float(by_step), expected, rtol=1e-5)


def test_the_gradients_of_a_weights_learned_steps_are_those_of_the_paper():
    weight = np.array([[1.27, 0.3], [-0.64, -2.54]], np.float32)
    up = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    quantizer = LearnedWeightQuantizer((-1,))
    variable = tf.Variable(weight)
    variables = held(quantizer, weight=variable)
    np.testing.assert_allclose(variables["step"], [0.01, 0.02], rtol=1e-5)
    variables["step"].assign([0.005, 0.02])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(variable, variables) * up)
    by_value, by_step = tape.gradient(total, [variable, variables["step"]])
    # First column at 0.005: 254 and -128 are both clipped, to 127 and -127.
    np.testing.assert_allclose(by_value, [[0, 2], [0, 4]])
    first = (127 * 1 - 127 * 3) / np.sqrt(127 * 2)
    np.testing.assert_allclose(by_step[0], first, rtol=1e-5)
    assert abs(float(by_step[1])) < 1e-3  # both are whole steps


def test_four_bits_have_fifteen_levels_and_the_papers_gradients():
    weight = np.array([[0.7, 0.12], [-0.26, -0.9]], np.float32)
    up = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    quantizer = LearnedWeightQuantizer((-1,), bits=4)
    variable = tf.Variable(weight)
    variables = held(quantizer, weight=variable)
    variables["step"].assign([0.1, 0.1])
    with tf.GradientTape() as tape:
        rounded = quantizer(variable, variables)
        total = tf.reduce_sum(rounded * up)
    # In steps: 7 and -2.6, 1.2 and -9, which is clipped to -7.
    np.testing.assert_allclose(rounded, [[0.7, 0.1], [-0.3, -0.7]], rtol=1e-5)
    by_value, by_step = tape.gradient(total, [variable, variables["step"]])
    np.testing.assert_allclose(by_value, [[1, 2], [3, 0]])
    first, second = 3 * (-3 + 2.6), 2 * (1 - 1.2) + 4 * -7
    np.testing.assert_allclose(by_step, np.array([first, second]) / np.sqrt(7 * 2), rtol=1e-4)


def test_four_bits_begin_at_the_step_with_the_least_squared_error():
    # Ten of size 1 and one of 8: at 8 / 7 each 1 is off by 1/7; at 1 only the 8 is, by 1.
    weight = np.array([1.0] * 5 + [-1.0] * 5 + [8.0], np.float32)[:, None]
    quantizer = LearnedWeightQuantizer((-1,), bits=4)
    step = float(held(quantizer, weight=tf.Variable(weight))["step"][0])
    tried = np.linspace(0.2, 8 / 7, 2000)
    rounded = tried * np.clip(np.round(weight / tried), -7, 7)
    least = np.square(weight - rounded).sum(axis=0).min()
    reached = np.square(weight - step * np.clip(np.round(weight / step), -7, 7)).sum()
    assert reached <= 1.02 * least


def test_fixed_grids_are_those_of_the_specification():
    values = np.array([-0.3, 0.0, 0.5, 0.9999], np.float32)
    sigmoid = FixedQuantizer(0.0, 255 / 256)(tf.constant(values), False, {}).numpy()
    np.testing.assert_allclose(sigmoid, [0, 0, 0.5, 255 / 256], atol=1e-6)
    tanh = FixedQuantizer(-1.0, 127 / 128)(tf.constant([-1.0, 0.3, 1.0]), False, {}).numpy()
    np.testing.assert_allclose(tanh, [-1, np.round(0.3 * 128) / 128, 127 / 128], atol=1e-6)


@pytest.mark.parametrize(
    "quantizer",
    [
        ActivationQuantizer(moving=False, non_negative=True),
        FixedQuantizer(-1.0, 1.0),
        LearnedQuantizer(non_negative=True),
        LearnedWeightQuantizer((-2, -1)),
        LearnedWeightQuantizer((-1,), bits=4),
        WeightQuantizer((-1,)),
        None,
    ],
    ids=lambda q: type(q).__name__,
)
def test_a_quantizer_is_plain_values_in_files(quantizer):
    config = as_config(quantizer)
    again = from_config(config)
    assert type(again) is type(quantizer)
    assert as_config(again) == config


def test_the_gradient_outside_a_range_stops_only_for_a_fixed_range():
    values = tf.constant([-9.0, -1.0, 0.3, 2.0, 9.0])  # the range is -1..2
    layer = keras.layers.Layer()
    quantizer = ActivationQuantizer()
    variables = quantizer.build("output", layer)
    quantizer.set_range(variables, -1.0, 2.0)
    for training, expected in ((True, [1, 1, 1, 1, 1]), (False, [0, 1, 1, 1, 0])):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(quantizer(values, training, variables))
        np.testing.assert_array_equal(tape.gradient(total, values), expected)
        quantizer.set_range(variables, -1.0, 2.0)
