"""Cross-layer equalization: the same function, equal ranges, chains that stop where they must."""

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import DataError
from kdtflite.quantization.equalization import equalize

L = keras.layers


def randomized(model, seed=0, spread=1.5):
    """Gives every weight a value of its own, with channels of very different sizes."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        weights = []
        for variable in layer.weights:
            shape = tuple(variable.shape)
            value = random.normal(size=shape) * np.exp(random.normal(size=shape[-1:]) * spread)
            if "kernel" in variable.name:
                value *= np.exp(random.normal(size=(*shape[-2:-1], 1)) * spread)
                value /= np.sqrt(np.prod(shape[:-1]))
            weights.append(np.abs(value) + 0.1 if "variance" in variable.name else value)
        layer.set_weights(weights)
    return model


def network(*layers, shape=(12, 12, 3), classes=4):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(shape, name="image")
    for layer in layers:
        x = layer(x)
    return randomized(keras.Model(inputs, x, name="net"))


def names(model):
    return [(pair.first, pair.second) for pair in model.equalization.pairs]


def difference(model, other):
    """The largest difference of two models' outputs on random inputs, relative to the largest."""
    random = np.random.default_rng(5)
    x = random.normal(size=(7, *(size or 9 for size in model.input_shape[1:])))
    one, two = model(x.astype(np.float32)).numpy(), other(x.astype(np.float32)).numpy()
    assert np.abs(one).max() > 0
    return np.abs(one - two).max() / np.abs(one).max()


