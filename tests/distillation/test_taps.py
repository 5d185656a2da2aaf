"""Feature taps: the right tensors, of one forward pass, that changes nothing else."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.errors import ConfigurationError
from kdtflite.quantization import quantize_aware

L = keras.layers
CrossEntropy = keras.losses.SparseCategoricalCrossentropy


@pytest.fixture
def nested():
    """A model in a model in a model."""
    keras.utils.set_random_seed(0)
    a = keras.Input((3,), name="a")
    innermost = keras.Model(a, L.Dense(2, "tanh", name="deep")(a), name="innermost")
    b = keras.Input((4,), name="b")
    x = L.Dense(3, name="wide")(b)
    inner = keras.Model(b, L.Dense(5, name="after")(innermost(x)), name="inner")
    c = keras.Input((4,), name="c")
    x = inner(L.Dense(4, name="first")(c))
    return keras.Model(c, L.Dense(3, name="out")(x), name="outer")


def test_layers_inside_nested_models_give_what_they_compute(nested, data):
    x = data[0]
    paths = ["first", "inner/wide", "inner/innermost/deep", "inner/innermost", "inner", "out"]
    tapped = TappedModel(nested, paths, role="student")
    assert tapped.shapes == {
        "first": (None, 4),
        "inner/wide": (None, 3),
        "inner/innermost/deep": (None, 2),
        "inner/innermost": (None, 2),
        "inner": (None, 5),
        "out": (None, 3),
    }
    outputs, features = tapped(x, training=False)
    assert list(features) == paths

    def dense(layer, values):
        return values @ np.float64(layer.kernel) + np.float64(layer.bias)

    inner = nested.get_layer("inner")
    first = dense(nested.get_layer("first"), np.float64(x))
    wide = dense(inner.get_layer("wide"), first)
    deep = np.tanh(dense(inner.get_layer("innermost").get_layer("deep"), wide))
    after = dense(inner.get_layer("after"), deep)
    expected = [first, wide, deep, deep, after, dense(nested.get_layer("out"), after)]
    for path, values in zip(paths, expected, strict=True):
        np.testing.assert_allclose(features[path], values, rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_array_equal(outputs, nested(x))


def test_the_model_stays_as_it_is(nested, data):
    config, layers = nested.get_config(), [layer.name for layer in nested.layers]
    TappedModel(nested, ["inner/wide"], role="student")(data[0], training=True)
    assert nested.get_config() == config
    assert [layer.name for layer in nested.layers] == layers


def test_several_inputs_and_outputs_and_a_sequential_model():
    keras.utils.set_random_seed(0)
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    x = L.Concatenate(name="joined")([left, L.Dense(4, name="of_right")(right)])
    model = keras.Model({"left": left, "right": right}, [L.Dense(2)(x), L.Dense(1)(x)])
    given = {"left": np.ones((5, 2), np.float32), "right": np.ones((5, 3), np.float32)}
    outputs, features = TappedModel(model, ["joined"], role="student")(given, training=False)
    for one, other in zip(outputs, model(given), strict=True):
        np.testing.assert_array_equal(one, other)
    expected = np.concatenate([given["left"], model.get_layer("of_right")(given["right"])], axis=1)
    np.testing.assert_allclose(features["joined"], expected, rtol=1e-6)

    layers = [keras.Input((3,)), L.Dense(4, name="hidden"), L.ReLU(name="bent"), L.Dense(2)]
    chain = keras.Sequential(layers)
    x = np.random.default_rng(0).normal(0, 1, (6, 3)).astype(np.float32)
    outputs, features = TappedModel(chain, ["hidden", "bent"], role="student")(x, training=False)
    np.testing.assert_array_equal(outputs, chain(x))
    np.testing.assert_allclose(features["bent"], np.maximum(features["hidden"], 0))


def test_the_second_output_of_a_layer():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 4))
    attention = L.MultiHeadAttention(2, 3, name="mha")
    out, scores = attention(inputs, inputs, return_attention_scores=True)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(out)) + 0 * tf.reduce_sum(scores))
    x = np.random.default_rng(0).normal(0, 1, (3, 5, 4)).astype(np.float32)
    _, features = TappedModel(model, ["mha", "mha:1"], role="student")(x, training=False)
    out, scores = attention(x, x, return_attention_scores=True)
    np.testing.assert_allclose(features["mha"], out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features["mha:1"], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sum(features["mha:1"], axis=-1), 1.0, rtol=1e-5)
    with pytest.raises(ConfigurationError, match="has 2 outputs, numbered from 0"):
        TappedModel(model, ["mha:2"], role="student")


def test_layers_that_are_not_there_or_not_one_tensor_are_refused(nested):
    with pytest.raises(ConfigurationError, match=r"no layer 'inner/wid'.*'inner/wide'.*first, "):
        TappedModel(nested, ["inner/wid"], role="student")
    with pytest.raises(ConfigurationError, match="no layer 'first/wide'"):
        TappedModel(nested, ["first/wide"], role="student")
    with pytest.raises(ConfigurationError, match="no layer 'first:x'"):
        TappedModel(nested, ["first:x"], role="student")
    one, two = keras.Input((4,)), keras.Input((4,))
    shared = L.Dense(2, name="shared")
    twice = keras.Model([one, two], L.Add()([shared(one), shared(two)]), name="twice")
    with pytest.raises(ConfigurationError, match=r"'shared' is used 2 times in the teacher"):
        TappedModel(twice, ["shared"], role="teacher")

    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ConfigurationError, match="which has no graph"):
        TappedModel(Own(), ["x"], role="student")


def conv_student():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 1), name="image")
    x = L.Conv2D(4, 3, name="conv", use_bias=False)(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    x = L.Dense(5, "relu", name="dense")(L.Flatten(name="flat")(x))
    return keras.Model(inputs, L.Dense(3, name="out")(x), name="student")


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return rng.uniform(0, 1, (24, 6, 6, 1)).astype(np.float32), rng.integers(0, 3, 24)


def test_layers_that_quantize_aware_wrapped_answer_to_their_old_names(images):
    x, y = images
    student = quantize_aware(conv_student(), x)
    paths = ["conv", "norm", "relu", "dense"]  # convolution, normalization and ReLU are fused
    tapped = TappedModel(student, paths, role="student")
    outputs, features = tapped(x, training=False)
    np.testing.assert_array_equal(outputs, student(x, training=False))
    float_student = conv_student()
    _, exact = TappedModel(float_student, ["relu", "dense"], role="student")(x, training=False)
    for path in ("relu", "dense"):  # to the rounding of eight bits
        difference = np.abs(features[path] - exact[path]).max()
        assert difference < 0.05 * np.abs(exact[path]).max()
    # Fake-quantized: at most 256 values.
    assert len(np.unique(features["relu"])) <= 256
    teacher = conv_student()
    distiller = Distiller(student, teacher, losses=[SoftTargets(), Hints("relu", "relu")])
    distiller.compile(keras.optimizers.Adam(0.01), CrossEntropy(from_logits=True))
    before = student.get_weights()
    history = distiller.fit(x, y, epochs=3, verbose=0).history
    assert np.isfinite(history["hints_loss"]).all()
    assert any(np.abs(a - b).max() > 0 for a, b in zip(student.get_weights(), before, strict=True))


def test_training_false_inside_the_graph_is_respected(data):
    x = data[0]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    frozen = L.BatchNormalization(name="frozen")
    mid = frozen(L.Dense(6, name="dense")(inputs), training=False)
    dropped = L.Dropout(0.5, name="dropped")(mid)
    model = keras.Model(inputs, L.Dense(3)(dropped))
    frozen.set_weights([np.full(6, 2.0), np.full(6, 1.0), np.full(6, 0.5), np.full(6, 4.0)])
    before = frozen.get_weights()
    tapped = TappedModel(model, ["dense", "frozen", "dropped"], role="student")
    _, features = tapped(x, training=True)
    expected = 2.0 * (np.float64(features["dense"]) - 0.5) / np.sqrt(4.0 + 1e-3) + 1.0
    np.testing.assert_allclose(features["frozen"], expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(frozen.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    # What is not pinned follows the step's mode.
    assert (features["dropped"].numpy() == 0).mean() > 0.2
    _, features = tapped(x, training=False)
    np.testing.assert_array_equal(features["dropped"], features["frozen"])


class Counting(L.Layer):
    """Counts its runs, whatever the graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.runs = 0

    def call(self, inputs):
        def note(values):
            self.runs += 1
            return values

        outputs = tf.py_function(note, [inputs], inputs.dtype)
        outputs.set_shape(inputs.shape)
        return tf.stop_gradient(outputs - inputs) + inputs


