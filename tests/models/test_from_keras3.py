"""Keras 3 models in, tf_keras models out: the same numbers, names and flags, or a refusal."""

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models import convert_keras3, from_keras3, is_from_keras3

L = keras3.layers
IMAGE, SEQUENCE, VECTOR = (8, 8, 3), (6, 4), (5,)


def _stirred(model: keras3.Model) -> keras3.Model:
    """Gives every weight a random value, so that no zero bias or unit gamma hides a mistake."""
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def _same(source: keras3.Model, target: keras.Model, x: object, atol: float = 1e-5) -> None:
    expected = keras3.tree.flatten(source(x, training=False))
    received = keras3.tree.flatten(target(x, training=False))
    assert len(expected) == len(received)
    for one, other in zip(expected, received, strict=True):
        np.testing.assert_allclose(np.array(other), np.array(one), atol=atol, rtol=1e-5)


LAYERS = [
    (VECTOR, lambda: L.Dense(4, activation="relu")),
    (VECTOR, lambda: L.Dense(4, activation="hard_silu", kernel_initializer="he_normal")),
    (VECTOR, lambda: L.Dense(4, activation="hard_sigmoid")),
    (VECTOR, lambda: L.Dense(4, activation="silu", kernel_regularizer=keras3.regularizers.L2(0.1))),
    (VECTOR, lambda: L.Dense(4, activation="gelu", kernel_constraint="max_norm")),
    (VECTOR, lambda: L.Dense(4, activation="leaky_relu", use_bias=False)),
    (VECTOR, lambda: L.Dense(4, activation="log_softmax")),
    (VECTOR, lambda: L.EinsumDense("ab,bc->ac", output_shape=4, bias_axes="c")),
    (VECTOR, lambda: L.Activation("mish")),
    (VECTOR, lambda: L.ReLU(max_value=0.7, negative_slope=0.1, threshold=0.2)),
    (VECTOR, lambda: L.LeakyReLU(negative_slope=0.37)),
    (VECTOR, lambda: L.PReLU()),
    (VECTOR, lambda: L.ELU(alpha=0.5)),
    (VECTOR, lambda: L.Softmax()),
    (VECTOR, lambda: L.Dropout(0.5, seed=3)),
    (VECTOR, lambda: L.GaussianNoise(0.5)),
    (VECTOR, lambda: L.AlphaDropout(0.5)),
    (VECTOR, lambda: L.RepeatVector(3)),
    (VECTOR, lambda: L.Rescaling(1 / 127.5, offset=-1.0)),
    (VECTOR, lambda: L.Normalization(mean=[1.0] * 5, variance=[4.0] * 5)),
    (VECTOR, lambda: L.UnitNormalization()),
    (SEQUENCE, lambda: L.Conv1D(3, 3, padding="causal", dilation_rate=2)),
    (SEQUENCE, lambda: L.SeparableConv1D(3, 2)),
    (SEQUENCE, lambda: L.Conv1DTranspose(3, 3, strides=2)),
    (SEQUENCE, lambda: L.MaxPooling1D(2)),
    (SEQUENCE, lambda: L.GlobalAveragePooling1D()),
    (SEQUENCE, lambda: L.ZeroPadding1D(2)),
    (SEQUENCE, lambda: L.UpSampling1D(2)),
    (SEQUENCE, lambda: L.Permute((2, 1))),
    (SEQUENCE, lambda: L.SpatialDropout1D(0.3)),
    (SEQUENCE, lambda: L.GRU(3)),
    (SEQUENCE, lambda: L.GRU(3, reset_after=False, return_sequences=True)),
    (SEQUENCE, lambda: L.LSTM(3, dropout=0.2, recurrent_activation="hard_sigmoid")),
    (SEQUENCE, lambda: L.SimpleRNN(3, go_backwards=True)),
    (SEQUENCE, lambda: L.Bidirectional(L.LSTM(3, return_sequences=True))),
    (SEQUENCE, lambda: L.Bidirectional(L.GRU(3), merge_mode="sum")),
    (SEQUENCE, lambda: L.TimeDistributed(L.Dense(2, activation="tanh"))),
    (IMAGE, lambda: L.Conv2D(4, 3, strides=2, padding="same", activation="relu6")),
    (IMAGE, lambda: L.Conv2D(6, 3, groups=3)),
    (IMAGE, lambda: L.Conv2DTranspose(4, 3, strides=2, padding="same")),
    (IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=2)),
    (IMAGE, lambda: L.SeparableConv2D(4, 3)),
    (IMAGE, lambda: L.BatchNormalization()),
    (IMAGE, lambda: L.BatchNormalization(axis=1, scale=False)),
    (IMAGE, lambda: L.LayerNormalization(axis=[1, 2])),
    (IMAGE, lambda: L.GroupNormalization(groups=3)),
    (IMAGE, lambda: L.AveragePooling2D(3, strides=2, padding="same")),
    (IMAGE, lambda: L.GlobalMaxPooling2D(keepdims=True)),
    (IMAGE, lambda: L.ZeroPadding2D(((1, 2), (0, 3)))),
    (IMAGE, lambda: L.Cropping2D(((1, 2), (0, 3)))),
    (IMAGE, lambda: L.UpSampling2D(2, interpolation="bilinear")),
    (IMAGE, lambda: L.Resizing(5, 7)),
    (IMAGE, lambda: L.Flatten()),
    (IMAGE, lambda: L.Reshape((4, -1))),
    (IMAGE, lambda: L.RandomFlip("horizontal")),
    (IMAGE, lambda: L.RandomRotation(0.1)),
    (IMAGE, lambda: L.RandomContrast(0.1)),
    (IMAGE, lambda: L.TimeDistributed(keras3.Sequential([L.Dense(2), L.Flatten()]))),
]


