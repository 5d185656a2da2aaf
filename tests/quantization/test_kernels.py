"""The rows of Keras layers: what one of them teaches, and what all of them must agree on."""

import numpy as np
import tf_keras as keras

from kdtflite.quantization import quantize_aware
from kdtflite.quantization.kernels import KERNELS, Kernel
from kdtflite.quantization.layers import FakeQuantized

L = keras.layers


class Reversed(L.Layer):
    def call(self, inputs):
        return inputs[:, ::-1]


class OwnDense(L.Dense):
    pass


def test_a_layer_is_taught_by_one_row(monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, OwnDense(2, name="own")(Reversed(name="reversed")(inputs)))
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    monkeypatch.setitem(KERNELS, OwnDense, Kernel("own", {"kernel": (-1,)}))
    monkeypatch.setitem(KERNELS, Reversed, Kernel("input"))
    aware = quantize_aware(model, x)
    assert {row.layer: row.how for row in aware.quantization.layers} == {
        "reversed": "folded",
        "own": "trained",
    }
    layer = aware.get_layer("quant_own")
    assert isinstance(layer, FakeQuantized)
    # One scale per output channel: each column is rounded to 127 steps of its own largest weight.
    kernel = model.get_layer("own").get_weights()[0]
    step = np.abs(kernel).max(axis=0) / 127
    rounded = layer.weight_quantizers["kernel"](kernel).numpy()
    np.testing.assert_allclose(rounded, np.round(kernel / step) * step, atol=1e-6)


def test_every_row_is_consistent():
    for kind, kernel in KERNELS.items():
        name = kind.__name__
        # A layer has an integer kernel, or becomes layers that have one.
        assert kernel.output is not None or kernel.rewrite is not None, name
        if kernel.output is None:
            computed = (kernel.weights, kernel.grid, kernel.fuses_relu, kernel.joins_inputs)
            assert not any(computed), name
        if kernel.folds_batch_norm:
            # A folded normalization multiplies each channel by its own factor.
            assert all(axes for axes in kernel.weights.values()), name
