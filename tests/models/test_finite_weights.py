"""The first weight that is not finite, by the layer's own name."""

import keras as keras3
import numpy as np
import tf_keras as keras

from kdtflite.models import describe_first_non_finite

L = keras.layers


def nested():
    inner_in = keras.Input((4,))
    inner = keras.Model(inner_in, L.BatchNormalization(name="norm")(inner_in), name="inner")
    inputs = keras.Input((3,))
    x = inner(L.Dense(4, name="first")(inputs))
    return keras.Model(inputs, L.Dense(2, name="quant_last")(x))


def test_finite_weights_have_none():
    assert describe_first_non_finite(nested()) is None


def test_the_first_in_the_order_of_the_data_is_named():
    model = nested()
    last, norm = model.get_layer("quant_last"), model.get_layer("inner").get_layer("norm")
    last.kernel.assign(np.full((4, 2), np.inf))
    assert describe_first_non_finite(model) == (
        "'kernel' of the layer 'last' (NaN or infinity in 8 of 8 values)"
    )
    norm.moving_variance.assign([1.0, np.nan, 1.0, -np.inf])
    assert describe_first_non_finite(model) == (
        "'moving_variance' of the layer 'inner/norm' (NaN or infinity in 2 of 4 values)"
    )


def test_whole_numbers_and_half_precision_are_read():
    keras.backend.clear_session()
    model = keras.Sequential([keras.Input((1,)), L.Dense(1, name="half", dtype="bfloat16")])
    model.get_layer("half").counted = model.get_layer("half").add_weight(
        "counted", (), "int32", initializer="zeros", trainable=False
    )
    assert describe_first_non_finite(model) is None
    model.get_layer("half").bias.assign([np.inf])
    assert describe_first_non_finite(model) == (
        "'bias' of the layer 'half' (NaN or infinity in 1 of 1 value)"
    )


def test_a_subclassed_model_and_one_of_keras_3():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.scale = self.add_weight("scale", (2,), initializer="ones")

        def call(self, inputs):
            return inputs * self.scale

    own = Own()
    own.scale.assign([np.nan, 1.0])
    assert describe_first_non_finite(own) == (
        "'scale' of the layer 'own' (NaN or infinity in 1 of 2 values)"
    )
    other = keras3.Sequential([keras3.Input((2,)), keras3.layers.Dense(1, name="out")])
    assert describe_first_non_finite(other) is None
    other.layers[0].bias.assign([np.nan])
    assert describe_first_non_finite(other) == (
        "'bias' of the layer 'out' (NaN or infinity in 1 of 1 value)"
    )
