"""DecoupledKD: which class is the target, and what its two parts add up to."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from kdtflite.distillation.losses.logits.decoupled_kd import DecoupledKD
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError

STUDENT, TEACHER = np.random.default_rng(0).normal(0, 3, (2, 4, 5)).astype(np.float32)
LABELS = np.array([3, 0, 4, 1])


def test_the_value_worked_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), the true class first.
    teacher, student = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    target = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    # Without the true class: teacher (1/2, 1/2), student (1/3, 2/3).
    others = 0.5 * np.log(0.5 * 3) + 0.5 * np.log(0.5 * 3 / 2)
    found = DecoupledKD(1.0, alpha=2.0, beta=3.0)(student, teacher, [0])
    np.testing.assert_allclose(found, [2 * target + 3 * others], rtol=1e-5)


def test_the_parts_add_up_to_soft_targets():
    # KD = TCKD + (1 - p_y) NCKD, as the paper derives.
    target = DecoupledKD(2.0, alpha=1.0, beta=0.0)(STUDENT, TEACHER, LABELS)
    others = DecoupledKD(2.0, alpha=0.0, beta=1.0)(STUDENT, TEACHER, LABELS)
    p = softmax(np.float64(TEACHER) / 2, axis=-1)[np.arange(4), LABELS]
    np.testing.assert_allclose(
        target + (1 - p) * others, SoftTargets(2.0)(STUDENT, TEACHER), rtol=1e-5
    )


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:, None],
        LABELS.astype(np.float32),
        LABELS.astype(np.uint8),
        np.eye(5)[LABELS],
        0.8 * np.eye(5, dtype=np.float32)[LABELS] + 0.04,
    ],
    ids=["a column", "float", "bytes", "one-hot", "smoothed"],
)
def test_labels_of_every_kind_say_the_same_class(labels):
    expected = DecoupledKD()(STUDENT, TEACHER, LABELS)
    np.testing.assert_array_equal(DecoupledKD()(STUDENT, TEACHER, labels), expected)
    step = Step(Observed(tf.constant(STUDENT)), Observed(tf.constant(TEACHER)), labels)
    np.testing.assert_array_equal(DecoupledKD().compute(step), expected)


def test_yes_or_no_labels_leave_no_other_class_to_rank():
    student, teacher = STUDENT[..., :4].reshape(4, 2, 2), TEACHER[..., :4].reshape(4, 2, 2)
    labels = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
    found = DecoupledKD(1.0, beta=100.0)(student, teacher, labels)
    np.testing.assert_allclose(found, SoftTargets(1.0)(student, teacher), rtol=1e-5)


def test_one_yes_or_no_a_sample_has_labels_with_or_without_its_axis():
    student, teacher = STUDENT[:, None, :2], TEACHER[:, None, :2]
    labels = np.array([1.0, 0.0, 0.0, 1.0])
    expected = DecoupledKD()(student[:, 0], teacher[:, 0], labels)
    for given in (labels, labels[:, None]):
        np.testing.assert_array_equal(DecoupledKD()(student, teacher, given)[:, 0], expected)


def test_without_labels_it_says_so():
    step = Step(Observed(tf.constant(STUDENT)), Observed(tf.constant(TEACHER)))
    with pytest.raises(ConfigurationError, match="decoupled_kd: expected labels"):
        DecoupledKD().compute(step)


@pytest.mark.parametrize("labels", [LABELS[:3], np.zeros((4, 3)), np.zeros((4, 2, 5))])
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(ShapeMismatchError, match="do not give one class per row"):
        DecoupledKD()(STUDENT, TEACHER, labels)


def test_an_index_that_is_no_class_makes_all_classes_the_others():
    found = DecoupledKD(1.0, alpha=5.0, beta=2.0)(STUDENT, TEACHER, [-1] * 4)
    np.testing.assert_allclose(found, 2 * SoftTargets(1.0)(STUDENT, TEACHER), rtol=1e-6)


def test_a_teacher_sure_of_the_target_ranks_nothing():
    teacher = np.array([[0.0, -np.inf, -np.inf]], np.float32)
    student = tf.constant([[np.log(2.0), 0.0, np.log(5.0)]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = DecoupledKD(1.0, alpha=1.0, beta=8.0)(student, teacher, [0])
    # KL((1, 0) from (1/4, 3/4)) = ln 4, with the gradient of cross-entropy.
    np.testing.assert_allclose(loss, [np.log(4)], rtol=1e-6)
    expected = [[1 / 4 - 1, 1 / 8, 5 / 8]]
    np.testing.assert_allclose(tape.gradient(loss, student), expected, rtol=1e-5)


def test_a_network_surer_than_a_float_can_say_still_ranks_the_others():
    # 1 - p_y is e^-1e4, 0 in any float; the others still differ by e.
    teacher, student = np.array([[1e4, 1.0, 0.0]]), np.array([[1e4, 0.0, 0.0]])
    p = np.e / (1 + np.e)
    others = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    found = DecoupledKD(1.0, beta=1.0)(student, teacher, [0])
    np.testing.assert_allclose(found, [others], rtol=1e-5)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_negative_or_no_number_are_refused(name, weight):
    with pytest.raises(ConfigurationError, match=f"finite {name} that is not negative"):
        DecoupledKD(**{name: weight})
