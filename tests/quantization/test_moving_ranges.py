"""Moving ranges in training: they hold the batch, and leave calibrations that training left."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.quantizers import ActivationQuantizer, FixedQuantizer, LearnedQuantizer


def calibrated(low, high, **options):
    quantizer = ActivationQuantizer(**options)
    variables = quantizer.build("output", keras.layers.Layer())
    quantizer.set_range(variables, low, high)
    return quantizer, variables


def test_training_clips_nothing_and_inference_clips():
    quantizer, variables = calibrated(-1.0, 1.0)
    values = tf.constant([-1.0, 0.0, 2.9])
    with tf.GradientTape() as tape:
        tape.watch(values)
        rounded = quantizer(values, True, variables)
        total = tf.reduce_sum(rounded * [1.0, 2.0, 3.0])
    # One step of (2.9 + 1) / 255 at most.
    np.testing.assert_allclose(rounded, values, atol=3.9 / 255)
    np.testing.assert_array_equal(tape.gradient(total, values), [1, 2, 3])
    # The range itself moves by a hundredth: 1 + 0.01 · (2.9 - 1).
    np.testing.assert_allclose(quantizer.read_range(variables), (-1.0, 1.019), rtol=1e-5)
    np.testing.assert_allclose(quantizer(values, False, variables)[2], 1.019, atol=2 / 255)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4, 1e9])
def test_a_range_that_training_left_begins_anew_with_the_first_batch(scale):
    quantizer, variables = calibrated(-scale, scale)
    values = np.linspace(-3, 5, 50).astype(np.float32)
    rounded = quantizer(tf.constant(values), True, variables)
    np.testing.assert_allclose(rounded, values, atol=8 / 255)
    np.testing.assert_allclose(quantizer.read_range(variables), (-3, 5), rtol=1e-6)
    quantizer(tf.constant([-1.0, 3.0]), True, variables)
    # The plain mean of two batches, but for the decay of 0.99: (0.99 · 5 + 3) / 1.99.
    np.testing.assert_allclose(
        quantizer.read_range(variables), (-3.97 / 1.99, 7.95 / 1.99), rtol=1e-5
    )


def test_a_batch_of_near_silence_in_the_course_of_training_leaves_the_range():
    quantizer, variables = calibrated(-1.0, 1.0)
    quantizer(tf.constant([-1.0, 1.0]), True, variables)
    quantizer(tf.constant([-1e-3, 1e-3]), True, variables)
    np.testing.assert_allclose(quantizer.read_range(variables), (-0.99, 0.99), rtol=1e-3)


def test_an_activation_that_explodes_early_takes_its_range_along_and_late_does_not():
    for steps, expected in ((3, 50.0), (150, 1.0 + 0.01 * 49)):
        quantizer, variables = calibrated(0.0, 1.0, non_negative=True)
        for _ in range(steps):
            quantizer(tf.constant([0.0, 1.0]), True, variables)
        quantizer(tf.constant([0.0, 50.0]), True, variables)
        np.testing.assert_allclose(quantizer.read_range(variables), (0.0, expected), rtol=1e-4)


def test_a_batch_of_zeros_moves_nothing():
    quantizer, variables = calibrated(-0.5, 2.0)
    for _ in range(3):
        rounded = quantizer(tf.zeros(4), True, variables)
    np.testing.assert_array_equal(rounded, np.zeros(4))
    np.testing.assert_allclose(quantizer.read_range(variables), (-0.5, 2.0))
    never = ActivationQuantizer()
    fresh = never.build("output", keras.layers.Layer())
    never(tf.zeros(4), True, fresh)
    assert never.read_range(fresh) is None


def test_no_range_becomes_narrower_than_xnnpack_takes():
    quantizer, variables = calibrated(0.0, 1e-3, non_negative=True)
    for _ in range(500):
        quantizer(tf.constant([0.0, 1e-7]), True, variables)
    low, high = quantizer.read_range(variables)
    assert (high - low) / 255 > 1e-8 * 50


@pytest.mark.parametrize(
    "quantizer",
    [
        ActivationQuantizer(nonzero=True),
        ActivationQuantizer(moving=False, nonzero=True),
        LearnedQuantizer(nonzero=True),
        FixedQuantizer(0.0, 255 / 256, nonzero=True),
    ],
    ids=["moving", "fixed", "learned", "grid"],
)
def test_what_a_root_takes_is_half_a_step_instead_of_0(quantizer):
    variables = quantizer.build("output", keras.layers.Layer())
    if variables:
        quantizer.set_range(variables, 0.0, 255 / 256)
    values = tf.constant([0.0, 1e-4, 0.5, 255 / 256])
    with tf.GradientTape() as tape:
        tape.watch(values)
        rounded = quantizer(values, True, variables)
        total = tf.reduce_sum(tf.math.rsqrt(rounded) + tf.math.log(rounded))
    np.testing.assert_allclose(rounded, [1 / 512, 1 / 512, 0.5, 255 / 256], rtol=1e-5)
    gradient = tape.gradient(total, values).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:2], [0, 0])
    # In inference as in the file: code 0, which the kernels answer with the end of their range.
    np.testing.assert_allclose(quantizer(values, False, variables)[:2], [0, 0], atol=1e-7)


def test_probabilities_reach_the_loss_as_they_are_and_the_user_rounded():
    quantizer = FixedQuantizer(0.0, 255 / 256, head=True)
    values = tf.constant([1e-9, 0.3, 1.0 - 1e-6])
    np.testing.assert_array_equal(quantizer(values, True, {}), values)
    np.testing.assert_allclose(quantizer(values, False, {}), [0, 77 / 256, 255 / 256], atol=1e-6)


def test_a_learned_step_of_values_that_are_never_positive_has_a_finite_gradient():
    quantizer = LearnedQuantizer()
    variables = quantizer.build("output", keras.layers.Layer())
    quantizer.set_range(variables, -2.55, 0.0)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(tf.constant([-1.003, -5.0]), True, variables))
    # round(-100.3) + 100.3 = 0.3, and the least code, -255; over sqrt(255 codes · 1 value).
    gradient = float(tape.gradient(total, variables["step"]))
    np.testing.assert_allclose(gradient, (0.3 - 255) / np.sqrt(255), rtol=1e-3)
