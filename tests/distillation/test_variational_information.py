"""VariationalInformation is a Gaussian's negative log-likelihood, its variance learned."""

import numpy as np
import pytest
import tensorflow as tf
from feature_references import assert_gradient, by_name, maps, pool

from kdtflite.distillation.losses.features.variational_information import VariationalInformation
from kdtflite.errors import ConfigurationError, ShapeMismatchError


def reference(student, teacher, weights, eps=1e-5):
    alpha, first, second, third = weights
    mean = np.maximum(np.maximum(np.float64(student) @ first, 0) @ second, 0) @ third
    variance = np.logaddexp(0, alpha) + eps
    loss = 0.5 * ((np.float64(teacher) - mean) ** 2 / variance + np.log(variance))
    return np.array([sample.mean() for sample in loss])


def built(student, teacher, **kwargs):
    loss = VariationalInformation("a", "b", **kwargs)
    loss([student], [teacher])
    return loss, loss.trainable_variables


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 7), (4,)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_random_features(shape, scale):
    student, teacher = maps(0, *shape, 6, scale=scale), maps(1, *shape, 8, scale=scale)
    loss, variables = built(student, teacher)
    assert [tuple(v.shape) for v in variables] == [(8,), (6, 8), (8, 8), (8, 8)]
    variables[0].assign(maps(2, 8, scale=3))  # variances of all sizes
    weights = [np.float64(v) for v in variables]
    expected = reference(student, teacher, weights)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)


@pytest.mark.parametrize("init_pred_var", [1e-4, 5.0, 1e3])
def test_the_variance_starts_where_it_is_told_to(init_pred_var):
    # Of a student that says nothing: ½ (t² / σ² + log σ²).
    teacher = maps(0, 4, 3)
    loss, variables = built(np.zeros((4, 2)), teacher, init_pred_var=init_pred_var)
    assert len(variables) == 4
    expected = 0.5 * (np.float64(teacher) ** 2 / init_pred_var + np.log(init_pred_var))
    np.testing.assert_allclose(
        loss([np.zeros((4, 2))], [teacher]), expected.mean(axis=1), rtol=1e-5
    )


def test_a_variance_cannot_fall_below_eps():
    teacher = np.zeros((2, 3), np.float32)
    loss, variables = built(np.zeros((2, 2)), teacher, eps=1e-3)
    variables[0].assign([-1e4] * 3)
    np.testing.assert_allclose(
        loss([np.zeros((2, 2))], [teacher]), [0.5 * np.log(1e-3)] * 2, rtol=1e-5
    )


def test_other_sizes_and_widths_of_the_hidden_layers():
    student, teacher = maps(0, 2, 4, 4, 3), maps(1, 2, 2, 2, 5)
    loss, variables = built(student, teacher, hidden_channels=7)
    assert [tuple(v.shape) for v in variables] == [(5,), (3, 7), (7, 7), (7, 5)]
    expected = reference(pool(student, 2, 2), teacher, by_name(loss._adapters[0]))
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give_by_features_and_alpha():
    student, teacher = maps(0, 2, 2, 2, 3), maps(1, 2, 2, 2, 4)
    loss, variables = built(student, teacher)
    variables[0].assign(maps(2, 4))
    weights = by_name(loss._adapters[0])
    assert_gradient(loss, [student], [teacher], lambda s: reference(s[0], teacher, weights))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss([student], [teacher]))
    step, numeric = 1e-5, np.zeros(4)
    for i in range(4):
        for sign in (1, -1):
            alpha = weights[0] + sign * step * np.eye(4)[i]
            numeric[i] += sign * reference(student, teacher, [alpha, *weights[1:]]).sum()
    np.testing.assert_allclose(tape.gradient(value, variables[0]), numeric / (2 * step), rtol=1e-4)


def test_what_cannot_be_joined_or_is_no_variance_is_refused():
    with pytest.raises(ShapeMismatchError, match=r"'a' \(None, 4, 4, 3\).*'b' \(None, 3\)"):
        VariationalInformation("a", "b").build({"a": (None, 4, 4, 3)}, {"b": (None, 3)})
    for wrong in ({"eps": 0.0}, {"init_pred_var": 1e-6}, {"init_pred_var": float("inf")}):
        with pytest.raises(ConfigurationError, match="init_pred_var"):
            VariationalInformation("a", "b", **wrong)
    with pytest.raises(ConfigurationError, match="hidden_channels"):
        VariationalInformation("a", "b", hidden_channels=0)