def test_two_layers_by_hand():
    model = network(L.Dense(2, activation="relu", name="one"), L.Dense(2, name="two"), shape=(2,))
    model.get_layer("one").set_weights([np.array([[8.0, 0.5], [-2.0, 0.25]]), np.array([4.0, 1.0])])
    model.get_layer("two").set_weights([np.array([[2.0, -1.0], [3.0, 32.0]]), np.array([5.0, 6.0])])
    # Channel 0: r1 = 8, r2 = 2, s = 2; channel 1: r1 = 0.5, r2 = 32, s = 1/8.
    equalized = equalize(model)
    one, two = (equalized.get_layer(name).get_weights() for name in ("one", "two"))
    np.testing.assert_allclose(one[0], [[4.0, 4.0], [-1.0, 2.0]], rtol=1e-6)
    np.testing.assert_allclose(one[1], [2.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(two[0], [[4.0, -2.0], [0.375, 4.0]], rtol=1e-6)
    np.testing.assert_array_equal(two[1], [5.0, 6.0])
    (pair,) = equalized.equalization.pairs
    np.testing.assert_allclose(pair.before, [[8, 2], [0.5, 32]])
    np.testing.assert_allclose(pair.after, [[4, 4], [4, 4]])
    assert equalized.equalization.to_dict() == {
        "pairs": [
            {
                "first": "one",
                "second": "two",
                "channels": 2,
                "spread_before": 16.0,
                "spread_after": pytest.approx(1.0),
            }
        ],
        "left": {"two": "two is an output of the model"},
    }


def test_a_depthwise_triple_by_hand():
    model = network(
        L.Conv2D(1, 1, activation="relu", name="a"),
        L.DepthwiseConv2D(1, activation="relu", name="b"),
        L.Conv2D(1, 1, name="c"),
        shape=(4, 4, 1),
    )
    for name, value in (("a", 27.0), ("b", 8.0), ("c", 0.125)):
        model.get_layer(name).set_weights([np.full((1, 1, 1, 1), value), np.ones(1)])
    equalized = equalize(model)
    # All three become the cube root of 27 · 8 / 8 = 3 · 2 / 2, as in the paper's appendix.
    kernels = [equalized.get_layer(name).get_weights()[0].item() for name in "abc"]
    np.testing.assert_allclose(kernels, [3, 3, 3], rtol=1e-4)
    # s1 = 27 / 3 divides a's bias, s2 = 3 / 0.125 b's.
    np.testing.assert_allclose(equalized.get_layer("a").get_weights()[1], 1 / 9, rtol=1e-4)
    np.testing.assert_allclose(equalized.get_layer("b").get_weights()[1], 0.125 / 3, rtol=1e-4)


def test_values_and_the_weights_that_take_them_by_hand():
    model = network(
        L.Dense(2, activation="relu", name="one"), L.Conv1D(2, 1, name="two"), shape=(1, 1)
    )
    model.get_layer("one").set_weights([np.array([[8.0, 0.5]]), np.zeros(2)])
    model.get_layer("two").set_weights([np.array([[[2.0, 1.0], [-4.0, 100.0]]]), np.ones(2)])
    x = np.array([-3.0, 0.5, 2.0]).reshape(3, 1, 1)
    # Values up to 16 and 1. Of the kernel's columns [2, -4] and [1, 100], channel 0 has at most
    # the share 1/2, channel 1 all. sqrt(16 / 0.5) = 4 √2, sqrt(1 / 1) = 1; their mean c = √(4 √2).
    equalized = equalize(model, x)
    s = np.array([4 * 2**0.5, 1.0]) / (4 * 2**0.5) ** 0.5
    np.testing.assert_allclose(
        equalized.get_layer("one").get_weights()[0], [[8, 0.5] / s], rtol=1e-6
    )
    kernel = np.array([[2.0, 1.0], [-4.0, 100.0]]) * s[:, None]
    np.testing.assert_allclose(equalized.get_layer("two").get_weights()[0], [kernel], rtol=1e-6)
    (pair,) = equalized.equalization.pairs
    np.testing.assert_allclose(pair.before, [[16, 0.5], [1, 1]])
    np.testing.assert_allclose(pair.after[:, 0], [16, 1] / s)
    shares = (np.abs(kernel) / np.abs(kernel).max(axis=0)).max(axis=1)
    np.testing.assert_allclose(pair.after[:, 1], shares)


def test_before_a_depthwise_layer_all_channels_values_become_equal():
    model = network(L.Conv2D(6, 3, name="a"), norm("n"), L.ReLU(), L.DepthwiseConv2D(3, name="b"))
    x = np.random.default_rng(1).normal(size=(50, 12, 12, 3)).astype(np.float32)
    equalized = equalize(model, x)
    assert difference(model, equalized) <= 1e-5
    layer = equalized.get_layer("b")
    largest = np.abs(keras.Model(equalized.input, layer.input)(x)).max(axis=(0, 1, 2))
    (pair,) = equalized.equalization.pairs
    np.testing.assert_allclose(pair.after[:, 0], largest, rtol=1e-4)
    alive = pair.before[:, 0] > 0
    assert alive.sum() >= 3
    np.testing.assert_allclose(largest[alive], largest[alive][0], rtol=1e-4)
    assert np.ptp(np.log(pair.before[alive, 0])) > 1


def norm(name, **options):
    return L.BatchNormalization(name=name, **options)


CHAINS = {
    "conv-conv": [L.Conv2D(5, 3, activation="relu", name="a"), L.Conv2D(4, 3, name="b")],
    "linear": [L.Conv2D(5, 3, name="a"), L.Conv2D(4, 3, name="b")],
    "leaky": [L.Conv2D(5, 3, name="a"), L.LeakyReLU(0.1), L.Conv2D(4, 3, name="b")],
    "leaky inside": [L.Conv2D(5, 3, activation="leaky_relu", name="a"), L.Conv2D(4, 3, name="b")],
    "prelu": [
        L.Conv2D(5, 3, name="a"),
        L.PReLU(shared_axes=[1, 2]),
        L.Conv2D(4, 3, name="b"),
    ],
    "relu layer": [
        L.Conv2D(5, 3, name="a"),
        L.ReLU(negative_slope=0.2),
        L.Conv2D(4, 3, name="b"),
    ],
    "norm": [
        L.Conv2D(5, 3, use_bias=False, name="a"),
        norm("n"),
        L.Activation("relu"),
        L.Conv2D(4, 3, name="b"),
        norm("m"),
    ],
    "norm and bias": [L.Conv2D(5, 3, name="a"), norm("n"), L.ReLU(), L.Conv2D(4, 3, name="b")],
    "norm without gamma": [
        L.Conv2D(5, 3, name="a"),
        norm("n", scale=False),
        L.ReLU(),
        L.Conv2D(4, 3, name="b"),
    ],
    "norm without beta": [
        L.Conv2D(5, 3, name="a"),
        norm("n", center=False),
        L.ReLU(),
        L.Conv2D(4, 3, name="b"),
    ],
    "pooled": [
        L.Conv2D(5, 3, activation="relu", name="a"),
        L.ZeroPadding2D(),
        L.MaxPooling2D(),
        L.Dropout(0.5),
        L.AveragePooling2D(),
        L.UpSampling2D(interpolation="bilinear"),
        L.Conv2D(4, 3, padding="same", name="b"),
    ],
    "depthwise": [
        L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="a"),
        L.Conv2D(4, 1, name="b"),
    ],
    "depthwise norm": [
        L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="a"),
        norm("n"),
        L.ReLU(),
        L.DepthwiseConv2D(3, depth_multiplier=2, name="b"),
        norm("m"),
    ],
    "transposed": [
        L.Conv2DTranspose(5, 3, activation="relu", name="a"),
        L.Conv2DTranspose(4, 3, name="b"),
    ],
    "flat": [
        L.Conv2D(5, 3, strides=3, activation="relu", name="a"),
        L.Flatten(),
        L.Dense(4, name="b"),
    ],
    "global": [
        L.Conv2D(5, 3, activation="relu", name="a"),
        L.GlobalAveragePooling2D(),
        L.Dense(4, name="b"),
    ],
    "grouped first": [
        L.Conv2D(6, 3, groups=3, activation="relu", name="a"),
        L.Conv2D(4, 3, name="b"),
    ],
    "dense on images": [L.Dense(5, activation="relu", name="a"), L.Dense(4, name="b")],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_pair_gets_equal_ranges_and_computes_the_same(chain):
    model = network(*[type(layer).from_config(layer.get_config()) for layer in CHAINS[chain]])
    equalized = equalize(model)
    assert names(equalized) == [("a", "b")]
    assert difference(model, equalized) <= 1e-5
    (pair,) = equalized.equalization.pairs
    assert np.abs(np.log(pair.before[:, 0] / pair.before[:, 1])).max() > 0.5
    np.testing.assert_allclose(pair.after[:, 0], pair.after[:, 1], rtol=1e-6)
    np.testing.assert_allclose(pair.after[:, 0], np.sqrt(pair.before.prod(axis=1)), rtol=1e-6)
    # The report agrees with the folded kernels themselves.
    given, taken = folded(equalized, "a", "n"), folded(equalized, "b", "m")
    channels = len(pair.after)
    np.testing.assert_allclose(largest_by_output(given, channels), pair.after[:, 0], rtol=1e-5)
    np.testing.assert_allclose(largest_by_input(taken, channels), pair.after[:, 0], rtol=1e-5)


@pytest.mark.parametrize("chain", CHAINS)
def test_with_data_a_pair_computes_the_same(chain):
    model = network(*[type(layer).from_config(layer.get_config()) for layer in CHAINS[chain]])
    x = np.random.default_rng(1).normal(size=(40, 12, 12, 3)).astype(np.float32)
    equalized = equalize(model, x)
    assert names(equalized) == [("a", "b")]
    assert difference(model, equalized) <= 1e-5
    (pair,) = equalized.equalization.pairs
    alive = pair.before[:, 0] > 0  # biases are random: a ReLU may let nothing through
    (values, shares), after = pair.before[alive].T, pair.after[alive, 0]
    # s = c · sqrt(a / t), so (a / s)² = a · t / c²; before a depthwise layer a / s = 1 / c.
    depthwise = isinstance(equalized.get_layer("b"), L.DepthwiseConv2D)
    alike = after if depthwise else after**2 / (values * shares)
    np.testing.assert_allclose(alike, alike[0], rtol=1e-5)


def folded(model, layer, norm):
    """The kernel, (..., inputs, outputs), with the batch normalization's factor in it."""
    layer = model.get_layer(layer)
    kernel = layer.get_weights()[0]
    if isinstance(layer, L.Conv2DTranspose):
        kernel = np.swapaxes(kernel, -1, -2)
    if norm in [one.name for one in model.layers]:
        norm = model.get_layer(norm)
        gamma = 1.0 if norm.gamma is None else norm.gamma.numpy()
        factor = gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        depthwise = isinstance(layer, L.DepthwiseConv2D)
        kernel = kernel * (factor.reshape(kernel.shape[-2:]) if depthwise else factor)
    return kernel


def largest_by_output(kernel, channels):
    if kernel.shape[-1] == channels:
        return np.abs(kernel).reshape(-1, channels).max(axis=0)
    return np.abs(kernel).max(axis=(0, 1)).ravel()  # depthwise


def largest_by_input(kernel, channels):
    by_input = np.moveaxis(np.abs(kernel), -2, 0)
    by_input = by_input.reshape(len(by_input), -1).max(axis=1)
    return np.array([by_input[i::channels].max() for i in range(channels)])


def test_a_chain_of_many_settles():
    layers = [L.Conv2D(6, 3, padding="same", use_bias=False), norm("n0"), L.ReLU()]
    for i in range(1, 5):
        layers += [L.DepthwiseConv2D(3, padding="same", use_bias=False), norm(f"d{i}"), L.ReLU()]
        layers += [L.Conv2D(6 + i, 1, use_bias=False), norm(f"n{i}"), L.ReLU()]
    model = network(*layers, L.GlobalAveragePooling2D(), L.Dense(3))
    equalized = equalize(model)
    assert len(names(equalized)) == 9
    assert difference(model, equalized) <= 1e-5
    for pair in equalized.equalization.pairs:
        np.testing.assert_allclose(pair.after[:, 0], pair.after[:, 1], rtol=1e-3)


def test_a_channel_of_zeros_stays_as_it_is():
    model = network(L.Conv2D(3, 1, activation="relu", name="a"), L.Conv2D(2, 1, name="b"))
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., 0] = 0  # gives a constant
    model.get_layer("a").set_weights([kernel, bias])
    taking, other = model.get_layer("b").get_weights()
    taking[..., 2, :] = 0  # is looked at by nothing
    model.get_layer("b").set_weights([taking, other])
    equalized = equalize(model)
    assert difference(model, equalized) <= 1e-5
    scale = equalized.get_layer("a").get_weights()[1] / bias
    np.testing.assert_array_equal(scale[[0, 2]], 1)
    assert abs(np.log(scale[1])) > 0.01
    for layer in equalized.layers:
        assert all(np.isfinite(weight).all() for weight in layer.get_weights())


