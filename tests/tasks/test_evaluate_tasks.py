"""`evaluate` on files of other tasks, from Python and from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tf_keras as keras
from typer.testing import CliRunner

import kdtflite
from kdtflite.cli import app
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError

L = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((40, 8, 8, 1), np.float32)
MASKS = (IMAGES[..., 0] > 0.6).astype(np.int64)


@pytest.fixture(scope="module")
def segmenter():
    """Thresholds the pixels at 0.5, in int8."""
    inputs = keras.Input((8, 8, 1), name="image")
    model = keras.Model(inputs, L.Conv2D(2, 1, name="mask")(inputs))
    model.set_weights([np.array([[[[-2.0, 2.0]]]]), np.array([1.0, -1.0])])
    return kdtflite.convert(model, IMAGES, progress=False)


@pytest.fixture(scope="module")
def regressor():
    """The sum of the pixels and their mean, in int8."""
    inputs = keras.Input((8, 8, 1), name="image")
    model = keras.Model(inputs, L.Dense(2, name="sizes")(L.Flatten()(inputs)))
    model.set_weights([np.tile([[1.0, 1 / 64]], (64, 1)), np.zeros(2)])
    return model, kdtflite.convert(model, IMAGES, progress=False)


def test_a_segmenter_is_measured(segmenter):
    result = kdtflite.evaluate(segmenter, (IMAGES, MASKS), task="segmentation", progress=False)
    clear = np.abs(IMAGES[..., 0] - 0.5) > 0.02
    said = (IMAGES[..., 0] > 0.5).astype(int)
    assert (result.predictions == said)[clear].all()
    assert result.accuracy == pytest.approx((said == MASKS).mean(), abs=0.02)
    both = ((said == 1) & (MASKS == 1)).sum()
    assert result.per_class[1].dice == pytest.approx(
        2 * both / (said.sum() + MASKS.sum()), abs=0.02
    )


def test_numbers_of_a_keras_model_and_its_file(regressor):
    model, lite = regressor
    y = np.stack([IMAGES.sum(axis=(1, 2, 3)), IMAGES.mean(axis=(1, 2, 3))], axis=1)
    options = {"task": "regression", "labels": ["sum", "mean"], "progress": False}
    exact = kdtflite.evaluate(model, (IMAGES, y), **options)
    assert exact.mean_absolute_error < 1e-5
    assert exact.step is None
    rounded = kdtflite.evaluate(lite, (IMAGES, y), **options)
    step = lite.outputs[0].scale
    assert rounded.step == step
    assert 0 < rounded.per_value[0].root_mean_squared_error < 2 * step
    assert rounded.per_value[1].r2 < 0.5 < rounded.per_value[0].r2  # one scale serves both
    assert "rounding to them alone" in str(rounded)


def test_several_labels_of_a_file():
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, L.Dense(3, activation="sigmoid", name="tags")(inputs))
    model.set_weights([20 * np.eye(3), np.full(3, -10.0)])
    x = RANDOM.random((60, 3), np.float32)
    lite = kdtflite.convert(model, x, progress=False)
    y = (x > 0.5).astype(np.float32)
    result = kdtflite.evaluate(lite, (x, y), task="multilabel", progress=False)
    assert result.outputs == "probabilities"
    assert "LOGISTIC" in result.outputs_from
    assert result.mean_auc > 0.99
    assert result.exact_match > 0.9


def test_batches_of_tensorflow_and_other_arguments(segmenter):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((IMAGES, MASKS[..., None])).batch(16)
    result = kdtflite.evaluate(segmenter, batches, task="segmentation", progress=False)
    assert result.samples == len(IMAGES)
    with pytest.raises(ConfigurationError, match=r"There is no task 'segment'.*'segmentation'"):
        kdtflite.evaluate(segmenter, batches, task="segment")
    with pytest.raises(ConfigurationError, match="ignore_class= with the task 'segmentation'"):
        kdtflite.evaluate(segmenter, batches, ignore_class=255)
    with pytest.raises(ShapeMismatchError, match="2 names in `labels`, one per class"):
        kdtflite.evaluate(segmenter, batches, task="segmentation", labels=["a"], progress=False)
    with pytest.raises(ShapeMismatchError, match="A class per pixel is task='segmentation'"):
        kdtflite.evaluate(segmenter, (IMAGES, MASKS[:, 0, 0]), progress=False)


def invoke(*arguments):
    """Runs the command line in this process; returns its code and what it printed."""
    found = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return found.exit_code, found.stdout, " ".join(found.stderr.split())


def test_the_command_measures_masks_and_numbers(segmenter, regressor, tmp_path):
    segmenter.save(tmp_path / "masks.tflite")
    np.savez(tmp_path / "masks.npz", x=IMAGES, y=MASKS, class_names=["back", "cell"])
    picture = tmp_path / "iou.png"
    options = ("--data", tmp_path / "masks.npz", "--task", "segmentation")
    code, out, _ = invoke(tmp_path / "masks.tflite", *options, "--plot", picture)
    assert code == 0
    assert "cell" in out
    assert "mean Dice" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    regressor[1].save(tmp_path / "sizes.tflite")
    sums = IMAGES.reshape(40, 64).sum(axis=1)
    np.savez(tmp_path / "sizes.npz", x=IMAGES, y=np.stack([sums, sums / 64], axis=1))
    options = ("--data", tmp_path / "sizes.npz", "--task", "regression", "--json")
    code, out, _ = invoke(tmp_path / "sizes.tflite", *options)
    assert code == 0
    assert json.loads(out)["per_value"][0]["r2"] > 0.9


def test_the_command_refuses_labels_of_another_task(segmenter, tmp_path):
    segmenter.save(tmp_path / "masks.tflite")
    np.savez(tmp_path / "classes.npz", x=IMAGES, y=MASKS[:, 0, 0])
    options = ("--data", tmp_path / "classes.npz", "--task", "segmentation")
    code, _, error = invoke(tmp_path / "masks.tflite", *options)
    assert code == 2
    assert "Expected a class per pixel as labels" in error
    code, _, error = invoke(tmp_path / "masks.tflite", *options[:2], "--task", "masks")
    assert code == 2
    assert "There is no task 'masks'" in error


def test_labels_of_a_split_are_the_tasks(segmenter):
    split = kdtflite.data.Split(IMAGES, MASKS[:, 0, 0])
    with pytest.raises(DataError, match="Expected a class per pixel"):
        kdtflite.evaluate(segmenter, split, task="segmentation")
