"""SoftTargets is the paper's formula, for every logit that a network can give."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax, rel_entr, softmax

from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.outputs import to_logits
from kdtflite.errors import ConfigurationError

TEMPERATURES = [1.0, 2.0, 4.0, 20.0]


def reference(student, teacher, temperature):
    """T² · KL by SciPy, in the widest float there is."""
    student = np.asarray(student, np.longdouble) / temperature
    teacher = np.asarray(teacher, np.longdouble) / temperature
    p = softmax(teacher, axis=-1)
    with np.errstate(invalid="ignore"):
        terms = p * (log_softmax(teacher, axis=-1) - log_softmax(student, axis=-1))
    return np.where(p == 0, 0, terms).sum(axis=-1) * temperature**2


def test_the_value_worked_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    loss = SoftTargets(temperature=1.0)([[0.0, 0.0]], [[np.log(3.0), 0.0]])
    np.testing.assert_allclose(loss, [0.75 * np.log(1.5) + 0.25 * np.log(0.5)], rtol=1e-6)
    # At T = 2 the teacher's odds are sqrt(3) to 1, and the loss is 4 times the divergence.
    p = np.sqrt(3) / (1 + np.sqrt(3))
    expected = 4 * rel_entr([p, 1 - p], [0.5, 0.5]).sum()
    loss = SoftTargets(temperature=2.0)([[0.0, 0.0]], [[np.log(3.0), 0.0]])
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_random_logits_of_any_size(temperature, scale, classes):
    rng = np.random.default_rng(classes)
    student, teacher = rng.uniform(-scale, scale, (2, 16, classes)).astype(np.float32)
    loss = SoftTargets(temperature)(student, teacher)
    assert loss.shape == (16,)
    assert loss.dtype == tf.float32
    # Where both are certain of the same class, the loss is as small as float64's own steps at 1.
    expected = reference(student, teacher, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("offset", [-1e4, -50.0, 1e4])
def test_all_negative_and_all_huge_logits(temperature, offset):
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 3, (2, 8, 10)) + offset).astype(np.float32)
    assert (student < 0).all() == (offset < 0)
    loss = SoftTargets(temperature)(student, teacher)
    np.testing.assert_allclose(loss, reference(student, teacher, temperature), rtol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5])
def test_a_student_that_has_nearly_become_its_teacher(temperature, distance):
    # The divergence is of the order of distance²: in float32 it would drown in rounding.
    rng = np.random.default_rng(1)
    teacher = rng.normal(0, 5, (8, 10)).astype(np.float32)
    student = (teacher + rng.normal(0, distance, (8, 10))).astype(np.float32)
    loss = SoftTargets(temperature)(student, teacher)
    expected = reference(student, teacher, temperature)
    assert (expected > 0).all()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_equal_logits_give_exactly_zero_and_a_common_shift_changes_nothing():
    logits = np.random.default_rng(2).normal(0, 100, (5, 7)).astype(np.float32)
    assert (SoftTargets(3.0)(logits, logits).numpy() == 0).all()
    np.testing.assert_allclose(SoftTargets(3.0)(logits + 128.0, logits), 0, atol=1e-5)


def test_classes_ruled_out_by_minus_infinity():
    inf = np.inf
    # Both rule out class 2: what is left is the two-class loss.
    loss = SoftTargets(1.0)([[0.0, 0.0, -inf]], [[np.log(3.0), 0.0, -inf]])
    np.testing.assert_allclose(loss, [0.75 * np.log(1.5) + 0.25 * np.log(0.5)], rtol=1e-6)
    # Only the teacher rules it out: KL((3/4, 1/4, 0) from thirds) = 3/4 ln(9/4) + 1/4 ln(3/4).
    loss = SoftTargets(1.0)([[0.0, 0.0, 0.0]], [[np.log(3.0), 0.0, -inf]])
    np.testing.assert_allclose(loss, [0.75 * np.log(2.25) + 0.25 * np.log(0.75)], rtol=1e-6)
    # Only the student rules it out: infinitely wrong, not NaN.
    assert SoftTargets(1.0)([[0.0, 0.0, -inf]], [[0.0, 0.0, 0.0]]).numpy() == inf

    student = tf.constant([[0.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = SoftTargets(1.0)(student, [[np.log(3.0), 0.0, -inf]])
    expected = np.array([[1 / 3 - 3 / 4, 1 / 3 - 1 / 4, 1 / 3]])
    np.testing.assert_allclose(tape.gradient(value, student), expected, rtol=1e-5)


logits = arrays.arrays(
    np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)


@settings(max_examples=60, deadline=None)
@given(student=logits, teacher=logits, temperature=st.sampled_from([0.5, *TEMPERATURES]))
def test_any_logits_at_all(student, teacher, temperature):
    loss = SoftTargets(temperature)(student, teacher).numpy()
    expected = reference(student, teacher, temperature)
    np.testing.assert_allclose(loss, expected.astype(float), rtol=1e-5, atol=1e-12)
    assert np.isfinite(loss).all()
    assert (loss >= -1e-12).all()


def gradient(student, teacher, temperature):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = tf.reduce_sum(SoftTargets(temperature)(student, teacher))
    return tape.gradient(loss, student).numpy()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (8.0, -100.0), (1e4, 0.0)])
def test_the_gradient_is_t_times_the_difference_of_the_softened_outputs(temperature, scale, offset):
    # dL/dz_s = T² · (p_s - p_t) / T
    rng = np.random.default_rng(3)
    student, teacher = (rng.normal(0, scale, (2, 6, 10)) + offset).astype(np.float32)
    wide_s, wide_t = np.float64(student) / temperature, np.float64(teacher) / temperature
    expected = temperature * (softmax(wide_s, axis=-1) - softmax(wide_t, axis=-1))
    given_ = gradient(student, teacher, temperature)
    np.testing.assert_allclose(given_, expected, rtol=1e-5, atol=1e-7 * temperature)
    assert np.abs(given_).max() > 0.1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_what_finite_differences_give(temperature):
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(0, 4, (2, 3, 5))
    step, numeric = 1e-4, np.zeros((3, 5))
    for i in np.ndindex(3, 5):
        for sign in (1, -1):
            moved = student.copy()
            moved[i] += sign * step
            # One value per sample: the others' losses cancel.
            numeric[i] += sign * float(reference(moved, teacher, temperature).sum())
    numeric /= 2 * step
    np.testing.assert_allclose(gradient(student, teacher, temperature), numeric, rtol=1e-5)


def test_half_precision_logits_are_taken_at_their_own_value():
    student = np.array([[10.0, -3.5, 0.25]], np.float16)
    teacher = np.array([[9.0, -60000.0, 2.0]], np.float16)
    for a, b in ((student, teacher), (student, np.float32(teacher))):
        loss = SoftTargets(4.0)(a, b)
        assert loss.dtype == tf.float32
        np.testing.assert_allclose(loss, reference(student, teacher, 4.0), rtol=1e-5)


def test_an_empty_batch_gives_no_values():
    assert SoftTargets()(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)


def test_it_runs_in_a_graph_compiled_and_not():
    student, teacher = np.random.default_rng(5).normal(0, 5, (2, 4, 6)).astype(np.float32)
    expected = reference(student, teacher, 2.0)
    for jit in (False, True):
        compiled = tf.function(SoftTargets(2.0).__call__, jit_compile=jit)
        np.testing.assert_allclose(
            compiled(tf.constant(student), tf.constant(teacher)), expected, rtol=1e-5
        )


def test_where_keras_own_distillation_loss_is_wrong_this_one_is_right():
    # All-negative logits: Keras 3.15 compares the logits themselves as if they were
    # probabilities, without softmax or T².
    student = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]], np.float32)
    teacher = np.array([[5.0, 1.0, -2.0], [3.0, 3.0, 0.0]], np.float32)
    truth = rel_entr(softmax(np.float64(teacher), axis=-1), softmax(np.float64(student), axis=-1))
    truth = truth.sum(axis=-1)
    ours = SoftTargets(temperature=1.0)(student, teacher)
    np.testing.assert_allclose(ours, truth, rtol=1e-6)
    theirs = keras3.distillation.LogitsDistillation(temperature=1.0)
    value = float(theirs.compute_loss(teacher, student))
    assert abs(value - truth.mean()) > 0.5 * truth.mean()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_probabilities_give_the_loss_of_their_logits(temperature):
    student, teacher = np.random.default_rng(6).normal(0, 4, (2, 8, 10)).astype(np.float32)
    loss = SoftTargets(temperature)(
        to_logits(softmax(student, axis=-1), "probabilities"),
        to_logits(softmax(teacher, axis=-1), "probabilities"),
    )
    np.testing.assert_allclose(loss, reference(student, teacher, temperature), rtol=2e-5)


def test_a_probability_that_underflowed_to_zero_stays_finite():
    loss = SoftTargets(1.0)(
        to_logits([[1.0, 0.0]], "probabilities"), to_logits([[0.5, 0.5]], "probabilities")
    )
    # ln(1/2) - ½ (0 + ln 2^-126)
    np.testing.assert_allclose(loss, [-np.log(2) + 0.5 * 126 * np.log(2)], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature):
    with pytest.raises(ConfigurationError, match="positive, finite temperature"):
        SoftTargets(temperature)


def test_its_configuration_makes_it_again():
    config = SoftTargets(2.5, name="soft").get_config()
    assert config == {"temperature": 2.5, "name": "soft"}
    assert SoftTargets(**config).get_config() == config
