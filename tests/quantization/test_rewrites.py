"""Rewrites: the new graph computes what the old one did, and converts as it trains."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import kdtflite
from kdtflite.errors import UnsupportedModelError
from kdtflite.quantization.kernels import KERNELS, Kernel
from kdtflite.quantization.rewriting import rewrite

L = keras.layers
X = np.random.default_rng(0).random((96, 8, 8, 1), dtype=np.float32)
IMAGE, SEQUENCE, VECTOR, FILM = (8, 8, 4), (6, 4), (8,), (3, 8, 8, 4)


def settled(model):
    """Gives every vector of weights random values, so that a wrong one is noticed."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(random.uniform(0.5, 2, weight.shape))
        elif len(weight.shape) == 1:
            weight.assign(random.normal(0.3, 0.5, weight.shape))
    return model


def one(layer, shape):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    return settled(keras.Model(inputs, layer(inputs)))


def of_itself(layer):
    """Calls a layer of two inputs on one tensor and on its double."""
    return lambda x: layer([x, x * 2.0])


def small_net():
    inputs = keras.Input(IMAGE)
    h = L.BatchNormalization()(L.Conv2D(4, 3, name="conv")(inputs))
    h = L.Flatten()(L.ReLU()(h))
    return keras.Model(inputs, L.Dense(5, name="dense")(h), name="small_net")


def difference(model, inputs):
    """Largest difference of the rewritten model, relative to the largest output."""
    new, _ = rewrite(model)
    before = tf.nest.flatten(model(inputs, training=False))
    after = tf.nest.flatten(new(inputs, training=False))
    assert [x.shape for x in before] == [x.shape for x in after]
    return max(
        float(np.abs(x - y).max() / np.abs(x).max()) for x, y in zip(before, after, strict=True)
    )


def kinds(model):
    return [type(layer).__name__ for layer in rewrite(model)[0].layers]


LAYERS = {
    "AdditiveAttention": (lambda: of_itself(L.AdditiveAttention()), SEQUENCE),
    "AdditiveAttention, no scale": (lambda: of_itself(L.AdditiveAttention(False)), SEQUENCE),
    "BatchNormalization": (lambda: L.BatchNormalization(), IMAGE),
    "BatchNormalization of vectors": (lambda: L.BatchNormalization(), VECTOR),
    "BatchNormalization, no scale": (lambda: L.BatchNormalization(scale=False), SEQUENCE),
    "Conv1D": (lambda: L.Conv1D(5, 3, strides=2, padding="same", activation="relu"), SEQUENCE),
    "Conv1D causal": (lambda: L.Conv1D(5, 3, padding="causal", dilation_rate=2), SEQUENCE),
    "Conv1D elu": (lambda: L.Conv1D(5, 3, activation="elu"), SEQUENCE),
    "Conv1DTranspose": (lambda: L.Conv1DTranspose(5, 3, strides=2), SEQUENCE),
    "Cropping1D": (lambda: L.Cropping1D((1, 2)), SEQUENCE),
    "Dense of images": (lambda: L.Dense(3, activation="tanh"), IMAGE),
    "Dense of sequences": (lambda: L.Dense(3, use_bias=False), SEQUENCE),
    "DepthwiseConv1D": (lambda: L.DepthwiseConv1D(3, depth_multiplier=2), SEQUENCE),
    "ELU": (lambda: L.ELU(0.3), IMAGE),
    "EinsumDense": (lambda: L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"), SEQUENCE),
    "GRU": (lambda: L.GRU(5), SEQUENCE),
    "GRU reset before": (lambda: L.GRU(5, reset_after=False, return_sequences=True), SEQUENCE),
    "GlobalAveragePooling1D": (lambda: L.GlobalAveragePooling1D(keepdims=True), SEQUENCE),
    "GlobalMaxPooling1D": (lambda: L.GlobalMaxPooling1D(), SEQUENCE),
    "GroupNormalization": (lambda: L.GroupNormalization(2), IMAGE),
    "GroupNormalization of sequences": (lambda: L.GroupNormalization(4), SEQUENCE),
    "Inception-ResNet's sum": (lambda: of_itself(CustomScaleLayer(0.17)), IMAGE),
    "LSTM": (lambda: L.LSTM(5, go_backwards=True, return_sequences=True), SEQUENCE),
    "LayerNormalization": (lambda: L.LayerNormalization(), IMAGE),
    "LayerNormalization of vectors": (lambda: L.LayerNormalization(center=False), VECTOR),
    "LayerScale": (lambda: LayerScale(0.1, 4), IMAGE),
    "MaxPooling1D": (lambda: L.MaxPooling1D(3, strides=2, padding="same"), SEQUENCE),
    "Normalization": (lambda: L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4]), IMAGE),
    "Normalization inverted": (lambda: L.Normalization(mean=0.5, variance=4.0, invert=True), IMAGE),
    "Rescaling": (lambda: L.Rescaling(1 / 255, -0.5), IMAGE),
    "SeparableConv1D": (lambda: L.SeparableConv1D(5, 3, activation="swish"), SEQUENCE),
    "SeparableConv2D": (lambda: L.SeparableConv2D(5, 3, depth_multiplier=2), IMAGE),
    "SimpleRNN": (lambda: L.SimpleRNN(5), SEQUENCE),
    "TimeDistributed": (lambda: L.TimeDistributed(L.Conv2D(4, 3, activation="relu")), FILM),
    "TimeDistributed Dense": (lambda: L.TimeDistributed(L.Dense(3)), SEQUENCE),
    "TimeDistributed model": (lambda: L.TimeDistributed(small_net()), FILM),
    "ThresholdedReLU": (lambda: L.ThresholdedReLU(0.4), IMAGE),
    "UnitNormalization": (lambda: L.UnitNormalization(), VECTOR),
    "UpSampling1D": (lambda: L.UpSampling1D(2), SEQUENCE),
    "ZeroPadding1D": (lambda: L.ZeroPadding1D((1, 2)), SEQUENCE),
    "both ways": (lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)), SEQUENCE),
    "both ways, summed": (lambda: L.Bidirectional(L.GRU(3), merge_mode="sum"), SEQUENCE),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_rewritten_layer_computes_the_same(name):
    layer, shape = LAYERS[name]
    model = one(layer(), shape)
    values = np.random.default_rng(1).normal(0.2, 1.5, (3, *shape)).astype(np.float32)
    assert difference(model, values) < 2e-6
    # It is another graph, not the same layer again.
    assert type(model.layers[-1]).__name__ not in set(kinds(model)) - {"BatchNormalization"}


