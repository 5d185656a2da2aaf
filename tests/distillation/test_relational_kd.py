"""RelationalKD is the paper's distances and angles, whatever the batch holds."""

from itertools import permutations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numeric_gradients import gradient, numeric_gradient

from kdtflite.distillation.losses.relations.relational_kd import RelationalKD
from kdtflite.errors import ConfigurationError


def huber(x):
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def distances(f):
    n = len(f)
    d = {(i, j): np.linalg.norm(f[i] - f[j]) for i, j in permutations(range(n), 2)}
    mean = np.mean(list(d.values()))
    return {pair: 0.0 if mean == 0 else value / mean for pair, value in d.items()}


def angle(f, i, j, k):
    a, b = f[j] - f[i], f[k] - f[i]
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return 0.0 if lengths == 0 else a @ b / lengths


def reference(student, teacher, distance_weight=25.0, angle_weight=50.0):
    """Each sample's share, by loops over pairs and triplets."""
    s, t = (np.float64(f).reshape(len(f), np.prod(np.shape(f)[1:])) for f in (student, teacher))
    n, shares = len(s), np.zeros(len(s))
    if n > 1:
        ds, dt = distances(s), distances(t)
        for i, j in ds:
            shares[i] += distance_weight * huber(ds[i, j] - dt[i, j]) / (n - 1)
    for i, j, k in permutations(range(n), 3):
        value = huber(angle(s, i, j, k) - angle(t, i, j, k))
        shares[i] += angle_weight * value / ((n - 1) * (n - 2))
    return shares


def features(seed=0, batch=6, student=(3,), teacher=(5,), scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.normal(0, scale, (batch, *shape)) + offset).astype(np.float32)
        for shape in (student, teacher)
    )


def test_three_points_worked_by_hand():
    # Student: a right angle at the first point, legs 3 and 4; teacher: a line, 0, 1, 2.
    student = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]
    teacher = [[0.0], [1.0], [2.0]]
    # Distances 3, 4, 5 of mean 4 against 1, 2, 1 of mean 4/3: 3/4, 1, 5/4 and 3/4, 3/2, 3/4.
    h12, h13, h23 = 0.0, 0.5**2 / 2, 0.5**2 / 2
    loss = RelationalKD("s", "t", distance_weight=1, angle_weight=0)([student], [teacher])
    np.testing.assert_allclose(loss, [(h12 + h13) / 2, (h12 + h23) / 2, (h13 + h23) / 2], rtol=1e-6)
    # Cosines 0, 3/5, 4/5 against 1, -1, 1: differences -1, 8/5, -1/5.
    loss = RelationalKD("s", "t", distance_weight=0, angle_weight=1)([student], [teacher])
    np.testing.assert_allclose(loss, [0.5, 1.6 - 0.5, 0.02], rtol=1e-6)


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1e-3, 1.0), (1e4, 0.0), (1.0, -1e4), (1e-20, 0.0)]
)
@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_random_features_of_any_size(weights, scale, offset, shape):
    student, teacher = features(1, student=shape, scale=scale, offset=offset)
    loss = RelationalKD("s", "t", distance_weight=weights[0], angle_weight=weights[1])
    value = loss([student], [teacher])
    assert value.shape == (6,)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, reference(student, teacher, *weights), rtol=1e-5)


def test_the_gradient_is_what_finite_differences_give():
    student, teacher = features(2, batch=5)
    weights = np.array([0.5, 1.0, 2.0, 0.0, 1.5], np.float32)
    expected = numeric_gradient(lambda s: weights @ reference(s, teacher), np.float64(student))
    given_ = gradient(RelationalKD("s", "t"), student, teacher, weights)
    np.testing.assert_allclose(given_, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert np.abs(expected).max() > 1


def test_equal_samples_have_no_distance_and_no_angle_and_finite_gradients():
    student, teacher = features(3)
    student[1] = student[0]
    teacher[4] = teacher[0]
    teacher[5] = teacher[0]
    loss = RelationalKD("s", "t")
    np.testing.assert_allclose(loss([student], [teacher]), reference(student, teacher), rtol=1e-5)
    slope = gradient(loss, student, teacher, np.ones(6, np.float32))
    assert np.isfinite(slope).all()
    assert 1 < np.abs(slope).max() < 1e4


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("value", [0.0, 1e4 / 3])
def test_a_batch_of_one_and_the_same_sample(side, value):
    student, teacher = features(4)
    if side != "teacher":
        student = np.full_like(student, value)
    if side != "student":
        teacher = np.full_like(teacher, value)
    loss = RelationalKD("s", "t")
    np.testing.assert_allclose(loss([student], [teacher]), reference(student, teacher), rtol=1e-5)
    assert np.isfinite(gradient(loss, student, teacher, np.ones(6, np.float32))).all()


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_small_batches(batch):
    student, teacher = features(5, batch=batch)
    loss = RelationalKD("s", "t")
    value = loss([student], [teacher])
    assert value.shape == (batch,)
    np.testing.assert_allclose(value, reference(student, teacher), rtol=1e-5)
    assert np.isfinite(gradient(loss, student, teacher, np.ones(batch, np.float32))).all()


def test_a_student_like_its_teacher_but_turned_moved_and_scaled_loses_nothing():
    _, teacher = features(6, teacher=(4,))
    turned = np.linalg.qr(np.random.default_rng(6).normal(size=(4, 4)))[0]
    student = 3.0 * np.float64(teacher) @ turned + 5.0
    np.testing.assert_allclose(RelationalKD("s", "t")([student], [teacher]), 0, atol=1e-9)


coordinates = arrays.arrays(
    np.float32, (4, 2), elements=st.sampled_from([-1e4, -1.0, 0.0, 0.5, 1.0, 3.0, 1e4])
)


@settings(max_examples=40, deadline=None)
@given(student=coordinates, teacher=coordinates)
def test_any_points_at_all(student, teacher):
    loss = RelationalKD("s", "t")
    expected = reference(student, teacher)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient(loss, student, teacher, np.ones(4, np.float32))).all()


def test_several_layers_add_up_and_a_graph_takes_any_batch():
    (s1, t1), (s2, t2) = features(7), features(8, student=(2, 2, 1), teacher=(4,))
    loss = RelationalKD(["a", "b"], ["c", "d"])

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3)),
            tf.TensorSpec((None, 2, None, 1)),
            tf.TensorSpec((None, 5)),
            tf.TensorSpec((None, 4)),
        ]
    )
    def compiled(s1, s2, t1, t2):
        return loss([s1, s2], [t1, t2])

    for batch in (6, 4):
        given_ = compiled(s1[:batch], s2[:batch], t1[:batch], t2[:batch])
        expected = reference(s1[:batch], t1[:batch]) + reference(s2[:batch], t2[:batch])
        np.testing.assert_allclose(given_, expected, rtol=1e-5)


def test_half_precision_features_are_taken_at_their_own_value():
    student, teacher = (f.astype(np.float16) for f in features(9, offset=100.0))
    value = RelationalKD("s", "t")([student], [teacher])
    np.testing.assert_allclose(value, reference(student, teacher), rtol=1e-5)


def test_weights_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="distance_weight=-1"):
        RelationalKD("s", "t", distance_weight=-1)


def test_its_configuration_makes_it_again():
    config = RelationalKD("s", ["t"], distance_weight=1, angle_weight=2, name="r").get_config()
    assert config == {
        "distance_weight": 1.0,
        "angle_weight": 2.0,
        "student_layers": ["s"],
        "teacher_layers": ["t"],
        "name": "r",
    }
    assert RelationalKD(**config).get_config() == config
