"""TFMOT's own mistakes in rewriting a graph, and that they are noticed."""

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.errors import UnsupportedModelError
from kdtflite.quantization import configs

L = keras.layers
X = np.random.default_rng(0).random((96, 8, 8, 1), dtype=np.float32)


def concatenated(*branches):
    i = keras.Input((8, 8, 1))
    joined = L.Concatenate()([branch(i) for branch in branches])
    return keras.Model(i, L.Dense(4)(L.GlobalMaxPooling2D()(joined)))


def fused(x):
    return L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(x)))


def plain(x):
    return L.Conv2D(8, 3, padding="same")(x)


def separable(x):
    return L.SeparableConv2D(8, 3, padding="same")(x)


def pooled(x):
    return L.MaxPooling2D(3, strides=1, padding="same")(x)


@pytest.mark.parametrize(
    "branches",
    [(fused, plain), (plain, fused), (separable, plain), (fused, plain, pooled), (plain,) * 4],
    ids=lambda branches: "+".join(branch.__name__ for branch in branches),
)
def test_a_concatenation_keeps_the_order_of_its_inputs(branches):
    keras.utils.set_random_seed(1)
    model = concatenated(*branches)
    wrapped = kdtflite.quantize_aware(model, X)
    before, after = model.predict(X, verbose=0), wrapped.predict(X, verbose=0)
    # 8 bits round each of a few layers by about 1/255 of its range; a swap is of the range itself.
    assert np.abs(before - after).max() < 0.06 * np.abs(before).max()


def test_one_tensor_concatenated_with_itself():
    i = keras.Input((8, 8, 1))
    branch = fused(i)
    model = keras.Model(i, L.Dense(4)(L.GlobalMaxPooling2D()(L.Concatenate()([branch, branch]))))
    wrapped = kdtflite.quantize_aware(model, X)
    difference = np.abs(model.predict(X, verbose=0) - wrapped.predict(X, verbose=0)).max()
    assert difference < 0.06 * np.abs(model.predict(X, verbose=0)).max()


def test_a_rewrite_that_changes_the_model_is_refused(monkeypatch):
    # TFMOT's own matching, as it is without our correction.
    monkeypatch.setattr(configs, "_match_in_order", configs._match)
    keras.utils.set_random_seed(1)
    with pytest.raises(UnsupportedModelError, match=r"changed what .* computes"):
        kdtflite.quantize_aware(concatenated(fused, plain), X)
    with pytest.raises(UnsupportedModelError, match=r"changed what .* computes"):
        kdtflite.quantize_aware(concatenated(fused, plain))


@pytest.mark.parametrize(
    "relu", [lambda: L.ReLU(), lambda: L.Activation("relu")], ids=["layer", "activation"]
)
@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (lambda: L.Conv2D(6, 3, name="w"), "kernel"),
        (lambda: L.DepthwiseConv2D(3, name="w"), "depthwise_kernel"),
        (lambda: L.Conv2DTranspose(3, 3, name="w"), "kernel"),
    ],
    ids=["conv", "depthwise", "transposed"],
)
def test_a_kernel_before_a_relu_layer_is_fake_quantized(layer, kernel, relu):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8, 8, 1)), layer(), relu(), L.Flatten(), L.Dense(4)])
    wrapped = kdtflite.quantize_aware(model, X)
    names = [weight.name for weight in wrapped.get_layer("quant_w").weights]
    assert any(name.endswith(f"{kernel}_min:0") for name in names)
    # Only the ReLU's output is quantized, as in the fused operator of the file.
    assert not any("activation_min" in name or "output_min" in name for name in names)
    how = {layer.layer: layer.how for layer in wrapped.quantization.layers}
    assert how["w"] == "trained"


def test_a_transposed_convolution_and_kernels_before_relu_convert_as_trained():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2DTranspose(4, 3),
            L.BatchNormalization(),
            L.ReLU(),
            L.Conv2D(6, 3),
            L.ReLU(),
            L.Flatten(),
            L.Dense(4),
        ]
    )
    wrapped = kdtflite.quantize_aware(model, X)
    lite = kdtflite.convert(wrapped, X, progress=False)
    parity = kdtflite.compare(wrapped, lite, X)
    # Untrained, so its classes nearly tie; the steps are what the kernels answer for.
    assert parity.largest_difference_steps <= 3
    assert parity.mean_difference_steps < 1
