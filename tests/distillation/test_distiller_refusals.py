"""What the Distiller refuses, at once and naming what does not fit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.mixing import MixUp
from kdtflite.errors import (
    ConfigurationError,
    KdtfliteError,
    ModelFileError,
    ShapeMismatchError,
    UnsupportedModelError,
)

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def test_different_numbers_of_classes(models):
    with pytest.raises(ShapeMismatchError) as error:
        Distiller(models.student(classes=9), models.teacher(classes=10))
    assert "teacher output (None, 10)" in str(error.value)
    assert "student output (None, 9)" in str(error.value)


def test_different_inputs(models):
    with pytest.raises(ShapeMismatchError) as error:
        Distiller(models.student(), models.teacher(features=6))
    assert "teacher input (None, 6)" in str(error.value)
    assert "student input (None, 4)" in str(error.value)
    assert "teacher_preprocessing=" in str(error.value)


def test_a_preprocessing_that_makes_the_wrong_shape(models):
    with pytest.raises(ShapeMismatchError) as error:
        Distiller(
            models.student(),
            models.teacher(features=6),
            teacher_preprocessing=lambda x: tf.concat([x, x], axis=1),
        )
    assert "teacher input (None, 6)" in str(error.value)
    assert "teacher_preprocessing made of the student's inputs (None, 8)" in str(error.value)


def test_a_preprocessing_that_is_no_tensorflow(models):
    with pytest.raises(ConfigurationError, match="teacher_preprocessing= does not run"):
        Distiller(
            models.student(),
            models.teacher(features=2),
            teacher_preprocessing=lambda x: np.ascontiguousarray(x)[:, ::2],
        )


def test_sizes_left_open_are_no_mismatch():
    def net(size):
        inputs = keras.Input((size, size, 1))
        x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3)(inputs))
        return keras.Model(inputs, L.Dense(2)(x))

    images, labels = np.ones((2, 8, 8, 1), np.float32), np.array([0, 1])
    for student, teacher, preprocessing in (
        (net(None), net(8), None),
        (net(8), net(None), None),
        (net(None), net(16), lambda x: tf.image.resize(x, (16, 16))),
        (net(8), net(16), keras.Sequential([L.Resizing(16, 16), L.Rescaling(2.0)])),
    ):
        distiller = Distiller(student, teacher, teacher_preprocessing=preprocessing)
        distiller.compile("sgd", CrossEntropy(from_logits=True))
        assert np.isfinite(distiller.train_on_batch(images, labels)).all()


def test_a_single_class_teaches_nothing(models):
    with pytest.raises(ShapeMismatchError, match="two or more classes"):
        Distiller(models.student(classes=1), models.teacher(classes=1), task="multiclass")


def test_a_student_that_is_its_own_teacher(models):
    student = models.student()
    with pytest.raises(ConfigurationError, match=r"'student' as both.*clone_model"):
        Distiller(student, student)


@pytest.mark.parametrize("mixing", ["mixup", MixUp, lambda x: x])
def test_what_is_no_mixing(models, mixing):
    with pytest.raises(ConfigurationError, match=r"for example MixUp\(alpha=0\.2\). Received: "):
        Distiller(models.student(), models.teacher(), mixing=mixing)


def test_several_outputs(models):
    student = models.student()
    two = keras.Model(student.input, [student.output, student.layers[1].output])
    with pytest.raises(UnsupportedModelError, match="one output"):
        Distiller(two, models.teacher())
    with pytest.raises(UnsupportedModelError, match="one output"):
        Distiller(student, two)


def test_a_subclassed_model(models):
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = L.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    own = Own()
    with pytest.raises(UnsupportedModelError, match="not built"):
        Distiller(own, models.teacher())
    own.build((None, 4))
    with pytest.raises(UnsupportedModelError, match="'own'"):
        Distiller(own, models.teacher())
    with pytest.raises(UnsupportedModelError, match="'own'"):
        Distiller(models.student(), own, teacher_outputs="logits")


def test_a_file_that_does_not_exist(models, tmp_path):
    with pytest.raises(ModelFileError, match=r"model\.keras"):
        Distiller(tmp_path / "model.keras", models.teacher())
    with pytest.raises(KdtfliteError, match=r"model\.keras"):
        Distiller(models.student(), tmp_path / "model.keras")


@pytest.mark.parametrize("thing", [None, 3, keras.Model])
def test_what_is_no_model(models, thing):
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model"):
        Distiller(thing, models.teacher())
    with pytest.raises(KdtfliteError, match="Expected"):
        Distiller(models.student(), thing)


@pytest.mark.parametrize(
    ("softmax", "loss"),
    [
        (False, "sparse_categorical_crossentropy"),
        (False, CrossEntropy()),
        (True, CrossEntropy(from_logits=True)),
    ],
)
def test_a_loss_that_reads_what_the_student_does_not_give(models, softmax, loss):
    distiller = Distiller(models.student(softmax=softmax), models.teacher())
    with pytest.raises(ConfigurationError, match=f"from_logits={not softmax}"):
        distiller.compile("sgd", loss)


def test_outputs_that_the_last_layer_does_not_show(models):
    student = models.student()
    hidden = keras.Model(student.input, L.ReLU(name="clipped")(student.output))
    with pytest.raises(ConfigurationError, match="student_outputs="):
        Distiller(hidden, models.teacher())
    Distiller(hidden, models.teacher(), student_outputs="logits")
    with pytest.raises(ConfigurationError, match="logit"):
        Distiller(student, models.teacher(), teacher_outputs="logit")


def test_what_the_last_layers_show_is_said(models, capsys):
    Distiller(models.student(softmax=True), models.teacher())
    said = capsys.readouterr().err
    assert "The teacher 'teacher' ends in logits" in said
    assert "The student 'student' ends in probabilities" in said


def test_no_loss_for_the_labels(models):
    with pytest.raises(ConfigurationError, match=r"hard_label_weight=0\.1 needs a loss"):
        Distiller(models.student(), models.teacher()).compile("sgd")


def test_the_reduction_of_a_sum(models):
    with pytest.raises(ConfigurationError, match="sums over the batch"):
        Distiller(models.student(), models.teacher()).compile(
            "sgd", CrossEntropy(from_logits=True, reduction="sum")
        )


@pytest.mark.parametrize("names", [("a", "a"), ("hard_labels",), ("regularization", "b")])
def test_names_of_losses_that_clash(models, names):
    with pytest.raises(ConfigurationError, match="a name of its own"):
        Distiller(
            models.student(), models.teacher(), losses=[SoftTargets(name=name) for name in names]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hard_label_weight": 1.5}, "from 0 to 1"),
        ({"hard_label_weight": float("nan")}, "from 0 to 1"),
        ({"loss_weights": [1.0, 2.0]}, "Expected 1 loss_weights"),
        ({"loss_weights": [-1.0]}, "none negative"),
        ({"loss_weights": [float("nan")]}, "none negative"),
        ({"losses": ["kl"]}, "list of kdtflite.losses"),
        ({"losses": SoftTargets()}, "list of kdtflite.losses"),
    ],
)
def test_weights_and_losses_that_make_no_sense(models, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Distiller(models.student(), models.teacher(), **arguments)


def test_loss_weights_at_compile_are_pointed_to_their_place(models):
    with pytest.raises(ConfigurationError, match=r"loss_weights= of Distiller"):
        Distiller(models.student(), models.teacher()).compile(
            "sgd", CrossEntropy(from_logits=True), loss_weights=[1.0]
        )


def test_a_loss_needs_a_name():
    with pytest.raises(ConfigurationError, match="Expected a name for the loss SoftTargets"):
        SoftTargets(name="")


def test_a_loss_of_ones_own_is_weighed_and_shown(data, models):
    x, y, _ = data

    class LogitsMSE(LogitsLoss):
        def __call__(self, student_logits, teacher_logits):
            return tf.reduce_mean((student_logits - teacher_logits) ** 2, axis=-1)

    student, teacher = models.student(), models.teacher()
    expected = np.square(student(x).numpy() - teacher(x).numpy()).mean()
    distiller = Distiller(student, teacher, losses=[LogitsMSE(name="mse")], hard_label_weight=0)
    distiller.compile("sgd")
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["mse_loss"], expected, rtol=1e-5)
