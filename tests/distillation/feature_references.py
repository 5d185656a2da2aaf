"""Float64 NumPy computations that the tests of the feature-map losses share."""

import numpy as np
import tensorflow as tf


def maps(seed, *shape, scale=1.0):
    """Random float32 features."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def pool(x, height, width):
    """Adaptive average pooling of (batch, H, W, C), cell by cell."""
    x = np.asarray(x, np.float64)
    pooled = np.zeros((x.shape[0], height, width, x.shape[3]))
    for i in range(height):
        rows = slice(i * x.shape[1] // height, -(-(i + 1) * x.shape[1] // height))
        for j in range(width):
            columns = slice(j * x.shape[2] // width, -(-(j + 1) * x.shape[2] // width))
            pooled[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    return pooled


def batch_norm(x, gamma, beta, epsilon=1e-5):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) * gamma + beta


def by_name(layer):
    """The weights of a layer in float64, in the order in which they were made."""
    return [np.float64(weight) for weight in layer.get_weights()]


def gradient(loss, student, teacher):
    """Gradients of the summed loss by a list of student features."""
    student = [tf.constant(x) for x in student]
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = tf.reduce_sum(loss(student, [tf.constant(x) for x in teacher]))
    return [g.numpy() for g in tape.gradient(value, student)]


def numeric_gradient(f, x, step=1e-5):
    """Central differences of the scalar function `f` of a float64 array."""
    x = np.array(x, np.float64)
    result = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        here = x[i]
        x[i] = here + step
        above = f(x)
        x[i] = here - step
        result[i] = (above - f(x)) / (2 * step)
        x[i] = here
    return result


def assert_gradient(loss, student, teacher, reference, rtol=1e-4):
    """Compares TensorFlow's gradients with differences of `reference(students) -> (batch,)`."""
    given = gradient(loss, student, teacher)
    for index, values in enumerate(given):

        def moved(x, index=index):
            others = [np.float64(s) for s in student]
            others[index] = x
            return reference(others).sum()

        expected = numeric_gradient(moved, student[index])
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
