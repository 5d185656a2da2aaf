"""Weights and temperatures that change over the epochs: their values, and that fit moves them."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.schedules import (
    Constant,
    Cosine,
    GradualSoftLossReduction,
    Linear,
    Schedule,
    read_value,
)
from kdtflite.errors import ConfigurationError

CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def values(schedule, epochs):
    return [schedule.at(epoch, epochs) for epoch in range(epochs)]


def test_the_values_of_every_epoch_worked_by_hand():
    assert values(Constant(0.3), 3) == [0.3, 0.3, 0.3]
    assert values(Linear(4.0, 1.0), 4) == [4.0, 3.0, 2.0, 1.0]
    # 1 + (0 - 1) · (1 - cos(π p)) / 2 at p = 0, 1/3, 2/3, 1: 1, 3/4, 1/4, 0.
    np.testing.assert_allclose(values(Cosine(1.0, 0.0), 4), [1.0, 0.75, 0.25, 0.0], atol=1e-12)
    assert values(GradualSoftLossReduction(2.0), 5) == [2.0, 1.5, 1.0, 0.5, 0.0]
    # Half of four steps: 0 from the third epoch on.
    assert values(GradualSoftLossReduction(1.0, until=0.5), 5) == [1.0, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("schedule", [Linear(3.0, 1.0), Cosine(3.0, 1.0)])
def test_one_epoch_has_the_first_value_and_epochs_past_the_end_the_last(schedule):
    assert values(schedule, 1) == [3.0]
    assert schedule.at(7, 4) == 1.0
    assert float(schedule.value) == 3.0  # outside of a training
    assert GradualSoftLossReduction(0.5).at(0, 1) == 0.5


def test_a_compiled_step_reads_the_value_anew():
    schedule = Linear(1.0, 3.0)
    double = tf.function(lambda: 2.0 * read_value(schedule))
    assert float(double()) == 2.0
    schedule.begin(2, 3)
    assert float(double()) == 6.0
    assert read_value(0.25) == 0.25


def terms(student, teacher, x, y, temperature):
    z_s, z_t = np.float64(student(x)), np.float64(teacher(x))
    hard = -log_softmax(z_s, -1)[np.arange(len(y)), y].mean()
    p, logs = softmax(z_t / temperature, -1), log_softmax(z_t / temperature, -1)
    soft = temperature**2 * (p * (logs - log_softmax(z_s / temperature, -1))).sum(-1).mean()
    return hard, soft


def fit_distiller(data, models, *, epochs=3, initial_epoch=0, **options):
    """Fits a student that stands still, so that a term changes by its schedule alone."""
    x, y, _ = data
    student, teacher = models.student(), models.teacher()
    distiller = Distiller(student, teacher, **options)
    distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
    history = distiller.fit(
        x, y, batch_size=21, epochs=epochs, initial_epoch=initial_epoch, verbose=0
    ).history
    return history, student, teacher


def test_fit_moves_the_temperature(data, models):
    x, y, _ = data
    history, student, teacher = fit_distiller(data, models, losses=[SoftTargets(Linear(4.0, 1.0))])
    expected = [terms(student, teacher, x, y, t)[1] for t in (4.0, 2.5, 1.0)]
    np.testing.assert_allclose(history["soft_targets_loss"], expected, rtol=1e-5)


def test_fit_moves_the_hard_label_weight_and_the_rest_follows(data, models):
    x, y, _ = data
    history, student, teacher = fit_distiller(
        data,
        models,
        losses=[SoftTargets(2.0), SoftTargets(1.0, name="sharp")],
        hard_label_weight=Cosine(0.0, 1.0),
    )
    hard, soft = terms(student, teacher, x, y, 2.0)
    _, sharp = terms(student, teacher, x, y, 1.0)
    expected = [w * hard + (1 - w) / 2 * (soft + sharp) for w in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(history["sharp_loss"], [sharp] * 3, rtol=1e-5)


def test_gradual_soft_loss_reduction_ends_on_the_hard_labels_alone(data, models):
    x, y, _ = data
    history, student, teacher = fit_distiller(
        data,
        models,
        losses=[SoftTargets(2.0)],
        hard_label_weight=1.0,
        loss_weights=[GradualSoftLossReduction(0.8, until=0.5)],
        epochs=5,
    )
    hard, soft = terms(student, teacher, x, y, 2.0)
    expected = [hard + w * soft for w in (0.8, 0.4, 0.0, 0.0, 0.0)]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)


def test_a_resumed_training_goes_on_where_the_schedule_was(data, models):
    whole, *_ = fit_distiller(data, models, losses=[SoftTargets(Linear(8.0, 2.0))], epochs=4)
    rest, *_ = fit_distiller(
        data, models, losses=[SoftTargets(Linear(8.0, 2.0))], epochs=4, initial_epoch=2
    )
    assert len(rest["loss"]) == 2
    np.testing.assert_allclose(rest["loss"], whole["loss"][2:], rtol=1e-6)


def test_the_gradient_follows_the_weight(data, models):
    x, y, _ = data
    moved = []
    for weight in (GradualSoftLossReduction(1.0), 0.0):
        student = models.student()
        distiller = Distiller(
            student, models.teacher(), hard_label_weight=1.0, loss_weights=[weight]
        )
        distiller.compile(keras.optimizers.SGD(0.1), CrossEntropy(from_logits=True))
        # Of two epochs the second has weight 0.
        distiller.fit(x, y, batch_size=21, epochs=2, initial_epoch=1, verbose=0)
        moved.append(student.get_weights())
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_several_steps_an_execution_see_the_schedule(data, models):
    x, y, _ = data
    student, teacher = models.student(), models.teacher()
    distiller = Distiller(student, teacher, losses=[SoftTargets(Linear(4.0, 1.0))])
    distiller.compile(
        keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True), steps_per_execution=3
    )
    history = distiller.fit(x, y, batch_size=7, epochs=2, shuffle=False, verbose=0).history
    expected = [terms(student, teacher, x, y, t)[1] for t in (4.0, 1.0)]
    np.testing.assert_allclose(history["soft_targets_loss"], expected, rtol=1e-5)


def test_a_users_own_schedule(data, models):
    class Steps(Schedule):
        def at(self, epoch, epochs):
            return 1.0 if epoch < epochs / 2 else 0.25

    history, *_ = fit_distiller(
        data, models, hard_label_weight=0.0, loss_weights=[Steps()], epochs=4
    )
    soft = history["soft_targets_loss"][0]
    np.testing.assert_allclose(history["loss"], soft * np.array([1, 1, 0.25, 0.25]), rtol=1e-5)


def test_what_is_no_schedule_is_refused(models):
    for make in (
        lambda: Constant(math.nan),
        lambda: Linear(1.0, math.inf),
        lambda: GradualSoftLossReduction(-math.inf),
    ):
        with pytest.raises(ConfigurationError, match="Expected a finite"):
            make()
    for until in (0.0, 1.5, -1.0):
        with pytest.raises(ConfigurationError, match="until above 0 and at most 1"):
            GradualSoftLossReduction(until=until)
    student, teacher = models.student(), models.teacher()
    with pytest.raises(ConfigurationError, match="hard_label_weight from 0 to 1"):
        Distiller(student, teacher, hard_label_weight=Linear(0.0, 2.0))
    with pytest.raises(ConfigurationError, match="finite and none negative"):
        Distiller(student, teacher, loss_weights=[Linear(1.0, -1.0)])
    with pytest.raises(ConfigurationError, match="positive, finite temperature"):
        SoftTargets(Linear(4.0, 0.0))