@pytest.mark.parametrize(
    "name",
    [
        "elu",
        "hard_sigmoid",
        "mish",
        "selu",
        "softplus",
        "softsign",
        "swish",
        "gelu",
        "tanh",
        "softmax",
        "leaky_relu",
    ],
)
def test_a_rewritten_activation_computes_the_same_on_large_and_small_values(name):
    model = one(L.Activation(name), VECTOR)
    values = np.array([[-80, -20, -3, -1e-3, 0, 1e-3, 3, 80]], np.float32)
    assert difference(model, values) < 2e-6


def test_keras_3s_hard_sigmoid_is_not_keras_2s():
    from kdtflite.models.activations import hard_sigmoid, hard_silu

    values = np.array([[-4, -2.7, -1, 0, 1, 2.7, 4, 9]], np.float32)
    for function in (hard_sigmoid, hard_silu):
        assert difference(one(L.Activation(function), VECTOR), values) < 2e-6


def test_attention_with_causal_and_given_masks():
    keras.utils.set_random_seed(0)
    x, y = keras.Input((6, 8)), keras.Input((5, 8))
    mask = keras.Input((6, 5), dtype="bool")
    causal = L.MultiHeadAttention(2, 4, value_dim=3)(x, x, use_causal_mask=True)
    across = L.MultiHeadAttention(2, 4)(causal, y, attention_mask=mask)
    model = settled(keras.Model([x, y, mask], L.Attention()([across, y])))
    random = np.random.default_rng(0)
    allowed = random.random((3, 6, 5)) < 0.6
    allowed[:, :, 0] = True
    inputs = [random.normal(size=(3, n, 8)).astype(np.float32) for n in (6, 5)] + [allowed]
    # The only difference is the weight exp(-16) of a masked step.
    assert difference(model, inputs) < 1e-5


def test_masked_steps_have_no_weight_in_attention_averages_and_states():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((7,), dtype="int32")
    x = L.Embedding(20, 8, mask_zero=True)(tokens)
    x = L.MultiHeadAttention(2, 4)(x, x)
    y = L.LSTM(4, return_sequences=True)(x)
    model = keras.Model(tokens, [L.GlobalAveragePooling1D()(x), L.GRU(3)(y)])
    ids = np.array([[1, 2, 3, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9], [5, 0, 0, 0, 0, 0, 0]])
    assert difference(settled(model), ids) < 1e-5


