"""DIST is one less Pearson's correlation, over classes and over samples."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from scipy.stats import pearsonr

from kdtflite.distillation.losses.logits.dist import DIST
from kdtflite.errors import ConfigurationError


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def reference(student, teacher, temperature=1.0, beta=1.0, gamma=1.0):
    """The paper's loss of a batch, in the widest float there is."""
    q, p = (softmax(np.longdouble(z) / temperature, axis=-1) for z in (student, teacher))
    inter = np.mean([1 - correlation(a, b) for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - correlation(a, b) for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def drawn(scale=2.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (2, 6, 5))


def test_the_reference_is_scipys_correlation():
    a, b = drawn()[:, 0]
    assert np.isclose(float(correlation(a, b)), pearsonr(a, b).statistic)


@pytest.mark.parametrize("arguments", [{}, {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}])
# e^-1e3 is 0 in float64, but no column is lost.
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 300.0])
def test_the_mean_over_the_batch_is_the_papers_loss(arguments, scale):
    student, teacher = drawn(scale)
    found = DIST(**arguments)(student, teacher)
    assert found.shape == (6,)
    expected = float(reference(student, teacher, **arguments))
    np.testing.assert_allclose(np.mean(np.float64(found)), expected, rtol=1e-5)


def test_a_samples_own_part_is_its_own_correlation():
    student, teacher = drawn(seed=1)
    found = DIST(gamma=0.0)(student, teacher)
    q, p = softmax(student, axis=-1), softmax(teacher, axis=-1)
    expected = [1 - correlation(a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("distance", [1e-2, 1e-5])
def test_a_student_that_has_nearly_become_its_teacher(distance):
    teacher, noise = drawn(seed=2)
    student = teacher + distance * noise
    expected = float(reference(student, teacher))
    assert expected > 0
    found = np.mean(np.float64(DIST()(student, teacher)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give():
    student, teacher = drawn(seed=3)
    numeric, step = np.zeros(student.shape), 1e-5
    for i in np.ndindex(student.shape):
        for sign in (1, -1):
            moved = student.copy()
            moved[i] += sign * step
            numeric[i] += sign * float(reference(moved, teacher, 2.0, 1.0, 3.0))
    numeric /= 2 * step
    variable = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = tf.reduce_mean(DIST(2.0, gamma=3.0)(variable, teacher))
    np.testing.assert_allclose(tape.gradient(loss, variable), numeric, rtol=1e-5, atol=1e-7)
    assert np.abs(numeric).max() > 0.01


def test_where_nothing_varies_the_correlation_is_taken_for_zero():
    varied = np.array([[1.0, 0.0, 3.0], [0.0, 2.0, 1.0]])
    # No row of the student's varies, nor any column: both parts are 1.
    np.testing.assert_allclose(DIST()(np.zeros((2, 3)), varied), [2.0, 2.0])
    np.testing.assert_allclose(DIST()(varied, np.full((2, 3), 0.1)), [2.0, 2.0])
    np.testing.assert_allclose(DIST()(np.zeros((2, 3)), np.zeros((2, 3))), [2.0, 2.0])
    # One sample: its columns do not vary, its row does, and is the teacher's.
    np.testing.assert_allclose(DIST()(varied[:1], varied[:1]), [1.0], atol=1e-12)
    # A class that the teacher rules out for all: one column of three.
    student, teacher = drawn()[:, :, :3]
    ruled_out = teacher.copy()
    ruled_out[:, 2] = -np.inf
    found = DIST(beta=0.0)(student, ruled_out)
    q, p = softmax(student, axis=-1), softmax(ruled_out, axis=-1)
    expected = (2 - correlation(p[:, 0], q[:, 0]) - correlation(p[:, 1], q[:, 1]) + 1) / 3
    np.testing.assert_allclose(np.mean(found), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["beta", "gamma"])
def test_negative_weights_are_refused(name):
    with pytest.raises(ConfigurationError, match=f"finite {name} that is not negative"):
        DIST(**{name: -1.0})
