"""SimilarityPreserving, PKT and CorrelationCongruence compare b x b matrices as their papers do."""

import math

import numpy as np
import pytest
import tensorflow as tf
from numeric_gradients import gradient, numeric_gradient

from kdtflite.distillation.losses.relations.correlation_congruence import CorrelationCongruence
from kdtflite.distillation.losses.relations.pkt import PKT
from kdtflite.distillation.losses.relations.similarity_preserving import SimilarityPreserving
from kdtflite.errors import ConfigurationError


def flat(features):
    return np.float64(features).reshape(len(features), int(np.prod(np.shape(features)[1:])))


def similarity_preserving(student, teacher):
    def matrix(f):
        g = f @ f.T
        norms = np.sqrt((g * g).sum(axis=1, keepdims=True))
        return np.divide(g, norms, out=np.zeros_like(g), where=norms > 0)

    difference = matrix(flat(student)) - matrix(flat(teacher))
    return (difference**2).sum(axis=1) / max(len(student), 1)


def cosine(a, b):
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / lengths if lengths else 0.0


def pkt(student, teacher):
    """The paper's sums, with 1e-7 added to the kernel."""

    def probabilities(f):
        n, p = len(f), np.zeros((len(f), len(f)))
        for i in range(n):
            for j in range(n):
                p[i, j] = (cosine(f[i], f[j]) + 1) / 2 + 1e-7 if i != j else 0
            p[i] /= p[i].sum() or 1.0
        return p

    p, q = probabilities(flat(teacher)), probabilities(flat(student))
    n, shares = len(p), np.zeros(len(p))
    for i in range(n):
        for j in range(n):
            if i != j:
                shares[i] += p[i, j] * np.log(p[i, j] / q[i, j]) / n
    return shares


def correlation_congruence(student, teacher, gamma=0.4, order=2):
    def kernel(a, b):
        terms = [(2 * gamma * cosine(a, b)) ** p / math.factorial(p) for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    s, t = flat(student), flat(teacher)
    n, shares = len(s), np.zeros(len(s))
    for i in range(n):
        for j in range(n):
            shares[i] += (kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 / n
    return shares


LOSSES = [
    pytest.param(SimilarityPreserving, similarity_preserving, id="similarity_preserving"),
    pytest.param(PKT, pkt, id="pkt"),
    pytest.param(CorrelationCongruence, correlation_congruence, id="correlation_congruence"),
]
each_loss = pytest.mark.parametrize(("loss", "reference"), LOSSES)


def features(seed=0, batch=6, student=(3,), teacher=(5,), scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.normal(0, scale, (batch, *shape)) + offset).astype(np.float32)
        for shape in (student, teacher)
    )


def test_similarity_preserving_worked_by_hand():
    # Student: two samples at a right angle, G = I. Teacher: two equal ones, rows of (1, 1)/√2.
    loss = SimilarityPreserving("s", "t")([[[2.0, 0.0], [0.0, 5.0]]], [[[3.0], [3.0]]])
    row = (1 - math.sqrt(0.5)) ** 2 + 0.5
    np.testing.assert_allclose(loss, [row / 2, row / 2], rtol=1e-6)


def test_pkt_worked_by_hand():
    # Teacher: 2 is at a right angle to 0 and 1, which are equal: K(0,1) = 1, K(0,2) = 1/2, so
    # p = (2/3, 1/3) for 0 and 1, and halves for 2. Student: all equal, halves for each.
    teacher = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]
    student = [[1.0], [4.0], [9.0]]
    row = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    np.testing.assert_allclose(
        PKT("s", "t")([student], [teacher]), [row / 3, row / 3, 0], rtol=1e-5
    )


def test_correlation_congruence_worked_by_hand():
    # Cosine 0 against 1: k = e^-0.8 against e^-0.8 (1 + 0.8 + 0.32).
    loss = CorrelationCongruence("s", "t")([[[2.0, 0.0], [0.0, 5.0]]], [[[3.0], [3.0]]])
    value = (math.exp(-0.8) * 1.12) ** 2 / 2
    np.testing.assert_allclose(loss, [value, value], rtol=1e-6)


@each_loss
@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1e-3, 0.0), (1e4, 0.0), (1.0, -1e2), (1e-15, 0.0)]
)
@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_random_features_of_any_size(loss, reference, scale, offset, shape):
    student, teacher = features(1, student=shape, scale=scale, offset=offset)
    value = loss("s", "t")([student], [teacher])
    assert value.shape == (6,)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, reference(student, teacher), rtol=1e-5, atol=1e-17)


