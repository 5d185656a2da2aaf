"""MultiLevelLogits is the paper's three alignments, averaged over the temperatures."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from kdtflite.distillation.losses.logits.multi_level_logits import MultiLevelLogits
from kdtflite.errors import ConfigurationError

PAPERS = (2.0, 3.0, 4.0, 5.0, 6.0)


def reference(student, teacher, temperatures=PAPERS):
    """The loss of a batch, sum by sum, in the widest float there is."""
    student, teacher = np.longdouble(student), np.longdouble(teacher)
    samples, classes = student.shape
    total = np.longdouble(0)
    for t in temperatures:
        log_q, log_p = log_softmax(student / t, axis=-1), log_softmax(teacher / t, axis=-1)
        q, p = softmax(student / t, axis=-1), softmax(teacher / t, axis=-1)
        total += t**2 * np.where(p > 0, p * (log_p - log_q), 0).sum() / samples
        for a in range(samples):
            for b in range(samples):
                total += ((p[a] * p[b]).sum() - (q[a] * q[b]).sum()) ** 2 / samples
        for j in range(classes):
            for k in range(classes):
                total += ((p[:, j] * p[:, k]).sum() - (q[:, j] * q[:, k]).sum()) ** 2 / classes
    return total / len(temperatures)


def drawn(scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (2, 6, 5))


@pytest.mark.parametrize("temperatures", [PAPERS, (1.0,)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 1e4])
def test_the_mean_over_the_batch_is_the_papers_loss(temperatures, scale):
    student, teacher = drawn(scale)
    found = MultiLevelLogits(temperatures=temperatures)(student, teacher)
    assert found.shape == (6,)
    expected = float(reference(student, teacher, temperatures))
    np.testing.assert_allclose(np.mean(np.float64(found)), expected, rtol=1e-5)


def test_the_value_worked_by_hand():
    # Both samples of the teacher are of the first class; the student says the first and the
    # second. KL is 0 for the first sample and 1e3 for the second.
    teacher, student = np.array([[1e3, 0.0], [1e3, 0.0]]), np.array([[1e3, 0.0], [0.0, 1e3]])
    # Pairs of samples: all alike, against none: rows of ΔG (0, 1) and (1, 0).
    # Pairs of classes: diag(2, 0) against diag(1, 1): (1² + 1²) / 2 = 1.
    found = MultiLevelLogits(temperatures=(1.0,))(student, teacher)
    np.testing.assert_allclose(found, [0 + 1 + 1, 1000 + 1 + 1], rtol=1e-6)


def test_the_gradient_is_what_finite_differences_give():
    student, teacher = drawn(seed=1)
    numeric, step = np.zeros(student.shape), 1e-5
    for i in np.ndindex(student.shape):
        for sign in (1, -1):
            moved = student.copy()
            moved[i] += sign * step
            numeric[i] += sign * float(reference(moved, teacher))
    numeric /= 2 * step
    variable = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = tf.reduce_mean(MultiLevelLogits()(variable, teacher))
    np.testing.assert_allclose(tape.gradient(loss, variable), numeric, rtol=1e-5, atol=1e-8)
    assert np.abs(numeric).max() > 0.01


@pytest.mark.parametrize("temperatures", [(), (2.0, 0.0), (-1.0,), (float("nan"),)])
def test_temperatures_that_are_none_or_not_positive_are_refused(temperatures):
    with pytest.raises(ConfigurationError, match="temperature"):
        MultiLevelLogits(temperatures=temperatures)
