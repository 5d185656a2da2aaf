"""ReviewKD is the fusion and the hierarchical context loss of its paper, from deep to shallow."""

import numpy as np
import pytest
import tensorflow as tf
from feature_references import assert_gradient, batch_norm, maps, pool

from kdtflite.distillation.losses.features.review_kd import ReviewKD
from kdtflite.errors import ConfigurationError, ShapeMismatchError


def nearest(x, height, width):
    rows = [i * x.shape[1] // height for i in range(height)]
    columns = [j * x.shape[2] // width for j in range(width)]
    return x[:, rows][:, :, columns]


def convolve(x, kernel):
    """A 3x3 convolution with zeros around, position by position."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i, j in np.ndindex(x.shape[1:3]):
        out[:, i, j] = np.einsum("nhwi,hwio->no", padded[:, i : i + 3, j : j + 3], kernel)
    return out


def hierarchical(s, t):
    loss, weights, weight = ((s - t) ** 2).mean(axis=(1, 2, 3)), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= t.shape[1]:
            continue
        weight /= 2
        loss = loss + weight * ((pool(s, level, level) - pool(t, level, level)) ** 2).mean(
            (1, 2, 3)
        )
        weights += weight
    return loss / weights


def reference(students, teachers, weights):
    students = [np.float64(s) if s.ndim == 4 else np.float64(s)[:, None, None] for s in students]
    teachers = [np.float64(t) if t.ndim == 4 else np.float64(t)[:, None, None] for t in teachers]
    total, deeper = 0, None
    for s, t, w in list(zip(students, teachers, weights, strict=True))[::-1]:
        x = batch_norm(s @ w["reduce"], *w["reduce_norm"])
        if deeper is not None:
            y = nearest(deeper, *x.shape[1:3])
            attention = np.concatenate([x, y], -1) @ w["attention"][0] + w["attention"][1]
            attention = 1 / (1 + np.exp(-attention))
            x = x * attention[..., :1] + y * attention[..., 1:]
        deeper = nearest(x, *t.shape[1:3])
        fused = batch_norm(convolve(deeper, w["expand"]), *w["expand_norm"])
        total = total + hierarchical(fused, t)
    return total


def weights_of(loss):
    def wide(*variables):
        return [np.float64(v) for v in variables]

    return [
        {
            "reduce": wide(a.reduce.kernel)[0],
            "reduce_norm": wide(a.reduce_norm.gamma, a.reduce_norm.beta),
            "attention": wide(a.attention.kernel, a.attention.bias) if a.attention else None,
            "expand": wide(a.expand.kernel)[0],
            "expand_norm": wide(a.expand_norm.gamma, a.expand_norm.beta),
        }
        for a in loss._adapters
    ]


def built(students, teachers, **kwargs):
    layers = [f"layer{i}" for i in range(len(students))]
    loss = ReviewKD(layers, layers, **kwargs)
    loss(students, teachers)
    for seed, variable in enumerate(loss.trainable_variables):
        # Not the initial ones and zeros, so that each of them shows.
        variable.assign_add(maps(seed, *variable.shape, scale=0.2))
    return loss


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_three_stages_and_the_pooled_features(scale):
    shapes = [(4, 8, 8, 3), (4, 4, 4, 5), (4, 2, 2, 6), (4, 6)]
    wide = [(4, 8, 8, 4), (4, 4, 4, 6), (4, 2, 2, 8), (4, 8)]
    students = [maps(i, *shape, scale=scale) for i, shape in enumerate(shapes)]
    teachers = [maps(9 + i, *shape, scale=scale) for i, shape in enumerate(wide)]
    loss = built(students, teachers)
    expected = reference(students, teachers, weights_of(loss))
    np.testing.assert_allclose(loss(students, teachers), expected, rtol=1e-5)
    # Four fusions of kernel, γ, β, kernel, γ, β, and attention but for the deepest.
    assert len(loss.trainable_variables) == 4 * 6 + 3 * 2
    assert len(loss.variables) == len(loss.trainable_variables) + 4 * 4
    assert loss._adapters[0].reduce.units == 6


def test_one_layer_has_nothing_behind_it():
    students, teachers = [maps(0, 3, 5, 5, 2)], [maps(1, 3, 5, 5, 3)]
    loss = built(students, teachers, mid_channels=4)
    expected = reference(students, teachers, weights_of(loss))
    np.testing.assert_allclose(loss(students, teachers), expected, rtol=1e-5)


def test_a_student_of_other_sizes_than_its_teacher():
    students = [maps(0, 3, 6, 6, 2), maps(1, 3, 3, 3, 2)]
    teachers = [maps(2, 3, 8, 8, 3), maps(3, 3, 2, 2, 4)]
    loss = built(students, teachers)
    expected = reference(students, teachers, weights_of(loss))
    np.testing.assert_allclose(loss(students, teachers), expected, rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give():
    students = [maps(0, 2, 3, 3, 2), maps(1, 2, 2, 2, 2)]
    teachers = [maps(2, 2, 3, 3, 2), maps(3, 2, 2, 2, 3)]
    loss = built(students, teachers)
    weights = weights_of(loss)
    assert_gradient(loss, students, teachers, lambda s: reference(s, teachers, weights), rtol=1e-3)


def test_every_adapter_weight_is_trained():
    students = [maps(0, 4, 4, 4, 2), maps(1, 4, 2, 2, 3)]
    teachers = [maps(2, 4, 4, 4, 3), maps(3, 4, 2, 2, 4)]
    loss = built(students, teachers)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss(students, teachers))
    for slope in tape.gradient(value, loss.trainable_variables):
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0


def test_sequences_and_no_width_are_refused():
    with pytest.raises(ShapeMismatchError, match=r"'a' \(None, 7, 3\).*'b' \(None, 7, 4\)"):
        ReviewKD("a", "b").build({"a": (None, 7, 3)}, {"b": (None, 7, 4)})
    with pytest.raises(ConfigurationError, match="mid_channels"):
        ReviewKD("a", "b", mid_channels=0)
