"""What one training step of the Distiller computes, against independent computations."""

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def compile_distiller(student, teacher, *, optimizer=None, **kwargs):
    distiller = Distiller(student, teacher, **{"hard_label_weight": 0.3, **kwargs})
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.1), CrossEntropy(from_logits=True), ["accuracy"]
    )
    return distiller


def expected_terms(student, teacher, x, y, temperature):
    """Hard and soft loss of each sample, in NumPy float64 from the models' logits."""
    z_s = np.float64(student(x, training=False))
    z_t = np.float64(teacher(x, training=False))
    hard = -log_softmax(z_s, axis=-1)[np.arange(len(y)), y]
    p = softmax(z_t / temperature, axis=-1)
    logs = log_softmax(z_t / temperature, axis=-1) - log_softmax(z_s / temperature, axis=-1)
    return hard, temperature**2 * (p * logs).sum(axis=-1)


@pytest.mark.parametrize("weighted", ["not", "samples", "classes", "both"])
def test_every_loss_term_of_a_step_is_the_formula(data, models, weighted):
    x, y, sample_weight = data
    student, teacher = models.student(l2=0.05), models.teacher()
    distiller = compile_distiller(student, teacher, losses=[SoftTargets(2.0)])
    hard, soft = expected_terms(student, teacher, x, y, 2.0)
    regularization = 0.05 * np.square(student.layers[1].kernel.numpy()).sum()
    weights = np.ones(len(x))
    arguments = {}
    if weighted in ("samples", "both"):
        arguments["sample_weight"] = sample_weight
        weights = weights * sample_weight
    if weighted in ("classes", "both"):
        arguments["class_weight"] = {0: 0.5, 1: 2.0, 2: 1.0}
        weights = weights * np.array([0.5, 2.0, 1.0])[y]
    logs = distiller.train_on_batch(
        x,
        y,
        sample_weight=arguments.get("sample_weight"),
        class_weight=arguments.get("class_weight"),
        return_dict=True,
    )
    assert list(logs) == [
        "loss",
        "hard_labels_loss",
        "soft_targets_loss",
        "regularization_loss",
        "accuracy",
    ]
    np.testing.assert_allclose(logs["hard_labels_loss"], (weights * hard).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["soft_targets_loss"], (weights * soft).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["regularization_loss"], regularization, rtol=1e-5)
    total = (weights * (0.3 * hard + 0.7 * soft)).mean() + regularization
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


