"""Losses on logits: values worked by hand, and what their parameters do at their ends."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, rel_entr, softmax

from kdtflite.distillation.losses.logits.confidence_temperature import ConfidenceTemperature
from kdtflite.distillation.losses.logits.cross_entropy_distillation import CrossEntropyDistillation
from kdtflite.distillation.losses.logits.hard_targets import HardTargets
from kdtflite.distillation.losses.logits.jensen_shannon import JensenShannon
from kdtflite.distillation.losses.logits.logits_mse import LogitsMSE
from kdtflite.distillation.losses.logits.reverse_kl import ReverseKL
from kdtflite.distillation.losses.logits.smoothed_targets import SmoothedTargets
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.schedules import Constant, Linear
from kdtflite.errors import ConfigurationError


def drawn(scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (2, 6, 5)).astype(np.float32)


def soft(student, teacher, t):
    return t**2 * rel_entr(softmax(teacher / t), softmax(student / t)).sum()


def test_the_teachers_decision_is_the_label():
    # Of the teacher's classes the second is the likeliest; of equal ones the first counts.
    student = np.array([[1.0, 2.0, 4.0]])
    log_q = log_softmax(student[0])
    np.testing.assert_allclose(HardTargets()(student, [[0.0, 3.0, 1.0]]), [-log_q[1]], rtol=1e-6)
    np.testing.assert_allclose(HardTargets()(student, [[3.0, 0.0, 3.0]]), [-log_q[0]], rtol=1e-6)
    smooth = HardTargets(label_smoothing=0.3)(student, [[0.0, 3.0, 1.0]])
    expected = -0.1 * log_q[0] - 0.8 * log_q[1] - 0.1 * log_q[2]
    np.testing.assert_allclose(smooth, [expected], rtol=1e-6)


def test_shares_may_be_scheduled_too():
    student, teacher = drawn(seed=8)
    for kind, name in (
        (HardTargets, "label_smoothing"),
        (SmoothedTargets, "label_smoothing"),
        (CrossEntropyDistillation, "soft_weight"),
    ):
        np.testing.assert_allclose(
            kind(**{name: Constant(0.25)})(student, teacher),
            kind(**{name: 0.25})(student, teacher),
            rtol=1e-6,
        )
        for wrong in (-0.1, 1.5, float("nan"), Linear(0.0, 2.0)):
            with pytest.raises(ConfigurationError, match=f"{name} from 0 to 1"):
                kind(**{name: wrong})


def test_the_ends_of_the_shares_are_the_plain_losses():
    student, teacher = drawn(seed=9)
    soft_alone = SoftTargets(4.0)(student, teacher)
    np.testing.assert_allclose(SmoothedTargets(label_smoothing=0.0)(student, teacher), soft_alone)
    np.testing.assert_allclose(
        ConfidenceTemperature(4.0, beta=0.0)(student, teacher), soft_alone, rtol=1e-6
    )
    np.testing.assert_allclose(
        CrossEntropyDistillation(soft_weight=0.0)(student, teacher),
        HardTargets()(student, teacher),
    )
    uniform = SmoothedTargets(label_smoothing=1.0)(student, teacher)
    np.testing.assert_allclose(uniform, SoftTargets()(student, np.zeros_like(teacher)), rtol=1e-6)


def test_the_ends_of_jensen_shannon_are_the_two_divergences():
    student, teacher = drawn(1.0, seed=10)
    low, high = JensenShannon(beta=1e-7), JensenShannon(beta=1 - 1e-7)
    np.testing.assert_allclose(
        low(student, teacher) / 1e-7, SoftTargets(1.0)(student, teacher), 1e-4
    )
    np.testing.assert_allclose(high(student, teacher) / 1e-7, ReverseKL()(student, teacher), 1e-4)
    # Distributions without a class in common: ln 2.
    np.testing.assert_allclose(JensenShannon()([[1e4, 0.0]], [[0.0, 1e4]]), [np.log(2)], rtol=1e-6)
    for beta in (0.0, 1.0, 2.0):
        with pytest.raises(ConfigurationError, match="beta between 0 and 1"):
            JensenShannon(beta=beta)


def test_soft_targets_of_no_and_yes_are_the_bernoulli_divergence_by_sigmoid():
    # A yes-or-no label has one logit z; as two classes its logits are (0, z).
    student, teacher = np.random.default_rng(11).normal(0, 3, (2, 4, 7))
    pairs = [np.stack([np.zeros_like(z), z], axis=-1) for z in (student, teacher)]
    p, q = (1 / (1 + np.exp(-z / 2)) for z in (teacher, student))
    expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(SoftTargets(2.0)(*pairs), expected, rtol=1e-5)


def test_the_value_of_logits_mse_worked_by_hand():
    student, teacher = np.array([[1.0, 2.0, 6.0]]), np.array([[0.0, 3.0, 3.0]])
    # centered: student (-2, -1, 3), teacher (-2, 1, 1): squares 0, 4, 4
    np.testing.assert_allclose(LogitsMSE()(student, teacher), [8 / 3], rtol=1e-6)
    np.testing.assert_allclose(LogitsMSE()(student + 1e4, teacher), [8 / 3], rtol=1e-6)
    # not centered: squares 1, 1, 9
    np.testing.assert_allclose(LogitsMSE(center=False)(student, teacher), [11 / 3], rtol=1e-6)


def test_the_temperature_falls_where_the_teacher_is_unsure():
    # w is 1 for a sure row, 2 for an even one of two classes: mean 1.5, T = 4 ± 0.5 β.
    teacher, student = np.array([[1e4, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [2.0, 0.0]])
    found = ConfidenceTemperature(4.0, beta=2.0)(student, teacher)
    expected = [soft(s, t, temp) for s, t, temp in zip(student, teacher, (5, 3), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Never below 1, however unsure.
    found = ConfidenceTemperature(4.0, beta=20.0)(student, teacher)
    np.testing.assert_allclose(found[1], soft(student[1], teacher[1], 1), rtol=1e-6)
    with pytest.raises(ConfigurationError, match="no confidence 'both'"):
        ConfidenceTemperature(confidence="both")


@pytest.mark.parametrize("confidence", ["teacher", "student"])
def test_no_gradient_flows_through_the_temperature(confidence):
    student, teacher = np.float64(drawn(seed=12))
    read = teacher if confidence == "teacher" else student
    w = 1 / softmax(read, axis=-1).max(axis=-1, keepdims=True)
    t = np.maximum(1, 4 + 2 * (w.mean() - w))
    variable = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = ConfidenceTemperature(beta=2.0, confidence=confidence)(variable, teacher)
    # As of soft targets at a constant T: T · (q - p)
    expected = t * (softmax(student / t, axis=-1) - softmax(teacher / t, axis=-1))
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, rtol=1e-5)