@pytest.mark.parametrize(("shape", "make"), LAYERS)
def test_a_layer_computes_the_same_after_conversion(shape, make):
    layer = make()
    source = _stirred(keras3.Sequential([keras3.Input(shape), layer]))
    conversion = convert_keras3(source)
    x = np.random.default_rng(2).normal(size=(3, *shape)).astype("float32")
    _same(source, conversion.model, x)
    assert conversion.max_abs_difference <= 1e-5
    assert [layer.name for layer in conversion.model.layers] == [layer.name]
    assert type(conversion.model.layers[0]).__module__.startswith("tf_keras.")


@pytest.mark.parametrize(
    "make",
    [
        *(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum, L.Concatenate),
        lambda: L.Dot(axes=1),
        lambda: L.Concatenate(axis=1),
    ],
)
def test_a_merge_layer_computes_the_same_after_conversion(make):
    a, b = keras3.Input(VECTOR, name="a"), keras3.Input(VECTOR, name="b")
    source = keras3.Model([a, b], make()([a, b]))
    x, y = np.random.default_rng(3).normal(size=(2, 4, 5)).astype("float32")
    _same(source, from_keras3(source), [x, y])


def test_attention_keeps_query_value_and_key_apart():
    q, v, k = (keras3.Input((6, 4), name=name) for name in "qvk")
    y = L.MultiHeadAttention(2, 3, name="mha")(q, v, key=k, use_causal_mask=True)
    source = _stirred(keras3.Model([q, v, k], y))
    x = list(np.random.default_rng(4).normal(size=(3, 2, 6, 4)).astype("float32"))
    _same(source, from_keras3(source), x)


def test_operations_on_tensors_become_layers():
    x = keras3.Input(VECTOR, name="x")
    y = L.Dense(5)(x)
    z = x + y
    z = z * y - x
    z = keras3.ops.maximum(z, y) + 3.0
    z = 1.0 - keras3.ops.relu6(z) * (1 / 6)
    z = -z / 4
    source = _stirred(keras3.Model(x, z))
    target = from_keras3(source)
    _same(source, target, np.random.default_rng(5).normal(size=(3, 5)).astype("float32"))
    kinds = [type(layer).__name__ for layer in target.layers]
    assert "TFOpLambda" not in kinds
    assert kinds.count("Add") == kinds.count("Multiply") == kinds.count("Subtract") == 1


def test_several_inputs_and_outputs_keep_their_structure():
    a, b = keras3.Input(VECTOR, name="a"), keras3.Input((3,), name="b")
    source = _stirred(
        keras3.Model(
            {"one": a, "two": b},
            {"p": L.Dense(2)(a), "q": [L.Dense(3)(b), L.Concatenate()([a, b])]},
        )
    )
    target = from_keras3(source)
    rng = np.random.default_rng(6)
    x = {"one": rng.normal(size=(2, 5)), "two": rng.normal(size=(2, 3))}
    x = {key: value.astype("float32") for key, value in x.items()}
    received = target(x)
    assert set(received) == {"p", "q"}
    assert [tuple(t.shape) for t in received["q"]] == [(2, 3), (2, 8)]
    _same(source, target, x)


