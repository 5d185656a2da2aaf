"""Recurrent layers are unrolled before the converter, which fails on a loop over steps."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

from kdtflite.conversion.convert import convert
from kdtflite.errors import ConversionError, NotFullyIntegerError, UnsupportedModelError

L = keras.layers
STEPS, CHANNELS = 7, 3
BIAS = keras.initializers.RandomNormal(stddev=0.3, seed=3)
RECURRENT = {
    "LSTM": lambda: L.LSTM(4, bias_initializer=BIAS),
    "GRU": lambda: L.GRU(4, bias_initializer=BIAS),
    "GRU, reset before": lambda: L.GRU(4, reset_after=False, go_backwards=True),
    "SimpleRNN": lambda: L.SimpleRNN(4, activation="relu"),
    "RNN of a cell": lambda: L.RNN(L.LSTMCell(4, bias_initializer=BIAS)),
    "both directions": lambda: L.Bidirectional(L.GRU(4)),
    "a nested model": lambda: keras.Sequential([L.LSTM(4, return_sequences=True), L.LSTM(3)]),
}


def make_sequences():
    """Sequences that end early, and have a step of zeros between."""
    x = np.random.default_rng(0).normal(size=(64, STEPS, CHANNELS)).astype(np.float32)
    for i in range(0, 64, 2):
        x[i, STEPS - i % 5 :] = 0
    x[1:20, 2] = 0
    return x


def make_model(layer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, CHANNELS), name="sequence")
    return keras.Model(inputs, L.Dense(3, name="logits")(layer(L.Masking()(inputs))))


@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_a_float_file_computes_what_keras_computes(layer):
    x, model = make_sequences(), make_model(layer())
    lite = convert(model, target="float32", progress=False)
    assert [spec.name for spec in (*lite.inputs, *lite.outputs)] == ["sequence", "logits"]
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize("layer", ["LSTM", "GRU"])
def test_an_integer_file_is_proven_without_training(layer):
    x, model = make_sequences(), make_model(RECURRENT[layer]())
    lite = convert(model, x, progress=False)
    wanted = model.predict(x, verbose=0)
    # Codes of 8 bits in every step: an error of some steps of 255.
    assert np.abs(lite.predict(x) - wanted).max() < 20 / 255 * np.ptp(wanted)


def test_outputs_keep_the_names_that_keras_gives_them():
    inputs = keras.Input((STEPS, CHANNELS))
    model = keras.Model(inputs, L.LSTM(4, return_state=True, name="memory")(inputs))
    lite = convert(model, target="float32", progress=False)
    x = make_sequences()
    given, wanted = lite.predict(x), model.predict(x, verbose=0)
    assert set(given) == set(model.output_names)
    for name, values in zip(model.output_names, wanted, strict=True):
        np.testing.assert_allclose(given[name], values, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "error"), [("float32", ConversionError), ("int8", NotFullyIntegerError)]
)
def test_sequences_of_any_length_are_refused_with_the_way_out(target, error):
    inputs = keras.Input((None, CHANNELS))
    model = keras.Model(inputs, L.GRU(4, name="memory")(inputs))
    with pytest.raises(error, match=r"no loop over steps, from layer 'memory'.*Input\(\(steps"):
        convert(model, make_sequences() if target == "int8" else None, target, progress=False)


@pytest.mark.parametrize("target", ["float32", "int8"])
def test_a_stateful_layer_is_refused_by_name(target):
    inputs = keras.Input((STEPS, CHANNELS), batch_size=2)
    model = keras.Model(inputs, L.LSTM(4, stateful=True, name="memory")(inputs))
    with pytest.raises(UnsupportedModelError, match=r"'memory' \(LSTM\) is stateful"):
        convert(model, make_sequences() if target == "int8" else None, target, progress=False)