def test_the_output_of_a_masked_step_is_kept():
    # Its query sees nothing, for which Keras takes the mean over all steps, as in a tagger.
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32")
    x = L.Embedding(20, 8, mask_zero=True)(tokens)
    model = settled(keras.Model(tokens, L.MultiHeadAttention(2, 4)(x, x)))
    ids = np.array([[0, 2, 3, 0, 0], [3, 4, 5, 6, 7], [0, 0, 0, 0, 0]])
    assert difference(model, ids) < 1e-5
    aware = kdtflite.quantize_aware(model, ids)
    lite = kdtflite.convert(aware, ids, progress=False)
    assert kdtflite.compare(aware, lite, ids, progress=False).largest_difference_steps <= 2


def test_masking_by_a_value():
    model = one(keras.Sequential([L.Masking(0.5), L.LSTM(3)]), SEQUENCE)
    values = np.random.default_rng(0).normal(size=(2, *SEQUENCE)).astype(np.float32)
    values[1, 4:] = 0.5
    assert difference(model, values) < 1e-6


def test_nested_models_are_opened_and_shared_layers_stay_shared():
    keras.utils.set_random_seed(0)
    i = keras.Input((6, 4))
    block = keras.Model(i, L.Add()([L.Conv1D(4, 3, padding="same", name="c")(i), i]), name="block")
    j = keras.Input((6, 4))
    model = settled(keras.Model({"j": j}, {"out": block(block(j))}))
    values = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    assert difference(model, {"j": values}) < 1e-6
    new, origin = rewrite(model)
    assert kinds(model).count("Conv2D") == 1
    assert len(new.trainable_weights) == 2
    assert origin["c_row"] == "block/c"


def test_a_chain_over_sequences_stays_an_image_between():
    model = one(
        keras.Sequential(
            [L.Conv1D(8, 3), L.BatchNormalization(), L.ReLU(), L.MaxPooling1D(2), L.Conv1D(8, 2)]
        ),
        SEQUENCE,
    )
    assert kinds(model) == [
        "InputLayer", "Reshape", "Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D", "Conv2D",
        "Reshape",
    ]  # fmt: skip


def test_batch_normalization_after_a_dense_layer_is_folded_into_a_convolution():
    model = one(keras.Sequential([L.Dense(5), L.BatchNormalization(), L.ReLU()]), VECTOR)
    assert kinds(model) == [
        "InputLayer", "Reshape", "Conv2D", "BatchNormalization", "ReLU", "Reshape",
    ]  # fmt: skip
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    assert difference(model, values) < 1e-6
    aware = kdtflite.quantize_aware(model, values)
    file = kdtflite.convert(aware, values, progress=False)
    assert [operator.name for operator in file.operators].count("CONV_2D") == 1
    assert "MUL" not in {operator.name for operator in file.operators}


def test_batch_normalization_alone_is_one_exact_operator():
    model = one(L.BatchNormalization(), (4, 4, 3))
    gains = np.array([0.3, 1.0, 5.0], np.float32)
    model.layers[-1].set_weights([gains, np.zeros(3), np.zeros(3), np.ones(3) - 1e-3])
    values = np.random.default_rng(0).uniform(-1, 1, (64, 4, 4, 3)).astype(np.float32)
    aware = kdtflite.quantize_aware(model, values)
    file = kdtflite.convert(aware, values, progress=False)
    assert [operator.name for operator in file.operators] == ["DEPTHWISE_CONV_2D"]
    # Nothing is rounded but the output; gains on one scale would add half a step of their own.
    codes = file.inputs[0].quantize(values)
    expected = file.inputs[0].dequantize(codes) * gains
    step = file.outputs[0].scale
    assert np.abs(file.predict(codes) - expected).max() <= 0.51 * step


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
    # 8 bits round each layer by about 1/255 of its range, a swap by the range itself.
    assert np.abs(before - after).max() < 0.06 * np.abs(before).max()


def test_one_tensor_concatenated_with_itself():
    i = keras.Input((8, 8, 1))
    branch = fused(i)
    model = keras.Model(i, L.Dense(4)(L.GlobalMaxPooling2D()(L.Concatenate()([branch, branch]))))
    wrapped = kdtflite.quantize_aware(model, X)
    difference = np.abs(model.predict(X, verbose=0) - wrapped.predict(X, verbose=0)).max()
    assert difference < 0.06 * np.abs(model.predict(X, verbose=0)).max()