def test_shared_layers_and_nested_models_stay_shared_and_nested():
    shared = L.Dense(5, name="shared")
    inner = keras3.Sequential([keras3.Input(VECTOR), shared, L.BatchNormalization()], name="inner")
    x = keras3.Input(VECTOR, name="x")
    source = _stirred(keras3.Model(x, L.Add()([inner(shared(x), training=False), inner(x)])))
    target = from_keras3(source)
    assert target.get_layer("inner").get_layer("shared") is target.get_layer("shared")
    assert len(target.weights) == len(source.weights) == 6
    _same(source, target, np.random.default_rng(7).normal(size=(3, 5)).astype("float32"))


def test_a_layer_called_with_training_false_stays_so_in_training():
    x = keras3.Input(VECTOR)
    source = _stirred(keras3.Model(x, L.BatchNormalization()(x, training=False)))
    target = from_keras3(source)
    batch = np.random.default_rng(8).normal(size=(9, 5)).astype("float32")
    np.testing.assert_allclose(target(batch, training=True), source(batch), rtol=1e-5)


def test_trainable_flags_are_kept_at_every_depth():
    inner = keras3.Sequential(
        [keras3.Input(VECTOR), L.Dense(4, name="a"), L.Dense(4, name="b")], name="inner"
    )
    source = keras3.Sequential([keras3.Input(VECTOR), inner, L.Dense(2, name="head")])
    inner.trainable = False
    inner.get_layer("b").trainable = True
    target = from_keras3(source)
    nested = target.get_layer("inner")
    assert (nested.trainable, target.get_layer("head").trainable) == (False, True)
    assert (nested.get_layer("a").trainable, nested.get_layer("b").trainable) == (False, True)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_an_embedding_model_is_checked_with_indices(dtype):
    source = keras3.Sequential(
        [keras3.Input((7,), dtype=dtype), L.Embedding(3, 4, mask_zero=True), L.LSTM(2), L.Dense(2)]
    )
    conversion = convert_keras3(source)
    assert conversion.max_abs_difference < 1e-5
    indices = np.array([[1, 2, 0, 0, 0, 0, 0], [2, 2, 1, 1, 2, 0, 0]])
    _same(source, conversion.model, indices.astype(dtype))


def test_adapted_normalization_survives_clone_model():
    layer = L.Normalization()
    layer.adapt(np.array([[0.0, 10.0], [4.0, 20.0]], "float32"))  # means 2 and 15, deviations 2, 5
    target = from_keras3(keras3.Sequential([keras3.Input((2,)), layer]))
    clone = keras.models.clone_model(target)
    np.testing.assert_allclose(clone(np.array([[4.0, 5.0]])), [[1.0, -2.0]], rtol=1e-6)


def test_a_mixed_precision_model_is_rebuilt_in_float32(capsys):
    policy = keras3.DTypePolicy("mixed_float16")
    source = keras3.Sequential(
        [keras3.Input(VECTOR), L.Dense(4, dtype=policy), L.BatchNormalization(dtype=policy)]
    )
    target = from_keras3(source)
    assert {layer.compute_dtype for layer in target.layers} == {"float32"}
    np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])
    assert "computes in mixed_float16; it is rebuilt in float32.\n" in capsys.readouterr().err


def test_an_open_image_size_is_checked_and_kept():
    source = keras3.Sequential([keras3.Input((None, None, 3)), L.Conv2D(2, 7, strides=4)])
    assert from_keras3(source).input_shape == (None, None, None, 3)


def test_a_converted_model_with_borrowed_activations_can_be_saved_and_loaded(tmp_path):
    source = keras3.Sequential(
        [keras3.Input(VECTOR)]
        + [L.Dense(3, activation=a) for a in ("hard_silu", "hard_sigmoid", "relu6", "leaky_relu")]
    )
    target = from_keras3(source)
    target.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(9).normal(size=(3, 5)).astype("float32")
    np.testing.assert_array_equal(loaded(x), target(x))


def test_a_converted_model_trains():
    source = keras3.Sequential([keras3.Input((2,)), L.Dense(1, use_bias=False)])
    source.set_weights([np.array([[1.0], [2.0]], "float32")])
    target = from_keras3(source)
    target.compile(keras.optimizers.SGD(0.1), "mse")
    target.fit(np.array([[1.0, 1.0]]), np.array([[1.0]]), verbose=0)
    # error 2, gradient 2 * 2 * (1, 1): weights fall by 0.4 each
    np.testing.assert_allclose(target.get_weights()[0], [[0.6], [1.6]], rtol=1e-6)


