"""OverhaulFeature is the margin ReLU and the partial distance of its paper."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from feature_references import assert_gradient, batch_norm, by_name, gradient, maps, pool
from scipy.stats import truncnorm

from kdtflite.distillation.losses.features.overhaul_feature import OverhaulFeature
from kdtflite.errors import ConfigurationError, ShapeMismatchError


def partial_distance(student, target):
    total = np.zeros(len(student))
    for i in np.ndindex(student.shape):
        if not (student[i] <= target[i] and target[i] <= 0):
            total[i[0]] += (target[i] - student[i]) ** 2
    return total


def reference(student, teacher, weights, margins, size=None):
    student, teacher = np.float64(student), np.maximum(np.float64(teacher), margins)
    if size:
        student, teacher = pool(student, *size), pool(teacher, *size)
    kernel, gamma, beta = weights[:3]
    return partial_distance(batch_norm(student @ kernel, gamma, beta), teacher)


def negative_means(teacher):
    flat = np.float64(teacher).reshape(-1, teacher.shape[-1])
    return np.array([c[c < 0].mean() if (c < 0).any() else 0 for c in flat.T])


def of(loss):
    """Kernel, γ and β of the first pair's regressor."""
    return [np.float64(v) for v in loss._adapters[0].trainable_variables]


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 7), (16,)])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_random_features_with_margins_given(shape, scale):
    student, teacher = maps(0, *shape, 6, scale=scale), maps(1, *shape, 3, scale=scale)
    margins = [-0.7 * scale, -0.1 * scale, 0.0]
    loss = OverhaulFeature("a", "b", margins=[margins])
    loss([student], [teacher])
    gamma, beta = loss.trainable_variables[1:]
    gamma.assign(np.abs(maps(2, 3, scale=scale)))
    beta.assign(maps(3, 3, scale=scale))
    expected = reference(student, teacher, of(loss), margins)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)


def test_margins_are_estimated_as_the_mean_of_all_negative_responses_so_far():
    student = maps(0, 4, 3, 3, 2)
    batches = [maps(seed, 4, 3, 3, 3) for seed in (1, 2, 3)]
    for batch in batches:
        batch[..., 2] = np.abs(batch[..., 2])  # a channel that is never negative
    loss = OverhaulFeature("a", "b")
    for seen in range(1, 4):
        value = loss([student], [batches[seen - 1]])
        margins = negative_means(np.concatenate(batches[:seen]))
        assert margins[2] == 0
        expected = reference(student, batches[seen - 1], of(loss), margins)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(loss.variables) == len(loss.trainable_variables) + 4


def test_an_empty_batch_leaves_the_margins_and_the_statistics_as_they_are():
    loss = OverhaulFeature("a", "b")
    loss([maps(0, 4, 3)], [maps(1, 4, 2)])
    before = [v.numpy() for v in loss.variables]
    assert loss([np.zeros((0, 3))], [np.zeros((0, 2))]).shape == (0,)
    for variable, value in zip(loss.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_shallower_pairs_count_half_and_maps_of_other_sizes_are_averaged():
    student = [maps(0, 2, 8, 8, 2), maps(1, 2, 4, 4, 3)]
    teacher = [maps(2, 2, 8, 8, 4), maps(3, 2, 2, 2, 5)]
    margins = [[-0.3] * 4, [-0.5] * 5]
    loss = OverhaulFeature(("a", "b"), ("a", "b"), margins=margins)
    value = loss(student, teacher)
    first, second = ([np.float64(v) for v in a.trainable_variables] for a in loss._adapters)
    expected = 0.5 * reference(student[0], teacher[0], first, margins[0])
    expected += reference(student[1], teacher[1], second, margins[1], size=(2, 2))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_teachers_margin_is_applied_before_its_maps_are_averaged():
    student, teacher = maps(0, 2, 2, 2, 3), maps(1, 2, 4, 4, 2, scale=3)
    loss = OverhaulFeature("a", "b")
    value = loss([student], [teacher])
    expected = reference(student, teacher, of(loss), negative_means(teacher), size=(2, 2))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give():
    student, teacher = maps(0, 3, 2, 2, 2), maps(1, 3, 2, 2, 3)
    loss = OverhaulFeature("a", "b", margins=[[-0.4, -0.4, 0.0]])
    loss([student], [teacher])
    weights = of(loss)

    def expected(s):
        return reference(s[0], teacher, weights, [-0.4, -0.4, 0.0])

    # float32's variance of twelve values sets the tolerance.
    assert_gradient(loss, [student], [teacher], expected, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4, 1e4])
