"""A training killed between any two epochs ends as if it had not been, whatever aids it has."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from pipeline_data import dataset, student, teacher

import kdtflite.pipeline.training as training
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.losses.gradients.jacobian_matching import JacobianMatching
from kdtflite.pipeline.losses import make_mixing
from kdtflite.pipeline.recipe import TrainingRecipe

EVERYTHING = {
    "weight_decay": 0.02,
    "label_smoothing": 0.1,
    "clip_norm": 0.5,
    "ema": 0.8,
    "early_stopping": {"patience": 3},
    "augmentation": {"shift": 1},
}


@pytest.fixture(autouse=True)
def deterministic():
    tf.config.experimental.enable_op_determinism()


def recipe(**aids):
    return TrainingRecipe(epochs=5, batch_size=16, learning_rate=0.02, **aids)


def fit(values, folder, *, distil=False, data=None):
    """Trains as a stage does and returns the trained model and the result."""
    data = dataset() if data is None else data
    model = trained = student()
    mixing = None if values.mixing is None else make_mixing(values.mixing.model_dump())
    if distil:
        losses = [Hints("relu", "means")] if distil is True else distil
        model = Distiller(trained, teacher(), losses=losses, mixing=mixing)
    elif mixing is not None:
        model = Distiller(trained, None, losses=[], mixing=mixing)
    variables = model.trained_variables if distil else trained.trainable_variables
    steps = len(data.train) // values.batch_size
    model.compile(
        training.adam(values, steps, variables), training.cross_entropy(values), ["accuracy"]
    )
    result = training.fit_resumably(
        model, trained, data, values, seed=5, folder=folder, title="test"
    )
    return trained, result


class Killed(BaseException):
    """Nothing catches it."""


def killed_after(epochs, values, folder, monkeypatch, **options):
    """Trains up to the moment in which the next epoch's checkpoint would be written."""
    real, left = training.write_json, [epochs]

    def write(*arguments, **named):
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(*arguments, **named)

    monkeypatch.setattr(training, "write_json", write)
    with pytest.raises(Killed):
        fit(values, folder, **options)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("aids", "distil"),
    [
        (EVERYTHING, True),
        ({"mixing": {"mixup": 0.4}, "ema": 0.8}, True),
        ({"mixing": {"cutmix": 1.0}}, False),
        ({}, [JacobianMatching("projections")]),
    ],
)
def test_a_killed_training_ends_with_the_same_weights(aids, distil, tmp_path, monkeypatch):
    values = recipe(**aids)
    undisturbed, result = fit(values, tmp_path / "one", distil=distil)
    killed_after(2, values, tmp_path / "two", monkeypatch, distil=distil)
    keras.backend.clear_session()
    again, resumed = fit(values, tmp_path / "two", distil=distil)
    assert resumed == result
    for own, other in zip(again.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)
    # Killed between the last epoch and the end of the stage: the same once more.
    last, _ = fit(values, tmp_path / "two", distil=distil)
    for own, other in zip(last.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_averages_are_what_is_validated_and_kept(tmp_path):
    data = dataset()
    trained, result = fit(recipe(ema=0.9), tmp_path)
    trained.compile(metrics=["accuracy"], loss=training.cross_entropy(recipe()))
    loss, accuracy = trained.evaluate(data.validation.x, data.validation.y, verbose=0)
    assert result["history"]["val_accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)
    assert result["history"]["val_loss"][-1] == pytest.approx(loss, rel=1e-4)
    plain, _ = fit(recipe(), tmp_path / "plain")
    assert not np.allclose(plain.get_weights()[0], trained.get_weights()[0], atol=1e-4)


def test_early_stopping_keeps_the_first_best_epoch_and_ends_when_patience_does(
    tmp_path, monkeypatch
):
    accuracies = iter([0.3, 0.6, 0.6, 0.5, 0.9])
    weights = []
    real = training._EachEpoch.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        weights.append(self.model.get_weights())
        real(self, epoch, {**logs, "val_accuracy": next(accuracies)})

    monkeypatch.setattr(training._EachEpoch, "on_epoch_end", on_epoch_end)
    values = recipe(early_stopping={"patience": 2})
    trained, result = fit(values, tmp_path)
    assert result["epochs"] == [1, 2, 3, 4]
    assert result["kept_epoch"] == 2
    for own, best in zip(trained.get_weights(), weights[1], strict=True):
        np.testing.assert_array_equal(own, best)
    # Asked again, it knows that it had given up.
    again, same = fit(values, tmp_path)
    assert same == result
    np.testing.assert_array_equal(again.get_weights()[0], trained.get_weights()[0])
    assert len(json.loads((tmp_path / "history.json").read_text())) == 4


def test_kernels_decay_and_biases_and_normalizations_do_not():
    model = student()
    values = recipe(weight_decay=0.1, warmup_epochs=0)
    optimizer = training.adam(values, 6, model.trainable_variables)
    optimizer.build(model.trainable_variables)
    before = [variable.numpy() for variable in model.trainable_variables]
    zeros = [tf.zeros_like(variable) for variable in model.trainable_variables]
    optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    for variable, value in zip(model.trainable_variables, before, strict=True):
        decayed = value * (1 - 0.02 * 0.1) if value.ndim > 1 else value
        np.testing.assert_allclose(variable.numpy(), decayed, rtol=1e-6)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    one, two = tf.Variable([0.0, 0.0]), tf.Variable([0.0])
    optimizer = training.adam(recipe(clip_norm=1.3), 6, [one, two])
    clipped = optimizer._clip_gradients([tf.constant([3.0, 4.0]), tf.constant([12.0])])
    np.testing.assert_allclose(np.concatenate(clipped), np.array([3, 4, 12]) * 1.3 / 13, rtol=1e-6)


def test_smoothed_labels_give_the_loss_of_smoothed_labels():
    values = recipe(label_smoothing=0.3)
    logits = np.array([[2.0, 0.0, -1.0]])
    labels = training.labels_of(np.array([0]), dataset(), values)
    log_p = logits[0] - np.log(np.exp(logits).sum())
    expected = -(np.array([0.8, 0.1, 0.1]) * log_p).sum()
    assert float(training.cross_entropy(values)(labels, logits)) == pytest.approx(expected)
