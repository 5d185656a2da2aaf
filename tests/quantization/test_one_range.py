"""One value has one range, and a root, a logarithm or a division never gets 0 in training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite.distillation.outputs import to_logits
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.models.inspect import find_output_step
from kdtflite.quantization import quantize_aware
from kdtflite.quantization.ranges import list_ranged_layers

L = keras.layers

# What only moves or chooses values, under the name that TensorFlow gives the operation.
MOVES = {
    "expand_dims": lambda x: tf.expand_dims(x, 1),
    "gather": lambda x: tf.gather(x, [2, 0], axis=1),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0]]),
    "permute_dimensions": lambda x: keras.backend.permute_dimensions(x, (0, 2, 1)),
    "reshape": lambda x: tf.reshape(x, [-1, 3, 8]),
    "slice": lambda x: x[:, 1:, tf.newaxis],
    "split": lambda x: tf.split(x, 2, axis=-1)[1],
    "squeeze": lambda x: tf.squeeze(x[:, :, tf.newaxis], 2),
    "tile": lambda x: tf.tile(x, [1, 2, 1]),
    "transpose": lambda x: tf.transpose(x, [0, 2, 1]),
    "unstack": lambda x: tf.unstack(x, axis=1)[0],
}


@pytest.mark.parametrize("move", MOVES)
def test_a_value_that_only_moves_has_the_range_that_it_had(move):
    inputs = keras.Input((6, 4))
    moved = MOVES[move](L.Dense(4, name="first")(inputs))
    model = keras.Model(inputs, L.Dense(2, name="last")(L.Flatten()(moved)))
    found = [layer.name for layer in list_ranged_layers(quantize_aware(model))]
    assert found == [f"quant_{inputs.node.layer.name}", "quant_first_row", "quant_last"]


@pytest.mark.slow
def test_attention_of_plain_operations_converts_after_training():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((9, 4))
    parts = tf.reshape(L.Dense(12, use_bias=False)(inputs), [-1, 9, 3, 2, 2])
    parts = tf.split(tf.transpose(parts, [2, 0, 3, 1, 4]), 3, axis=0)
    query, key, value = (tf.squeeze(part, 0) for part in parts)
    weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) * 0.7, axis=-1)
    context = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
    model = keras.Model(inputs, L.Dense(3)(tf.reshape(context, [-1, 36])))
    x = np.random.default_rng(0).normal(size=(64, 9, 4)).astype(np.float32)
    aware = quantize_aware(model, x)
    aware.compile("sgd", "mse")
    aware.fit(x, np.ones((64, 3)), batch_size=8, verbose=0)
    lite = kdtflite.convert(aware, x, progress=False)
    assert kdtflite.compare(aware, lite, x).largest_difference_steps <= 3


# A large value beside small ones: all but the large one round to 0.
BENT = {
    "division": lambda x: x / (tf.reduce_mean(x, -1, keepdims=True) + 1e-3),
    "logarithm": lambda x: tf.math.log(x + 1e-3),
    "logarithm of a softmax": lambda x: tf.math.log(tf.nn.softmax(x)),
    "logarithm of the input": lambda x: tf.math.log(x),
    "norm": lambda x: tf.norm(x - tf.reduce_mean(x, -1, keepdims=True), axis=-1, keepdims=True),
    "power": lambda x: tf.pow(x + 1e-3, -0.5),
    "reciprocal": lambda x: tf.math.reciprocal(x + 1e-3),
    "root": lambda x: tf.sqrt(x + 1e-3),
    "root of a reshaped value": lambda x: tf.math.rsqrt(tf.reshape(x + 1e-3, [-1, 2, 2])),
    "standard deviation": lambda x: tf.math.reduce_std(x, -1, keepdims=True),
}


@pytest.mark.parametrize("ranges", ["moving", "fixed", "learned"])
@pytest.mark.parametrize("bend", BENT)
def test_no_gradient_is_infinite_where_a_value_rounds_to_0(bend, ranges):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    # The input is positive and passes through no layer that could hide what is not finite.
    bent = L.Flatten()(BENT[bend](inputs))
    model = keras.Model(inputs, L.Dense(2)(bent))
    x = np.full((64, 4), 1e-3, np.float32)
    x[::2] *= np.array([1, 2, 3, 4])
    x[0] = 40.0
    aware = quantize_aware(model, x, ranges=ranges)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_mean(aware(x, training=True) ** 2)
    gradients = tape.gradient(loss, [x, *aware.trainable_variables])
    assert np.isfinite(float(loss))
    assert all(np.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.slow
def test_layer_normalization_of_padded_steps_trains_as_in_float_and_converts():
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(128, 8, 6)).astype(np.float32)
    x[:, :3] = 0
    y = x.sum((1, 2))[:, None]
    inputs = keras.Input((8, 6))
    h = L.ReLU()(L.LayerNormalization()(L.Dense(10)(inputs)))
    model = keras.Model(inputs, L.Dense(1)(L.GlobalAveragePooling1D()(h)))
    aware = quantize_aware(model, x)
    losses = []
    for network in (model, aware):
        network.compile(keras.optimizers.Adam(0.01), "mse")
        history = network.fit(x, y, batch_size=16, epochs=5, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert all(np.isfinite(weight).all() for weight in aware.get_weights())
    assert losses[1][-1] < 0.9 * losses[1][0]
    np.testing.assert_allclose(losses[1][-1], losses[0][-1], rtol=0.2)
    lite = kdtflite.convert(aware, x, progress=False)
    assert np.isfinite(lite.predict(x)).all()


def build_head(activation, *after):
    inputs = keras.Input((4,))
    h = L.Dense(6, activation=activation, name="scores")(inputs)
    for layer in after:
        h = layer(h)
    model = keras.Model(inputs, h)
    kernel = np.zeros((4, 6), np.float32)
    kernel[0, 0], kernel[0, 1:] = 20.0, -20.0
    model.get_layer("scores").set_weights([kernel, np.zeros(6, np.float32)])
    return model


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("after", [[], [L.Reshape((2, 3))]], ids=["plain", "reshaped"])
def test_a_head_of_probabilities_reaches_the_loss_unrounded(activation, after):
    model = build_head(activation, *after)
    x = np.random.default_rng(0).uniform(0.1, 1, (64, 4)).astype(np.float32)
    aware = quantize_aware(model, x)
    trained = aware(x, training=True).numpy()
    assert trained.min() > 0
    np.testing.assert_allclose(np.log(trained), np.log(model(x)), atol=0.4)
    rounded = aware(x, training=False).numpy()
    np.testing.assert_array_equal(rounded * 256, np.round(rounded * 256))
    assert rounded.min() == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_models_own_quantized_copy_has_a_small_soft_loss(activation):
    teacher = build_head(activation)
    x = np.random.default_rng(0).uniform(0.1, 1, (64, 4)).astype(np.float32)
    distiller = kdtflite.Distiller(
        quantize_aware(teacher, x),
        teacher,
        losses=[kdtflite.losses.SoftTargets()],
        hard_label_weight=0.0,
    )
    distiller.compile(keras.optimizers.SGD(0.0))
    assert distiller.fit(x, np.zeros(64, np.int64), verbose=0).history["loss"][0] < 0.1


def test_a_rounded_probability_of_0_counts_as_half_a_step_for_student_and_teacher():
    model = build_head("softmax")
    x = np.full((8, 4), 0.9, np.float32)
    aware = quantize_aware(model, np.repeat(x, 8, axis=0))
    assert find_output_step(aware) == 1 / 256
    assert find_output_step(model) == 0.0
    expected = np.log([255 / 256, *5 * [1 / 512]])
    given = to_logits(aware(x, training=False), "probabilities", step=find_output_step(aware))
    np.testing.assert_allclose(given, np.tile(expected, (8, 1)), rtol=1e-4)
    np.testing.assert_allclose(as_teacher(aware)(x), np.tile(expected, (8, 1)), rtol=1e-4)