def test_constant_maps_and_a_single_sample_stay_finite(value):
    student = np.full((1, 2, 2, 1), value, np.float32)
    teacher = np.full((1, 2, 2, 1), value, np.float32)
    loss = OverhaulFeature("a", "b")
    # A constant is normalized to β = 0; a constant negative teacher is its own margin.
    expected = 4 * value**2
    np.testing.assert_allclose(loss([student], [teacher]), [expected], rtol=1e-5)
    assert np.isfinite(gradient(loss, [student], [teacher])[0]).all()


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.5, -2.0), (-3.0, 0.1), (2.9, 1.0)])
def test_the_margin_of_a_batch_normalization_is_a_truncated_normals_mean(beta, gamma):
    layer = keras.layers.BatchNormalization()
    layer.build((None, 2))
    layer.set_weights(np.array([[gamma] * 2, [beta] * 2, [5.0] * 2, [9.0] * 2]))
    deviation = abs(gamma)
    expected = truncnorm.mean(-np.inf, -beta / deviation, loc=beta, scale=deviation)
    np.testing.assert_allclose(OverhaulFeature.compute_margins(layer), [expected] * 2, rtol=1e-5)


def test_margins_where_there_is_next_to_nothing_negative_or_no_spread():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    # Φ(-4) = 3·10⁻⁵: -3σ, as in the authors' code. No spread: all at β, or none below 0.
    layer.set_weights(np.array([[0.5, 0.0, 0.0], [2.0, -1.5, 1.5], [0.0] * 3, [1.0] * 3]))
    np.testing.assert_allclose(OverhaulFeature.compute_margins(layer), [-1.5, -1.5, 0.0])
    plain = keras.layers.BatchNormalization(scale=False)
    plain.build((None, 1))
    np.testing.assert_allclose(
        OverhaulFeature.compute_margins(plain), [-np.sqrt(2 / np.pi)], rtol=1e-6
    )


def test_margins_that_do_not_fit_are_refused():
    for wrong in ([[0.5]], [[-1.0], [-1.0]], [[float("nan")]]):
        with pytest.raises(ConfigurationError, match="at most 0"):
            OverhaulFeature("a", "b", margins=wrong)
    with pytest.raises(ShapeMismatchError, match="each of the teacher's 2 channels"):
        OverhaulFeature("a", "b", margins=[[-1.0]]).build({"a": (None, 3)}, {"b": (None, 2)})
    with pytest.raises(ShapeMismatchError, match=r"'a' \(None, 4, 4, 3\).*'b' \(None, 3\)"):
        OverhaulFeature("a", "b").build({"a": (None, 4, 4, 3)}, {"b": (None, 3)})


# Logical devices can only be made before TensorFlow starts.
TWO_REPLICAS = """
import json, sys
import numpy as np, tensorflow as tf, tf_keras as keras
from kdtflite.distillation.losses.features.overhaul_feature import OverhaulFeature

cpu = tf.config.list_physical_devices("CPU")[0]
half = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
rng = np.random.default_rng(0)
student, teacher = (rng.normal(1, 2, (5, 2, 2, c)).astype("float32") for c in (3, 4))
shapes = {"a": (None, 2, 2, 3)}, {"b": (None, 2, 2, 4)}

def train(strategy, parts):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        loss = OverhaulFeature("a", "b")
        loss.build(*shapes)
        optimizer = keras.optimizers.SGD(0.01)
        optimizer.build(loss.trainable_variables)

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 2, 3)), tf.TensorSpec((None, 2, 2, 4))])
    def step(s, t):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(loss([s], [t])) / 5
        gradients = tape.gradient(total, loss.trainable_variables)
        optimizer.apply_gradients(zip(gradients, loss.trainable_variables))
        return total

    def distributed(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[parts[context.replica_id_in_sync_group]]))

    @tf.function
    def everywhere(s, t):
        return strategy.reduce("SUM", strategy.run(step.python_function, (s, t)), axis=None)

    losses = [float(everywhere(distributed(student), distributed(teacher))) for _ in range(3)]
    return losses, [v.numpy().ravel().tolist() for v in loss.variables]

one = train(tf.distribute.OneDeviceStrategy("CPU:0"), [slice(0, 5)])
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([one, train(two, [slice(0, 4), slice(4, 5)]),
                  train(two, [slice(0, 5), slice(5, 5)])]))
"""


def test_replicas_of_unequal_size_and_an_empty_one_train_as_one_device_does():
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, *others = json.loads(done.stdout.splitlines()[-1])
    assert len(set(one[0])) == 3
    for other in others:
        np.testing.assert_allclose(other[0], one[0], rtol=1e-5)
        for ours, theirs in zip(other[1], one[1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_statistics_are_kept_but_not_trained():
    loss = OverhaulFeature("a", "b")
    student = maps(0, 64, 3)
    loss([student], [maps(1, 64, 2)])
    trained = {id(v) for v in loss.trainable_variables}
    kept = [v for v in loss.variables if id(v) not in trained]
    assert len(trained) == 3
    mean = (np.float64(student) @ of(loss)[0]).mean(axis=0)
    # One step of momentum 0.9 from 0.
    assert any(np.allclose(v, 0.1 * mean, rtol=1e-4) for v in kept)
    assert isinstance(kept[0], tf.Variable)
    assert by_name(loss._adapters[0])