def test_a_channel_that_is_always_zero_has_no_values_to_equalize():
    model = network(L.Conv2D(3, 1, activation="relu", name="a"), L.Conv2D(2, 1, name="b"))
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., 1], bias[1] = 0, -1
    model.get_layer("a").set_weights([kernel, bias])
    x = np.random.default_rng(1).normal(size=(40, 12, 12, 3)).astype(np.float32)
    equalized = equalize(model, x)
    assert difference(model, equalized) <= 1e-5
    (pair,) = equalized.equalization.pairs
    np.testing.assert_array_equal(pair.before[1, 0], 0)
    for layer in equalized.layers:
        assert all(np.isfinite(weight).all() for weight in layer.get_weights())


def test_the_end_of_a_chain_is_explained():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", activation="relu6", name="six")(inputs)
    x = L.Conv2D(4, 3, padding="same", name="clipped")(x)
    x = L.ReLU(6.0, name="relu6")(x)
    shared = L.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    x = shared(shared(x))
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="forked")(x)
    y = L.Conv2D(4, 3, padding="same", activation="relu", name="branch")(x)
    x = L.Add(name="add")([x, y])
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="before_groups")(x)
    x = L.Conv2D(4, 3, padding="same", groups=2, name="grouped")(x)
    x = L.Activation("swish", name="swish")(x)
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="lone")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Conv2D(4, 3, padding="same", name="plus")(x)
    x = x + 1.0
    x = L.Conv2D(4, 3, name="first_of_two")(x)
    x = L.ReLU(name="relu")(x)
    x = L.Conv2D(4, 3, name="last")(x)
    model = randomized(keras.Model(inputs, [x, L.Flatten()(y)]), spread=0.5)
    equalized = equalize(model)
    assert names(equalized) == [("first_of_two", "last")]
    (plus,) = (layer.name for layer in model.layers if type(layer).__name__ == "TFOpLambda")
    assert equalized.equalization.left == {
        "six": "six has the activation relu6",
        "clipped": "relu6 is a ReLU with max_value=6.0, threshold=0.0",
        "shared": "shared is used 2 times",
        "forked": "the output of forked goes to 2 layers",
        "branch": "the output of branch goes to 2 layers",
        "before_groups": "grouped has groups",
        "grouped": "swish is the activation swish",
        "lone": "norm is a BatchNormalization",
        "plus": f"{plus} is a TFOpLambda",
        "last": "last is an output of the model",
    }
    for layer in model.layers:
        if layer.name not in ("first_of_two", "last"):
            for one, other in zip(
                layer.get_weights(),
                equalized.get_layer(layer.name).get_weights(),
                strict=True,
            ):
                np.testing.assert_array_equal(one, other)


