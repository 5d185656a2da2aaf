"""Teacher and student that see different transforms of one batch."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.quantization import quantize_aware
from kdtflite.quantization.ranges import read_input_ranges

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def image_net(size, channels, name):
    keras.utils.set_random_seed(len(name))
    layers = [keras.Input((size, size, channels)), L.Conv2D(3, 3), L.ReLU(), L.Flatten()]
    return keras.Sequential([*layers, L.Dense(3)], name=name)


@pytest.fixture
def scenes():
    """Pairs of color images and smaller gray ones, as a dict."""
    rng = np.random.default_rng(0)
    rgb = rng.uniform(0, 255, (20, 8, 8, 3)).astype(np.float32)
    gray = rgb.mean(-1, keepdims=True)[:, ::2, ::2] / 255
    return {"rgb": rgb, "gray": gray}, rng.integers(0, 3, 20)


def scaled(batch):
    return batch["rgb"] / 255.0


def gray_of(batch):
    return batch["gray"] * 2.0 - 1.0


def build_distiller(student, teacher):
    distiller = Distiller(
        student,
        teacher,
        losses=[SoftTargets(2.0)],
        hard_label_weight=0.4,
        teacher_preprocessing=scaled,
        student_preprocessing=gray_of,
    )
    distiller.compile(keras.optimizers.SGD(0.05), CrossEntropy(from_logits=True), ["accuracy"])
    return distiller


def test_each_sees_its_own_of_a_dict_batch(scenes):
    x, y = scenes
    student, teacher = image_net(4, 1, "student"), image_net(8, 3, "teacher")
    distiller = build_distiller(student, teacher)
    z_s = np.float64(student(x["gray"] * 2 - 1))
    z_t = np.float64(teacher(x["rgb"] / 255))
    hard = -log_softmax(z_s, -1)[np.arange(20), y]
    logs = log_softmax(z_t / 2, -1) - log_softmax(z_s / 2, -1)
    soft = 4 * (softmax(z_t / 2, -1) * logs).sum(-1)
    got = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(got["hard_labels_loss"], hard.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["soft_targets_loss"], soft.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["loss"], (0.4 * hard + 0.6 * soft).mean(), rtol=1e-5)


def test_evaluate_predict_and_validation_go_through_the_students_transform(scenes):
    x, y = scenes
    student = image_net(4, 1, "student")
    distiller = build_distiller(student, image_net(8, 3, "teacher"))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    history = distiller.fit(dataset, epochs=2, validation_data=dataset, verbose=0).history
    gray = x["gray"] * 2 - 1
    student.compile("sgd", CrossEntropy(from_logits=True), ["accuracy"])
    loss, accuracy = student.evaluate(gray, y, verbose=0)
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)
    for given in ({"x": x, "y": y}, {"x": dataset}):
        results = distiller.evaluate(**given, verbose=0, return_dict=True)
        np.testing.assert_allclose(results["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(results["accuracy"], accuracy, rtol=1e-6)
    expected = student.predict(gray, verbose=0)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    predicted = distiller.predict(dataset, verbose=0)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    tensors = tf.nest.map_structure(tf.constant, x)
    np.testing.assert_allclose(distiller(tensors), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["arrays", "dataset", "generator"])
def test_a_quantization_aware_student_is_calibrated_on_its_own_inputs(scenes, kind):
    x, y = scenes
    student = quantize_aware(image_net(4, 1, "student"))
    distiller = build_distiller(student, image_net(8, 3, "teacher"))
    if kind == "arrays":
        distiller.fit(x, y, batch_size=10, verbose=0)
    elif kind == "dataset":
        distiller.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(10), verbose=0)
    else:
        distiller.fit(
            (({k: v[i : i + 10] for k, v in x.items()}, y[i : i + 10]) for i in (0, 10)), verbose=0
        )
    assert student.quantization.calibrated
    ((low, high),) = read_input_ranges(student).values()
    assert -1.1 < low < -0.5 < 0.5 < high < 1.1  # of gray_of, not of pixels


def test_a_transform_of_the_student_alone_with_other_samples(data, models):
    x, y, _ = data
    wide = np.concatenate([x, x], axis=1)
    distiller = Distiller(
        models.student(),
        models.teacher(features=8),
        student_preprocessing=lambda batch: batch[:, 4:],
    )
    distiller.compile("sgd", CrossEntropy(from_logits=True))
    history = distiller.fit(wide, y, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_allclose(
        distiller.predict(wide, verbose=0), distiller.student.predict(x, verbose=0), rtol=1e-5
    )


def test_a_transform_of_the_teacher_that_does_not_run_or_does_not_fit_is_refused(models):
    with pytest.raises(ShapeMismatchError, match="teacher_preprocessing made of the student"):
        Distiller(
            models.student(), models.teacher(), teacher_preprocessing=lambda batch: batch[:, :3]
        )
    student, teacher = models.student(), models.teacher()
    with pytest.raises(ConfigurationError, match="does not run on the student's inputs"):
        Distiller(student, teacher, teacher_preprocessing=lambda batch: batch["a"])