def test_two_soft_targets_share_what_the_hard_labels_leave_and_can_be_weighed(data, models):
    x, y, _ = data
    teacher = models.teacher()
    losses = [SoftTargets(1.0, name="sharp"), SoftTargets(8.0, name="smooth")]
    for weights, (sharp_weight, smooth_weight) in ((None, (0.4, 0.4)), ((2.0, 0.5), (2.0, 0.5))):
        student = models.student()
        distiller = compile_distiller(
            student, teacher, losses=losses, hard_label_weight=0.2, loss_weights=weights
        )
        hard, sharp = expected_terms(student, teacher, x, y, 1.0)
        _, smooth = expected_terms(student, teacher, x, y, 8.0)
        logs = distiller.train_on_batch(x, y, return_dict=True)
        total = (0.2 * hard + sharp_weight * sharp + smooth_weight * smooth).mean()
        np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
        np.testing.assert_allclose(logs["sharp_loss"], sharp.mean(), rtol=1e-5)
        np.testing.assert_allclose(logs["smooth_loss"], smooth.mean(), rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_weights_after_one_step_are_those_of_an_independent_gradient(data, models, weighted):
    x, y, sample_weight = data
    sample_weight = sample_weight if weighted else np.ones_like(sample_weight)
    teacher = models.teacher()
    plain, student = models.student(l2=0.05), models.student(l2=0.05)
    for one, other in zip(plain.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    t = 4.0
    p = softmax(np.float64(teacher(x, training=False)) / t, axis=-1).astype(np.float32)
    with tf.GradientTape() as tape:
        logits = plain(x, training=True)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        soft = -t * t * tf.reduce_sum(p * tf.nn.log_softmax(logits / t), axis=1)
        loss = tf.reduce_mean(sample_weight * (0.1 * hard + 0.9 * soft)) + sum(plain.losses)
    gradients = tape.gradient(loss, plain.trainable_variables)
    expected = [
        v.numpy() - 0.1 * g.numpy()
        for v, g in zip(plain.trainable_variables, gradients, strict=True)
    ]
    distiller = compile_distiller(student, teacher, hard_label_weight=0.1)
    distiller.train_on_batch(x, y, sample_weight=sample_weight if weighted else None)
    for given, wanted in zip(student.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(student.get_weights()[0] - plain.get_weights()[0]).max() > 1e-4


def test_arrays_a_dataset_and_a_generator_train_alike(data, models):
    x, y, sample_weight = data

    def generator():
        for start in range(0, 21, 4):
            part = slice(start, start + 4)
            yield x[part], y[part], sample_weight[part]

    dataset = tf.data.Dataset.from_tensor_slices((x, y, sample_weight)).batch(4)
    results = []
    for arguments in (
        {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": 4, "shuffle": False},
        {"x": dataset},
        {"x": generator()},
    ):
        distiller = compile_distiller(models.student(), models.teacher())
        history = distiller.fit(**arguments, verbose=0).history
        results.append((distiller.get_weights(), history))
    for weights, history in results[1:]:
        for one, other in zip(weights, results[0][0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
        assert history.keys() == results[0][1].keys()
        for name, values in history.items():
            np.testing.assert_allclose(values, results[0][1][name], rtol=1e-5, err_msg=name)


def test_fit_takes_its_arguments_by_position_as_keras_does(data, models):
    x, y, _ = data
    distiller = compile_distiller(models.student(), models.teacher())
    history = distiller.fit(x, y, 4, 2, 0)
    assert len(history.history["loss"]) == 2
    assert int(distiller.optimizer.iterations) == 12


def test_evaluate_and_predict_are_the_compiled_students_own(data, models):
    x, y, sample_weight = data
    student = models.student(l2=0.05, norm=True)
    distiller = compile_distiller(student, models.teacher())
    distiller.fit(x, y, batch_size=4, verbose=0)
    student.compile("sgd", CrossEntropy(from_logits=True), ["accuracy"])
    for weights in (None, sample_weight):
        # 21 samples in batches of 4: the last one has a single sample.
        ours = distiller.evaluate(
            x, y, sample_weight=weights, batch_size=4, verbose=0, return_dict=True
        )
        theirs = student.evaluate(
            x, y, sample_weight=weights, batch_size=4, verbose=0, return_dict=True
        )
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))
    np.testing.assert_array_equal(distiller(x), student(x))


def test_validation_is_the_students_evaluation_at_the_epochs_end(data, models):
    x, y, sample_weight = data
    student = models.student()
    distiller = compile_distiller(student, models.teacher())
    history = distiller.fit(
        x, y, batch_size=4, epochs=2, validation_data=(x[:7], y[:7], sample_weight[:7]), verbose=0
    ).history
    student.compile("sgd", CrossEntropy(from_logits=True), ["accuracy"])
    loss, accuracy = student.evaluate(x[:7], y[:7], sample_weight=sample_weight[:7], verbose=0)
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)
    np.testing.assert_allclose(history["val_accuracy"][-1], accuracy, rtol=1e-6)
    assert not any(name.startswith("val_soft") for name in history)


def test_evaluation_and_prediction_change_no_weight_and_no_statistic(data, models):
    x, y, _ = data
    distiller = compile_distiller(models.student(norm=True), models.teacher())
    distiller.fit(x, y, batch_size=4, verbose=0)
    before = distiller.get_weights()
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    distiller.test_on_batch(x, y)
    for one, other in zip(distiller.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_moves_the_students_statistics_and_nothing_of_the_teachers(data, models):
    x, y, _ = data
    student, teacher = models.student(norm=True), models.teacher(norm=True)
    teacher_before, mean_before = teacher.get_weights(), student.layers[2].moving_mean.numpy()
    distiller = compile_distiller(student, teacher)
    distiller.fit(x, y, batch_size=4, verbose=0)
    for one, other in zip(teacher.get_weights(), teacher_before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(student.layers[2].moving_mean.numpy() - mean_before).max() > 1e-3


class Counter(L.Layer):
    """Counts how often it is run, and in which mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.modes = []

    def call(self, inputs, training=None):
        mode = training

        def note(value):
            self.modes.append(mode)
            return value

        outputs = tf.py_function(note, [inputs], inputs.dtype)
        outputs.set_shape(inputs.shape)
        return tf.stop_gradient(outputs - inputs) + inputs


def counted(name, layers):
    counter = Counter(name=f"{name}_counter")
    inputs = keras.Input((4,))
    x = counter(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name), counter


def test_each_model_runs_once_a_step_the_teacher_always_for_inference(data):
    x, y, _ = data
    student, of_student = counted("student", [L.Dense(3)])
    teacher, of_teacher = counted("teacher", [L.Dense(8, activation="relu"), L.Dense(3)])
    distiller = compile_distiller(
        student, teacher, losses=[SoftTargets(1.0, name="a"), SoftTargets(4.0)]
    )
    of_student.modes.clear()
    of_teacher.modes.clear()
    distiller.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert of_student.modes == [True] * 12
    assert of_teacher.modes == [False] * 12
    distiller.evaluate(x, y, batch_size=4, verbose=0)
    assert of_student.modes[12:] == [False] * 6
    assert len(of_teacher.modes) == 12  # evaluation is the student's alone


def test_the_teacher_is_not_among_the_weights(data, models, tmp_path):
    x, y, _ = data
    student, teacher = models.student(), models.teacher()
    distiller = compile_distiller(student, teacher)
    distiller.fit(x, y, batch_size=4, verbose=0)
    own = {id(weight) for weight in student.weights}
    assert {id(weight) for weight in distiller.weights} == own
    assert {id(v) for v in distiller.trainable_variables} <= own
    assert distiller.count_params() == student.count_params()
    for ending in (".weights.h5", ".h5"):
        student.save_weights(tmp_path / f"student{ending}")
        distiller.save_weights(tmp_path / f"distiller{ending}")
        own = stored_shapes(tmp_path / f"student{ending}")
        assert own == sorted(tuple(weight.shape) for weight in student.weights)
        assert stored_shapes(tmp_path / f"distiller{ending}") == own


def stored_shapes(path):
    """Shapes of what a weights file holds beside the state of metrics and optimizer."""
    found = []

    def note(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith(("metrics", "optimizer")):
            found.append(item.shape)

    with h5py.File(path) as file:
        file.visititems(note)
    return sorted(found)


@pytest.mark.parametrize("steps", [2, 4])
def test_several_steps_an_execution_train_alike(data, models, steps):
    x, y, _ = data
    weights = []
    for together in (1, steps):
        distiller = Distiller(models.student(), models.teacher())
        distiller.compile(
            keras.optimizers.Adam(0.01),
            CrossEntropy(from_logits=True),
            steps_per_execution=together,
        )
        distiller.fit(x[:20], y[:20], batch_size=2, epochs=2, shuffle=False, verbose=0)
        weights.append(distiller.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_teacher_alone_can_teach_without_any_labels(data, models):
    x, _, _ = data
    student, teacher = models.student(), models.teacher()
    distiller = Distiller(student, teacher, hard_label_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(x, epochs=30, verbose=0).history
    assert set(history) == {"loss", "soft_targets_loss", "regularization_loss"}
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_another_size_and_scaling_for_the_teacher(data, models):
    x, y, _ = data
    student, teacher = models.student(), models.teacher(features=2)

    def halved(inputs):
        return 2.0 * inputs[:, ::2] + 1.0

    distiller = compile_distiller(
        student, teacher, teacher_preprocessing=halved, losses=[SoftTargets(2.0)]
    )
    z_t = np.float64(teacher(2.0 * x[:, ::2] + 1.0))
    z_s = np.float64(student(x))
    p = softmax(z_t / 2, axis=-1)
    expected = 4 * (p * (log_softmax(z_t / 2, axis=-1) - log_softmax(z_s / 2, axis=-1))).sum(-1)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets_loss"], expected.mean(), rtol=1e-5)


def test_models_that_end_in_softmax_give_the_soft_loss_of_their_logits(data, models):
    x, y, _ = data
    teacher = models.teacher()
    with_softmax = keras.Model(teacher.input, L.Softmax()(teacher.output), name="ending")
    values = []
    for softmax_student, given in ((False, teacher), (True, with_softmax)):
        student = models.student(softmax=softmax_student)
        distiller = Distiller(student, given)
        distiller.compile("sgd", CrossEntropy(from_logits=not softmax_student))
        values.append(distiller.train_on_batch(x, y, return_dict=True))
    for name in ("loss", "hard_labels_loss", "soft_targets_loss"):
        np.testing.assert_allclose(values[1][name], values[0][name], rtol=1e-4, err_msg=name)


def test_float64_inputs_and_labels_of_one_column(data, models):
    x, y, _ = data
    values = []
    for inputs, labels in ((x, y), (x.astype(np.float64), y[:, None])):
        distiller = compile_distiller(models.student(), models.teacher())
        values.append(distiller.train_on_batch(inputs, labels, return_dict=True)["loss"])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)


@pytest.fixture
def mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    keras.mixed_precision.set_global_policy("float32")


def test_mixed_precision_scales_the_loss_and_keeps_the_terms_in_float32(
    data, models, mixed_precision
):
    x, y, _ = data
    student = models.student()
    assert student.layers[1].compute_dtype == "float16"
    keras.mixed_precision.set_global_policy("float32")  # a student loaded later: still scaled
    teacher = models.teacher()
    distiller = compile_distiller(student, teacher, optimizer=keras.optimizers.SGD(0.05))
    assert isinstance(distiller.optimizer, keras.mixed_precision.LossScaleOptimizer)
    seen = {}

    class Spy(SoftTargets):
        def compute(self, step):
            values = super().compute(step)
            seen.update(student=step.student.logits.dtype, values=values.dtype)
            return values

    distiller = compile_distiller(
        student, teacher, losses=[Spy()], optimizer=keras.optimizers.SGD(0.05)
    )
    history = distiller.fit(x, y, batch_size=7, epochs=40, verbose=0).history
    assert seen == {"student": tf.float32, "values": tf.float32}
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < 0.8 * history["loss"][0]


def test_a_float32_student_gets_its_inputs_whole_under_a_mixed_policy(models):
    student, teacher = models.student(), models.teacher()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        distiller = compile_distiller(student, teacher)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert not isinstance(distiller.optimizer, keras.mixed_precision.LossScaleOptimizer)
    # 1 + 2^-13 is 1 in float16.
    inputs = np.full((1, 4), 1 + 2.0**-13, np.float32)
    np.testing.assert_array_equal(distiller(inputs), student(inputs))
    assert (distiller(inputs).numpy() != student(np.ones((1, 4), np.float32)).numpy()).any()
