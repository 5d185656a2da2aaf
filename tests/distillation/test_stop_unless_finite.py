"""A training that diverges ends at once, with one sentence."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.distillation.checks.finite import StopUnlessFinite
from kdtflite.distillation.ways.fit import Fit
from kdtflite.distillation.ways.mutual import MutualDistiller
from kdtflite.errors import TrainingError

Sparse = keras.losses.SparseCategoricalCrossentropy


class Count(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


def build(models, rate=0.0, **options):
    distiller = Distiller(models.student(), models.teacher())
    distiller.compile(keras.optimizers.SGD(rate), Sparse(from_logits=True), **options)
    return distiller


def in_batches(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(7)  # three, which nobody reads before


@pytest.mark.parametrize("eager", [False, True])
def test_a_learning_rate_that_is_too_high_is_named(data, models, eager):
    x, y, _ = data
    count = Count()
    with pytest.raises(TrainingError) as error:
        build(models, 1e25, run_eagerly=eager).fit(x, y, 2, epochs=3, callbacks=[count], verbose=0)
    message = str(error.value)
    assert message.startswith("Expected a finite loss. Received: ")
    assert " of epoch 1, at a learning rate of 1e+25. The likely cause is a learning" in message
    assert "'kernel' of the layer 'student_hidden' (NaN or infinity in" in message
    assert count.steps < 11  # not even the epoch was finished


@pytest.mark.parametrize(("bad", "step"), [(2, 1), (9, 2), (20, 3)])
def test_samples_that_are_not_finite_are_told_by_their_step(data, models, bad, step):
    x, y, _ = data
    x[bad] = np.nan
    with pytest.raises(TrainingError, match=rf"Received: nan at step {step} of epoch 1") as error:
        build(models).fit(in_batches(x, y), verbose=0, validation_data=(x[:2], y[:2]))
    assert ("No update came before it. Look for NaN" in str(error.value)) == (step == 1)


def test_peers_are_told_of_such_samples_too(data, models):
    x, y, _ = data
    x[9] = np.nan
    one, other = models.student(), models.student()
    other._name = "other"
    peers = MutualDistiller([one, other])
    peers.compile(keras.optimizers.SGD(0.0), Sparse(from_logits=True))
    with pytest.raises(TrainingError, match="Received: nan at step 2 of epoch 1"):
        peers.fit(in_batches(x, y), verbose=0)


def test_a_loss_that_overflows_over_finite_weights(data, models):
    x, y, _ = data

    def overflow(labels, outputs):
        return tf.reduce_sum(0.0 * outputs, -1) + tf.where(labels[:, 0] > 5, np.inf, 0.0)

    distiller = build(models)
    distiller.compile(keras.optimizers.SGD(0.0), overflow)
    y = np.where(np.arange(21) == 14, 9, y)
    with pytest.raises(TrainingError, match=r"step 3 of epoch 1.*All weights are finite\. Look"):
        distiller.fit(in_batches(x, y), verbose=0)


def test_weights_that_are_not_finite_are_refused_before_the_first_step(data, models):
    x, y, _ = data
    distiller = build(models)
    distiller.student.layers[1].bias.assign(np.full(5, np.nan))
    with pytest.raises(TrainingError, match=r"'bias' of the layer 'student_hidden'.*first step"):
        distiller.fit(x, y, verbose=0)


def test_weights_that_went_bad_under_a_finite_loss_end_the_epoch(data, models):
    x, y, _ = data

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # A unit that is NaN gives 0 behind a ReLU, and the loss is finite.
            hidden = self.model.student.layers[1]
            hidden.bias.assign([np.nan, 0, 0, 0, 0])

    def finite(labels, outputs):
        return tf.where(tf.math.is_finite(outputs), outputs, 0.0)[:, 0] * 0.0

    distiller = Distiller(models.student(), None, losses=[])
    distiller.compile(keras.optimizers.SGD(0.0), finite)
    with pytest.raises(TrainingError, match=r"weights after epoch 1, .* 0\. Received: 'bias' of"):
        distiller.fit(x, y, epochs=2, callbacks=[Spoil()], verbose=0)


def test_keras_own_callback_ends_the_training_without_an_error(data, models):
    x, y, _ = data
    x[9] = np.nan
    stop = keras.callbacks.TerminateOnNaN()
    history = build(models).fit(in_batches(x, y), epochs=3, callbacks=[stop], verbose=0)
    assert len(history.epoch) == 1


def test_a_validation_loss_that_is_not_finite_is_told(data, models, capsys):
    x, y, _ = data
    bad = np.where(np.arange(21)[:, None] == 3, np.inf, x)
    build(models).fit(x, y, verbose=0, validation_data=(bad, y))
    assert "The validation loss after epoch 1 is nan. All weights" in capsys.readouterr().err


def test_a_plain_model_and_the_stages_of_a_job_are_watched(data, models):
    x, y, _ = data
    fit = Fit(epochs=2, optimizer=lambda: keras.optimizers.SGD(1e25), batch_size=3)
    student = models.student()
    fit.compile(student)
    with pytest.raises(TrainingError, match=r"learning rate of 1e\+25"):
        fit.run(student, (x, y))


def test_the_rate_of_a_schedule_and_of_a_scaled_loss(data, models):
    x, y, _ = data
    x[20] = np.nan
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.25, 0.125])
    inner = keras.optimizers.SGD(schedule)
    # Without a ReLU, which turns NaN into 0 on some processors.
    student = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(3)])
    student.compile(keras.mixed_precision.LossScaleOptimizer(inner), Sparse(from_logits=True))
    with pytest.raises(TrainingError, match=r"at a learning rate of 0\.25"):
        student.fit(in_batches(x, y), callbacks=[StopUnlessFinite()], verbose=0)
