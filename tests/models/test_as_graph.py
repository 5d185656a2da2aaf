"""Subclassed models become graphs of the same layers, or are refused with what to change."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models import as_graph, from_keras3

L, L3 = keras.layers, keras3.layers
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype("float32")
VECTORS = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")


def _model_of(package):
    """Makes the same subclassed model in either Keras: nested, shared, with dropout and a loop."""
    layers = package.layers

    class Block(layers.Layer):
        def __init__(self, filters, **kwargs):
            super().__init__(**kwargs)
            self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
            self.norm = layers.BatchNormalization(name="norm")

        def call(self, x, training=None):
            return x + self.norm(self.conv(x), training=training)

    class Classifier(package.Model):
        def __init__(self):
            super().__init__(name="classifier")
            self.blocks = [Block(2, name=f"block{place}") for place in range(2)]
            self.shared = layers.Dense(4, activation="relu", name="shared")
            self.pool = layers.GlobalAveragePooling2D(name="pool")
            self.drop = layers.Dropout(0.5, name="drop")
            self.head = layers.Dense(3, name="head")

        def call(self, x, training=None):
            for block in self.blocks:
                x = block(x, training=training)
            x = self.shared(x)
            x = self.shared(x[..., :2] * 0.5 + x[..., 2:])
            return self.head(self.drop(self.pool(x), training=training))

    model = Classifier()
    model(IMAGES)
    rng = np.random.default_rng(2)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape).astype("f4") for w in model.get_weights()])
    return model


def _built(model, *inputs):
    model(*inputs)
    return model


def test_a_subclassed_model_is_traced_to_a_graph_of_its_own_layers(capsys):
    model = _model_of(keras)
    traced = as_graph(model)
    assert traced._is_graph_network
    np.testing.assert_allclose(traced(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    assert traced.get_layer("shared") is model.shared
    assert traced.get_layer("block0").get_layer("conv") is model.blocks[0].conv
    assert {id(w) for w in traced.weights} == {id(w) for w in model.weights}
    # two blocks of conv, norm and +; shared; two slices, * and +; pool, drop and head
    assert capsys.readouterr().err.startswith(
        "Model 'classifier' (Classifier) traced to a Functional model: 14 layers, "
        "largest difference "
    )


def test_a_traced_model_trains_the_layers_that_it_was_traced_from():
    model = _model_of(keras)
    traced = as_graph(model)
    traced.compile(keras.optimizers.SGD(0.01), "mse")
    before = model.blocks[0].norm.moving_mean.numpy()
    traced.fit(IMAGES, np.ones((3, 3), "float32"), verbose=0)
    assert np.abs(model.blocks[0].norm.moving_mean.numpy() - before).max() > 1e-3
    np.testing.assert_allclose(traced(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    # Dropout rests in inference and works in training, as in the model itself.
    assert np.abs(np.subtract(traced(IMAGES, training=True), traced(IMAGES))).max() > 1e-3


def test_a_traced_model_can_be_cloned_saved_and_loaded(tmp_path):
    traced = as_graph(_model_of(keras))
    traced.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(IMAGES), traced(IMAGES), rtol=1e-5, atol=1e-5)
    clone = keras.models.clone_model(traced)
    clone.set_weights(traced.get_weights())
    np.testing.assert_allclose(clone(IMAGES), traced(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_subclassed_keras_3_model_is_carried_over(capsys):
    model = _model_of(keras3)
    target = as_graph(model)
    assert target._is_graph_network
    np.testing.assert_allclose(target(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    assert [tuple(w.shape) for w in target.get_layer("shared").weights] == [(2, 4), (4,)]
    assert target.get_layer("block1").get_layer("norm").weights[0].shape == (2,)
    line = capsys.readouterr().err
    assert line.startswith("Keras 3 model 'classifier' carried over to tf_keras: 14 layers, ")
    assert "largest difference" in line


def test_the_same_model_is_told_of_once(capsys):
    model = _model_of(keras3)
    from_keras3(model)
    from_keras3(model)
    assert capsys.readouterr().err.count("carried over") == 1


def test_a_model_with_a_graph_is_returned_itself():
    x = keras.Input((5,))
    inner = keras.Sequential([keras.Input((5,)), L.Dense(4)])
    for model in (keras.Model(x, inner(x)), inner):
        assert as_graph(model) is model


@pytest.mark.parametrize("package", [keras, keras3])
def test_dicts_of_inputs_and_outputs_keep_their_keys(package):
    class Two(package.Model):
        def __init__(self):
            super().__init__(name="two")
            self.embed = package.layers.Embedding(7, 3)
            self.dense = package.layers.Dense(3)

        def call(self, inputs):
            words = self.embed(inputs["words"])
            seen = self.dense(inputs["seen"])
            return {"sum": words[:, 0] + seen, "both": [seen, words]}

    x = {"seen": VECTORS, "words": np.array([[1, 2], [3, 4], [5, 6], [0, 1]], "int32")}
    model = _built(Two(), x)
    traced = as_graph(model)
    assert sorted(traced.input_names) == ["seen", "words"]
    expected, received = model(x), traced(x)
    assert set(received) == {"sum", "both"}
    np.testing.assert_allclose(received["sum"], expected["sum"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(received["both"][1], expected["both"][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("package", [keras, keras3])
def test_a_list_of_inputs_stays_a_list(package):
    class Distance(package.Model):
        def __init__(self):
            super().__init__()
            self.embed = package.layers.Dense(3)

        def call(self, inputs):
            one, other = inputs
            return self.embed(one) - self.embed(other)

    model = _built(Distance(), [VECTORS, 2 * VECTORS])
    traced = as_graph(model)
    x = [VECTORS, VECTORS**2]
    np.testing.assert_allclose(traced(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_subclassed_model_inside_a_functional_one_is_opened():
    inner = _model_of(keras)
    x = keras.Input((8, 8, 2), name="image")
    model = keras.Model(x, L.Softmax()(inner(x)), name="outer")
    traced = as_graph(model)
    assert traced.get_layer("classifier").get_layer("head") is inner.head
    np.testing.assert_allclose(traced(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)


def test_a_custom_layer_with_weights_of_its_own_stays_a_layer():
    class Scale(L.Layer):
        def build(self, shape):
            self.factor = self.add_weight(name="factor", shape=shape[-1:], initializer="ones")

        def call(self, x):
            return x * self.factor

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale, self.dense = Scale(name="scale"), L.Dense(2)

        def call(self, x):
            return self.dense(self.scale(x))

    model = _built(Net(), VECTORS)
    assert as_graph(model).get_layer("scale") is model.scale


def test_the_inputs_of_a_model_built_by_shape_alone_are_floats():
    model = _model_of(keras)
    fresh = type(model)()
    fresh.build((None, 8, 8, 2))
    assert as_graph(fresh).input_shape == (None, 8, 8, 2)


def test_frozen_layers_stay_frozen():
    model = _model_of(keras)
    model.blocks[0].trainable = False
    traced = as_graph(model)
    assert not traced.get_layer("block0").trainable
    assert traced.get_layer("block1").trainable
    assert len(traced.trainable_weights) == len(model.trainable_weights) == 8


def test_a_mixed_precision_subclassed_model_is_rebuilt_in_float32():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = _model_of(keras)
        rebuilt = as_graph(model)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.head.compute_dtype == "float16"
    traced = as_graph(model, float32=False)
    assert traced.get_layer("head") is model.head
    assert {layer.compute_dtype for layer in rebuilt._flatten_layers()} == {"float32"}
    # float16 keeps 11 bits: 5e-4 of each value, a few of them in a row
    np.testing.assert_allclose(rebuilt(IMAGES), model(IMAGES), rtol=1e-2)
    np.testing.assert_array_equal(rebuilt.get_weights()[0], model.get_weights()[0])


def test_a_mixed_precision_subclassed_keras_3_model_is_rebuilt_in_float32():
    keras3.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = _model_of(keras3)
        rebuilt = from_keras3(model)
    finally:
        keras3.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in rebuilt._flatten_layers()} == {"float32"}
    # bfloat16 keeps 8 bits: 4e-3 of each value, a few of them in a row
    np.testing.assert_allclose(rebuilt(IMAGES), tf.cast(model(IMAGES), "float32"), rtol=5e-2)


def _calling(package, call, *attributes):
    """Makes a model with a Dense layer `dense` whose call() is `call`."""

    class Net(package.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense = package.layers.Dense(5, name="dense")
            for name, value in attributes:
                setattr(self, name, value)

    Net.call = call
    return _built(Net(), VECTORS)


def _branches_on_values(self, x):
    x = self.dense(x)
    return x if float(keras3.ops.convert_to_numpy(x).sum()) > 0 else -x


def _loops_on_values(self, x):
    x = self.dense(x)
    while tf.reduce_max(x) > 1:
        x = x / 2
    return x


def _other_path_in_training(self, x, training=None):
    return self.dense(x) if training else self.dense(x) * 2


def _noise(self, x):
    return self.dense(x) + tf.random.normal((1, 5))


def _leaves_a_layer_out(self, x):
    self.other(x) if x.shape[0] == 4 else None  # built, and not called again
    return self.dense(x)


def _makes_layers(self, x):
    return L.Dense(2)(self.dense(x))


REFUSED = [
    (
        keras,
        _branches_on_values,
        (),
        r"call\(\) of the model 'net' \(Net\).*no Python branch, loop",
    ),
    (keras3, _branches_on_values, (), r"follow its call\(\).*without Python branches.*functional"),
    (keras, _loops_on_values, (), r"'net' \(Net\) cannot be followed.*no Python branch, loop"),
    (keras, _other_path_in_training, (), r"another path in training.*Call the layers always"),
    (keras3, _noise, (), r"follow its call\(\)|computes something else every time"),
    (keras, _noise, (), r"computes something else every time.*no random numbers"),
    (keras, _makes_layers, (), r"makes the weights .*Make their layers in __init__\(\), once"),
    (
        keras,
        _leaves_a_layer_out,
        (("other", L.Dense(2, name="other")),),
        r"holds the weights .*other/kernel.*remove those that call\(\) does not use",
    ),
    (
        keras,
        lambda self, x: self.dense(x) * self.factor,
        (("factor", tf.Variable(2.0, name="factor")),),
        r"'net' \(Net\), which holds factor:0 itself.*Hold them in a layer",
    ),
]


@pytest.mark.parametrize(("package", "call", "attributes", "message"), REFUSED)
def test_a_call_that_is_no_graph_is_refused_with_what_to_change(package, call, attributes, message):
    model = _calling(package, call, *attributes)
    with pytest.raises(UnsupportedModelError, match=f"(?s){message}"):
        as_graph(model)


@pytest.mark.parametrize("package", [keras, keras3])
def test_inputs_side_by_side_are_refused(package):
    class Net(package.Model):
        def __init__(self):
            super().__init__(name="pair")
            self.dense = package.layers.Dense(2)

        def call(self, one, other):
            return self.dense(one) + self.dense(other)

    model = _built(Net(), VECTORS, VECTORS)
    with pytest.raises(UnsupportedModelError, match=r"takes 2 inputs side by side.*list or dict"):
        as_graph(model)


def test_a_model_that_was_never_built_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"'classifier' is not built"):
        as_graph(type(_model_of(keras))())
