"""The demands of TensorFlow Lite's integer kernels, read from the file itself."""

import numpy as np
import tf_keras as keras

import kdtflite
from kdtflite.quantization import quantize_aware

L = keras.layers


def tensors_of(lite):
    """Returns the file's tensors by index, with scale and zero point, as the interpreter reads."""
    interpreter = lite.interpreter(xnnpack=False)
    return interpreter, {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}


def settled(model, seed=0):
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(random.uniform(0.3, 3.0, weight.shape))
        elif "gamma" in weight.name:
            weight.assign(random.uniform(0.5, 2.0, weight.shape))
        else:
            weight.assign(random.normal(0.0, 0.4, weight.shape))
    return model


def test_pools_and_concatenations_have_one_scale_on_all_sides():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    narrow = L.Conv2D(4, 3, padding="same", name="narrow")(inputs)
    wide = L.Conv2D(4, 3, padding="same", name="wide", kernel_initializer="he_normal")(inputs)
    wide = L.Rescaling(5.0)(wide)
    joined = L.Concatenate(name="joined")([L.AveragePooling2D()(narrow), L.MaxPooling2D()(wide)])
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(joined)))
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype(np.float32)
    aware = quantize_aware(model, x)
    lite = kdtflite.convert(aware, x, progress=False)
    interpreter, tensors = tensors_of(lite)
    seen = set()
    for operator in interpreter._get_ops_details():
        if operator["op_name"] in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION"):
            seen.add(operator["op_name"])
            ends = [*operator["inputs"], *operator["outputs"]]
            assert len({tensors[i]["quantization"] for i in ends}) == 1, operator["op_name"]
    assert seen == {"AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION"}
    assert kdtflite.compare(aware, lite, x).largest_difference_steps < 1.01


def test_the_files_kernel_is_the_one_folded_by_hand():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    h = L.Conv2D(5, 3, use_bias=False, name="conv")(inputs)
    h = L.ReLU()(L.BatchNormalization(epsilon=1e-3, name="norm")(h))
    model = settled(keras.Model(inputs, L.Dense(2)(L.Flatten()(h))))
    x = np.random.default_rng(1).normal(size=(100, 6, 6, 3)).astype(np.float32)
    lite = kdtflite.convert(quantize_aware(model, x), x, progress=False)

    gamma, beta, mean, variance = (
        value.astype(np.float64) for value in model.get_layer("norm").get_weights()
    )
    factor = gamma / np.sqrt(variance + 1e-3)
    folded = model.get_layer("conv").get_weights()[0].astype(np.float64) * factor
    scales = np.abs(folded).max(axis=(0, 1, 2)) / 127

    interpreter, tensors = tensors_of(lite)
    operators = interpreter._get_ops_details()
    assert [o["op_name"] for o in operators].count("CONV_2D") == 1
    assert not {"MUL", "ADD", "SUB", "RELU"} & {o["op_name"] for o in operators}
    (conv,) = (o for o in operators if o["op_name"] == "CONV_2D")
    given, kernel, bias = conv["inputs"]
    parameters = tensors[kernel]["quantization_parameters"]
    np.testing.assert_allclose(parameters["scales"], scales, rtol=1e-5)
    codes = np.round(folded / scales).transpose(3, 0, 1, 2)
    # A weight in the middle between two codes, within the error of float32, may be either.
    assert np.mean(interpreter.get_tensor(kernel) != codes) < 0.01
    step = tensors[given]["quantization"][0] * scales
    shift = beta - mean * factor
    assert np.abs(interpreter.get_tensor(bias) - np.round(shift / step)).max() <= 1


def test_softmax_and_sigmoid_outputs_have_the_grid_of_the_specification():
    inputs = keras.Input((4,))
    h = L.Dense(6)(inputs)
    outputs = {"classes": L.Softmax(name="classes")(h), "chance": L.Activation("sigmoid")(h)}
    model = settled(keras.Model(inputs, outputs))
    x = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32)
    lite = kdtflite.convert(quantize_aware(model, x), x, progress=False)
    assert {(spec.scale, spec.zero_point) for spec in lite.outputs} == {(1 / 256, -128)}


def test_a_dead_branch_still_runs_with_xnnpack():
    inputs = keras.Input((6, 6, 2))
    dead = L.ReLU()(L.Conv2D(3, 1, name="dead", bias_initializer="zeros")(inputs))
    h = L.Add()([dead, L.Conv2D(3, 1)(inputs)])
    model = settled(keras.Model(inputs, L.Dense(2)(L.Flatten()(h))))
    model.get_layer("dead").set_weights([np.zeros((1, 1, 2, 3)), np.full(3, -1.0)])
    x = np.random.default_rng(3).normal(size=(64, 6, 6, 2)).astype(np.float32)
    aware = quantize_aware(model, x)
    lite = kdtflite.convert(aware, x, progress=False)
    assert min(t.scale for t in lite.inputs + lite.outputs) > 1e-8
    assert np.isfinite(lite.predict(x, xnnpack=True)).all()
    assert kdtflite.compare(aware, lite, x).largest_difference_steps < 1.01
