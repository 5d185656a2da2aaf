"""JacobianMatching compares input gradients, and trains the student's weights by them."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numeric_gradients import numeric_gradient

import kdtflite
from kdtflite.distillation.losses.gradients.jacobian_matching import JacobianMatching
from kdtflite.distillation.step import Observed, Step
from kdtflite.distillation.taps import TappedModel
from kdtflite.errors import ConfigurationError, ShapeMismatchError

L = keras.layers


def mlp(seed, hidden, features=4, classes=3):
    """A smooth model, whose Jacobian is easily written down."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((features,))
    return keras.Model(inputs, L.Dense(classes)(L.Dense(hidden, activation="tanh")(inputs)))


def jacobians(weights, x):
    """Logits and their Jacobian by the inputs, (batch, classes, features), in float64."""
    w1, b1, w2, b2 = weights
    h = np.tanh(x @ w1 + b1)
    return h @ w2 + b2, np.einsum("fh,bh,hc->bcf", w1, 1 - h**2, w2)


def reference_top(student, teacher, x, normalize):
    _, js = jacobians(student, x)
    logits, jt = jacobians(teacher, x)
    shares = []
    for k, s, t in zip(logits.argmax(axis=1), js, jt, strict=True):
        s, t = s[k], t[k]
        if normalize:
            s, t = s / np.linalg.norm(s), t / np.linalg.norm(t)
        shares.append(((s - t) ** 2).sum())
    return np.array(shares)


def in_step(loss, student, teacher, x, weights=1.0, teacher_x=None, training=False):
    """The loss of each sample, and the gradients of its weighted sum by the student's weights."""
    with contextlib.ExitStack() as recording, tf.GradientTape() as tape:
        teacher_x = x if teacher_x is None else teacher_x
        _, t = TappedModel(teacher, [], role="teacher").observe(
            teacher_x, training=False, recording=recording
        )
        _, s = TappedModel(student, [], role="student").observe(
            x, training=training, recording=recording
        )
        values = loss.compute(Step(s, t))
        total = tf.reduce_sum(weights * values)
    return values, tape.gradient(total, student.trainable_variables)


def wide(model):
    return [np.float64(w) for w in model.get_weights()]


def inputs(seed=0, batch=5, shape=(4,), scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, (batch, *shape)).astype(np.float32)


def test_linear_models_worked_by_hand():
    # Gradients (3, 4) and (0, 2) of the class that the teacher prefers: unit vectors (0.6, 0.8)
    # and (0, 1); squares 0.36 + 0.04 with the norms taken out, 9 + 4 with them.
    student, teacher = (keras.Sequential([keras.Input((2,)), L.Dense(2)]) for _ in range(2))
    student.set_weights([np.array([[7.0, 3.0], [1.0, 4.0]]), np.zeros(2)])
    teacher.set_weights([np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([0.0, 9.0])])
    x = inputs(shape=(2,))
    values, _ = in_step(JacobianMatching(), student, teacher, x)
    np.testing.assert_allclose(values, [0.4] * 5, rtol=1e-5)
    values, _ = in_step(JacobianMatching(normalize=False), student, teacher, x)
    np.testing.assert_allclose(values, [13.0] * 5, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_values_and_gradients_by_the_students_weights(normalize, scale):
    student, teacher, x = mlp(1, 5), mlp(2, 7), inputs(scale=scale)
    weights = np.array([0.5, 1.0, 2.0, 0.0, 1.5], np.float32)
    loss = JacobianMatching(normalize=normalize)
    values, slopes = in_step(loss, student, teacher, x, weights)
    assert values.shape == (5,)
    assert values.dtype == tf.float32
    expected = reference_top(wide(student), wide(teacher), np.float64(x), normalize)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    for i in (0, 1, 2):

        def total(w, i=i):
            changed = [*wide(student)[:i], w, *wide(student)[i + 1 :]]
            return weights @ reference_top(changed, wide(teacher), np.float64(x), normalize)

        numeric = numeric_gradient(total, wide(student)[i])
        np.testing.assert_allclose(
            slopes[i], numeric, rtol=1e-4, atol=2e-6 * max(np.abs(numeric).max(), 1)
        )
        assert np.abs(numeric).max() > 1e-3
    # The last bias moves no Jacobian.
    assert slopes[3] is None


def test_projections_are_drawn_anew_and_match_the_whole_jacobian_on_average():
    student, teacher, x = mlp(1, 5), mlp(2, 7), inputs(1, batch=3)
    loss = JacobianMatching("projections", normalize=False)
    keras.utils.set_random_seed(0)
    draws = np.stack([in_step(loss, student, teacher, x)[0] for _ in range(2)])
    assert (draws[0] != draws[1]).all()

    # v from the unit sphere of 3 logits: E (v·a)² = ‖a‖² / 3. The mean of 1000 is off by 3 %.
    many = JacobianMatching("projections", normalize=False, projections=4)
    step = tf.function(lambda: in_step(many, student, teacher, x)[0])
    mean = np.mean([step() for _ in range(250)], axis=0)
    _, js = jacobians(wide(student), np.float64(x))
    _, jt = jacobians(wide(teacher), np.float64(x))
    np.testing.assert_allclose(mean, ((js - jt) ** 2).sum(axis=(1, 2)) / 3, rtol=0.12)


def test_a_student_that_is_its_teacher_loses_nothing():
    teacher, x = mlp(2, 7), inputs(2)
    for loss in (JacobianMatching(), JacobianMatching("projections")):
        values, slopes = in_step(loss, teacher, teacher, x)
        np.testing.assert_allclose(values, 0, atol=1e-12)
        assert all(np.abs(slope).max() < 1e-5 for slope in slopes if slope is not None)


@pytest.mark.parametrize("of", ["top", "projections"])
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_a_model_whose_output_does_not_depend_on_its_input(of, dead):
    student, teacher, x = mlp(1, 5), mlp(2, 7), inputs(3)
    for role, model in (("student", student), ("teacher", teacher)):
        if dead in (role, "both"):
            model.set_weights([0 * w for w in model.get_weights()])
    values, slopes = in_step(JacobianMatching(of), student, teacher, x)
    # Unit vectors against nothing.
    np.testing.assert_allclose(values, [0.0 if dead == "both" else 1.0] * 5, rtol=1e-5)
    assert all(np.isfinite(slope).all() for slope in slopes if slope is not None)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch):
    values, slopes = in_step(JacobianMatching(), mlp(1, 5), mlp(2, 7), inputs(4, batch))
    assert values.shape == (batch,)
    assert all(np.isfinite(slope).all() for slope in slopes if slope is not None)


