"""Regression: towards the teacher, or until the student is better than the teacher."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.logits.regression import (
    RegressionDistillation,
    TeacherBoundedRegression,
)
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError

KINDS = ["mse", "huber"]


def error(a, b, kind, delta=1.0):
    """Mean over the outputs of one sample, output by output."""
    total = 0.0
    for e in np.abs(np.float64(a) - np.float64(b)):
        if kind == "mse":
            total += e * e
        else:
            total += e * e / 2 if e <= delta else delta * (e - delta / 2)
    return total / len(a)


def drawn(scale=2.0, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, scale, (3, 8, 4)).astype(dtype)


def gradient(loss, student, *rest):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        total = tf.reduce_sum(loss(student, *rest))
    return tape.gradient(total, student).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scale", "delta"), [(1e-3, 1.0), (2.0, 1.0), (2.0, 0.3), (1e4, 1.0)])
def test_the_error_is_a_mean_over_the_outputs(kind, scale, delta):
    student, teacher, _ = drawn(scale)
    found = RegressionDistillation(kind=kind, delta=delta)(student, teacher)
    assert found.shape == (8,)
    assert found.dtype == tf.float32
    expected = [error(s, t, kind, delta) for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_huber_is_keras_own():
    student, teacher, _ = drawn()
    theirs = keras.losses.Huber(delta=0.7, reduction="none")(teacher, student)
    ours = RegressionDistillation(kind="huber", delta=0.7)(student, teacher)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_only_a_student_that_is_not_better_than_its_teacher_is_charged(kind, margin):
    student, teacher, labels = drawn(seed=1)
    found = TeacherBoundedRegression(kind=kind, margin=margin)(student, teacher, labels)
    expected = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        mine, bound = error(s, y, kind), error(t, y, kind)
        expected.append(mine if mine + margin > bound else 0.0)
    assert 0 < np.count_nonzero(expected) < 8
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_bound_worked_by_hand():
    # Against 0: the teacher's errors are 4 and 4, the student's 9 and 1.
    labels, teacher, student = np.zeros((2, 1)), [[2.0], [-2.0]], [[3.0], [1.0]]
    np.testing.assert_array_equal(TeacherBoundedRegression()(student, teacher, labels), [9, 0])
    # It has to be better by the margin: 1 + 3.5 > 4, but 1 + 2.5 is not.
    close = TeacherBoundedRegression(margin=3.5)
    np.testing.assert_array_equal(close(student, teacher, labels), [9, 1])
    close = TeacherBoundedRegression(margin=2.5)
    np.testing.assert_array_equal(close(student, teacher, labels), [9, 0])
    # As good as the teacher is good enough.
    np.testing.assert_array_equal(TeacherBoundedRegression()(teacher, teacher, labels), [0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_error_where_it_is_charged(kind):
    student, teacher, labels = drawn(seed=2, dtype=np.float64)

    def closed(difference):
        return (2 * difference if kind == "mse" else np.clip(difference, -1, 1)) / 4

    plain = gradient(RegressionDistillation(kind=kind), student, teacher)
    np.testing.assert_allclose(plain, closed(student - teacher), rtol=1e-6)
    charged = np.array(
        [
            error(s, y, kind) > error(t, y, kind)
            for s, t, y in zip(student, teacher, labels, strict=True)
        ]
    )
    bounded = gradient(TeacherBoundedRegression(kind=kind), student, teacher, labels)
    expected = np.where(charged[:, None], closed(student - labels), 0)
    np.testing.assert_allclose(bounded, expected, rtol=1e-6)
    assert 0 < charged.sum() < 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [0.0, -1e4, 1e4, 1e15])
def test_value_and_gradient_are_finite(kind, values):
    student, other = np.full((1, 2), values, np.float32), np.full((1, 2), -values, np.float32)
    for teacher in (student, other):
        for loss, rest in (
            (RegressionDistillation(kind=kind), (teacher,)),
            (TeacherBoundedRegression(kind=kind), (teacher, np.zeros((1, 2)))),
        ):
            assert np.isfinite(loss(student, *rest)).all()
            assert np.isfinite(gradient(loss, student, *rest)).all()


def test_sequences_half_precision_and_empty_batches():
    student, teacher, labels = drawn(dtype=np.float16)
    for loss, rest in (
        (RegressionDistillation(), ()),
        (TeacherBoundedRegression(kind="huber"), (labels,)),
    ):
        flat = loss(student, teacher, *rest)
        wide = loss(*(np.float64(part) for part in (student, teacher, *rest)))
        np.testing.assert_allclose(flat, wide, rtol=1e-6)
        whole = loss(*(part.reshape(2, 4, 4) for part in (student, teacher, *rest)))
        np.testing.assert_array_equal(whole, np.reshape(flat, (2, 4)))
        assert loss(*(part[:0] for part in (student, teacher, *rest))).shape == (0,)


def test_labels_of_one_output_may_leave_out_its_axis():
    student, teacher, labels = drawn()[..., :1]
    expected = TeacherBoundedRegression()(student, teacher, labels)
    step = Step(Observed(tf.constant(student)), Observed(tf.constant(teacher)), labels[:, 0])
    np.testing.assert_array_equal(TeacherBoundedRegression().compute(step), expected)


def test_labels_that_are_missing_or_of_another_shape_are_refused():
    student, teacher, labels = drawn()
    with pytest.raises(ConfigurationError, match="teacher_bounded_regression: expected labels"):
        TeacherBoundedRegression()(student, teacher)
    for wrong in (labels[:, 0], labels[:, :1], labels[:3]):
        with pytest.raises(ShapeMismatchError, match="labels of the outputs' shape"):
            TeacherBoundedRegression()(student, teacher, wrong)


def test_parameters_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigurationError, match="Did you mean 'mse'"):
        RegressionDistillation(kind="mae")
    for delta in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="positive, finite delta"):
            RegressionDistillation(delta=delta)
    with pytest.raises(ConfigurationError, match="margin that is not negative"):
        TeacherBoundedRegression(margin=-0.1)


def test_they_are_for_regression_alone_and_are_made_again_from_their_configuration():
    for loss in (
        RegressionDistillation(kind="huber", delta=2.0),
        TeacherBoundedRegression(margin=0.5, name="bounded"),
    ):
        assert loss.tasks == ("regression",)
        config = loss.get_config()
        assert type(loss)(**config).get_config() == config
