"""Operations of keras.ops in a graph: the same numbers in tf_keras, also after saving and loading.

Every case is compared with what Keras 3 itself computes.
"""

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras
from keras import ops

from kdtflite.errors import UnsupportedModelError
from kdtflite.models import from_keras3, load_model

VECTOR, SEQUENCE, IMAGE = (5,), (6, 4), (8, 8, 3)

ELEMENTWISE = [
    lambda x: ops.abs(x) + ops.square(x) * ops.sign(x),
    lambda x: ops.exp(x) - ops.expm1(x) + ops.exp2(x),
    lambda x: ops.log(ops.abs(x)) + ops.log1p(ops.abs(x)),
    lambda x: ops.log2(ops.abs(x)) + ops.log10(ops.abs(x)),
    lambda x: ops.sqrt(ops.abs(x)) + ops.rsqrt(ops.abs(x)) + ops.reciprocal(x),
    lambda x: ops.sin(x) * ops.cos(x) + ops.tan(x) - ops.arctan(x),
    lambda x: ops.sinh(x) + ops.cosh(x) + ops.arctan2(x, x + 1),
    lambda x: ops.floor(x) + ops.ceil(x) - ops.round(x),
    lambda x: ops.clip(x, -0.5, 0.7),
    lambda x: ops.erf(x) + ops.logaddexp(x, 2 * x),
    lambda x: x**2 + ops.power(ops.abs(x), 1.5),
    lambda x: x // 0.3 + x % 0.7,
    lambda x: (1 - x) / 3 + 2 / (x + 10),
    lambda x: ops.divide_no_nan(x, x - x),
    lambda x: ops.minimum(x, 0.1) + ops.maximum(-0.3, x),
    lambda x: x + np.arange(5, dtype="float32"),
    lambda x: ops.multiply(np.arange(5, dtype="float32"), x),
    lambda x: ops.arcsin(x / 9) + ops.arccos(x / 9) + ops.arctanh(x / 9),
    lambda x: ops.arcsinh(x) + ops.arccosh(1 + ops.abs(x)) + ops.erfc(x),
]
ACTIVATIONS = [
    lambda x: ops.relu(x) + ops.relu6(4 * x),
    lambda x: ops.leaky_relu(x, 0.3) + ops.elu(x, 0.7) + ops.celu(x, 0.4),
    lambda x: ops.sigmoid(x) * ops.tanh(x) + ops.log_sigmoid(x),
    lambda x: ops.silu(x) + ops.hard_silu(3 * x) + ops.hard_sigmoid(x),
    lambda x: ops.gelu(x) + ops.gelu(x, approximate=False),
    lambda x: ops.softplus(x) + ops.softsign(x) + ops.selu(x),
    lambda x: ops.softmax(x) + ops.log_softmax(x),
    lambda x: ops.squareplus(x) + ops.hard_tanh(x) + ops.tanh_shrink(x),
    lambda x: keras3.activations.relu(x, negative_slope=0.1, max_value=0.8, threshold=0.2),
    lambda x: ops.hard_shrink(x) + ops.soft_shrink(x) + ops.threshold(x, 0.2, -3),
]
COMPARISONS = [
    lambda x: ops.where(x > 0, x, -2.0),
    lambda x: ops.where(ops.logical_and(x > -0.5, x <= 0.5), 1.0, x),
    lambda x: ops.cast(ops.logical_not(x < 0), "float32") * x,
    lambda x: ops.cast(ops.logical_or(ops.equal(x, 0), ops.not_equal(x, x)), "float32"),
    lambda x: ops.cast(ops.isnan(x), "float32") + ops.cast(ops.isfinite(x), "float32"),
    lambda x: ops.where(ops.any(x > 1, axis=-1, keepdims=True), x, 0.0),
    lambda x: ops.where(ops.all(x > -9, axis=-1, keepdims=True), x, 0.0),
]
REDUCTIONS = [
    lambda x: ops.mean(x, axis=1) + ops.sum(x, axis=1),
    lambda x: ops.max(x, axis=-1, keepdims=True) - ops.min(x, axis=-1, keepdims=True),
    lambda x: ops.var(x, axis=(1, 2)) + ops.std(x, axis=(1, 2)),
    lambda x: ops.prod(x, axis=1) + ops.logsumexp(x, axis=1),
    lambda x: ops.amax(x, axis=2) + ops.amin(x, axis=2),
    lambda x: ops.norm(x, axis=-1, keepdims=True) * ops.normalize(x, axis=-1),
    lambda x: ops.cumsum(x, axis=1) + ops.cumprod(x, axis=1),
    lambda x: ops.cast(ops.argmax(x, axis=1), "float32") + ops.mean(x, axis=1),
    lambda x: ops.cast(ops.argmin(x, axis=-1, keepdims=True), "float32") * x,
]
SHAPES = [
    lambda x: ops.reshape(x, (-1, 4, 6)),
    lambda x: ops.reshape(x, (-1, 2, 3, 4)),
    lambda x: ops.transpose(x, (0, 2, 1)),
    lambda x: ops.swapaxes(x, 1, 2) + ops.moveaxis(x, 1, -1),
    lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
    lambda x: ops.concatenate([x, x + 1], axis=1),
    lambda x: ops.stack([x, 2 * x], axis=2),
    lambda x: ops.hstack([x, x]),
    lambda x: ops.add(*ops.split(x, 2, axis=1)),
    lambda x: ops.concatenate(ops.split(x, [1, 4], axis=1)[::-1], axis=1),
    lambda x: ops.unstack(x, axis=1)[2],
    lambda x: ops.tile(x, (1, 2, 1)) + ops.repeat(x, 2, axis=1),
    lambda x: ops.flip(x, axis=1) + ops.roll(x, 2, axis=1),
    lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=3.0),
    lambda x: ops.pad(x, ((0, 0), (2, 1), (0, 0)), mode="reflect"),
    lambda x: ops.tril(x) - ops.triu(x),
    lambda x: ops.ones_like(x) * x + ops.zeros_like(x) + ops.full_like(x, 2.0),
]
INDICES = [
    lambda x: x[:, 1:],
    lambda x: x[:, -1],
    lambda x: x[:, ::-2, 1:3],
    lambda x: x[..., 0] + x[:, :, 1],
    lambda x: x[:, None] * x[..., None, :],
    lambda x: ops.take(x, np.array([0, -1, 2]), axis=1),
    lambda x: ops.take(x, 1, axis=2),
    lambda x: ops.sort(x, axis=1) + ops.cast(ops.argsort(x, axis=1), "float32"),
    lambda x: ops.top_k(x, 2)[0] + ops.cast(ops.top_k(x, 2)[1], "float32"),
    lambda x: ops.one_hot(ops.argmax(x, axis=1), 6),
    lambda x: ops.stop_gradient(x) + ops.copy(x),
]
PRODUCTS = [
    lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))),
    lambda x: x @ np.ones((4, 2), "float32"),
    lambda x: ops.dot(x, np.arange(4, dtype="float32")),
    lambda x: ops.tensordot(x, np.ones((4, 3), "float32"), axes=1),
    lambda x: ops.einsum("bij,bkj->bik", x, x),
    lambda x: ops.einsum("...j,jk->...k", x, np.ones((4, 2), "float32")),
]
IMAGES = [
    lambda x: ops.max_pool(x, 2) + ops.average_pool(x, 2, padding="same"),
    lambda x: ops.mean(x, axis=(1, 2)) + ops.max(x, axis=(1, 2)),
    lambda x: ops.image.resize(x, (5, 7)),
    lambda x: ops.image.resize(x, (16, 16), interpolation="nearest"),
    lambda x: ops.depth_to_space(ops.concatenate([x] * 4, axis=-1), 2),
    lambda x: ops.space_to_depth(x, 2),
    lambda x: ops.image.extract_patches(x, size=3, strides=2, padding="same"),
    lambda x: ops.image.extract_patches(x, size=(2, 4)),
    lambda x: ops.glu(ops.concatenate([x, x + 1], axis=-1)),
]
CASES = [
    pytest.param(shape, function, id=f"{family}-{place}")
    for family, shape, functions in (
        ("elementwise", VECTOR, ELEMENTWISE),
        ("activation", VECTOR, ACTIVATIONS),
        ("comparison", VECTOR, COMPARISONS),
        ("reduction", SEQUENCE, REDUCTIONS),
        ("shape", SEQUENCE, SHAPES),
        ("index", SEQUENCE, INDICES),
        ("product", SEQUENCE, PRODUCTS),
        ("image", IMAGE, IMAGES),
    )
    for place, function in enumerate(functions)
]


