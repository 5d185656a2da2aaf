"""A Python function as a teacher: what it is given, what it gives, and what a user sees."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.teachers import waiting
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.teachers.failures import find_python_error
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy
W = np.random.default_rng(3).normal(0, 1, (4, 3)).astype(np.float32)


def linear(x):
    return x @ W


def in_a_step(teacher, size=4):
    """The teacher as a training step runs it: compiled, for batches of any size."""
    return tf.function(
        lambda x: teacher.observe(x).logits, input_signature=[tf.TensorSpec((None, size))]
    )


def distilled(student, teacher, x, y, **kwargs):
    distiller = Distiller(student, teacher, hard_label_weight=0.3, losses=[SoftTargets(2.0)])
    distiller.compile(keras.optimizers.SGD(0.1), CrossEntropy(from_logits=True), **kwargs)
    return distiller


def soft_targets(student_logits, teacher_logits, temperature):
    z_s, z_t = np.float64(student_logits), np.float64(teacher_logits)
    p = softmax(z_t / temperature, axis=-1)
    logs = log_softmax(z_t / temperature, axis=-1) - log_softmax(z_s / temperature, axis=-1)
    return temperature**2 * (p * logs).sum(axis=-1)


def test_a_function_gives_its_logits_inside_a_compiled_step_whatever_the_batch():
    step = in_a_step(CallableTeacher(linear, output_shape=3))
    rng = np.random.default_rng(0)
    for count in (1, 2, 7):
        x = rng.normal(0, 1, (count, 4)).astype(np.float32)
        np.testing.assert_allclose(step(x), x @ W, rtol=1e-6)


def test_a_batch_of_no_samples_is_not_handed_to_the_function():
    teacher = CallableTeacher(lambda x: 1 / 0, output_shape=3)
    assert in_a_step(teacher)(np.zeros((0, 4), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("eagerly", [False, True])
def test_distilling_from_a_function_gives_the_loss_of_the_formula(data, models, eagerly):
    x, y, _ = data
    student = models.student()
    distiller = distilled(student, linear, x, y, run_eagerly=eagerly)
    before = student(x).numpy()
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = soft_targets(before, np.float64(x) @ W, 2.0).mean()
    np.testing.assert_allclose(logs["soft_targets_loss"], expected, rtol=1e-5)
    history = distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)  # 8, 8 and 5 samples
    assert history.history["loss"][1] < logs["loss"]


def test_probabilities_of_a_function_become_logits_in_log_space():
    given = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    teacher = CallableTeacher(lambda x: given, output_shape=3, outputs="probabilities")
    logits = in_a_step(teacher)(np.zeros((2, 4), np.float32))
    np.testing.assert_allclose(logits[0], np.log(given[0]), rtol=1e-6)
    np.testing.assert_allclose(softmax(np.float64(logits), axis=-1), given, atol=1e-30)


def test_probabilities_that_are_taken_for_logits_are_refused(data, models):
    def probabilities(x):
        return softmax(linear(x), axis=-1)

    x, y, _ = data
    for outputs in ("auto", "logits"):  # auto: with an output shape, nothing was measured
        teacher = CallableTeacher(probabilities, output_shape=3, outputs=outputs)
        with pytest.raises(DataError, match=r"sum to 1.*teacher_outputs=\"probabilities\" to the"):
            distilled(models.student(), teacher, x, y).fit(x, y, verbose=0)
    # A regression may give shares, which sum to 1, too.
    in_a_step(CallableTeacher(probabilities, output_shape=3, outputs="values"))(x)


@pytest.mark.parametrize("given", ["function", "teacher"])
def test_probabilities_are_taken_for_what_they_were_found_to_be(data, models, capsys, given):
    def probabilities(x):
        return softmax(np.float64(linear(x)), axis=-1)

    x, y, _ = data
    student = models.student()
    teacher = probabilities if given == "function" else CallableTeacher(probabilities)
    distiller = distilled(student, teacher, x, y)
    assert "'probabilities' is a function; its outputs are taken as probabilities (they sum to 1)" \
        in capsys.readouterr().err  # fmt: skip
    expected = soft_targets(student(x), np.float64(x) @ W, 2.0).mean()
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets_loss"], expected, rtol=1e-4)
    distilled(student, linear, x, y)
    assert (
        "taken as logits (they do not sum to 1). Pass teacher_outputs=" in capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", ["arrays", "dataset", "list"])
def test_answers_that_differ_on_the_same_batch_are_reported_once(data, models, capsys, kind):
    x, y, _ = data
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((4,)), L.Dense(20, "relu"), L.Dropout(0.5), L.Dense(3)])

    def rounds(x, calls=[]):  # noqa: B006
        calls.append(1)
        return linear(x) * (1 + 1e-6 * len(calls))

    for function, said in (
        (lambda x: net(x, training=True).numpy(), 1),
        (lambda x: net(x, training=False).numpy(), 0),
        (rounds, 0),
    ):
        teacher = CallableTeacher(function, output_shape=3)
        teacher = [teacher, models.teacher()] if kind == "list" else teacher
        distiller = distilled(models.student(), teacher, x, y)
        if kind == "dataset":
            distiller.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(7), epochs=2, verbose=0)
        else:
            distiller.fit(x, y, 7, epochs=2, verbose=0)
        found = capsys.readouterr().err
        assert found.count("answers differently on the same batch, by up to") == said


PREDICTS = """
import numpy as np, tf_keras as keras, kdtflite
from kdtflite.distillation.teachers import waiting
waiting._PATIENCE = 1.0
def net(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
big = net(1)
calls = {"predict": lambda x: big.predict(x, verbose=0), "call": lambda x: big(x).numpy()}
x, y = np.ones((8, 4), np.float32), np.zeros(8, int)
for name, teach in calls.items():
    distiller = kdtflite.Distiller(net(2), teach)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    try:
        distiller.fit(x, y, verbose=0)
        print(name, "trained")
    except kdtflite.KdtfliteError as error:
        print(name, error)
"""


@pytest.mark.slow
def test_a_teacher_that_waits_for_the_thread_that_waits_for_it_ends_with_a_sentence():
    found = subprocess.run(
        [sys.executable, "-c", PREDICTS],
        env={**os.environ, "TF_NUM_INTEROP_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    first, second = found.stdout.splitlines()
    assert first.startswith("predict The teacher '<lambda>' stands still: it waits for TensorFlow")
    assert "model(x, training=False)" in first
    assert second == "call trained"


def test_a_slow_teacher_is_waited_for(monkeypatch):
    monkeypatch.setattr(waiting, "count_inter_op_threads", lambda: 1)
    monkeypatch.setattr(waiting, "_PATIENCE", 0.3)
    monkeypatch.setattr(waiting, "_GLANCE", 0.05)
    # It sleeps, as one that waits for a server does: outside TensorFlow.
    assert waiting.call_watched(lambda x: time.sleep(0.8) or x, 5, name="slow") == 5
    with pytest.raises(TimeoutError, match="own"):
        waiting.call_watched(raise_timeout, name="its own error")
    with pytest.raises(ZeroDivisionError):
        waiting.call_watched(lambda: 1 / 0, name="its own error")


def raise_timeout():
    raise TimeoutError("its own")


def test_the_output_shape_is_learned_from_a_batch_of_two_zeros(models):
    seen = []

    def teach(x):
        seen.append((x.shape, x.dtype, x.any()))
        return linear(x)

    teacher = CallableTeacher(teach)
    teacher.check_inputs(models.student())
    assert teacher.output_shape == (None, 3)
    assert seen == [((2, 4), np.float32, False)]


def test_several_inputs_come_in_the_structure_that_fit_was_given(data):
    x, y, _ = data
    inputs = [keras.Input((2,), name="left"), keras.Input((2,), name="right")]
    student = keras.Model(inputs, L.Dense(3)(L.Concatenate()(inputs)))
    parts = {"left": x[:, :2], "right": x[:, 2:]}
    seen = []

    def of_tuple(given):
        seen.append(type(given))
        return np.concatenate(given, axis=1) @ W

    def of_dict(given):
        return np.concatenate([given["left"], given["right"]], axis=1) @ W

    expected = soft_targets(student(parts), np.float64(x) @ W, 2.0).mean()
    for teacher, given in (
        (CallableTeacher(of_tuple), [parts["left"], parts["right"]]),
        (CallableTeacher(of_dict, output_shape=3), parts),
    ):
        distiller = Distiller(student, teacher, hard_label_weight=0.5, losses=[SoftTargets(2.0)])
        distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
        logs = distiller.fit(given, y, batch_size=21, verbose=0).history
        np.testing.assert_allclose(logs["soft_targets_loss"][0], expected, rtol=1e-5)
    assert set(seen) == {tuple}


def test_preprocessing_runs_before_the_function():
    teacher = CallableTeacher(linear, output_shape=3, preprocessing=lambda x: 2.0 * x - 1.0)
    x = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)
    np.testing.assert_allclose(in_a_step(teacher)(x), (2 * x - 1) @ W, rtol=1e-5)


def test_a_function_that_changes_its_array_leaves_the_students_inputs_alone():
    def teach(x):
        x -= 100.0
        return x[:, :3]

    teacher = CallableTeacher(teach, output_shape=3)

    @tf.function
    def step(x):
        return teacher.observe(x).logits, x + 0.0

    given = np.ones((2, 4), np.float32)
    logits, x = step(tf.constant(given))
    np.testing.assert_array_equal(x, given)
    np.testing.assert_array_equal(logits, given[:, :3] - 100)


class TorchLike:
    """What a tensor of PyTorch does when NumPy asks for its values."""

    __module__ = "torch"

    def __array__(self, *args, **kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


WRONG = {
    "other classes": (lambda x: x, ShapeMismatchError, r"shape \(5, 3\).*\(5, 4\)"),
    "one for all": (lambda x: W[0], ShapeMismatchError, r"shape \(5, 3\).*\(3,\)"),
    "NaN": (lambda x: linear(x) * [[np.nan]] * 3, DataError, "cannot be read|finite"),
    "one NaN": (
        lambda x: linear(x) + np.array([0, 0, np.nan, 0, 0])[:, None],
        DataError,
        "NaN or infinity for 1 of 5 samples, the first at 2",
    ),
    "too big": (lambda x: np.full((5, 3), 1e300), DataError, "NaN or infinity for 5 of 5"),
    "text": (lambda x: np.full((5, 3), "a"), DataError, "Expected numbers.*<U1"),
    "nothing": (lambda x: None, DataError, "Expected numbers.*NoneType"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0]], DataError, "cannot be read as a NumPy array"),
    "torch": (lambda x: TorchLike(), DataError, r"requires grad.*\n?.*outputs\.detach\(\)"),
    "its own": (lambda x: {}["key"], KeyError, "key"),
    "end of data": (lambda x: next(iter(())), StopIteration, ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_error_of_a_function_is_the_users_own_whether_compiled_or_not(case):
    function, kind, message = WRONG[case]
    if case == "NaN":
        function = lambda x: linear(x) * np.nan  # noqa: E731
    teacher = CallableTeacher(function, output_shape=3)
    x = np.zeros((5, 4), np.float32)
    if kind is StopIteration:  # Python itself makes another error of it inside pytest.raises
        with pytest.raises(StopIteration):
            teacher(x)
    else:
        with pytest.raises(kind, match=message):
            teacher(x)
    with pytest.raises(tf.errors.OpError) as raised:
        in_a_step(teacher)(x)
    assert not isinstance(raised.value, tf.errors.OutOfRangeError)  # Keras would end the epoch
    error = find_python_error(raised.value)
    assert type(error) is kind
    if case in ("its own", "end of data"):
        assert error.__notes__ == [
            f"Raised by the teacher {teacher.name!r} for inputs of shape (5, 4)."
        ]
    assert find_python_error(raised.value) is None  # it is not kept any longer
    assert find_python_error(ValueError("another")) is None


def test_few_unclaimed_errors_are_kept():
    from kdtflite.distillation.teachers import failures

    step = in_a_step(CallableTeacher(lambda x: 1 / 0, output_shape=3))
    for _ in range(8):
        with pytest.raises(tf.errors.OpError):
            step(np.zeros((1, 4), np.float32))
    assert len(failures._raised) <= 4


@pytest.mark.parametrize("outputs", ["probabilities", "sigmoid"])
def test_logits_that_are_said_to_be_probabilities_are_refused(outputs):
    teacher = CallableTeacher(linear, output_shape=3, outputs=outputs)
    with pytest.raises(DataError, match=r"Expected probabilities.*Received: values from -"):
        teacher(np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32))


def test_a_probe_that_fails_says_what_to_pass(models):
    student = models.student()
    with pytest.raises(
        ConfigurationError, match=r"zeros of shape \(2, 4\).*ZeroDivision.*output_sh"
    ):
        CallableTeacher(lambda x: 1 / 0).check_inputs(student)
    with pytest.raises(ShapeMismatchError, match=r"\(2, classes\).*Received: \(4, 3\)"):
        CallableTeacher(lambda x: np.zeros((4, 3))).check_inputs(student)
    with pytest.raises(ConfigurationError, match=r"output shape .* is not known.*output_shape="):
        _ = CallableTeacher(linear).output_shape
    open_student = keras.Sequential([keras.Input((None, 4)), L.Dense(3)])
    with pytest.raises(ConfigurationError, match=r"sizes of its inputs open: \(None, 4\)"):
        CallableTeacher(linear).check_inputs(open_student)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match=r"Expected function= to be a function"):
        CallableTeacher(3)
    with pytest.raises(
        ConfigurationError, match=r"no kind of outputs 'logit'.*Did you mean 'logits'"
    ):
        CallableTeacher(linear, outputs="logit")
    for shape in ((3,), (8, 3), 0, (None, 0)):
        with pytest.raises(ConfigurationError, match=r"output_shape=\(None, classes\)"):
            CallableTeacher(linear, output_shape=shape)


def test_a_function_needs_a_fingerprint_for_a_cache():
    with pytest.raises(ConfigurationError, match=r"fingerprint= to CallableTeacher"):
        CallableTeacher(linear).fingerprint()
    first = CallableTeacher(linear, fingerprint="epoch 1").fingerprint()
    assert first == hashlib.sha256(b"logits\nepoch 1").hexdigest()
    assert first != CallableTeacher(linear, fingerprint="epoch 2").fingerprint()


def test_layers_of_a_function_cannot_be_tapped_nor_gradients_taken():
    teacher = CallableTeacher(linear, output_shape=3)
    assert not teacher.differentiable
    with pytest.raises(ConfigurationError, match=r"CallableTeacher, whose layers cannot be tapped"):
        teacher.tap(["block/conv"])
    x = tf.ones((2, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = teacher.observe(x).logits
    assert tape.gradient(logits, x) is None
