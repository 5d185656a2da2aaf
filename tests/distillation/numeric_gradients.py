"""Gradients of losses between features: what TensorFlow gives, and what finite differences give."""

import numpy as np
import tensorflow as tf


def numeric_gradient(function, x, step=1e-5):
    """The gradient of a function of a float64 array by central differences."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * step
            gradient[i] += sign * function(moved)
    return gradient / (2 * step)


def gradient(loss, student, teacher, weights, **kwargs):
    """The gradient of Σ weights · loss by the student's features."""
    student = tf.constant(student, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(student)
        total = tf.reduce_sum(weights * loss([student], [teacher], **kwargs))
    return tape.gradient(total, student).numpy()