def counted(name, *, l2=0.0, norm=False):
    keras.utils.set_random_seed(4)
    counter = Counting(name="counter")
    inputs = keras.Input((4,))
    x = counter(inputs)
    activity = keras.regularizers.L2(l2) if l2 else None
    x = L.Dense(5, name="hidden", activity_regularizer=activity)(x)
    if norm:
        x = L.BatchNormalization(name="norm", momentum=0.5)(x)
    return keras.Model(inputs, L.Dense(3, name="out")(x), name=name), counter


def test_one_forward_pass_a_step_of_either_model(data):
    x, y, _ = data
    student, of_student = counted("student")
    teacher, of_teacher = counted("teacher")
    distiller = Distiller(student, teacher, losses=[SoftTargets(), Hints("hidden", "hidden")])
    distiller.compile("sgd", CrossEntropy(from_logits=True))
    of_student.runs = of_teacher.runs = 0
    distiller.fit(x, y, batch_size=7, epochs=2, verbose=0)
    assert of_student.runs == of_teacher.runs == 6
    distiller.evaluate(x, y, batch_size=7, verbose=0)
    assert (of_student.runs, of_teacher.runs) == (9, 6)


def test_distillers_that_share_a_teacher_tap_layers_of_their_own(data):
    x, y, _ = data
    teacher = ModelTeacher(counted("teacher")[0])
    distillers = [
        Distiller(counted("student")[0], teacher, losses=[Hints(layer, layer)])
        for layer in ("hidden", "out")
    ]
    Distiller(counted("student")[0], teacher)  # taps none
    for distiller in distillers:
        distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
        got = distiller.train_on_batch(x, y, return_dict=True)
        np.testing.assert_allclose(got["hints_loss"], 0.0, atol=1e-6)  # the same network, twice


