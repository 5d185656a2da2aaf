"""HiddenStates compares tokens as DistilBERT and TinyBERT do, and leaves masked ones out."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numeric_gradients import gradient, numeric_gradient

from kdtflite.distillation.losses.transformers.hidden_states import HiddenStates
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError

KINDS = ["cosine", "mse"]


def reference(kind, student, teacher, mask=None, projection=None):
    """Each sample's mean over its tokens, by loops, in float64."""
    student, teacher = np.float64(student), np.float64(teacher)
    shares = np.zeros(len(student))
    for i in range(len(student)):
        values = []
        for token in np.ndindex(student.shape[1:-1]):
            if mask is not None and not mask[i][token]:
                continue
            s, t = student[(i, *token)], teacher[(i, *token)]
            s = s if projection is None else s @ np.float64(projection)
            lengths = np.linalg.norm(s) * np.linalg.norm(t)
            if kind == "mse":
                values.append(np.mean((s - t) ** 2))
            else:
                values.append(1 - s @ t / lengths if lengths else np.nan)
        shares[i] = np.mean(values) if values else 0
    return shares


def states(seed=0, shape=(4, 5), widths=(3, 3), scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.normal(0, scale, (*shape, width)) + offset).astype(np.float32) for width in widths
    )


MASK = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)


def test_two_tokens_worked_by_hand():
    student, teacher = [[[1.0, 0.0], [3.0, 4.0]]], [[[0.0, 2.0], [3.0, 4.0]]]
    # A right angle and an equal token: (1 - 0 + 0) / 2; squares 1, 4, 0, 0.
    np.testing.assert_allclose(HiddenStates("s", "t")([student], [teacher]), [0.5], rtol=1e-6)
    loss = HiddenStates("s", "t", kind="mse")
    np.testing.assert_allclose(loss([student], [teacher]), [1.25], rtol=1e-6)
    np.testing.assert_allclose(loss([student], [teacher], [[True, False]]), [2.5], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1e-3, 1.0), (1e4, 0.0), (1.0, -1e4), (1e-15, 0.0)]
)
def test_random_states_of_any_size(kind, mask, scale, offset):
    student, teacher = states(1, scale=scale, offset=offset)
    value = HiddenStates("s", "t", kind=kind)([student], [teacher], mask)
    assert value.shape == (4,)
    assert value.dtype == tf.float32
    expected = reference(kind, student, teacher, mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-15 if kind == "cosine" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 2, 3)])
def test_other_widths_are_joined_by_a_projection_that_is_trained(kind, shape):
    student, teacher = states(2, shape, widths=(3, 6))
    keras.utils.set_random_seed(0)
    loss = HiddenStates("s", "t", kind=kind)
    loss.build({"s": (None, *shape[1:], 3)}, {"t": (None, *shape[1:], 6)})
    (kernel,) = loss.trainable_variables
    assert [v.ref() for v in loss.variables] == [kernel.ref()]
    expected = reference(kind, student, teacher, projection=kernel)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss([student], [teacher]))
    numeric = numeric_gradient(
        lambda k: reference(kind, student, teacher, projection=k).sum(), np.float64(kernel)
    )
    np.testing.assert_allclose(tape.gradient(value, kernel), numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_the_gradient_is_what_finite_differences_give(kind, mask):
    student, teacher = states(3)
    weights = np.array([0.5, 1.0, 2.0, 1.5], np.float32)
    expected = numeric_gradient(
        lambda s: weights @ reference(kind, s, teacher, mask), np.float64(student)
    )
    given = gradient(HiddenStates("s", "t", kind=kind), student, teacher, weights, mask=mask)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected).max() > 0.01


def test_a_student_that_has_nearly_become_its_teacher():
    _, teacher = states(4)
    student = teacher * np.float32(2) + np.float32(1e-4) * states(5)[0]
    # 1 - cosine is of the order of 1e-9: half the squared distance of the unit vectors.
    s, t = (np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)
            for x in (student, teacher))  # fmt: skip
    expected = (((s - t) ** 2).sum(axis=-1) / 2).mean(axis=-1)
    np.testing.assert_allclose(HiddenStates("s", "t")([student], [teacher]), expected, rtol=1e-5)
    assert (HiddenStates("s", "t")([teacher], [teacher]).numpy() == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_zero_states_and_huge_ones_under_the_mask(kind):
    student, teacher = states(6)
    student[0], teacher[1], student[3], teacher[3] = 0, 0, 0, 0
    student[~MASK], teacher[~MASK] = np.inf, np.nan
    loss = HiddenStates("s", "t", kind=kind)
    value = loss([student], [teacher], MASK)
    assert np.isfinite(value).all()
    assert value[2] == 0
    assert value[3] == 0
    student[~MASK] = 1e30
    slope = gradient(loss, student, np.nan_to_num(teacher), np.ones(4, np.float32), mask=MASK)
    assert np.isfinite(slope).all()
    assert (slope[~MASK] == 0).all()


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_small_batches(kind, batch):
    student, teacher = states(7, (batch, 5))
    value = HiddenStates("s", "t", kind=kind)([student], [teacher])
    np.testing.assert_allclose(value, reference(kind, student, teacher), rtol=1e-5)


def test_a_step_brings_the_students_mask():
    student, teacher = states(8)
    step = Step(
        Observed(tf.zeros([4, 2]), {"s": tf.constant(student)}, mask=tf.constant(MASK)),
        Observed(tf.zeros([4, 2]), {"t": tf.constant(teacher)}),
    )
    value = HiddenStates("s", "t").compute(step)
    np.testing.assert_allclose(value, reference("cosine", student, teacher, MASK), rtol=1e-5)


def test_several_layers_add_up_and_alone_it_builds_itself_in_a_graph():
    (s1, t1), (s2, t2) = states(9), states(10, widths=(2, 4))
    loss = HiddenStates(["a", "b"], ["c", "d"], kind="mse")

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, 3), tf.float16),
            tf.TensorSpec((None, None, 2)),
            tf.TensorSpec((None, None, 3)),
            tf.TensorSpec((None, None, 4)),
        ]
    )
    def compiled(s1, s2, t1, t2):
        return loss([s1, s2], [t1, t2])

    s1 = s1.astype(np.float16)
    for batch, tokens in ((4, 5), (2, 3)):
        part = np.s_[:batch, :tokens]
        value = compiled(s1[part], s2[part], t1[part], t2[part])
        expected = reference("mse", s1[part], t1[part]) + reference(
            "mse", s2[part], t2[part], projection=loss.trainable_variables[0]
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((None, 5, 3), (None, 4, 3)),
        ((None, 5, 3), (None, 3)),
        ((None, 5, None), (None, 5, 3)),
        ((None,), (None,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(student, teacher):
    with pytest.raises(ShapeMismatchError, match=r"student layer 's'.*teacher layer 't'"):
        HiddenStates("s", "t").build({"s": student}, {"t": teacher})


def test_an_unknown_kind_is_refused_and_its_configuration_makes_it_again():
    with pytest.raises(ConfigurationError, match="cosine, mse"):
        HiddenStates("s", "t", kind="kl")
    config = HiddenStates("s", "t", kind="mse", name="h").get_config()
    assert config["kind"] == "mse"
    assert HiddenStates(**config).get_config() == config
