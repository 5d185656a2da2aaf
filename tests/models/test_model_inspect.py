"""What a model takes and gives."""

import pytest
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models import count_classes, find_output_kind, get_input_shapes
from kdtflite.runtime import import_tfmot

L = keras.layers


def _model(*layers):
    return keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), *layers], name="net")


@pytest.mark.parametrize(
    ("layers", "kind"),
    [
        ([L.Dense(3)], "logits"),
        ([L.Dense(3, activation="softmax")], "probabilities"),
        ([L.Dense(3, activation="sigmoid")], "sigmoid"),
        ([L.Dense(3, activation="log_softmax")], "logits"),
        ([L.Dense(3), L.Softmax()], "probabilities"),
        ([L.Dense(3), L.Activation("softmax")], "probabilities"),
        ([L.Dense(3, activation="softmax"), L.Activation("linear")], "probabilities"),
        ([L.Dense(3), L.Activation("linear")], "logits"),
        ([L.Dense(4), L.Reshape((2, 2)), L.Flatten(), L.Dropout(0.5)], "logits"),
        ([L.Dense(4, activation="softmax"), L.Reshape((2, 2))], "probabilities"),
        ([L.Dense(3, activation=L.Softmax())], "probabilities"),
        ([L.Dense(3, activation="relu")], "unknown"),
        ([L.Dense(3), L.ReLU()], "unknown"),
        ([L.Dense(3), L.BatchNormalization()], "unknown"),
        ([L.Reshape((4, 4)), L.LSTM(3)], "unknown"),
        ([L.Reshape((4, 4)), L.TimeDistributed(L.Dense(3, activation="softmax"))], "probabilities"),
    ],
)
def test_the_kind_of_output_is_read_from_the_last_layers(layers, kind):
    assert find_output_kind(_model(*layers)) == kind


def test_a_convolution_averaged_over_positions_gives_logits():
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, L.GlobalAveragePooling2D()(L.Conv2D(10, 1)(x)))
    assert find_output_kind(model) == "logits"
    assert count_classes(model) == 10


@pytest.mark.parametrize(("activation", "kind"), [("softmax", "probabilities"), (None, "logits")])
def test_a_nested_model_at_the_end_is_looked_into(activation, kind):
    inner = keras.Sequential([keras.Input((4,)), L.Dense(3, activation=activation)])
    x = keras.Input((4,))
    assert find_output_kind(keras.Model(x, L.Flatten()(inner(L.Dense(4)(x))))) == kind


@pytest.mark.parametrize(("activation", "kind"), [("softmax", "probabilities"), (None, "logits")])
def test_a_quantization_wrapper_is_looked_through(activation, kind):
    quantize = import_tfmot().quantization.keras.quantize_model
    assert find_output_kind(quantize(_model(L.Dense(3, activation=activation)))) == kind
    assert find_output_kind(quantize(_model(L.Dense(3), L.Activation(activation)))) == kind


def test_a_model_without_a_graph_is_unknown():
    class Opaque(keras.Model):
        def call(self, x):
            return x

    assert find_output_kind(Opaque()) == "unknown"
    with pytest.raises(UnsupportedModelError, match=r"how many classes .*without a static shape"):
        count_classes(Opaque())
    with pytest.raises(UnsupportedModelError, match=r"\(Opaque\) has no symbolic inputs"):
        get_input_shapes(Opaque())


def test_classes_and_inputs_are_counted():
    a, b = keras.Input((4,), name="a"), keras.Input((None, 2), name="b")
    model = keras.Model([a, b], L.Dense(7)(L.Add()([a, L.GlobalMaxPooling1D()(L.Dense(4)(b))])))
    assert count_classes(model) == 7
    assert get_input_shapes(model) == {"a": (None, 4), "b": (None, None, 2)}


def test_several_outputs_are_refused_by_name():
    x = keras.Input((4,))
    model = keras.Model(x, [L.Dense(2, name="p")(x), L.Dense(3, name="q")(x)], name="two")
    for function in (find_output_kind, count_classes):
        with pytest.raises(UnsupportedModelError, match=r"'two' with 2 outputs, p, q"):
            function(model)
