"""Multi-task students: one teacher per task, one forward pass, losses and metrics by output."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.losses.logits.regression import RegressionDistillation
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.ways.multi_task import MultiTaskDistiller
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError
from kdtflite.quantization import quantize_aware

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy
LOSSES = {"kind": CrossEntropy(from_logits=True), "size": "mse"}


def two_headed(*, as_dict=False, l2=0.0):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), name="features")
    regularizer = keras.regularizers.L2(l2) if l2 else None
    x = L.Dense(6, "relu", name="shared", kernel_regularizer=regularizer)(inputs)
    heads = [L.Dense(3, name="kind")(x), L.Dense(2, name="size")(x)]
    outputs = dict(zip(("kind", "size"), heads, strict=True)) if as_dict else heads
    return keras.Model(inputs, outputs, name="student")


def teachers(models):
    keras.utils.set_random_seed(9)
    layers = [keras.Input((4,)), L.Dense(7, "relu", name="inner"), L.Dense(2)]
    return {"kind": models.teacher(), "size": keras.Sequential(layers, name="sizer")}


@pytest.fixture
def labels(data):
    rng = np.random.default_rng(5)
    return {"kind": data[1], "size": rng.normal(0, 1, (21, 2)).astype(np.float32)}


def build_distiller(models, student=None, **options):
    arguments = {
        "losses": {"kind": [SoftTargets(2.0)], "size": [RegressionDistillation()]},
        "weights": {"kind": 0.5, "size": 3.0},
        "hard_label_weights": {"kind": 0.2, "size": 0.7},
        "tasks": {"size": "regression"},
        **options,
    }
    given = teachers(models)
    distiller = MultiTaskDistiller(student or two_headed(l2=0.02), given, **arguments)
    distiller.compile(keras.optimizers.SGD(0.1), LOSSES, {"kind": "accuracy", "size": "mae"})
    return distiller, given


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("weighted", ["not", "one", "each"])
def test_every_term_by_output(data, labels, models, weighted, as_dict):
    x, y, sample_weight = data
    student = two_headed(as_dict=as_dict, l2=0.02)
    distiller, given = build_distiller(models, student)
    kinds, sizes = (np.float64(z) for z in tf.nest.flatten(student(x)))
    of_kind, of_size = (np.float64(given[name](x)) for name in ("kind", "size"))
    p, logs = softmax(of_kind / 2, -1), log_softmax(of_kind / 2, -1)
    soft = 4 * (p * (logs - log_softmax(kinds / 2, -1))).sum(-1)
    hard = -log_softmax(kinds, -1)[np.arange(21), y]
    squared = np.square(sizes - labels["size"]).mean(-1)
    distance = np.square(sizes - of_size).mean(-1)
    w = {"kind": np.ones(21), "size": np.ones(21)}
    weights = None
    if weighted == "one":
        weights = sample_weight
        w = dict.fromkeys(w, np.float64(sample_weight))
    elif weighted == "each":
        weights = {"kind": sample_weight, "size": sample_weight[::-1]}
        w = {name: np.float64(value) for name, value in weights.items()}
    got = distiller.train_on_batch(x, labels, weights, return_dict=True)
    expected = {
        "kind_hard_labels_loss": (w["kind"] * hard).mean(),
        "kind_soft_targets_loss": (w["kind"] * soft).mean(),
        "size_hard_labels_loss": (w["size"] * squared).mean(),
        "size_regression_distillation_loss": (w["size"] * distance).mean(),
        "kind_loss": (w["kind"] * (0.2 * hard + 0.8 * soft)).mean(),
        "kind_accuracy": (kinds.argmax(-1) == y).mean(),
        "size_mae": np.abs(sizes - labels["size"]).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    total = 0.5 * got["kind_loss"] + 3.0 * got["size_loss"] + got["regularization_loss"]
    np.testing.assert_allclose(got["loss"], total, rtol=1e-5)
    assert got["regularization_loss"] > 0.01


def test_the_step_is_that_of_the_weighted_sum(data, labels, models):
    x, y, _ = data
    student, copy = two_headed(), two_headed()
    distiller, given = build_distiller(
        models, student, losses={"kind": [SoftTargets(1.0)], "size": []}
    )
    p = softmax(np.float64(given["kind"](x)), -1).astype(np.float32)
    with tf.GradientTape() as tape:
        kinds, sizes = copy(x)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, kinds)
        soft = -tf.reduce_sum(p * tf.nn.log_softmax(kinds), axis=1)
        squared = tf.reduce_mean(tf.square(sizes - labels["size"]), axis=1)
        loss = tf.reduce_mean(0.5 * (0.2 * hard + 0.8 * soft) + 3.0 * 0.7 * squared)
    gradients = tape.gradient(loss, copy.trainable_variables)
    distiller.train_on_batch(x, labels)
    for moved, variable, gradient in zip(
        student.trainable_variables, copy.trainable_variables, gradients, strict=True
    ):
        expected = variable.numpy() - 0.1 * gradient.numpy()
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


def test_an_output_without_a_teacher_learns_from_its_labels_and_one_without_labels_from_its_teacher(
    data, labels, models
):
    x, _, _ = data
    teacher = models.teacher()
    student = two_headed()
    distiller = MultiTaskDistiller(
        student,
        {"kind": teacher},
        hard_label_weights={"kind": 0.0},
        tasks={"size": "regression"},
    )
    distiller.compile(keras.optimizers.Adam(0.05), {"size": "mse"}, {"size": "mae"})
    history = distiller.fit(x, {"size": labels["size"]}, epochs=40, verbose=0).history
    assert "kind_hard_labels_loss" not in history
    assert "size_soft_targets_loss" not in history
    assert history["kind_soft_targets_loss"][-1] < 0.5 * history["kind_soft_targets_loss"][0]
    assert history["size_hard_labels_loss"][-1] < history["size_hard_labels_loss"][0]


def test_hints_of_a_shared_layer_and_evaluation_by_output(data, labels, models):
    x, y, _ = data
    student = two_headed()
    distiller, given = build_distiller(
        models, student, losses={"size": [RegressionDistillation(), Hints("shared", "inner")]}
    )
    distiller.compile("adam", LOSSES, {"kind": "accuracy", "size": "mae"})
    before = given["size"].get_weights()
    adapter = [variable.numpy() for variable in distiller.loss_variables]
    history = distiller.fit(x, labels, epochs=30, verbose=0).history
    assert history["size_hints_loss"][-1] < history["size_hints_loss"][0]
    for now, then in zip(distiller.loss_variables, adapter, strict=True):
        assert np.abs(now.numpy() - then).max() > 1e-3
    for one, other in zip(given["size"].get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    results = distiller.evaluate(x, labels, verbose=0, return_dict=True)
    kinds, sizes = (np.float64(z) for z in student.predict(x, verbose=0))
    hard = -log_softmax(kinds, -1)[np.arange(21), y].mean()
    squared = np.square(sizes - labels["size"]).mean()
    np.testing.assert_allclose(results["kind_loss"], hard, rtol=1e-5)
    np.testing.assert_allclose(results["size_loss"], squared, rtol=1e-5)
    np.testing.assert_allclose(results["loss"], 0.5 * hard + 3.0 * squared, rtol=1e-5)
    assert set(results) == {"loss", "kind_loss", "size_loss", "kind_accuracy", "size_mae"}
    np.testing.assert_array_equal(distiller.predict(x, verbose=0)["kind"], student.predict(x)[0])


def test_a_teacher_of_two_outputs_is_tapped_for_each_of_them(data, models):
    x, y, _ = data
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    wide = L.Dense(5, name="wide")(inputs)
    heads = [L.Dense(3, name=name)(wide) for name in ("one", "two")]
    teacher = ModelTeacher(models.student(name="twin"))
    losses = {"one": [Hints("wide", "twin_hidden")], "two": [Hints("wide", "twin_relu")]}
    distiller = MultiTaskDistiller(
        keras.Model(inputs, heads), {"one": teacher, "two": teacher}, losses=losses
    )
    distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
    got = distiller.train_on_batch(x, {"one": y, "two": y}, return_dict=True)
    own = np.float64(x) @ np.float64(distiller.student.get_layer("wide").kernel)
    theirs = np.float64(teacher.model.get_layer("twin_hidden")(x))
    for name, features in (("one", theirs), ("two", np.maximum(theirs, 0))):
        expected = 0.5 * np.square(own - features).mean()
        np.testing.assert_allclose(got[f"{name}_hints_loss"], expected, rtol=1e-5)


def test_the_student_runs_once_a_step(data, labels, models):
    x, _, _ = data
    student = two_headed()
    runs = []
    shared = student.get_layer("shared")
    call = shared.call
    shared.call = lambda inputs: runs.append(1) or call(inputs)
    distiller, _ = build_distiller(models, student)
    distiller.run_eagerly = True
    runs.clear()
    distiller.train_on_batch(x, labels)
    assert len(runs) == 1


def test_a_quantization_aware_student_is_calibrated_and_answers_to_its_outputs_names(
    data, labels, models
):
    x, _, _ = data
    student = quantize_aware(two_headed())
    assert not student.quantization.calibrated
    distiller, _ = build_distiller(models, student)
    history = distiller.fit(x, labels, epochs=2, verbose=0).history
    assert student.quantization.calibrated
    assert np.isfinite(history["kind_loss"]).all()


def test_what_does_not_go_by_the_outputs_is_refused(data, labels, models):
    x, _, _ = data
    student = two_headed()
    with pytest.raises(ConfigurationError, match=r"key of teachers=.*'kin'.*Did you mean 'kind'"):
        MultiTaskDistiller(student, {"kin": models.teacher()})
    with pytest.raises(ShapeMismatchError, match="different numbers of classes"):
        MultiTaskDistiller(student, {"size": models.teacher()})
    with pytest.raises(ConfigurationError, match="'size' has distillation losses and no teacher"):
        MultiTaskDistiller(student, {}, losses={"size": [SoftTargets()]})
    distiller, _ = build_distiller(models, student)
    with pytest.raises(ConfigurationError, match=r"key of loss=.*'color'"):
        distiller.compile("sgd", {"color": "mse"})
    with pytest.raises(ConfigurationError, match="of 'size' needs a loss for the hard labels"):
        distiller.compile("sgd", {"kind": CrossEntropy(from_logits=True)})
    distiller.compile("sgd", LOSSES)
    with pytest.raises(ConfigurationError, match="Expected y as a dict with the keys kind, size"):
        distiller.fit(x, labels["kind"], verbose=0)
    with pytest.raises(DataError, match="Expected labels for 'size'"):
        distiller.fit(x, {"kind": labels["kind"]}, verbose=0)


def test_checkpoints_keep_what_the_losses_train(data, labels, models, tmp_path):
    def made():
        hints = {"size": [RegressionDistillation(), Hints("shared", "inner")]}
        return build_distiller(models, two_headed(), losses=hints)[0]

    first, second = made(), made()
    assert len(first.loss_variables) > 0
    first.fit(data[0], labels, epochs=3, verbose=0)
    pairs = list(zip(first.loss_variables, second.loss_variables, strict=True))
    assert any(np.any(one.numpy() != other.numpy()) for one, other in pairs)
    path = tf.train.Checkpoint(model=first).write(str(tmp_path / "state"))
    tf.train.Checkpoint(model=second).read(path).assert_existing_objects_matched()
    for one, other in pairs:
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    names = {weight.name for weight in first.student.weights}
    assert {weight.name for weight in first.weights} == names
