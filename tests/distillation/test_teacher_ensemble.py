"""Several teachers as one, against the mixtures computed in float64."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import expit, log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.teachers.ensemble import EnsembleTeacher
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.errors import ConfigurationError, ShapeMismatchError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (6, 4)).astype(np.float32)
Z = RNG.normal(0, 3, (3, 6, 5)).astype(np.float32)  # of three teachers
CLASS_WEIGHTS = RNG.uniform(0, 1, (3, 5))
CLASS_WEIGHTS[1, 2] = 0.0


def fixed(values, outputs="logits", fingerprint=None):
    """A teacher that gives `values` whatever the batch."""
    return CallableTeacher(
        lambda x: values,
        output_shape=values.shape[1:][-1],
        outputs=outputs,
        fingerprint=fingerprint,
    )


def in_a_step(ensemble):
    step = tf.function(
        lambda x: ensemble.observe(x).logits, input_signature=[tf.TensorSpec((None, 4))]
    )
    return step(X).numpy()


def mixed(z, weights, temperature):
    """log of the weighted mean of softened softmaxes, in float64, times the temperature."""
    p = softmax(np.float64(z) / temperature, axis=-1)
    p = (np.broadcast_to(weights, p.shape) * p).sum(axis=0)
    return temperature * np.log(p / p.sum(axis=-1, keepdims=True))


def inverse_entropy(z, temperature):
    logs = log_softmax(np.float64(z) / temperature, axis=-1)
    inverse = 1 / (-(np.exp(logs) * logs).sum(axis=-1, keepdims=True) + 1e-3)
    return inverse / inverse.sum(axis=0)


WEIGHTS = {
    "mean": (None, lambda z, t: 1 / 3),
    "weighted": ([2.0, 0.0, 6.0], lambda z, t: np.array([0.25, 0.0, 0.75])[:, None, None]),
    "class_confidence": (
        CLASS_WEIGHTS,
        lambda z, t: (CLASS_WEIGHTS / CLASS_WEIGHTS.sum(axis=0))[:, None, :],
    ),
    "sample_confidence": (None, inverse_entropy),
}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("how", WEIGHTS)
def test_probabilities_are_averaged_by_the_formula(how, temperature):
    weights, formula = WEIGHTS[how]
    ensemble = EnsembleTeacher(
        [fixed(z) for z in Z], how=how, weights=weights, temperature=temperature
    )
    logits = in_a_step(ensemble)
    expected = mixed(Z, formula(Z, temperature), temperature)
    np.testing.assert_allclose(
        log_softmax(np.float64(logits) / temperature, axis=-1), expected / temperature, rtol=1e-5
    )


@pytest.mark.parametrize("how", WEIGHTS)
def test_extreme_teachers_stay_finite(how):
    z = np.zeros((3, 6, 5), np.float32)
    z[0, :, 0], z[1, :, 0], z[2] = 1e4, -1e4, -1e4
    ensemble = EnsembleTeacher([fixed(one) for one in z], how=how, weights=WEIGHTS[how][0])
    logits = in_a_step(ensemble)
    assert np.isfinite(logits).all()
    expected = softmax(mixed(z, WEIGHTS[how][1](z, 1.0), 1.0), axis=-1)
    np.testing.assert_allclose(softmax(np.float64(logits), axis=-1), expected, rtol=1e-4, atol=1e-6)


def test_the_target_at_the_losss_temperature_is_the_mean_of_the_softened_probabilities(models):
    student = models.student()
    z = Z[:, :, :3]
    ensemble = EnsembleTeacher([fixed(one) for one in z], temperature=4.0)
    distiller = Distiller(student, ensemble, hard_label_weight=0.0, losses=[SoftTargets(4.0)])
    distiller.compile(keras.optimizers.SGD(0.0))
    logs = distiller.train_on_batch(X, np.zeros(6), return_dict=True)
    p = softmax(np.float64(z) / 4, axis=-1).mean(axis=0)
    q = log_softmax(np.float64(student(X)) / 4, axis=-1)
    expected = 16 * (p * (np.log(p) - q)).sum(axis=-1).mean()
    np.testing.assert_allclose(logs["soft_targets_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("how", WEIGHTS)
def test_yes_or_no_labels_are_mixed_each_for_itself(how):
    weights, _ = WEIGHTS[how]
    p = expit(np.float64(Z))
    ensemble = EnsembleTeacher(
        [fixed(Z[0]), fixed(p[1], "sigmoid"), fixed(p[2], "sigmoid")], how=how, weights=weights
    )
    assert (ensemble.task, ensemble.outputs) == ("multilabel", "sigmoid")
    if how == "sample_confidence":
        w = 1 / (1e-3 - p * np.log(p) - (1 - p) * np.log1p(-p))
    else:
        w = np.broadcast_to(WEIGHTS[how][1](Z, 1.0), p.shape)
    expected = (w * p).sum(axis=0) / w.sum(axis=0)
    np.testing.assert_allclose(expit(np.float64(in_a_step(ensemble))), expected, rtol=1e-4)


def test_values_are_averaged_themselves():
    teachers = [fixed(z, "values") for z in Z]
    np.testing.assert_allclose(
        in_a_step(EnsembleTeacher(teachers, how="weighted", weights=[1, 1, 2])),
        np.float64(Z).transpose(1, 2, 0) @ [0.25, 0.25, 0.5],
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ConfigurationError, match=r"do not show how sure"):
        EnsembleTeacher(teachers, how="sample_confidence")


def test_one_teacher_is_drawn_a_batch_and_only_that_one_is_run():
    calls = []

    def counted(index):
        def teach(x):
            calls.append(index)
            return Z[index]

        return CallableTeacher(teach, output_shape=5)

    def draws(seed):
        ensemble = EnsembleTeacher([counted(i) for i in range(3)], how="random", seed=seed)
        step = tf.function(lambda x: ensemble.observe(x).logits)
        calls.clear()
        for _ in range(60):
            logits = step(tf.constant(X))
            np.testing.assert_array_equal(logits, Z[calls[-1]])
        return list(calls)

    first = draws(0)
    assert len(first) == 60
    assert min(first.count(i) for i in range(3)) >= 10
    assert draws(0) == first  # the same seed draws the same
    assert draws(1) != first


def test_a_student_learns_from_a_list_of_models(data, models):
    x, y, _ = data
    teachers = [models.teacher(), models.student(seed=9, name="other", softmax=True)]
    student = models.student()
    distiller = Distiller(student, teachers, hard_label_weight=0.0, losses=[SoftTargets(1.0)])
    distiller.compile(keras.optimizers.SGD(0.0))
    history = distiller.fit(x, y, batch_size=21, epochs=2, verbose=0).history
    p = (
        softmax(np.float64(teachers[0](x, training=False)), axis=-1) / 2
        + np.float64(teachers[1](x)) / 2
    )
    expected = (p * (np.log(p) - log_softmax(np.float64(student(x)), axis=-1))).sum(axis=-1).mean()
    np.testing.assert_allclose(history["soft_targets_loss"], expected, rtol=1e-5)
    assert len(distiller.weights) == len(student.weights)


@pytest.mark.parametrize("how", ["mean", "random"])
def test_gradients_by_the_inputs_flow_through_models_and_through_nothing_else(models, how):
    first, second = models.teacher(), models.student(seed=4, name="other")
    ensemble = EnsembleTeacher([first, second], how=how)
    assert ensemble.differentiable

    @tf.function
    def step(x):
        with contextlib.ExitStack() as recording:
            seen = ensemble.observe(x, recording)
            return seen.input_gradient(seen.logits[:, 0])

    gradient = step(tf.constant(X))
    small = 1e-2
    candidates = [
        lambda x: tf.reduce_logsumexp([tf.nn.log_softmax(m(x)) for m in (first, second)], 0)
    ]
    if how == "random":
        candidates = [first, second]
    differences = []
    for function in candidates:
        numeric = np.zeros(X.shape)
        for i in range(4):
            shift = np.eye(4, dtype=np.float32)[i] * small
            up, down = function(X + shift)[:, 0], function(X - shift)[:, 0]
            numeric[:, i] = (np.float64(up) - np.float64(down)) / (2 * small)
        differences.append(np.abs(numeric - gradient).max())
    assert min(differences) < 2e-2
    assert np.abs(gradient).max() > 0.1
    assert not EnsembleTeacher([first, fixed(Z[0][:, :3])]).differentiable


def test_a_batch_of_no_samples(models):
    ensemble = EnsembleTeacher([models.teacher(), lambda x: x[:, :3]])
    ensemble.check_inputs(models.student())
    assert ensemble.output_shape == (None, 3)
    step = tf.function(ensemble, input_signature=[tf.TensorSpec((None, 4))])
    assert step(X[:0]).shape == (0, 3)


def test_teachers_that_do_not_agree_are_refused(models):
    with pytest.raises(
        ShapeMismatchError, match=r"the same shape.*\(None, 3\), 'teacher' \(None, 4\)"
    ):
        Distiller(models.student(), EnsembleTeacher([models.teacher(), models.teacher(classes=4)]))
    with pytest.raises(ConfigurationError, match=r"the same task.*Pass outputs="):
        EnsembleTeacher([fixed(Z[0], "sigmoid"), fixed(Z[0], "probabilities")])
    with pytest.raises(ConfigurationError, match=r"task='regression' cannot be taught.*sigmoid"):
        EnsembleTeacher([fixed(Z[0], "sigmoid")], task="regression")
    with pytest.raises(ConfigurationError, match=r"multilabel student cannot learn"):
        Distiller(models.student(), EnsembleTeacher([models.teacher()]), task="multilabel")
    assert Distiller(models.student(), [models.teacher()], task="multilabel").task == "multilabel"
    single = np.zeros((6, 1))
    assert EnsembleTeacher([fixed(single)]).task == "multilabel"
    assert EnsembleTeacher([fixed(single)], task="regression").outputs == "values"


def test_weights_that_make_no_sense_are_refused():
    teachers = [fixed(z) for z in Z]
    for how, weights, message in (
        ("mean", [1, 1, 1], "takes no weights="),
        ("weighted", None, r"needs weights=, shape \(3,\)"),
        ("weighted", [1, 1], r"shape \(3,\).*Received: \(2,\)"),
        ("class_confidence", [1, 1, 1], r"shape \(3, classes\)"),
        ("weighted", [1, -1, 1], "of at least 0"),
        ("weighted", [0, 0, 0], "one above 0"),
        ("class_confidence", [[1, 0], [1, 0], [1, 0]], "for every class"),
        ("weighted", [1, np.nan, 1], "of at least 0"),
        ("vote", None, "no way to combine teachers 'vote'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            EnsembleTeacher(teachers, how=how, weights=weights)
    with pytest.raises(ShapeMismatchError, match=r"weights of shape \(3, 5\).*\(3, 4\)"):
        _ = EnsembleTeacher(teachers, how="class_confidence", weights=np.ones((3, 4))).output_shape
    with pytest.raises(ConfigurationError, match=r"one or more teachers"):
        EnsembleTeacher([])
    with pytest.raises(ConfigurationError, match=r"temperature above 0"):
        EnsembleTeacher(teachers, temperature=0.0)


def test_the_fingerprint_covers_members_and_weights(models):
    def fingerprint(members, **kwargs):
        return EnsembleTeacher(members, **kwargs).fingerprint()

    teacher, other = models.teacher(), models.student(seed=9)
    first = fingerprint([teacher, other])
    assert first == fingerprint([ModelTeacher(teacher), other])
    different = [
        fingerprint([other, teacher]),
        fingerprint([teacher, other], temperature=2.0),
        fingerprint([teacher, other], how="weighted", weights=[1, 2]),
        fingerprint([teacher, other], how="weighted", weights=[2, 1]),
        fingerprint([teacher, other], how="random"),
    ]
    assert len({first, *different}) == 6
    with pytest.raises(ConfigurationError, match=r"fingerprint= to CallableTeacher"):
        fingerprint([teacher, fixed(Z[0][:, :3])])
