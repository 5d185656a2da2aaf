"""A training killed between any two epochs ends as if it had not been, whatever aids it has."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from pipeline_data import dataset, kill_after, student, teacher

import kdtflite.pipeline.training as training
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.losses.gradients.jacobian_matching import JacobianMatching
from kdtflite.errors import DataError, TrainingError
from kdtflite.pipeline.losses import make_mixing
from kdtflite.pipeline.optimizers import make_optimizer
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.pipeline.samples import TrainingSamples, make_labels

EVERYTHING = {
    "weight_decay": 0.02,
    "label_smoothing": 0.1,
    "clip_norm": 0.5,
    "ema": 0.8,
    "early_stopping": {"patience": 3},
    "augmentation": {"shift": 1},
}
SMALL_NETS = {
    "optimizer": "sgd",
    "schedule": "one_cycle",
    "weight_decay": 0.001,
    "ema": 0.8,
    "batch_norm_batches": 4,
    "augmentation": {"crop": 1, "flip": True},
}


@pytest.fixture(autouse=True)
def deterministic():
    tf.config.experimental.enable_op_determinism()


def recipe(**aids):
    return TrainingRecipe(epochs=5, batch_size=16, learning_rate=0.02, **aids)


def fit(values, folder, *, distill=False, data=None):
    """Trains as a stage does and returns the trained model and the result."""
    data = dataset() if data is None else data
    model = trained = student()
    mixing = None if values.mixing is None else make_mixing(values.mixing.model_dump())
    if distill:
        losses = [Hints("relu", "means")] if distill is True else distill
        model = Distiller(trained, teacher(), losses=losses, mixing=mixing)
    elif mixing is not None:
        model = Distiller(trained, None, losses=[], mixing=mixing)
    variables = model.trained_variables if distill else trained.trainable_variables
    steps = len(data.train) // values.batch_size
    model.compile(
        make_optimizer(values, steps, variables),
        training.make_cross_entropy(values),
        ["accuracy"],
    )
    result = training.fit_resumably(
        model, trained, data, values, seed=5, folder=folder, title="test"
    )
    return trained, result


@pytest.mark.parametrize("distill", [False, True])
def test_a_loss_that_is_no_number_ends_the_stage_and_names_it(tmp_path, distill):
    huge = TrainingRecipe(epochs=3, batch_size=16, learning_rate=1000, warmup_epochs=0)
    broken = huge.model_copy(update={"learning_rate": 1e30})  # beyond what a recipe may say
    with pytest.raises(
        TrainingError, match=r"test: Expected .* learning rate of [\d.]+e\+(29|30)\."
    ):
        fit(broken, tmp_path, distill=distill)
    # No checkpoint holds what is no number.
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoint")) is None


@pytest.mark.parametrize(
    ("aids", "distill"),
    [
        (EVERYTHING, True),
        (SMALL_NETS, False),
        ({"mixing": {"mixup": 0.4}, "ema": 0.8}, True),
        ({"mixing": {"cutmix": 1.0}}, False),
        ({}, [JacobianMatching("projections")]),
    ],
)
def test_a_killed_training_ends_with_the_same_weights(aids, distill, tmp_path):
    values = recipe(**aids)
    undisturbed, result = fit(values, tmp_path / "one", distill=distill)
    with kill_after(2):
        fit(values, tmp_path / "two", distill=distill)
    keras.backend.clear_session()
    again, resumed = fit(values, tmp_path / "two", distill=distill)
    assert resumed == result
    for own, other in zip(again.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)
    # Killed between the last epoch and the end of the stage: the same once more.
    last, _ = fit(values, tmp_path / "two", distill=distill)
    for own, other in zip(last.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"[" * 100_000])
def test_a_damaged_history_loses_nothing(tmp_path, content):
    values = recipe()
    _, result = fit(values, tmp_path / "one")
    folder = tmp_path / "two"
    with kill_after(3):
        fit(values, folder)
    if content is None:
        (folder / "history.json").unlink()
    else:
        (folder / "history.json").write_bytes(content)
    assert fit(values, folder)[1] == result
    rows = json.loads((folder / "history.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == result["history"]["loss"]


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    with kill_after(2):
        fit(recipe(), tmp_path)
    for path in (tmp_path / "checkpoint").glob("*.index"):
        path.write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match=r"A checkpoint in .* is damaged .*Remove this folder and"):
        fit(recipe(), tmp_path)


def first_batches(data, count):
    """The batches of the epoch after the last one."""
    batches = TrainingSamples.take_labeled(data).make_batches(
        recipe(), seed=5, epochs=6, first_epoch=5
    )
    return (x.numpy() for x, _ in batches.take(count))


def test_the_averages_are_what_is_validated_and_kept(tmp_path):
    data = dataset()
    trained, result = fit(recipe(ema=0.9), tmp_path)
    trained.compile(metrics=["accuracy"], loss=training.make_cross_entropy(recipe()))
    loss, accuracy = trained.evaluate(data.validation.x, data.validation.y, verbose=0)
    assert result["history"]["val_accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)
    assert result["history"]["val_loss"][-1] == pytest.approx(loss, rel=1e-4)
    anew, same = fit(recipe(ema=0.9, batch_norm_batches=6), tmp_path / "anew")
    assert same == result
    norm = anew.get_layer("norm")
    seen = anew.get_layer("conv")(np.concatenate(list(first_batches(data, 6)))).numpy()
    # Six batches of the same size: the mean of their means is the mean of all.
    np.testing.assert_allclose(norm.moving_mean, seen.mean(axis=(0, 1, 2)), rtol=1e-4)
    for own, other in zip(anew.trainable_weights, trained.trainable_weights, strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())
    plain, _ = fit(recipe(), tmp_path / "plain")
    assert not np.allclose(plain.get_weights()[0], trained.get_weights()[0], atol=1e-4)


def test_early_stopping_keeps_the_first_best_epoch_and_ends_when_patience_does(
    tmp_path, monkeypatch
):
    accuracies = iter([0.3, 0.6, 0.6, 0.5, 0.9])
    weights = []
    real = training._ReportEachEpoch.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        weights.append(self.model.get_weights())
        real(self, epoch, {**logs, "val_accuracy": next(accuracies)})

    monkeypatch.setattr(training._ReportEachEpoch, "on_epoch_end", on_epoch_end)
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


def test_smoothed_labels_give_the_loss_of_smoothed_labels():
    values = recipe(label_smoothing=0.3)
    logits = np.array([[2.0, 0.0, -1.0]])
    labels = make_labels(np.array([0]), 3, values)
    log_p = logits[0] - np.log(np.exp(logits).sum())
    expected = -(np.array([0.8, 0.1, 0.1]) * log_p).sum()
    assert float(training.make_cross_entropy(values)(labels, logits)) == pytest.approx(expected)


@pytest.mark.parametrize("distill", [False, True])
def test_data_that_are_no_numbers_end_the_stage_and_name_it(tmp_path, distill):
    data = dataset()
    data.train.x[5] = np.nan
    with pytest.raises(TrainingError, match=r"^test: Expected a finite loss\. Received: nan at st"):
        fit(recipe(), tmp_path, distill=distill, data=data)
    assert not (tmp_path / "history.json").exists()
