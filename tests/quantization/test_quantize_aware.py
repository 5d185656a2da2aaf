"""quantize_aware: ranges from data, every layer accounted for, the float model untouched."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.models import load_model
from kdtflite.quantization import quantize_aware
from kdtflite.quantization.ranges import read_input_ranges, suspend_rounding
from kdtflite.runtime import import_tfmot

L = keras.layers


class Twice(L.Layer):
    def call(self, inputs):
        return 2 * inputs


def ranges(model, layer):
    """Lower and upper limit of each activation range of a layer."""
    found = {w.name.split("/")[-1][:-2]: w.numpy() for w in model.get_layer(layer).weights}
    return {
        name.removesuffix("_min"): (value, found[name.removesuffix("_min") + "_max"])
        for name, value in found.items()
        if name.endswith("_min")
    }


def how(model):
    return {row.layer: row.how for row in model.quantization.layers}


def why(model):
    return {row.layer: row.why for row in model.quantization.layers if row.why}


def accuracy(model, x, y):
    return (model.predict(x, verbose=0).argmax(axis=1) == y).mean()


def images(count=40, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (count, *shape)).astype(np.float32)


def network(*layers, shape=(8, 8, 1), seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape, name="image")
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def test_before_the_first_step_it_is_as_accurate_as_the_float_model(trained, digits):
    x, _, x_test, y_test = digits
    wanted = accuracy(trained, x_test, y_test)
    assert wanted > 0.95
    assert abs(accuracy(quantize_aware(trained, x[:300]), x_test, y_test) - wanted) <= 0.01
    # TFMOT's own start.
    alone = import_tfmot().quantization.keras.quantize_model(trained)
    assert accuracy(alone, x_test, y_test) < 0.5


def test_activation_ranges_are_those_of_the_float_activations(trained, digits):
    x = digits[0][:300]
    model = quantize_aware(trained, x)
    outputs = [trained.get_layer(name).output for name in ("relu", "depthwise", "logits")]
    values = keras.Model(trained.input, outputs).predict(x, verbose=0)
    for layer, value in zip(("quant_relu", "quant_depthwise", "quant_logits"), values, strict=True):
        low, high = ranges(model, layer)["output"]
        # Exact but for the order in which batches of another size are summed.
        np.testing.assert_allclose(low, min(value.min(), 0), rtol=1e-5)
        np.testing.assert_allclose(high, value.max(), rtol=1e-5)
    assert read_input_ranges(model) == {"image": (0.0, float(x.max()))}


def test_weights_have_one_scale_per_channel_in_convolutions_and_one_in_dense(trained, digits):
    model = quantize_aware(trained, digits[0][:64])
    for layer, name, axes in (
        ("conv", "kernel", (0, 1, 2)),
        ("depthwise", "depthwise_kernel", (0, 1, 3)),
        ("logits", "kernel", None),
    ):
        weight = trained.get_layer(layer).get_weights()[0]
        step = np.abs(weight).max(axis=axes, keepdims=True) / 127
        rounded = model.get_layer(f"quant_{layer}").weight_quantizers[name](weight).numpy()
        np.testing.assert_allclose(rounded, np.round(weight / step) * step, atol=1e-6)


def test_four_bits_are_for_convolutions_and_dense_layers(trained, digits):
    x, y, x_test, y_test = digits
    student = quantize_aware(trained, x[:300], weight_bits=4)
    bits = {
        layer.name: {name: (q.bits, q.axes) for name, q in layer.weight_quantizers.items()}
        for layer in student.layers
        if hasattr(layer, "weight_quantizers")
    }
    assert bits == {
        "quant_conv": {"kernel": (4, (-1,))},
        "quant_depthwise": {"depthwise_kernel": (8, (-2, -1))},
        "quant_logits": {"kernel": (4, ())},
    }
    layer = student.get_layer("quant_logits")
    rounded = layer.weight_quantizers["kernel"](layer.layer.kernel, layer.weight_ranges["kernel"])
    assert len(np.unique(rounded)) <= 15
    before = accuracy(student, x_test, y_test)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(0.001), loss)
    student.fit(x, y, batch_size=64, epochs=4, verbose=0)
    assert accuracy(student, x_test, y_test) >= max(
        before, accuracy(trained, x_test, y_test) - 0.02
    )
    with pytest.raises(ConfigurationError, match=r"weight_bits of 4 or 8\. Received: 3"):
        quantize_aware(trained, x[:300], weight_bits=3)


def test_a_depthwise_kernel_is_rounded_on_each_channels_own_grid():
    kernel = np.array([1.0, 0.01], np.float32) * np.array([0.3, 1.0, -1.0], np.float32)[:, None]
    model = network(L.DepthwiseConv2D((3, 1), use_bias=False, name="depthwise"), shape=(3, 1, 2))
    model.get_layer("depthwise").set_weights([kernel[:, None, :, None]])
    x = np.array([1.0, 0.5, 0.25], np.float32)[None, :, None, None] * np.ones(2, np.float32)
    expected = (kernel * x[0, :, 0]).sum(axis=0)
    given = quantize_aware(model, x)(x).numpy().ravel()
    # On one grid for both channels, the small channel's 0.003 would be 0.
    np.testing.assert_allclose(given[0], expected[0], atol=0.01)


def test_the_report_accounts_for_every_layer():
    inner = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(4, 1, name="deep")], name="inner")
    inputs = keras.Input((8, 8, 1), name="image")
    x = L.Conv2D(4, 3, activation="elu", name="elu_conv")(inputs)
    x = inner(x)
    x = x * 2.0
    x = L.BatchNormalization(name="lone_norm")(x)
    x = L.LayerNormalization(name="layer_norm")(x)
    x = L.SeparableConv2D(4, 3, name="separable")(x)
    x = L.Conv2D(4, 1, name="conv")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    x = Twice(name="own")(x)
    x = L.Flatten(name="flat")(x)
    model = keras.Model(inputs, L.Dense(3, name="logits")(x))
    data = images()
    aware = quantize_aware(model, data)
    assert how(aware) == {
        "elu_conv": "trained",
        "inner/deep": "trained",
        model.layers[3].name: "trained",
        "lone_norm": "trained",
        "layer_norm": "trained",
        "separable": "trained",
        "conv": "trained",
        "norm": "folded",
        "relu": "trained",
        "own": "calibrated",
        "flat": "folded",
        "logits": "trained",
    }
    assert type(model.layers[3]).__name__ == "TFOpLambda"
    assert why(aware) == {"own": "no integer form is known for Twice"}
    text = str(aware.quantization)
    assert "no integer form is known" in text
    assert text.endswith("9 trained, 2 folded, 1 calibrated")
    assert aware.quantization.to_dict()["layers"][9] == {
        "layer": "own",
        "class": "Twice",
        "how": "calibrated",
        "why": "no integer form is known for Twice",
    }
    float_outputs = model.predict(data, verbose=0)
    error = np.abs(aware.predict(data, verbose=0) - float_outputs).max()
    assert error < 0.1 * np.abs(float_outputs).max()


def test_calibrated_layers_are_reported(capsys):
    quantize_aware(network(Twice(name="own"), L.Dense(2), shape=(8,)))
    printed = capsys.readouterr().err
    assert "1 of 2 layers are not trained quantization-aware" in printed
    assert "own (Twice)" in printed


@pytest.mark.parametrize(
    "activation", ["elu", "selu", "hard_sigmoid", "softplus", "mish", "exponential", "leaky_relu"]
)
def test_activations_that_tfmot_refuses_are_trained(activation):
    model = network(
        L.Conv2D(3, 3, activation=activation, name="inside"),
        L.Conv2D(3, 3, name="before"),
        L.Activation(activation, name="alone"),
        L.Flatten(),
        L.Dense(2, name="logits"),
    )
    data = images()
    aware = quantize_aware(model, data)
    assert how(aware)["inside"] == how(aware)["alone"] == "trained"
    if activation == "hard_sigmoid":
        return  # ends in a minimum with 1, on the scale of what it bounds
    value = keras.Model(model.input, model.get_layer("inside").output).predict(data, verbose=0)
    low, high = ranges(aware, "quant_inside")["output"]
    np.testing.assert_allclose((low, high), (min(value.min(), 0), value.max()), rtol=1e-5)


def test_the_float_model_is_not_changed_and_shares_nothing(trained, digits):
    before = trained.get_weights()
    names = [layer.name for layer in trained.layers]
    x, y, _, _ = digits
    model = quantize_aware(trained, x[:64])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:64], y[:64], verbose=0)
    assert [layer.name for layer in trained.layers] == names
    for one, other in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_dead_activation_gets_a_range_that_kernels_take_and_is_named(capsys):
    model = network(L.Conv2D(2, 3, activation="relu", name="dead"), L.Flatten(), L.Dense(2))
    model.get_layer("dead").set_weights([np.zeros((3, 3, 1, 2)), -np.ones(2)])
    model.layers[-1].set_weights([np.ones((72, 2)), np.ones(2)])
    aware = quantize_aware(model, images())
    low, high = ranges(aware, "quant_dead")["output"]
    assert low == 0
    assert (high - low) / 255 > 1e-8  # below, XNNPACK refuses the file
    printed = capsys.readouterr().err
    assert "1 of 3 activations are always zero" in printed
    assert "widened: dead." in printed
    assert printed.count("always zero") == 1


@pytest.mark.parametrize("still", [True, False])
def test_a_mixed_precision_model_is_rebuilt_in_float32(still, digits):
    inner = None
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        inner = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(3, 1)], name="inner")
        model = network(L.Conv2D(3, 3, activation="relu"), inner, L.Flatten(), L.Dense(2))
        if not still:
            keras.mixed_precision.set_global_policy("float32")
        data = images()
        aware = quantize_aware(model, data)
        assert keras.mixed_precision.global_policy().name == (
            "mixed_float16" if still else "float32"
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert {layer.compute_dtype for layer in aware._flatten_layers(include_self=False)} == {
        "float32"
    }
    outputs = aware(data)
    assert outputs.dtype == tf.float32
    np.testing.assert_allclose(outputs, tf.cast(model(data), tf.float32), atol=0.05)
    assert model.layers[1].compute_dtype == "float16"


def test_several_inputs_by_name_each_with_its_own_range():
    first, second = keras.Input((4,), name="z_first"), keras.Input((2, 3), name="a_second")
    x = L.Concatenate()([L.Dense(3, name="hidden")(first), L.Flatten()(second)])
    data = {
        "a_second": np.linspace(-5, 2, 240, dtype=np.float32).reshape(40, 2, 3),
        "z_first": np.linspace(0, 9, 160, dtype=np.float32).reshape(40, 4),
    }
    for inputs in ([first, second], {"p": first, "q": second}):
        model = keras.Model(inputs, L.Dense(2)(x))
        aware = quantize_aware(model, data)
        assert read_input_ranges(aware) == {"z_first": (0.0, 9.0), "a_second": (-5.0, 2.0)}


def test_weights_saved_and_loaded_are_the_same_student(trained, digits, tmp_path):
    x = digits[0][:64]
    model = quantize_aware(trained, x)
    model.save_weights(tmp_path / "student.h5")
    again = quantize_aware(trained)
    assert not again.quantization.calibrated
    again.load_weights(tmp_path / "student.h5")
    assert again.quantization.calibrated
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_keras3_model_is_taken():
    k = keras3.layers
    keras3.utils.set_random_seed(0)
    model = keras3.Sequential(
        [k.Input((8, 8, 1)), k.Conv2D(4, 3, activation="relu"), k.Flatten(), k.Dense(3)]
    )
    data = images()
    aware = quantize_aware(model, data)
    assert isinstance(aware, keras.Model)
    np.testing.assert_allclose(aware(data), model(data), atol=0.03)


def test_a_custom_layer_is_left_for_calibration():
    model = network(Twice(name="twice"), L.Flatten(), L.Dense(3))
    aware = quantize_aware(model, images())
    assert why(aware) == {"twice": "no integer form is known for Twice"}
    np.testing.assert_allclose(aware(images()), model(images()), atol=0.05)
    # Its factor must not be folded into the rounded kernel after it, whose codes it would double.
    lite = kdtflite.convert(aware, images(), progress=False)
    assert kdtflite.compare(aware, lite, images()).largest_difference_steps < 1.01


def test_what_cannot_be_made_quantization_aware_is_refused(trained):
    with pytest.raises(UnsupportedModelError, match="quantization-aware already"):
        quantize_aware(quantize_aware(trained))

    with pytest.raises(UnsupportedModelError, match=r"No layer of .*own: no integer form"):
        quantize_aware(network(Twice(name="own")))
    with pytest.raises(UnsupportedModelError, match="layer 'double' is a Lambda"):
        quantize_aware(network(L.Lambda(lambda x: 2 * x, name="double"), L.Flatten(), L.Dense(2)))
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model"):
        quantize_aware("model.tflite")


def test_layers_of_two_nested_models_may_share_a_name(capsys):
    def block(name):
        inputs = keras.Input((8, 8, 2))
        x = L.Conv2D(2, 3, padding="same", name="conv")(inputs)
        return keras.Model(inputs, L.BatchNormalization(name="norm")(x), name=name)

    # A layer with the name of another one's part: "dense" gets a part "dense_row".
    model = network(
        *(block("one"), block("two")),
        *(L.Reshape((8, 16), name="reshape"), L.Dense(3, name="dense")),
        *(L.Dense(3, name="dense_row"), L.Flatten(name="flatten"), L.Dense(2, name="conv")),
        shape=(8, 8, 2),
    )
    rng = np.random.default_rng(5)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
    x = images(shape=(8, 8, 2))
    aware = quantize_aware(model, x)
    with suspend_rounding(aware):
        np.testing.assert_allclose(aware(x), model(x), rtol=1e-4)
    assert how(aware) == {
        **{f"{block}/{layer}": "trained" for block in ("one", "two") for layer in ("conv", "norm")},
        **{"reshape": "folded", "dense": "trained", "dense_row": "trained"},
        **{"flatten": "folded", "conv": "trained"},
    }


def test_representative_data_that_do_not_fit_are_refused(trained):
    with pytest.raises(DataError, match=r"shape \('samples', 8, 8, 1\).*\(40, 4, 4, 1\)"):
        quantize_aware(trained, images(shape=(4, 4, 1)))
    bad = images()
    bad[3] = np.nan
    with pytest.raises(DataError, match="1 of 40 samples, the first at 3"):
        quantize_aware(trained, bad)


def test_activations_that_are_not_finite_are_named():
    model = network(L.Flatten(), L.Dense(2, name="broken"))
    model.layers[-1].set_weights([np.full((64, 2), np.inf), np.zeros(2)])
    with pytest.raises(DataError, match="output of layer broken is NaN or infinite"):
        quantize_aware(model, images())


def test_calibrating_needs_batches(trained):
    with pytest.raises(DataError, match="at least one batch"):
        quantize_aware(trained).quantization.calibrate([])


def test_a_frozen_layer_stays_frozen_in_training_and_in_the_file(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    hidden = L.Dense(5, activation="relu", name="frozen", trainable=False)(x)
    model = keras.Model(x, L.Dense(3, name="free")(hidden))
    data = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    student = quantize_aware(model, data)
    frozen, free = (student.get_layer(f"quant_{name}").weights[0] for name in ("frozen", "free"))
    before = frozen.numpy(), free.numpy()
    student.compile(keras.optimizers.SGD(0.5), "mse")
    student.fit(data, np.ones((64, 3), np.float32), verbose=0)
    np.testing.assert_array_equal(frozen, before[0])
    assert (free.numpy() != before[1]).any()
    for name in ("student.keras", "student.h5", "student"):
        student.save(tmp_path / name)
        loaded = load_model(tmp_path / name)
        np.testing.assert_array_equal(loaded(data), student(data))
        assert [w.shape for w in loaded.trainable_weights] == [(5, 3), (3,)]
