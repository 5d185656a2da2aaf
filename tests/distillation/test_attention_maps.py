"""AttentionMaps compares maps as TinyBERT and MiniLM do, and leaves masked tokens out."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numeric_gradients import gradient, numeric_gradient
from scipy.special import softmax

from kdtflite.distillation.losses.transformers.attention_maps import AttentionMaps
from kdtflite.distillation.step import Observed, Step
from kdtflite.distillation.taps import TappedModel
from kdtflite.errors import ConfigurationError, ShapeMismatchError

KINDS = ["mse", "kl"]
MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)


def reference(kind, student, teacher, mask=None):
    """Each sample's mean over heads and tokens, by loops, in float64."""
    student, teacher = np.float64(student), np.float64(teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(axis=1)[:, None], teacher.mean(axis=1)[:, None]
    n, heads, asking, asked = student.shape
    shares = np.zeros(n)
    for i in range(n):
        rows = [a for a in range(asking) if mask is None or mask[i, a]]
        columns = [b for b in range(asked) if mask is None or mask[i, b]]
        values = []
        for h in range(heads):
            for a in rows:
                s, t = student[i, h, a], teacher[i, h, a]
                if kind == "mse":
                    values.append(np.mean([(s[b] - t[b]) ** 2 for b in columns]))
                else:
                    values.append(sum(t[b] * np.log(t[b] / s[b]) for b in range(asked) if t[b] > 0))
        shares[i] = np.mean(values) if values else 0
    return shares


def maps(seed=0, batch=4, heads=(2, 2), asking=4, asked=4, scale=1.0, mask=None):
    rng = np.random.default_rng(seed)
    given = []
    for count in heads:
        scores = rng.normal(0, scale, (batch, count, asking, asked))
        if mask is not None:
            scores += np.where(mask, 0, -1e9)[:, None, None, :]
        given.append(softmax(scores, axis=-1).astype(np.float32))
    return given


def test_one_token_pair_worked_by_hand():
    student, teacher = [[[[0.5, 0.5], [1.0, 0.0]]]], [[[[0.75, 0.25], [1.0, 0.0]]]]
    loss = AttentionMaps("s", "t")([student], [teacher])
    np.testing.assert_allclose(loss, [2 * 0.25**2 / 4], rtol=1e-6)
    loss = AttentionMaps("s", "t", kind="kl")([student], [teacher])
    np.testing.assert_allclose(loss, [(0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("heads", [(2, 2), (1, 3), (4, 2)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_random_maps(kind, mask, heads, scale):
    student, teacher = maps(1, heads=heads, scale=scale, mask=mask)
    value = AttentionMaps("s", "t", kind=kind)([student], [teacher], mask)
    assert value.shape == (4,)
    assert value.dtype == tf.float32
    expected = reference(kind, student, teacher, mask)
    # Rows of float32 sum to 1 up to 1e-7, and the loops' divergence is off by as much.
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-7 if kind == "kl" else 1e-16)
    assert expected.max() > 1e-4


def test_scores_before_the_softmax_can_be_compared_too():
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(0, 100, (2, 4, 2, 3, 5)).astype(np.float32)
    value = AttentionMaps("s", "t")([student], [teacher])
    np.testing.assert_allclose(value, reference("mse", student, teacher), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("heads", [(2, 2), (1, 3)])
def test_the_gradient_is_what_finite_differences_give(kind, mask, heads):
    student, teacher = maps(3, heads=heads)
    weights = np.array([0.5, 1.0, 2.0, 1.5], np.float32)

    def total(scores):
        return weights @ reference(kind, softmax(scores, axis=-1), teacher, mask)

    scores = np.log(np.float64(student))
    given = gradient(
        lambda s, t, mask: AttentionMaps("s", "t", kind=kind)([tf.nn.softmax(s[0])], t, mask),
        scores,
        teacher,
        weights,
        mask=mask,
    )
    expected = numeric_gradient(total, scores)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_attention_to_one_token_alone_and_zero_maps(kind):
    student, teacher = maps(4, scale=1e4)
    assert (student == 0).any()
    teacher[0] = 0
    student[1] = 0
    student[2], teacher[2] = teacher[3], teacher[3]
    loss = AttentionMaps("s", "t", kind=kind)
    value = loss([student], [teacher])
    assert np.isfinite(value).all()
    assert value[2] == 0
    slope = gradient(loss, student, teacher, np.ones(4, np.float32))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(kind, batch):
    student, teacher = maps(5, batch)
    value = AttentionMaps("s", "t", kind=kind)([student], [teacher])
    np.testing.assert_allclose(value, reference(kind, student, teacher), rtol=1e-5, atol=2e-7)


def test_a_graph_takes_any_batch_and_any_length_and_layers_add_up():
    loss = AttentionMaps(["a", "b"], ["c", "d"])
    spec = tf.TensorSpec((None, 2, None, None))

    @tf.function(
        input_signature=[spec, tf.TensorSpec((None, 2, None, None), tf.float16)] + [spec] * 2
    )
    def compiled(s1, s2, t1, t2):
        return loss([s1, s2], [t1, t2])

    for batch, tokens in ((4, 4), (2, 3)):
        s1, t1 = maps(6, batch, asking=tokens, asked=tokens)
        s2, t2 = maps(7, batch, asking=tokens, asked=tokens)
        s2 = s2.astype(np.float16)
        expected = reference("mse", s1, t1) + reference("mse", s2, t2)
        np.testing.assert_allclose(compiled(s1, s2, t1, t2), expected, rtol=1e-5)


def test_the_second_output_of_keras_attention_is_what_it_reads():
    def transformer(heads, name):
        inputs = keras.Input((4, 6))
        layer = keras.layers.MultiHeadAttention(heads, 3, name="mha")
        x, _ = layer(inputs, inputs, return_attention_scores=True)
        outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x))
        return TappedModel(keras.Model(inputs, outputs, name=name), ["mha:1"], role=name)

    keras.utils.set_random_seed(0)
    student, teacher = transformer(2, "student"), transformer(3, "teacher")
    loss = AttentionMaps("mha:1", "mha:1")
    loss.build(student.shapes, teacher.shapes)
    x = tf.random.normal((4, 4, 6))
    observed = [model.observe(x, training=False)[1] for model in (student, teacher)]
    maps_ = [o.features["mha:1"].numpy() for o in observed]
    np.testing.assert_allclose(maps_[0].sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(loss.compute(Step(*observed)), reference("mse", *maps_), rtol=1e-5)

    masked = Observed(observed[0].logits, observed[0].features, mask=tf.constant(MASK))
    value = loss.compute(Step(masked, observed[1]))
    np.testing.assert_allclose(value, reference("mse", *maps_, MASK), rtol=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((None, 2, 4, 4), (None, 2, 5, 5)),
        ((None, 4, 4), (None, 4, 4)),
        ((None, 2, 4, 4), (None, 4, 6)),
    ],
)
def test_shapes_that_are_no_maps_of_the_same_tokens_are_refused(student, teacher):
    with pytest.raises(ShapeMismatchError, match="same tokens"):
        AttentionMaps("s", "t").build({"s": student}, {"t": teacher})


def test_a_mask_of_other_tokens_is_refused():
    student, teacher = maps(8, asked=5)
    with pytest.raises(ShapeMismatchError, match="attention to itself"):
        AttentionMaps("s", "t")([student], [teacher], MASK)


def test_an_unknown_kind_is_refused_and_its_configuration_makes_it_again():
    with pytest.raises(ConfigurationError, match="kl, mse"):
        AttentionMaps("s", "t", kind="cosine")
    config = AttentionMaps("s", "t", kind="kl", name="h").get_config()
    assert config["kind"] == "kl"
    assert AttentionMaps(**config).get_config() == config