def test_the_model_given_is_not_changed_and_keeps_its_names():
    model = network(L.Conv2D(5, 3, activation="relu", name="a"), L.Flatten(), L.Dense(2, name="b"))
    before = [weight.copy() for weight in model.get_weights()]
    model.get_layer("a").trainable = False
    equalized = equalize(model)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [layer.name for layer in equalized.layers] == [layer.name for layer in model.layers]
    assert not equalized.get_layer("a").trainable
    assert equalized.name == "net"


def test_a_model_that_shares_layers_sees_only_its_own():
    # A second head on the same layers does not belong to this model.
    model = network(L.Conv2D(5, 3, activation="relu", name="a"), L.Conv2D(2, 3, name="b"))
    L.Conv2D(7, 1)(model.get_layer("a").output)
    assert names(equalize(model)) == [("a", "b")]


def test_a_sequential_model_stays_one(capsys):
    model = randomized(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                L.Conv2D(4, 3, activation="relu", name="a"),
                L.Conv2D(4, 3, activation="relu", name="b"),
                L.Flatten(),
                L.Dense(3, name="c"),
            ],
            name="digits",
        )
    )
    equalized = equalize(model)
    assert isinstance(equalized, keras.Sequential)
    assert names(equalized) == [("a", "b"), ("b", "c")]
    printed = capsys.readouterr().err
    assert printed.startswith("Equalized 2 pairs of layers in 'digits'. Ranges of channels differ")
    assert printed.count("\n") == 1