def test_a_rewrite_that_changes_the_model_is_refused(monkeypatch):
    wrong = Kernel(rewrite=lambda parts, x: parts.add_layer(L.ReLU)(x))
    monkeypatch.setitem(KERNELS, L.ELU, wrong)
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(4, 3), L.ELU(), L.Flatten()])
    with pytest.raises(UnsupportedModelError, match=r"rewritten.* its output 'flatten.* differs"):
        kdtflite.quantize_aware(model, X)
    with pytest.raises(UnsupportedModelError, match=r"rewritten.* its output .* differs"):
        kdtflite.quantize_aware(model)


@pytest.mark.parametrize(
    "relu", [lambda: L.ReLU(), lambda: L.Activation("relu")], ids=["layer", "activation"]
)
@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (lambda: L.Conv2D(6, 3, name="w"), "kernel"),
        (lambda: L.DepthwiseConv2D(3, name="w"), "depthwise_kernel"),
        (lambda: L.Dense(3, name="w"), "kernel"),
    ],
    ids=["conv", "depthwise", "dense"],
)
def test_before_a_relu_layer_the_kernel_is_rounded_and_the_sum_is_not(layer, kernel, relu):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8, 8, 1)), layer(), relu(), L.Flatten(), L.Dense(4)])
    wrapped = kdtflite.quantize_aware(model, X)
    # Only the ReLU's output is rounded, as in the fused operator of the file.
    wrapper = wrapped.get_layer("quant_w")
    assert list(wrapper.weight_quantizers) == [kernel]
    assert wrapper.quantizer is None


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
    # The model is untrained, so its classes nearly tie; only the steps depend on the kernels.
    assert parity.largest_difference_steps <= 3
    assert parity.mean_difference_steps < 1


def test_the_layers_of_each_step_are_trained_and_convert_as_trained():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, *IMAGE))
    h = L.TimeDistributed(small_net(), name="each")(inputs)
    h = L.AdditiveAttention(name="attention")([h, h])
    model = keras.Model(inputs, L.Dense(4, name="logits")(L.GlobalAveragePooling1D()(h)))
    films = np.random.default_rng(0).random((24, 3, *IMAGE), np.float32)
    aware = kdtflite.quantize_aware(settled(model), films)
    rows = {row.layer: row.how for row in aware.quantization.layers}
    assert rows["each/conv"] == rows["each/dense"] == rows["attention"] == "trained"
    assert "calibrated" not in rows.values()
    lite = kdtflite.convert(aware, films, progress=False)
    given = aware.predict(films, verbose=0)
    step = lite.outputs[0].scale
    assert np.abs(lite.predict(films) - given).max() <= 2.01 * step
    assert given.std() > 5 * step


@pytest.mark.parametrize("kind", [L.Attention, L.AdditiveAttention])
@pytest.mark.parametrize("causal", [False, True])
def test_simple_attention_with_masks_of_queries_and_values(kind, causal):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    others = keras.Input((6,), dtype="int32", name="others")
    x, y = (L.Embedding(20, 8, mask_zero=True)(ids) for ids in (tokens, others))
    layer = kind(name="attention")
    model = settled(keras.Model([tokens, others], layer([x, y], use_causal_mask=causal)))
    ids = {
        "tokens": np.array([[0, 2, 3, 0, 0], [3, 4, 5, 6, 7], [1, 0, 0, 2, 0]]),
        "others": np.array([[4, 2, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8], [9, 0, 2, 0, 0, 0]]),
    }
    assert difference(model, ids) < 1e-5
    aware = kdtflite.quantize_aware(model, ids)
    assert {row.layer: row.how for row in aware.quantization.layers}["attention"] == "trained"
    lite = kdtflite.convert(aware, ids, progress=False)
    assert kdtflite.compare(aware, lite, ids, progress=False).largest_difference_steps <= 3


def test_a_mask_from_outside_reaches_every_layer_of_a_nested_model():
    inner = keras.Sequential(
        [L.LSTM(4, return_sequences=True), L.Dropout(0.1), L.Dense(4), L.GRU(3)]
    )
    model = one(keras.Sequential([L.Masking(0.5), inner, L.Dense(2)]), SEQUENCE)
    values = np.random.default_rng(0).normal(size=(2, *SEQUENCE)).astype(np.float32)
    values[1, 4:] = 0.5
    assert difference(model, values) < 1e-6
    assert np.abs(model(values) - model(np.where(values == 0.5, 0.4, values))).max() > 1e-3
