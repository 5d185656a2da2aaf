"""What is refused or reported before training, what is rewritten, and the names of outputs."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite.errors import ConversionError, TrainingError, UnsupportedModelError
from kdtflite.quantization import quantize_aware
from kdtflite.quantization.ranges import suspend_rounding
from kdtflite.quantization.suitability import refuse_tied_weights

L = keras.layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_operation(function, shape=(6,)):
    inputs = keras.Input(shape)
    result = function(L.Dense(4, name="first")(inputs))
    return keras.Model(inputs, L.Dense(2, name="last")(result))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.sin(x),
        lambda x: tf.floor(x) + x,
        lambda x: x % 0.5,
        lambda x: tf.cast(tf.cast(3 * x, tf.int32), tf.float32),
        lambda x: tf.abs(tf.signal.stft(x, 4, 2))[:, 0],
    ],
    ids=["sin", "floor", "mod", "cast", "stft"],
)
def test_operations_without_an_integer_kernel_are_named_before_training(function, capsys):
    aware = quantize_aware(one_operation(function))
    rows = {row.layer: row for row in aware.quantization.layers if row.how == "float"}
    assert len(rows) >= 1
    assert all("in float" in row.why or "numbers in float" in row.why for row in rows.values())
    said = " ".join(capsys.readouterr().err.split())
    assert "no integer kernel: convert() will refuse the model as an integer file" in said
    assert next(iter(rows)) in said
    assert aware.quantization.summary().endswith(f"{len(rows)} float")


def test_a_loop_that_cannot_be_unrolled_is_named_before_training():
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, L.Dense(2)(L.GRU(3, name="steps")(L.Dense(4)(inputs))))
    how = {row.layer: (row.how, row.why) for row in quantize_aware(model).quantization.layers}
    assert how["steps"][0] == "float"
    assert "unrolled" in how["steps"][1]


REWRITTEN = {
    "elu": tf.nn.elu,
    "euclidean norm": lambda x: tf.math.reduce_euclidean_norm(x, axis=-1, keepdims=True),
    "log_sigmoid": tf.math.log_sigmoid,
    "mask": lambda x: x * tf.cast(x > 0.1, tf.float32),
    "negative": lambda x: -x,
    "norm": lambda x: tf.norm(x, axis=-1, keepdims=True),
    "power": lambda x: 2.0**x,
    "square": tf.square,
    "standard deviation": lambda x: tf.math.reduce_std(x, axis=-1, keepdims=True),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_operations_become_exactly_what_the_kernels_compute(name):
    model = one_operation(REWRITTEN[name])
    x = normal(32, 6)
    aware = quantize_aware(model, x)
    assert {row.how for row in aware.quantization.layers} <= {"trained", "folded"}
    with suspend_rounding(aware):
        np.testing.assert_allclose(aware(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_rewritten_operations_convert():
    inputs = keras.Input((6,))
    x = L.Dense(4)(inputs)
    parts = [REWRITTEN[name](x) for name in sorted(REWRITTEN)]
    model = keras.Model(inputs, L.Dense(2)(L.Concatenate()(parts)))
    data = normal(64, 6)
    aware = quantize_aware(model, data)
    lite = kdtflite.convert(aware, data, progress=False)
    assert kdtflite.compare(aware, lite, data).largest_difference_steps <= 3


@pytest.mark.parametrize("kind", [L.GRU, L.LSTM, L.SimpleRNN])
def test_a_recurrent_layer_starts_from_states_that_are_inputs(kind):
    keras.utils.set_random_seed(0)
    count = 2 if kind is L.LSTM else 1
    inputs = keras.Input((5, 3), name="frames")
    states = [keras.Input((4,), name=f"state_{i}") for i in range(count)]
    layer = kind(4, return_state=True, bias_initializer="uniform", name="cell")
    model = keras.Model([inputs, *states], layer(inputs, initial_state=states))
    data = [normal(32, 5, 3), *(normal(32, 4, seed=i + 1) for i in range(count))]
    aware = quantize_aware(model, dict(zip(model.input_names, data, strict=True)))
    with suspend_rounding(aware):
        for given, expected in zip(aware(data), model(data), strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-5)
    # The state matters.
    assert np.abs(model(data)[0] - model([data[0], *(0 * s for s in data[1:])])[0]).max() > 0.1


def test_both_ways_start_from_states_of_their_own():
    keras.utils.set_random_seed(0)
    inputs, states = keras.Input((5, 3)), [keras.Input((4,)) for _ in range(2)]
    layer = L.Bidirectional(L.GRU(4))
    model = keras.Model([inputs, *states], layer(inputs, initial_state=states))
    data = [normal(32, 5, 3), normal(32, 4, seed=1), normal(32, 4, seed=2)]
    aware = quantize_aware(model, dict(zip(model.input_names, data, strict=True)))
    with suspend_rounding(aware):
        np.testing.assert_allclose(aware(data), model(data), atol=1e-5)


def test_a_stateful_layer_is_refused_with_the_way_out():
    inputs = keras.Input(batch_size=1, shape=(5, 3))
    inner = keras.Sequential([L.Bidirectional(L.LSTM(4, stateful=True, name="memory"))])
    model = keras.Model(inputs, inner(L.Dense(3)(inputs)))
    with pytest.raises(UnsupportedModelError, match=r"memory.*stateful.*return_state=True"):
        quantize_aware(model)


def test_a_weight_of_two_layers_is_refused_by_name():
    inputs = keras.Input((6,))
    one, other = L.Dense(6, name="one"), L.Dense(6, name="other")
    outputs = other(one(inputs))
    other.kernel = one.kernel
    model = keras.Model(inputs, outputs)
    with pytest.raises(UnsupportedModelError, match="'one' and 'other' share the weight 'kernel'"):
        quantize_aware(model)


def test_a_table_that_an_operation_uses_too_is_refused_by_name():
    tokens = keras.Input((4,), dtype="int32")
    table = L.Embedding(10, 6, name="words")
    h = L.Dense(6)(table(tokens))
    model = keras.Model(tokens, tf.matmul(h, table.embeddings, transpose_b=True))
    with pytest.raises(UnsupportedModelError, match=r"'words' and the operation .* 'embeddings'"):
        quantize_aware(model)


def test_a_weight_of_two_layers_of_keras_3_is_refused_too():
    # The conversion to tf_keras would give each layer a weight of its own.
    weight = SimpleNamespace(path="model/one/kernel", name="kernel")
    layers = [SimpleNamespace(name=name, weights=[weight]) for name in ("one", "other")]
    with pytest.raises(UnsupportedModelError, match="'one' and 'other' share the weight 'kernel'"):
        refuse_tied_weights(SimpleNamespace(layers=layers))


def test_one_layer_called_twice_keeps_one_weight():
    inputs = keras.Input((6,))
    layer = L.Dense(6, name="both")
    aware = quantize_aware(keras.Model(inputs, layer(layer(inputs))))
    assert len([weight for weight in aware.trainable_weights if "kernel" in weight.name]) == 1


def test_outputs_keep_the_names_by_which_losses_are_given(tmp_path):
    inputs = keras.Input((8, 8, 2), name="image")
    h = L.Conv2D(4, 3, activation="relu")(inputs)
    mask = L.Conv2D(1, 1, activation="sigmoid", name="mask")(h)
    label = L.Dense(3, name="label")(L.GlobalAveragePooling2D()(h))
    model = keras.Model(inputs, [mask, label])
    x = np.abs(normal(32, 8, 8, 2))
    aware = quantize_aware(model, x)
    assert aware.output_names == ["mask", "label"]
    aware.save(tmp_path / "student.keras")
    for network in (aware, kdtflite.load_model(tmp_path / "student.keras")):
        network.compile("sgd", loss={"mask": "binary_crossentropy", "label": "mse"})
        labels = {"mask": np.ones((32, 6, 6, 1)), "label": np.zeros((32, 3))}
        history = network.fit(x, labels, verbose=0).history
        assert {"mask_loss", "label_loss"} <= set(history)


def test_statistics_that_are_not_those_of_the_data_are_reported(capsys):
    inputs = keras.Input((8, 8, 2))
    h = inputs
    for i in range(3):
        h = L.ReLU()(L.BatchNormalization(name=f"norm{i}")(L.Conv2D(4, 3, name=f"conv{i}")(h)))
        h = h * 30.0
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(h)))
    x = normal(64, 8, 8, 2)
    outputs = {}
    for ranges in ("moving", "fixed", "learned"):
        outputs[ranges] = quantize_aware(model, x, ranges=ranges)
        said = " ".join(capsys.readouterr().err.split())
        assert "batch normalizations hold statistics far from those of the data (norm" in said
        assert ("begins the ranges anew" in said) is (ranges == "moving")
    # In training the batch's statistics count: 30 times a few standard deviations.
    for ranges in ("fixed", "learned"):
        low, high = [
            layer.quantizer.read_range(layer.range)
            for layer in outputs[ranges].layers
            if layer.name == "quant_relu" or layer.name.startswith("quant_re_lu")
        ][-1]
        assert low == 0
        assert 2 < high < 15
    kdtflite.quantize_post_training(model, x)
    assert "batch normalizations" not in capsys.readouterr().err


def test_settled_statistics_are_not_reported(trained, digits, capsys):
    quantize_aware(trained, digits[0][:300])
    assert "batch normalizations" not in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_before_the_converter_sees_it(value):
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, name="spoiled")])
    x = normal(32, 3)
    aware = quantize_aware(model, x)
    for network in (model, aware):
        layer = network.get_layer("spoiled") if network is model else network.layers[-1].layer
        layer.bias.assign([0.0, value])
        with pytest.raises(ConversionError, match=r"finite weights to convert.*'bias' .*'spoiled'"):
            kdtflite.convert(network, x, progress=False)


def test_fit_of_a_quantization_aware_model_stops_with_the_layer_and_the_cause(tmp_path):
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, activation="relu"), L.Dense(1)])
    x = normal(64, 3)
    aware = quantize_aware(model, x)
    aware.save(tmp_path / "student.keras")
    for network in (aware, kdtflite.load_model(tmp_path / "student.keras")):
        network.compile(keras.optimizers.SGD(1e20), "mse")
        with pytest.raises(TrainingError, match=r"(?s)learning rate.*of the layer 'dense"):
            network.fit(x, x[:, :1], epochs=3, verbose=0)
    again = quantize_aware(model, x)
    again.compile(keras.optimizers.SGD(1e20), "mse")
    again.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
