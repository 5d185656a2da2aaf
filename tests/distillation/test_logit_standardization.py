"""LogitStandardization takes mean and spread out of the logits before any loss reads them."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import rel_entr, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses.logits.decoupled_kd import DecoupledKD
from kdtflite.distillation.losses.logits.dist import DIST
from kdtflite.distillation.losses.logits.logit_standardization import LogitStandardization
from kdtflite.distillation.losses.logits.logits_mse import LogitsMSE
from kdtflite.distillation.losses.logits.regression import RegressionDistillation
from kdtflite.distillation.losses.logits.reverse_kl import ReverseKL
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.schedules import Linear
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError

STUDENT, TEACHER = np.random.default_rng(0).normal(0, 3, (2, 6, 5)).astype(np.float32)


def z_scores(logits):
    wide = np.float64(logits)
    return (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_around_soft_targets_it_is_the_papers_loss(tau):
    q, p = (softmax(z_scores(z) / tau, axis=-1) for z in (STUDENT, TEACHER))
    expected = tau**2 * rel_entr(p, q).sum(-1)
    found = LogitStandardization(SoftTargets(1.0), base_temperature=tau)(STUDENT, TEACHER)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [SoftTargets(1.0), ReverseKL(), LogitsMSE()])
@pytest.mark.parametrize(("size", "shift"), [(1e-3, 0.0), (100.0, -1e4), (1e4, 0.0)])
def test_size_and_shift_of_the_logits_do_not_matter(loss, size, shift):
    wrapped = LogitStandardization(loss)
    expected = wrapped(STUDENT, TEACHER)
    moved = np.float64(STUDENT) * size + shift
    np.testing.assert_allclose(wrapped(moved, TEACHER), expected, rtol=1e-5)
    np.testing.assert_allclose(wrapped(moved, STUDENT), 0, atol=1e-9)


def test_the_wrapped_losss_own_temperature_softens_on_top():
    # Both are the paper's loss at 3 · 2.
    one = LogitStandardization(SoftTargets(3.0), base_temperature=2.0)(STUDENT, TEACHER)
    other = LogitStandardization(SoftTargets(1.0), base_temperature=6.0)(STUDENT, TEACHER)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_base_temperature_cancels_where_none_is_needed():
    expected = ((z_scores(STUDENT) - z_scores(TEACHER)) ** 2).mean(-1)
    for tau in (1.0, 7.0):
        found = LogitStandardization(LogitsMSE(), base_temperature=tau)(STUDENT, TEACHER)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_wrapped_loss_gets_its_labels_and_its_mask():
    labels = np.array([0, 1, 2, 3, 4, 0])
    student, teacher = (np.float64(z_scores(z)) / 2 for z in (STUDENT, TEACHER))
    expected = 4 * DecoupledKD()(student, teacher, labels)
    wrapped = LogitStandardization(DecoupledKD())
    step = Step(Observed(tf.constant(STUDENT)), Observed(tf.constant(TEACHER)), labels)
    np.testing.assert_allclose(wrapped.compute(step), expected, rtol=1e-5)
    np.testing.assert_allclose(wrapped(STUDENT, TEACHER, labels), expected, rtol=1e-5)
    with pytest.raises(ConfigurationError, match="expected labels"):
        wrapped(STUDENT, TEACHER)

    mask = tf.constant([True, True, True, True, False, False])
    step = Step(Observed(tf.constant(STUDENT), mask=mask), Observed(tf.constant(TEACHER)))
    found = LogitStandardization(DIST()).compute(step)[:4]
    np.testing.assert_allclose(found, 4 * DIST()(student[:4], teacher[:4]), rtol=1e-5)


def test_the_wrapped_losss_schedules_are_moved_on_too():
    outer, inner = Linear(2.0, 4.0), Linear(1.0, 3.0)
    loss = LogitStandardization(SoftTargets(inner), base_temperature=outer)
    assert loss.schedules == [outer, inner]
    for schedule in loss.schedules:
        schedule.begin(1, 3)
    expected = LogitStandardization(SoftTargets(2.0), base_temperature=3.0)(STUDENT, TEACHER)
    np.testing.assert_allclose(loss(STUDENT, TEACHER), expected, rtol=1e-5)


def test_logits_that_are_all_equal_have_no_gradient():
    # In float64 the mean of three 0.1 is not 0.1, and the difference is no deviation.
    student = tf.fill((2, 3), tf.constant(0.1, tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = LogitStandardization(SoftTargets(1.0))(student, [[1.0, 2.0, 3.0]] * 2)
    # As from a student that finds all classes equally likely.
    p = softmax(np.array([-1, 0, 1]) * np.sqrt(1.5) / 2)
    np.testing.assert_allclose(loss, [4 * rel_entr(p, 1 / 3).sum()] * 2, rtol=1e-5)
    np.testing.assert_array_equal(tape.gradient(loss, student), np.zeros((2, 3)))


@pytest.mark.parametrize("loss", [None, "soft_targets", RegressionDistillation()])
def test_what_is_no_loss_on_logits_of_classes_is_refused(loss):
    with pytest.raises(ConfigurationError, match="loss on the logits of classes"):
        LogitStandardization(loss)


def test_yes_or_no_labels_whose_z_scores_are_always_one_are_refused(models):
    loss = LogitStandardization(SoftTargets(1.0))
    with pytest.raises(ConfigurationError, match="for multiclass students"):
        Distiller(models.student(), models.teacher(), losses=[loss], task="multilabel")


def test_its_name_says_what_it_wraps():
    assert LogitStandardization(DIST()).name == "logit_standardization"
    assert LogitStandardization(DIST(), name="mine").name == "mine"