def test_statistics_move_once_a_step_and_not_in_evaluation(data):
    x, y, _ = data
    student, _ = counted("student", norm=True)
    teacher, _ = counted("teacher", norm=True)
    losses = [SoftTargets(), Hints("norm", "norm")]
    distiller = Distiller(student, teacher, losses=losses)
    distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
    hidden = np.float64(student.get_layer("hidden")(x))
    norm = student.get_layer("norm")
    distiller.train_on_batch(x, y)
    # Momentum 0.5, once: half of the batch's statistics, and half of 0 and 1.
    np.testing.assert_allclose(norm.moving_mean, 0.5 * hidden.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, 0.5 + 0.5 * hidden.var(0), rtol=1e-4)
    before = [*distiller.get_weights(), *teacher.get_weights()]
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    for one, other in zip([*distiller.get_weights(), *teacher.get_weights()], before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(teacher.get_layer("norm").moving_mean, np.zeros(5))


@pytest.mark.parametrize("tapped", [False, True])
def test_activity_regularization_counts_once(data, tapped):
    x, y, _ = data
    student, _ = counted("student", l2=0.1)
    teacher, _ = counted("teacher", l2=7.0)  # a teacher's is none of the student's business
    losses = [SoftTargets(), *([Hints("hidden", "hidden")] if tapped else [])]
    distiller = Distiller(student, teacher, losses=losses)
    distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
    hidden = np.float64(student.get_layer("hidden")(x))
    got = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(
        got["regularization_loss"], 0.1 * np.square(hidden).sum() / 21, rtol=1e-5
    )


def test_masks_are_carried_through_a_tapped_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(8, 3, mask_zero=True, name="words")(inputs)
    x = L.GRU(4, return_sequences=True, name="gru")(x)
    model = keras.Model(inputs, L.Dense(2, name="out")(x))
    words = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]], np.int32)
    tapped = TappedModel(model, ["gru"], role="student")
    outputs, seen = tapped.observe(words, training=False)
    np.testing.assert_array_equal(outputs, model(words))
    np.testing.assert_array_equal(seen.mask, words != 0)
    # A GRU repeats its last state where the mask says so: it was told of the mask.
    gru = seen.features["gru"].numpy()
    np.testing.assert_array_equal(gru[0, 3], gru[0, 2])
    np.testing.assert_array_equal(gru[1, 4], gru[1, 1])


def test_gradients_by_the_inputs_of_one_pass(nested, data):
    x = tf.constant(data[0])
    with contextlib.ExitStack() as recording:
        outputs, seen = TappedModel(nested, ["inner"], role="student").observe(
            x, training=False, recording=recording
        )
        gradient = seen.input_gradient(tf.reduce_sum(outputs, axis=1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        expected = tf.reduce_sum(nested(x), axis=1)
    np.testing.assert_allclose(gradient, tape.gradient(expected, x), rtol=1e-5, atol=1e-6)