@keras3.saving.register_keras_serializable(package="test_from_keras3")
class Scaling(L.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


class WithOwnWeight(keras3.Model):
    def build(self, shape):
        self.factor = self.add_weight(shape=())
        self.built = True

    def call(self, x):
        return x * self.factor


class WithTrainStep(keras3.Model):
    def train_step(self, data):
        return {}


def _functional(function):
    x = keras3.Input(VECTOR, name="x")
    return keras3.Model(x, function(x))


REFUSED = [
    (
        lambda: _functional(Scaling(name="scale")),
        r"layer 'scale' \(Scaling\): it is a custom layer with weights.*built-in Keras layer",
    ),
    (
        lambda: _functional(WithOwnWeight(name="own")),
        r"layer 'own' \(WithOwnWeight\): it is a custom layer with weights",
    ),
    (lambda: _functional(L.Lambda(lambda t: t, name="code")), r"'code' \(Lambda\).*Python code"),
    (lambda: _functional(L.RMSNormalization(name="rms")), r"'rms' \(RMSNormalization\).*tf_keras"),
    (
        lambda: _functional(L.SpectralNormalization(L.Dense(2, name="inner"))),
        r"\(SpectralNormalization\): .*its inner 'inner' computes the same",
    ),
    (
        lambda: keras3.Sequential(
            [keras3.Input((), dtype="string"), L.StringLookup(vocabulary=["a"])]
        ),
        r"\(StringLookup\): it takes strings",
    ),
    (lambda: keras3.Sequential([L.Dense(2)], name="open"), r"'open' has no input shape.*build"),
    (lambda: L.Dense(2), r"Expected a Keras 3 model.*Dense"),
    (
        lambda: _functional(L.Dense(2, activation="squareplus", name="sq")),
        r"'sq' \(Dense\): its activation squareplus has no equal.*hard_silu",
    ),
    (
        lambda: _functional(L.Dense(2, activation=lambda t: t, name="l")),
        r"'l' \(Dense\): its activation lambda has no equal",
    ),
    (
        lambda: keras3.Sequential([keras3.Input(IMAGE), L.Resizing(4, 4, antialias=True)]),
        r"\(Resizing\): its argument antialias=True has no equal.*without `antialias`",
    ),
    (
        lambda: keras3.Sequential(
            [keras3.Input(SEQUENCE, batch_size=2), L.GRU(2, stateful=True, name="gru")]
        ),
        r"'gru' \(GRU\): it is stateful.*stateful=False",
    ),
    (
        lambda: keras3.Sequential(
            [keras3.Input(VECTOR), keras3.Sequential([keras3.Input(VECTOR), Scaling(name="in")])]
        ),
        r"layer 'in' \(Scaling\): it is a custom",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(make, message):
    with pytest.raises(UnsupportedModelError, match=f"(?s){message}"):
        from_keras3(make())


def test_a_quantized_model_is_refused():
    source = keras3.Sequential([keras3.Input(VECTOR), L.Dense(4, name="q")])
    source.quantize("int8")
    with pytest.raises(UnsupportedModelError, match=r"'q' \(Dense\).*before `model.quantize"):
        from_keras3(source)


def test_a_difference_in_the_outputs_is_refused(monkeypatch):
    from kdtflite.models.keras3 import configs as keras3_configs

    monkeypatch.setitem(keras3_configs.KERAS3_ACTIVATIONS, "hard_sigmoid", "hard_sigmoid")
    source = keras3.Sequential([keras3.Input(VECTOR), L.Activation("hard_sigmoid")], name="wrong")
    with pytest.raises(UnsupportedModelError, match=r"'wrong' was rebuilt.*differs by up to 0.0"):
        from_keras3(source)


def test_a_subclass_of_the_functional_model_with_its_own_train_step_is_taken():
    x = keras3.Input(VECTOR)
    assert from_keras3(WithTrainStep(x, L.Dense(2)(x))).output_shape == (None, 2)


@pytest.mark.parametrize("application", ["MobileNetV2", "MobileNetV3Small"])
def test_a_keras_application_converts_exactly(application):
    kwargs = {"weights": None, "input_shape": (32, 32, 3), "classes": 4, "alpha": 0.35}
    if application == "MobileNetV3Small":
        kwargs |= {"minimalistic": False, "alpha": 0.75}
    source = getattr(keras3.applications, application)(**kwargs)
    conversion = convert_keras3(source)
    assert conversion.max_abs_difference < 1e-6
    x = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    _same(source, conversion.model, x)


def test_keras3_objects_are_told_from_others():
    assert is_from_keras3(keras3.Sequential())
    assert is_from_keras3(keras3.Model())
    assert not is_from_keras3(keras.Sequential())
    assert not is_from_keras3(None)
    assert not is_from_keras3("model.keras")
