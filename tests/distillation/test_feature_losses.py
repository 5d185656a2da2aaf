"""What all losses on feature maps have in common: graphs, extremes, adapters, configuration."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from feature_references import gradient, maps

from kdtflite.distillation.losses.features.adapters import BatchNormalization, make_pointwise
from kdtflite.distillation.losses.features.attention_transfer import AttentionTransfer
from kdtflite.distillation.losses.features.fsp import FSP
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.losses.features.nst import NST
from kdtflite.distillation.losses.features.overhaul_feature import OverhaulFeature
from kdtflite.distillation.losses.features.review_kd import ReviewKD
from kdtflite.distillation.losses.features.simple_kd import SimpleKD
from kdtflite.distillation.losses.features.variational_information import VariationalInformation
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError

TWO = ("a", "b")
ALL = [AttentionTransfer, FSP, Hints, NST, OverhaulFeature, ReviewKD, SimpleKD]
ALL += [VariationalInformation]
ADAPTED = {Hints: 1, OverhaulFeature: 3, ReviewKD: 6, VariationalInformation: 4}
OPTIONS = {
    AttentionTransfer: {"p": 3.0},
    Hints: {"adapter": "always"},
    OverhaulFeature: {"margins": [[-1.0] * 2, [-0.5] * 2]},
    ReviewKD: {"mid_channels": 3},
    VariationalInformation: {"hidden_channels": 3, "init_pred_var": 2.0, "eps": 1e-4},
}


def features(batch=3, scale=1.0, student=2, teacher=2):
    """Two maps of the student and two of the teacher, the deeper ones smaller."""
    return [
        [maps(seed, batch, size, size, width, scale=scale) for seed, size in ((width, 4), (9, 2))]
        for width in (student, teacher)
    ]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_one_float32_value_a_sample_for_any_batch(kind, batch):
    loss = kind(TWO, TWO)
    value = loss(*features(batch))
    assert value.shape == (batch,)
    assert value.dtype == tf.float32
    assert np.isfinite(value).all()
    assert all(np.isfinite(g).all() for g in gradient(loss, *features(batch)))
    assert all(np.isfinite(v).all() for v in loss.variables)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    ("student", "teacher"), [(0, 0), (0, 1), (1, 0), (1, 1), (1e4, 1e4), (-1e4, 1e4)]
)
def test_constant_maps_give_finite_values_and_gradients(kind, width, student, teacher):
    loss = kind(TWO, TWO)
    for batch in (1, 2):
        constant = [[np.full((batch, 4, 4, width), v, np.float32)] * 2 for v in (student, teacher)]
        assert np.isfinite(loss(*constant)).all()
        with tf.GradientTape() as tape:
            tensors = [tf.constant(x) for x in constant[0]]
            tape.watch(tensors)
            value = tf.reduce_sum(loss(tensors, constant[1]))
        for slope in tape.gradient(value, [*tensors, *loss.trainable_variables]):
            assert np.isfinite(slope).all()


@pytest.mark.parametrize("kind", ALL)
def test_a_graph_that_knows_neither_batch_nor_sizes_gives_the_same(kind):
    student, teacher = features()
    loss = kind(TWO, TWO, **({"margins": [[-1.0] * 2] * 2} if kind is OverhaulFeature else {}))
    expected = loss(student, teacher).numpy()
    spec = [tf.TensorSpec((None, None, None, 2))] * 2
    compiled = tf.function(loss.__call__, input_signature=[spec, spec])
    np.testing.assert_allclose(compiled(student, teacher), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_a_loss_builds_itself_inside_a_graph(kind):
    loss = kind(TWO, TWO)
    value = tf.function(loss.__call__)(*features())
    assert value.shape == (3,)
    assert np.isfinite(value).all()


@pytest.mark.parametrize("kind", ALL)
def test_half_precision_features_are_taken_at_their_own_value(kind):
    student, teacher = ([x.astype(np.float16) for x in side] for side in features())
    options = OPTIONS.get(kind, {})
    loss = kind(TWO, TWO, **options)
    value = loss(student, teacher)
    wide = loss([np.float32(x) for x in student], [np.float32(x) for x in teacher])
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, wide, rtol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_a_global_policy_of_half_precision_leaves_adapters_in_float32(kind):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        loss = kind(TWO, TWO)
        value = loss(*features())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert value.dtype == tf.float32
    assert all(v.dtype in (tf.float32, tf.float64) for v in loss.variables)


@pytest.mark.parametrize("kind", ALL)
def test_its_configuration_makes_it_again(kind):
    loss = kind(["a", "b"], ["c", "d"], name="term", **OPTIONS.get(kind, {}))
    config = loss.get_config()
    assert config == {
        "student_layers": ["a", "b"],
        "teacher_layers": ["c", "d"],
        "name": "term",
        **OPTIONS.get(kind, {}),
    }
    assert kind(**config).get_config() == config


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_are_made_by_the_shapes_and_follow_the_seed(kind):
    shapes = {"a": (None, 4, 4, 2), "b": (None, 2, 2, 2)}
    wider = {"a": (None, 4, 4, 3), "b": (None, 2, 2, 3)}

    def weights(seed):
        keras.utils.set_random_seed(seed)
        loss = kind(TWO, TWO)
        assert loss.variables == []
        loss.build(shapes, wider)
        assert len(loss.trainable_variables) >= 2 * ADAPTED[kind]
        assert {id(v) for v in loss.trainable_variables} <= {id(v) for v in loss.variables}
        return [v.numpy() for v in loss.variables]

    one, same, other = weights(1), weights(1), weights(2)
    for first, second in zip(one, same, strict=True):
        np.testing.assert_array_equal(first, second)
    assert any((first != second).any() for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ADAPTED)
def test_training_the_adapters_lowers_the_loss(kind):
    student, teacher = features(8, student=3, teacher=4)
    loss = kind(TWO, TWO)
    start = float(tf.reduce_mean(loss(student, teacher)))
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(loss.trainable_variables)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(student, teacher))
        optimizer.minimize(value, loss.trainable_variables, tape=tape)
        return value

    for _ in range(20):
        value = train()
    assert float(value) < 0.95 * start


@pytest.mark.parametrize("kind", ALL)
def test_a_step_of_the_distiller_is_read_by_the_layers_paths(kind):
    student, teacher = features()
    loss = kind(TWO, ("x/y", "z:1"))
    step = Step(
        Observed(tf.zeros((3, 2)), dict(zip(TWO, map(tf.constant, student), strict=True))),
        Observed(
            tf.zeros((3, 2)), {"z:1": tf.constant(teacher[1]), "x/y": tf.constant(teacher[0])}
        ),
    )
    first = loss.compute(step)
    if kind is not OverhaulFeature:  # its margins have seen the batch once more
        np.testing.assert_allclose(first, loss(student, teacher), rtol=1e-6)
    assert first.shape == (3,)


@pytest.mark.parametrize("kind", ALL)
def test_anything_but_a_tensor_a_layer_is_refused(kind):
    student, teacher = features()
    with pytest.raises(ConfigurationError, match=r"teacher's layers \(a, b\).*Received: 1"):
        kind(TWO, TWO)(student, teacher[:1])
    with pytest.raises(ConfigurationError, match="Received: ndarray"):
        kind(TWO, TWO)(student[0], teacher)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_pointwise_adapter_is_a_1x1_convolution(rank):
    values = maps(0, *(3, 4, 5)[: rank - 1], 2)
    layer = make_pointwise(6)
    given = layer(values)
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(given, np.float64(values) @ kernel + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batch_normalization_of_a_large_mean_keeps_its_digits(offset):
    values = (maps(0, 64, 3, 3, 2) + offset).astype(np.float32)
    layer = BatchNormalization()
    given = layer(values)
    wide = np.float64(values)
    mean, variance = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-4)