def test_yes_or_no_labels_and_sequences_enter_as_their_sum():
    x = tf.constant(inputs(5, 2))
    weights = inputs(6, 4, (6,)), inputs(7, 4, (6,))
    sides, grads = [], []
    with contextlib.ExitStack() as stack:
        for w in weights:
            tape = stack.enter_context(tf.GradientTape(persistent=True))
            tape.watch(x)
            logits = tf.reshape(x @ w, [2, 3, 2])
            sides.append(Observed(logits, {}, lambda v, tape=tape: tape.gradient(v, x)))
        value = JacobianMatching(normalize=False).compute(Step(*sides))
        assert JacobianMatching("projections").compute(Step(*sides)).shape == (2,)
    top = np.argmax(sides[1].logits, axis=-1)
    for i in range(2):
        columns = [2 * p + top[i, p] for p in range(3)]
        grads.append(((weights[0] - weights[1])[:, columns].sum(axis=1) ** 2).sum())
    np.testing.assert_allclose(value, grads, rtol=1e-5)


def test_several_inputs_are_one_vector_and_integer_inputs_are_passed_over():
    def model(seed):
        keras.utils.set_random_seed(seed)
        a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
        tokens = keras.Input((1,), dtype="int32", name="tokens")
        words = L.Flatten()(L.Embedding(5, 2)(tokens))
        return keras.Model([a, b, tokens], L.Dense(3)(L.Concatenate()([a, b, words])))

    x = [inputs(1, 4, (2,)), inputs(2, 4, (3,)), np.zeros((4, 1), np.int32)]
    student, teacher = model(1), model(2)
    values, _ = in_step(JacobianMatching(normalize=False), student, teacher, x)
    top = teacher(x).numpy().argmax(axis=1)
    difference = (student.get_weights()[1] - teacher.get_weights()[1])[:5]
    np.testing.assert_allclose(values, (difference[:, top] ** 2).sum(axis=0), rtol=1e-5)


def test_token_ids_alone_have_no_gradient():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), L.Embedding(5, 2), L.Flatten(), L.Dense(2)])
    with pytest.raises(ConfigurationError, match="no gradient with respect to any input"):
        in_step(JacobianMatching(), model, model, np.zeros((2, 3), np.int32))


def test_inputs_of_other_shapes_and_a_teacher_without_gradients_are_refused():
    student, teacher = mlp(1, 5), mlp(2, 7, features=6)
    with pytest.raises(ShapeMismatchError, match=r"student \[\(5, 4\)\], teacher \[\(5, 6\)\]"):
        in_step(JacobianMatching(), student, teacher, inputs(), teacher_x=inputs(shape=(6,)))
    step = Step(Observed(tf.zeros([2, 3]), {}, lambda v: v), Observed(tf.zeros([2, 3])))
    with pytest.raises(ConfigurationError, match="teacher gives no gradients"):
        JacobianMatching().compute(step)