@each_loss
@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_a_student_that_has_nearly_become_its_teacher(loss, reference, distance):
    _, teacher = features(2)
    student = teacher + distance * features(3, student=(5,))[0]
    expected = reference(student, teacher)
    assert (expected > 0).all()
    np.testing.assert_allclose(loss("s", "t")([student], [teacher]), expected, rtol=1e-5)


@each_loss
def test_equal_features_lose_nothing_and_a_scale_changes_nothing(loss, reference):
    del reference
    student, _ = features(4)
    assert (loss("s", "t")([student], [student]).numpy() == 0).all()
    np.testing.assert_allclose(loss("s", "t")([100 * student], [student]), 0, atol=1e-9)


@each_loss
def test_the_gradient_is_what_finite_differences_give(loss, reference):
    student, teacher = features(5, batch=5)
    weights = np.array([0.5, 1.0, 2.0, 0.0, 1.5], np.float32)
    expected = numeric_gradient(lambda s: weights @ reference(s, teacher), np.float64(student))
    given = gradient(loss("s", "t"), student, teacher, weights)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3


@each_loss
@pytest.mark.parametrize("rows", [[0], [0, 3], [0, 1, 2, 3, 4, 5]])
def test_features_that_are_all_zero(loss, reference, rows):
    student, teacher = features(6)
    student[rows] = 0
    teacher[rows[-1]] = 0
    expected = reference(student, teacher)
    np.testing.assert_allclose(loss("s", "t")([student], [teacher]), expected, rtol=1e-5)
    slope = gradient(loss("s", "t"), student, teacher, np.ones(6, np.float32))
    assert np.isfinite(slope).all()


@each_loss
def test_equal_and_opposite_samples(loss, reference):
    student, teacher = features(7)
    student[1], student[2] = student[0], -student[0]
    teacher[3], teacher[4] = -teacher[0], teacher[0]
    expected = reference(student, teacher)
    np.testing.assert_allclose(loss("s", "t")([student], [teacher]), expected, rtol=1e-5)
    slope = gradient(loss("s", "t"), student, teacher, np.ones(6, np.float32))
    assert np.isfinite(slope).all()


@each_loss
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_small_batches(loss, reference, batch):
    student, teacher = features(8, batch=batch)
    value = loss("s", "t")([student], [teacher])
    assert value.shape == (batch,)
    np.testing.assert_allclose(value, reference(student, teacher), rtol=1e-5, atol=1e-30)
    slope = gradient(loss("s", "t"), student, teacher, np.ones(batch, np.float32))
    assert np.isfinite(slope).all()


@each_loss
def test_several_layers_add_up_and_a_graph_takes_any_batch(loss, reference):
    (s1, t1), (s2, t2) = features(9), features(10, student=(2, 2, 1), teacher=(4,))
    both = loss(["a", "b"], ["c", "d"])

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3), tf.float16),
            tf.TensorSpec((None, 2, None, 1)),
            tf.TensorSpec((None, 5)),
            tf.TensorSpec((None, 4)),
        ]
    )
    def compiled(s1, s2, t1, t2):
        return both([s1, s2], [t1, t2])

    s1 = s1.astype(np.float16)
    for batch in (6, 4):
        given = compiled(s1[:batch], s2[:batch], t1[:batch], t2[:batch])
        expected = reference(s1[:batch], t1[:batch]) + reference(s2[:batch], t2[:batch])
        np.testing.assert_allclose(given, expected, rtol=1e-5)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.0, 1), (0.7, 5)])
def test_other_kernels_of_correlation_congruence(gamma, order):
    student, teacher = features(11)
    loss = CorrelationCongruence("s", "t", gamma=gamma, order=order)
    expected = correlation_congruence(student, teacher, gamma, order)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"gamma": math.nan}, {"order": 0}])
def test_kernels_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="gamma and an order"):
        CorrelationCongruence("s", "t", **wrong)


@each_loss
def test_its_configuration_makes_it_again(loss, reference):
    del reference
    config = loss("s", ["t"], name="n").get_config()
    assert config["name"] == "n"
    assert loss(**config).get_config() == config
    changed = CorrelationCongruence("s", "t", gamma=0.3, order=4).get_config()
    assert (changed["gamma"], changed["order"]) == (0.3, 4)
