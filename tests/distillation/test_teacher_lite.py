"""A .tflite file as a teacher: float or quantized, softmax or logits."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import softmax

from kdtflite.conversion.convert import convert
from kdtflite.distillation import Distiller
from kdtflite.distillation.teachers.lite import LiteTeacher
from kdtflite.errors import ConfigurationError, DataError, ModelFileError, ShapeMismatchError
from kdtflite.lite.model import LiteModel

L = keras.layers
X = np.random.default_rng(1).uniform(-1, 1, (40, 6)).astype(np.float32)


def network(activation=None, scale=1.0):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            L.Dense(8, activation="relu"),
            L.Dense(4, activation=activation),
        ]
    )
    model.set_weights([w * scale for w in model.get_weights()])
    return model


def float_file(model):
    """The float file of a model, made in this process."""
    return LiteModel(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def student():
    keras.utils.set_random_seed(6)
    return keras.Sequential([keras.Input((6,), name="x"), L.Dense(4)])


@pytest.fixture(scope="module")
def files():
    integer = {
        ("int8", activation): convert(
            network(activation, 3.0), X, target="int8", io_dtype=io, progress=False
        )
        for activation, io in ((None, None), ("softmax", None), ("sigmoid", "uint8"))
    }
    ends = (None, "softmax")
    return integer | {("float32", end): float_file(network(end, 3.0)) for end in ends}


def in_a_step(teacher):
    return tf.function(
        lambda x: teacher.observe(x).logits, input_signature=[tf.TensorSpec((None, 6))]
    )


def test_float_files_give_the_logits_of_the_model_they_were_made_of(files):
    expected = network(None, 3.0)(X).numpy()
    logits = in_a_step(LiteTeacher(files["float32", None]))(X)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    probabilities = LiteTeacher(files["float32", "softmax"])
    assert probabilities.outputs == "probabilities"
    np.testing.assert_allclose(
        softmax(np.float64(in_a_step(probabilities)(X)), axis=-1),
        softmax(np.float64(expected), axis=-1),
        rtol=1e-4,
        atol=1e-7,
    )


def test_int8_logits_are_dequantized_and_nothing_is_remarked(files, capsys):
    lite = files["int8", None]
    teacher = LiteTeacher(lite)
    assert teacher.outputs == "logits"
    codes = lite.predict(X, dequantize=False).astype(np.float64)
    spec = lite.outputs[0]
    np.testing.assert_allclose(
        in_a_step(teacher)(X), (codes - spec.zero_point) * spec.scale, rtol=1e-6
    )
    assert "levels" not in capsys.readouterr().err


def test_an_int8_softmax_is_floored_at_half_a_step_and_that_is_said_once(files, capsys):
    lite = files["int8", "softmax"]
    codes = lite.predict(X, dequantize=False).astype(np.int64) + 128
    assert (codes == 0).any()  # there is a tail to lose
    teacher = LiteTeacher(lite, outputs="probabilities")
    step = in_a_step(teacher)
    logits = step(X)
    step(X)
    expected = np.log(np.where(codes == 0, 0.5, codes) / 256)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
    said = capsys.readouterr().err
    assert said.count("256 levels") == 1
    assert re.search(
        r"softmax of 256 levels.*below 0\.002 are lost.*\"auto\" reads the logits", said
    )


def test_a_uint8_sigmoid_is_kept_off_zero_and_one(files, capsys):
    lite = files["int8", "sigmoid"]
    assert lite.outputs[0].dtype == "uint8"
    codes = lite.predict(X, dequantize=False).astype(np.float64)
    teacher = LiteTeacher(lite, outputs="sigmoid")
    p = np.clip(codes / 256, 1 / 512, 511 / 512)
    np.testing.assert_allclose(in_a_step(teacher)(X), np.log(p / (1 - p)), rtol=1e-5, atol=1e-6)
    assert "sigmoid of 256 levels" in capsys.readouterr().err


def test_a_quantized_softmax_behind_a_float_output_is_noticed(capsys):
    converter = tf.lite.TFLiteConverter.from_keras_model(network("softmax", 3.0))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in X)
    lite = LiteModel(converter.convert())
    assert lite.outputs[0].dtype == "float32"
    assert lite.operators[-1].name == "DEQUANTIZE"
    logits = LiteTeacher(lite, outputs="probabilities")(X)
    assert float(tf.reduce_min(logits)) == pytest.approx(np.log(1 / 512))
    assert "256 levels" in capsys.readouterr().err


@pytest.mark.parametrize("key", [("float32", "softmax"), ("int8", "softmax"), ("int8", None)])
def test_a_student_learns_from_a_file(files, tmp_path, key):
    path = files[key].save(tmp_path / "teacher.tflite")
    distiller = Distiller(student(), path, hard_label_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05))
    y = np.zeros(len(X), np.int64)
    losses = distiller.fit(X, y, batch_size=16, epochs=4, verbose=0).history["soft_targets_loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_batches_of_no_and_of_one_sample(files):
    step = in_a_step(LiteTeacher(files["int8", "softmax"]))
    assert step(X[:0]).shape == (0, 4)
    np.testing.assert_allclose(step(X[:1]), step(X)[:1], rtol=1e-6)


def test_inputs_go_by_name_whatever_their_order_in_the_file():
    inputs = [keras.Input((3,), name="zebra"), keras.Input((3,), name="ant")]
    both = L.Concatenate()([inputs[0], 10.0 * inputs[1]])
    model = keras.Model(inputs, L.Dense(4)(both))
    teacher = LiteTeacher(float_file(model), outputs="logits")
    parts = {"zebra": X[:, :3], "ant": X[:, 3:]}
    expected = model(parts)
    np.testing.assert_allclose(teacher(parts), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ConfigurationError, match=r"named .*Expected a dict.*2 without names.*lambda x"
    ):
        teacher((parts["zebra"], parts["ant"]))
    teacher.check_inputs(model)  # from here on it knows what the student's are called
    given = (parts["zebra"], parts["ant"])
    np.testing.assert_allclose(tf.function(teacher)(given), expected, rtol=1e-4, atol=1e-5)


def test_one_of_several_outputs_has_to_be_named():
    inputs = keras.Input((6,), name="x")
    first = L.Dense(4, name="first")(inputs)
    second = L.Dense(3, activation="softmax", name="second")(inputs)
    model = keras.Model(inputs, [first, second])
    lite = float_file(model)
    with pytest.raises(
        ConfigurationError, match=r"2 outputs.*output=.*first, second|second, first"
    ):
        LiteTeacher(lite)
    with pytest.raises(ConfigurationError, match=r"no output of the teacher 'tflite' 'third'"):
        LiteTeacher(lite, output="third")
    teacher = LiteTeacher(lite, output="second")
    assert (teacher.outputs, teacher.output_shape) == ("probabilities", (None, 3))
    np.testing.assert_allclose(tf.exp(teacher(X)), model(X)[1], rtol=1e-4, atol=1e-6)


def test_other_inputs_classes_and_files_are_refused(files, tmp_path):
    narrow = keras.Sequential([keras.Input((5,)), L.Dense(4)])
    with pytest.raises(
        ShapeMismatchError, match=r"teacher input \(None, 6\), student input \(None, 5"
    ):
        Distiller(narrow, LiteTeacher(files["float32", None]))
    with pytest.raises(ShapeMismatchError, match=r"different numbers of classes"):
        Distiller(
            keras.Sequential([keras.Input((6,)), L.Dense(5)]), LiteTeacher(files["float32", None])
        )
    with pytest.raises(ModelFileError, match=r"missing"):
        LiteTeacher(tmp_path / "none.tflite")
    with pytest.raises(DataError, match=r"NaN"):
        LiteTeacher(files["float32", None])(np.full((2, 6), np.nan, np.float32))


def test_a_file_that_does_not_show_what_it_gives_has_to_be_explained():
    lite = float_file(network("tanh"))
    with pytest.raises(ConfigurationError, match=r'does not show.*Pass outputs="logits"'):
        LiteTeacher(lite)
    assert LiteTeacher(lite, outputs="values").outputs == "values"


def test_preprocessing_makes_the_files_inputs(files):
    teacher = LiteTeacher(files["float32", None], preprocessing=lambda x: x[:, ::-1])
    teacher.check_inputs(student())
    np.testing.assert_allclose(
        in_a_step(teacher)(X), network(None, 3.0)(X[:, ::-1]), rtol=1e-4, atol=1e-5
    )


def test_the_fingerprint_is_that_of_the_bytes(files):
    first, other = (LiteTeacher(files["float32", a]).fingerprint() for a in (None, "softmax"))
    again = LiteTeacher(LiteModel(files["float32", None].content)).fingerprint()
    assert len(first) == 64
    assert first == again != other


def read_inner(lite, rows):
    """Returns what goes into the last operator, asked of an interpreter that keeps it."""
    inner = lite.operators[-1].inputs[0]
    spec = lite.inputs[0]
    interpreter = lite.interpreter(keep_tensors=True)
    (scale,), (zero,) = (
        lite.tensors[inner].scales or (1.0,),
        lite.tensors[inner].zero_points or (0,),
    )
    values = []
    for row in rows:
        interpreter.set_tensor(spec.index, spec.quantize(row[None]))
        interpreter.invoke()
        values.append((interpreter.get_tensor(inner)[0].astype(np.float64) - zero) * scale)
    return np.array(values)


def test_auto_reads_the_logits_that_go_into_a_quantized_softmax(files, capsys):
    lite = files["int8", "softmax"]
    teacher = LiteTeacher(lite)
    assert teacher.outputs == "logits"
    expected = read_inner(lite, X)
    np.testing.assert_allclose(in_a_step(teacher)(X), expected, rtol=1e-6)
    # More than the file's own codes say: their zeros are told apart.
    codes = lite.predict(X, dequantize=False)
    row = np.argmax((codes == -128).sum(axis=1))
    assert len(np.unique(codes[row])) < len(np.unique(expected[row]))
    said = capsys.readouterr().err
    assert re.search(r"quantized softmax of 256 levels; the logits .* read instead", said)
    assert teacher.fingerprint() != LiteTeacher(lite, outputs="probabilities").fingerprint()


@pytest.mark.parametrize("key", [("float32", "softmax"), ("int8", "softmax"), ("int8", "sigmoid")])
def test_logits_of_a_file_that_ends_in_probabilities_are_those_that_go_into_it(files, key):
    teacher = LiteTeacher(files[key], outputs="logits")
    np.testing.assert_allclose(teacher(X), read_inner_of_any(files[key], X), rtol=1e-6, atol=1e-6)


def read_inner_of_any(lite, rows):
    # Behind a uint8 sigmoid the converter adds a QUANTIZE; before it, too.
    operators = [o for o in lite.operators if o.name in ("SOFTMAX", "LOGISTIC")]
    return read_inner(_WithLast(lite, operators[-1]), rows)


class _WithLast:
    """A file as if its last operator were another."""

    def __init__(self, lite, operator):
        self._lite, self.operators = lite, (operator,)

    def __getattr__(self, name):
        return getattr(self._lite, name)


def test_auto_reads_what_goes_into_a_quantized_sigmoid_and_keeps_its_kind(files):
    teacher = LiteTeacher(files["int8", "sigmoid"])
    assert teacher.outputs == "sigmoid"
    expected = read_inner_of_any(files["int8", "sigmoid"], X)
    near = np.abs(expected) < 6  # beyond, float32 has few values left between p and 1
    assert near.sum() > 50
    np.testing.assert_allclose(np.asarray(teacher(X))[near], expected[near], atol=1e-3)
    # A code of the file's own sigmoid says no more than 5.5, half a step below 1.
    assert np.abs(teacher(X)).max() > 6.5