@pytest.mark.parametrize("channels", [False, True])
def test_first_order_gradients_of_fake_quantization_stay_what_they_are(channels):
    JacobianMatching()
    x, above = tf.constant(inputs(1, scale=2.0)), tf.constant(inputs(2))
    low, high = (tf.constant([s * 1.0] * 4 if channels else s * 1.0) for s in (-1, 1))
    kind = "fake_quant_with_min_max_vars" + "_per_channel" * channels
    options = {"num_bits": 4, "narrow_range": True}
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(above)
        with tf.GradientTape() as tape:
            tape.watch([x, low, high])
            y = getattr(tf.quantization, kind)(x, low, high, **options)
        given = tape.gradient(y, [x, low, high], above)
        squares = tf.square(given[0])
    expected = getattr(tf.quantization, f"{kind}_gradient")(above, x, low, high, **options)
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # mask · above, squared: 2 · mask · above.
    assert 0 < np.count_nonzero(given[0]) < 20
    np.testing.assert_array_equal(outer.gradient(squares, above), 2 * given[0])


def convolutional(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    x = L.DepthwiseConv2D(3, activation="relu")(x)
    x = L.Conv2D(5, 1)(x)
    x = L.Add()([L.Activation("relu")(x), x])
    x = L.MaxPool2D(2)(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def straight_through(inputs, min, max, num_bits=8, narrow_range=False, name=None):
    """Fake quantization with the estimator written out: TensorFlow derives it twice by itself."""
    del name
    values, low, high = inputs, min, max
    first = 1.0 if narrow_range else 0.0
    last = 2.0**num_bits - 1
    scale = (high - low) / (last - first)
    zero = tf.round(tf.clip_by_value(first - low / scale, first, last))
    nudged_low, nudged_high = (first - zero) * scale, (last - zero) * scale
    inside = tf.cast((values >= nudged_low) & (values <= nudged_high), tf.float32)
    clipped = tf.clip_by_value(values, nudged_low, nudged_high)
    quantized = tf.floor((clipped - nudged_low) / scale + 0.5) * scale + nudged_low
    return tf.stop_gradient(quantized) + inside * (values - tf.stop_gradient(values))


@pytest.mark.parametrize("of", ["top", "projections"])
def test_a_quantization_aware_student_learns_as_by_the_estimator_written_out(monkeypatch, of):
    x = inputs(8, 6, (6, 6, 2))
    teacher = convolutional(1)
    student = kdtflite.quantize_aware(convolutional(2), inputs(9, 32, (6, 6, 2)))

    def slopes():
        keras.utils.set_random_seed(0)
        return in_step(JacobianMatching(of), student, teacher, x)

    values, given = slopes()
    monkeypatch.setattr(tf.quantization, "fake_quant_with_min_max_vars", straight_through)
    monkeypatch.setattr(
        tf.quantization, "fake_quant_with_min_max_vars_per_channel", straight_through
    )
    expected_values, expected = slopes()
    np.testing.assert_allclose(values, expected_values, rtol=1e-4)
    assert (values.numpy() > 0.01).all()
    compared = 0
    for variable, a, b in zip(student.trainable_variables, given, expected, strict=True):
        assert (a is None) == (b is None), variable.name
        if a is not None:
            scale = np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale + 1e-9)
            compared += scale > 1e-3
    assert compared >= 4  # the kernels of all four layers


def test_a_quantization_aware_student_comes_to_match_its_teachers_gradients():
    x = inputs(8, 16, (6, 6, 2))
    teacher = convolutional(1)
    student = kdtflite.quantize_aware(convolutional(2), x)
    optimizer = keras.optimizers.Adam(0.01)

    @tf.function
    def train():
        values, slopes = in_step(JacobianMatching(), student, teacher, x, training=True)
        pairs = zip(slopes, student.trainable_variables, strict=True)
        optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        return tf.reduce_mean(values)

    losses = [float(train()) for _ in range(30)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.85 * losses[0]


def test_parameters_that_make_no_sense_are_refused_and_a_configuration_makes_it_again():
    with pytest.raises(ConfigurationError, match="Did you mean 'projections'"):
        JacobianMatching("projection")
    with pytest.raises(ConfigurationError, match="projections=0"):
        JacobianMatching("projections", projections=0)
    loss = JacobianMatching("projections", normalize=False, projections=3, name="j")
    assert JacobianMatching(**loss.get_config()).get_config() == loss.get_config()
    assert loss.get_config() == {
        "of": "projections",
        "normalize": False,
        "projections": 3,
        "name": "j",
    }