def _model(shape, function):
    x = keras3.Input(shape, name="x")
    return keras3.Model(x, function(x), name="operations")


@pytest.mark.parametrize(("shape", "function"), CASES)
def test_an_operation_computes_the_same_converted_and_loaded_again(tmp_path, shape, function):
    source = _model(shape, function)
    target = from_keras3(source)
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    expected = np.array(source(x))
    assert expected.size > 0
    np.testing.assert_allclose(target(x), expected, rtol=1e-5, atol=1e-5)
    target.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(keras.models.clone_model(target)(x), expected, rtol=1e-5, atol=1e-5)


def test_integers_are_promoted_as_keras_3_promotes_them():
    x = keras3.Input((4,), dtype="int32", name="x")
    source = keras3.Model(
        x, [x * 2, x / 2, x + 0.5, ops.cast(x, "float32") * 3, ops.equal(x % 3, 1)]
    )
    target = from_keras3(source)
    values = np.array([[0, 1, 2, 7]], "int32")
    twice, half, shifted, thrice, is_one = target(values)
    np.testing.assert_array_equal(twice, [[0, 2, 4, 14]])
    np.testing.assert_array_equal(half, [[0, 0.5, 1, 3.5]])
    np.testing.assert_array_equal(shifted, [[0.5, 1.5, 2.5, 7.5]])
    np.testing.assert_array_equal(thrice, [[0, 3, 6, 21]])
    np.testing.assert_array_equal(is_one, [[False, True, False, True]])
    assert [tensor.dtype.name for tensor in (twice, half)] == ["int32", "float32"]


def test_what_a_layer_can_compute_becomes_that_layer():
    x = keras3.Input(IMAGE, name="x")
    y = ops.relu(ops.mean(ops.tanh(x) * 2 + 1, axis=(1, 2)))
    target = from_keras3(keras3.Model(x, ops.softmax(ops.reshape(y, (-1, 3)))))
    kinds = [type(layer).__name__ for layer in target.layers[1:]]
    assert kinds == [
        *("Activation", "Rescaling", "Rescaling", "GlobalAveragePooling2D", "Activation"),
        *("Reshape", "Softmax"),
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: ops.fft((x, x))[0], r"operation '.*' \(FFT\): kdtflite knows no equivalent"),
        (lambda x: ops.round(x, 2), r"\(Round\): it has decimals=2"),
        (lambda x: ops.argmax(x) + ops.cast(ops.sum(x), "int32"), r"\(Argmax\): it has axis=None"),
        (lambda x: ops.pad(x, 1, mode="edge"), r"\(Pad\): it has mode='edge'"),
    ],
)
def test_an_operation_that_nothing_stands_for_is_refused_by_name(function, message):
    with pytest.raises(UnsupportedModelError, match=f"{message}.*Use a Keras layer"):
        from_keras3(_model(SEQUENCE, function))
