"""SimpleKD and the student that ends in its teacher's classifier."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from feature_references import assert_gradient, maps, pool

import kdtflite
from kdtflite.distillation.losses.features.reuse_classifier import PROJECTOR, reuse_classifier
from kdtflite.distillation.losses.features.simple_kd import SimpleKD
from kdtflite.errors import ConfigurationError, ShapeMismatchError, UnsupportedModelError

L = keras.layers


def reference(student, teacher):
    squares = (np.float64(teacher) - np.float64(student)) ** 2
    return np.array([sample.mean() for sample in squares])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 7, 6), (4, 1)])
def test_the_mean_of_squared_differences(scale, shape):
    student, teacher = maps(0, *shape, scale=scale), maps(1, *shape, scale=scale)
    loss = SimpleKD("a", "b")([student], [teacher])
    np.testing.assert_allclose(loss, reference(student, teacher), rtol=1e-5)


def test_maps_of_other_sizes_and_the_gradient():
    student, teacher = maps(0, 2, 4, 4, 2), maps(1, 2, 2, 3, 2)
    loss = SimpleKD("a", "b")
    expected = reference(pool(student, 2, 3), teacher)
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)
    assert_gradient(loss, [student], [teacher], lambda s: reference(pool(s[0], 2, 3), teacher))


def test_other_channels_are_refused_with_the_remedy():
    with pytest.raises(ShapeMismatchError, match=r"\(None, 4, 4, 3\).*reuse_classifier"):
        SimpleKD("a", "b").build({"a": (None, 4, 4, 3)}, {"b": (None, 4, 4, 5)})


def cnn(width, name, *, strides=1, flatten=False):
    keras.utils.set_random_seed(width)
    inputs = keras.Input((8, 8, 1), name="image")
    x = L.Conv2D(width, 3, strides=strides, padding="same", name="conv")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="last")(x)
    x = L.Flatten(name="flat")(x) if flatten else L.GlobalAveragePooling2D(name="mean")(x)
    x = L.Dense(6, name="hidden")(x)
    x = L.BatchNormalization(name="hidden_norm")(x)
    x = L.ReLU(name="hidden_relu")(x)
    x = L.Dropout(0.5, name="dropout")(x)
    model = keras.Model(inputs, L.Dense(5, name="logits")(x), name=name)
    # Statistics and biases other than the initial ones, so that each of them shows.
    rng = np.random.default_rng(width)
    model.set_weights([w + rng.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    return model


def joined(**options):
    student, teacher = cnn(4, "student", strides=2), cnn(8, "teacher")
    model = reuse_classifier(
        student, teacher, student_layer="last", teacher_layer="last", **options
    )
    return student, teacher, model


IMAGES = np.random.default_rng(0).random((32, 8, 8, 1)).astype(np.float32)


def part(model, first, last):
    return keras.Model(model.get_layer(first).output, model.get_layer(last).output)


def test_the_student_is_its_own_stem_the_papers_bottleneck_and_the_teachers_classifier():
    student, teacher, model = joined()
    assert model.name == "student"
    stem = keras.Model(model.inputs, model.get_layer("last").output)
    own = keras.Model(student.inputs, student.get_layer("last").output)
    np.testing.assert_allclose(stem(IMAGES), own(IMAGES), rtol=1e-6)

    features = maps(0, 4, 4, 4, 8)
    ours = part(model, PROJECTOR, "simple_kd_logits")(features)
    theirs = part(teacher, "mean", "logits")(features.mean(axis=(1, 2)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    kernels = {
        layer.name: tuple(layer.kernel.shape)
        for layer in model.layers
        if layer.name.startswith("simple_kd_") and isinstance(layer, L.Conv2D)
    }
    assert kernels == {
        "simple_kd_reduce": (1, 1, 4, 4),
        "simple_kd_mix": (3, 3, 4, 4),
        "simple_kd_expand": (1, 1, 4, 8),
    }
    assert (model.get_layer(PROJECTOR).output.shape[1:]) == (4, 4, 8)
    assert joined(factor=4)[2].get_layer("simple_kd_mix").kernel.shape == (3, 3, 2, 2)


def test_the_classifier_is_frozen_and_neither_model_is_touched_by_training():
    student, teacher, model = joined()
    before = [m.get_weights() for m in (student, teacher)]
    flags = [layer.trainable for layer in teacher.layers]
    assert not [w.name for w in model.trainable_weights if "logits" in w.name or "hidden" in w.name]
    frozen = part(model, PROJECTOR, "simple_kd_logits").get_weights()
    stem = model.get_layer("conv").get_weights()
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(IMAGES, np.arange(32) % 5, verbose=0)
    assert (model.get_layer("conv").get_weights()[0] != stem[0]).any()
    after = part(model, PROJECTOR, "simple_kd_logits").get_weights()
    for first, second in zip(frozen, after, strict=True):
        np.testing.assert_array_equal(first, second)
    for own, weights in zip((student, teacher), before, strict=True):
        for first, second in zip(own.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(first, second)
    assert [layer.trainable for layer in teacher.layers] == flags


def test_it_converts_and_trains_quantization_aware():
    _, teacher, model = joined()
    lite = kdtflite.convert(model, IMAGES)
    np.testing.assert_allclose(lite.predict(IMAGES), model.predict(IMAGES, verbose=0), atol=0.2)

    wrapped = kdtflite.quantize_aware(model, IMAGES)
    assert {layer.how for layer in wrapped.quantization.layers} <= {"trained", "folded"}
    tapped = keras.Model(
        wrapped.inputs, wrapped.get_layer(f"quant_{PROJECTOR}").output, name="tapped"
    )
    taught = keras.Model(teacher.inputs, teacher.get_layer("last").output)(IMAGES)
    loss, optimizer = SimpleKD(PROJECTOR, "last"), keras.optimizers.Adam(0.03)
    trained = [
        weight
        for weight in wrapped.trainable_weights
        if "logits" not in weight.name and "hidden" not in weight.name
    ]
    optimizer.build(trained)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss([tapped(IMAGES, training=True)], [taught]))
        slopes = tape.gradient(value, wrapped.trainable_weights)
        moved = zip(slopes, wrapped.trainable_weights, strict=True)
        moved = [(slope, weight) for slope, weight in moved if slope is not None]
        # Nothing behind the projector has a gradient.
        assert [id(weight) for _, weight in moved] == [id(weight) for weight in trained]
        optimizer.apply_gradients(moved)
        return value

    values = [float(train()) for _ in range(20)]
    assert values[-1] < 0.8 * values[0]
    lite = kdtflite.convert(wrapped, IMAGES)
    np.testing.assert_allclose(lite.predict(IMAGES), wrapped.predict(IMAGES, verbose=0), atol=0.1)


@pytest.mark.parametrize("rank", ["vectors", "sequences"])
def test_vectors_and_sequences_have_projectors_of_their_own(rank):
    def model(width, name):
        inputs = keras.Input((12,) if rank == "vectors" else (12, 3))
        dense = L.Dense if rank == "vectors" else lambda n, **kw: L.Conv1D(n, 3, **kw)
        x = dense(width, activation="relu", name="last")(inputs)
        x = x if rank == "vectors" else L.GlobalMaxPooling1D()(x)
        # An operation that is no layer of its own, and Softmax, go along.
        return keras.Model(inputs, L.Softmax()(L.Dense(4)(x) * 0.5), name=name)

    student, teacher = model(3, "student"), model(10, "teacher")
    copy = reuse_classifier(student, teacher, student_layer="last", teacher_layer="last")
    features = np.abs(maps(0, 5, *copy.get_layer(PROJECTOR).output.shape[1:]))
    ours = keras.Model(copy.get_layer(PROJECTOR).output, copy.output)(features)
    theirs = keras.Model(teacher.get_layer("last").output, teacher.output)(features)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_half_precision_student_gives_a_float32_one():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        student, teacher, model = joined()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert teacher.get_layer("logits").compute_dtype == "float16"
    assert student.get_layer("conv").compute_dtype == "float16"
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_what_cannot_be_joined_is_refused_with_the_reason():
    student, teacher = cnn(4, "student", strides=2), cnn(8, "teacher")

    def build(one=student, other=teacher, student_layer="last", teacher_layer="last", **options):
        reuse_classifier(
            one, other, student_layer=student_layer, teacher_layer=teacher_layer, **options
        )

    with pytest.raises(ConfigurationError, match=r"no layer of the student 'lats'.*'last'"):
        build(student_layer="lats")
    with pytest.raises(ConfigurationError, match=r"no layer of the teacher 'lst'.*'last'"):
        build(teacher_layer="lst")
    with pytest.raises(ConfigurationError, match="before its classifier"):
        build(student_layer="hidden", teacher_layer="logits")
    with pytest.raises(ConfigurationError, match="at least 1"):
        build(factor=0)
    with pytest.raises(ShapeMismatchError, match="both give maps"):
        build(teacher_layer="hidden")
    with pytest.raises(ShapeMismatchError, match=r"another size.*\(None, 8, 8, 8\)"):
        build(other=cnn(8, "teacher", flatten=True))
    inputs = keras.Input((8, 8, 1))
    side = L.Conv2D(8, 1, name="last")(inputs)
    around = keras.Model(inputs, L.Add()([side, L.Conv2D(8, 1, name="skip")(inputs)]))
    with pytest.raises(UnsupportedModelError, match="depends on more than the layer 'last'"):
        build(other=around)