def test_a_keras3_model_is_taken():
    k = keras3.layers
    keras3.utils.set_random_seed(0)
    model = keras3.Sequential(
        [k.Input((8, 8, 1)), k.Conv2D(4, 3, activation="relu"), k.Flatten(), k.Dense(3)]
    )
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(equalize(model)(x), model(x), atol=1e-5)


def test_nothing_to_equalize_is_reported_without_an_error(capsys):
    model = network(L.Flatten(), L.Dense(3))
    assert equalize(model).equalization.pairs == ()
    assert "Nothing in 'net' can be equalized" in capsys.readouterr().err


def test_what_cannot_be_equalized_is_refused():
    model = network(L.Dense(3, name="a"), L.Dense(3, name="b"), shape=(2,))
    model.get_layer("a").set_weights([np.full((2, 3), np.nan), np.zeros(3)])
    with pytest.raises(DataError, match=r"NaN or infinity in layer 'a'"):
        equalize(model)
    model = network(L.Dense(3, name="a"), L.Dense(3, name="b"), shape=(2,))
    with pytest.raises(DataError, match=r"shape \('samples', 2\).*\(40, 3\)"):
        equalize(model, np.zeros((40, 3)))
    model.get_layer("a").set_weights([np.full((2, 3), 10.0), np.zeros(3)])
    with pytest.raises(DataError, match=r"output of layer 'a' is NaN or infinite"):
        equalize(model, np.full((40, 2), 3e38, np.float32))


def rounded(x, low, high):
    """On a grid of 256 codes from low to high, 0 among them."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def accuracy_in_integers(model, x, y):
    """Weights per channel of convolutions, activations per tensor, in int8 as the kernels do."""
    for layer in model.layers:
        weights = layer.get_weights()
        if not isinstance(layer, L.InputLayer):
            low, high = min(float(np.min(x)), 0), max(float(np.max(x)), 0)
            x = rounded(np.asarray(x), low, high)
        if weights:
            axes = (
                (0, 1, 3)
                if isinstance(layer, L.DepthwiseConv2D)
                else tuple(range(weights[0].ndim - 1))
            )
            step = np.abs(weights[0]).max(axis=axes, keepdims=True) / 127
            layer.set_weights([np.rint(weights[0] / step) * step, *weights[1:]])
        x = layer(x).numpy() if not isinstance(layer, L.InputLayer) else x
        if weights:
            layer.set_weights(weights)
    return (x.argmax(axis=1) == y).mean()


def test_unequal_channels_cost_integer_accuracy_and_equalization_restores_it(digits):
    x, y, x_test, y_test = digits
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(8, 3, padding="same", activation="relu", name="a"),
            L.DepthwiseConv2D(3, padding="same", activation="relu", name="b"),
            L.Conv2D(16, 1, activation="relu", name="c"),
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dense(10, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, batch_size=64, epochs=10, verbose=0)
    in_floats = (model.predict(x_test, verbose=0).argmax(axis=1) == y_test).mean()
    assert in_floats > 0.9
    # The same function with channels up to 10,000 times larger than others.
    for first, second in (("a", "b"), ("b", "c")):
        scale = np.float32(10.0) ** np.linspace(-2, 2, 8, dtype=np.float32)
        giving, taking = model.get_layer(first), model.get_layer(second)
        kernel, bias = giving.get_weights()
        shape = (-1, 1) if first == "b" else (-1,)
        giving.set_weights([kernel * scale.reshape(shape), bias * scale])
        kernel, bias = taking.get_weights()
        taking.set_weights([kernel / scale.reshape(-1, 1), bias])
    assert (model.predict(x_test, verbose=0).argmax(axis=1) == y_test).mean() >= in_floats - 0.01
    assert accuracy_in_integers(model, x_test, y_test) < in_floats - 0.2
    for data in (None, x[:300]):
        assert accuracy_in_integers(equalize(model, data), x_test, y_test) > in_floats - 0.02
