"""Deep mutual learning: the paper's loss for every student, and no gradient between them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.schedules import Linear
from kdtflite.distillation.step import CachedBatch, Observed
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.ways.mutual import MutualDistiller
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError

CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def build_peers(models, count=3, **options):
    names = ["one", "two", "three"][:count]
    return [models.student(name=name, seed=i, **options) for i, name in enumerate(names)]


def compile_peers(distiller, **options):
    distiller.compile(
        keras.optimizers.SGD(0.1), CrossEntropy(from_logits=True), ["accuracy"], **options
    )
    return distiller


def kl(p_logits, q_logits):
    p = softmax(p_logits, axis=-1)
    return (p * (log_softmax(p_logits, axis=-1) - log_softmax(q_logits, axis=-1))).sum(axis=-1)


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_students_loss_is_the_papers(data, models, weighted, with_teacher):
    x, y, sample_weight = data
    students = build_peers(models, l2=0.02)
    teacher = models.teacher() if with_teacher else None
    distiller = compile_peers(
        MutualDistiller(students, teacher=teacher, hard_label_weight=0.5, peer_weight=2.0)
    )
    logits = [np.float64(s(x)) for s in students]
    others = [np.float64(teacher(x))] if with_teacher else []
    weights = np.float64(sample_weight) if weighted else np.ones(21)
    got = distiller.train_on_batch(x, y, sample_weight if weighted else None, return_dict=True)
    total = 0.0
    for k, student in enumerate(students):
        hard = -log_softmax(logits[k], axis=-1)[np.arange(21), y]
        peers = [z for i, z in enumerate(logits) if i != k] + others
        mimicry = np.mean([kl(z, logits[k]) for z in peers], axis=0)
        own = (weights * (0.5 * hard + 2.0 * mimicry)).mean()
        name = student.name
        np.testing.assert_allclose(
            got[f"{name}_hard_labels_loss"], (weights * hard).mean(), rtol=1e-5
        )
        np.testing.assert_allclose(got[f"{name}_peers_loss"], (weights * mimicry).mean(), rtol=1e-5)
        np.testing.assert_allclose(got[f"{name}_loss"], own, rtol=1e-5)
        right = (logits[k].argmax(-1) == y).mean()
        np.testing.assert_allclose(got[f"{name}_accuracy"], right, rtol=1e-6)
        total += own
    assert got["regularization_loss"] > 0.01
    np.testing.assert_allclose(got["loss"], total + got["regularization_loss"], rtol=1e-5)


def test_a_step_moves_each_student_by_its_own_loss_alone(data, models):
    x, y, _ = data
    students, copies = build_peers(models), build_peers(models)
    shown = [np.float64(s(x)) for s in students]
    compile_peers(MutualDistiller(students)).train_on_batch(x, y)
    for k, (student, copy) in enumerate(zip(students, copies, strict=True)):
        targets = [softmax(z, -1).astype(np.float32) for i, z in enumerate(shown) if i != k]
        with tf.GradientTape() as tape:  # the peers are constants here
            z = copy(x)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
            for p in targets:
                loss -= tf.reduce_sum(p * tf.nn.log_softmax(z), axis=1) / 2
            loss = tf.reduce_mean(loss)
        for variable, gradient, moved in zip(
            copy.trainable_variables,
            tape.gradient(loss, copy.trainable_variables),
            student.trainable_variables,
            strict=True,
        ):
            expected = variable.numpy() - 0.1 * gradient.numpy()
            np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


def test_evaluate_and_predict_are_the_students_own(data, models):
    x, y, sample_weight = data
    students = build_peers(models, 2, norm=True)
    teacher = models.teacher()
    distiller = compile_peers(MutualDistiller(students, teacher=teacher))
    before = teacher.get_weights()
    distiller.fit(x, y, batch_size=4, epochs=2, verbose=0, validation_data=(x[:5], y[:5]))
    for one, other in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    own = {id(v) for s in students for v in s.weights}
    assert {id(v) for v in distiller.weights} == own
    kept = distiller.get_weights()
    results = distiller.evaluate(x, y, 4, 0, sample_weight, return_dict=True)
    total = 0.0
    for student in students:
        student.compile("sgd", CrossEntropy(from_logits=True), ["accuracy"])
        loss, accuracy = student.evaluate(x, y, 4, 0, sample_weight)
        np.testing.assert_allclose(results[f"{student.name}_loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(results[f"{student.name}_accuracy"], accuracy, rtol=1e-6)
        total += loss
        predicted = distiller.predict(x, verbose=0)[student.name]
        np.testing.assert_array_equal(predicted, student.predict(x, verbose=0))
    np.testing.assert_allclose(results["loss"], total, rtol=1e-5)
    assert set(results) == {"loss", "one_loss", "one_accuracy", "two_loss", "two_accuracy"}
    for one, other in zip(distiller.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_students_come_closer_and_learn(data, models):
    x, y, _ = data
    students = build_peers(models, 2)
    distiller = MutualDistiller(students)
    distiller.compile(keras.optimizers.Adam(0.05), CrossEntropy(from_logits=True))
    history = distiller.fit(x, y, epochs=60, verbose=0).history
    assert history["one_hard_labels_loss"][-1] < 0.7 * history["one_hard_labels_loss"][0]
    assert history["two_peers_loss"][-1] < 0.5 * history["two_peers_loss"][0]


def test_schedules_of_the_weights_and_of_the_temperature_move(data, models):
    x, y, _ = data
    temperature, weight = Linear(4.0, 1.0), Linear(1.0, 0.0)
    distiller = compile_peers(
        MutualDistiller(build_peers(models, 2), loss=SoftTargets(temperature), peer_weight=weight)
    )
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: seen.append((float(temperature.value), float(weight.value)))
    )
    history = distiller.fit(x, y, epochs=3, callbacks=[note], verbose=0).history
    assert seen == [(4.0, 1.0), (2.5, 0.5), (1.0, 0.0)]
    np.testing.assert_allclose(
        history["one_loss"][-1], history["one_hard_labels_loss"][-1], rtol=1e-6
    )


def test_weights_are_saved_and_loaded(data, models, tmp_path):
    x, y, _ = data
    distiller = compile_peers(MutualDistiller(build_peers(models, 2), teacher=models.teacher()))
    distiller.fit(x, y, verbose=0)
    distiller.save_weights(tmp_path / "both.weights.h5")
    other = compile_peers(MutualDistiller(build_peers(models, 2, l2=0.1), teacher=models.teacher()))
    other.load_weights(tmp_path / "both.weights.h5")
    for one, another in zip(other.get_weights(), distiller.get_weights(), strict=True):
        np.testing.assert_array_equal(one, another)


def test_what_cannot_learn_from_one_another_is_refused(data, models):
    x, _, _ = data
    one, two = build_peers(models, 2)
    with pytest.raises(ConfigurationError, match=r"Expected two students or more.*1 student\."):
        MutualDistiller([one])
    with pytest.raises(ConfigurationError, match="students with different names"):
        MutualDistiller([one, models.student(name="one")])
    with pytest.raises(ShapeMismatchError, match=r"equal outputs.*\(None, 3\).*\(None, 4\)"):
        MutualDistiller([one, models.student(name="four", classes=4)])
    with pytest.raises(ConfigurationError, match=r"a loss on logits\. Received: Hints"):
        MutualDistiller([one, two], loss=Hints("a", "b"))
    with pytest.raises(ConfigurationError, match="needs a loss for the hard labels"):
        MutualDistiller([one, two]).compile("sgd")
    with pytest.raises(ConfigurationError, match="reads probabilities"):
        MutualDistiller([one, two]).compile("sgd", CrossEntropy())
    both = compile_peers(MutualDistiller([one, two]))
    with pytest.raises(DataError, match="needs labels"):
        both.fit(x, verbose=0)
    with pytest.raises(DataError, match="Labels out of range"):
        both.fit(x, data[1] + 5, verbose=0)
    with pytest.raises(ShapeMismatchError, match="cannot take these samples"):
        both.fit(x[:, :3], data[1], verbose=0)


def test_a_frozen_teacher_whose_answers_were_stored(data, models):
    x, y, _ = data
    teacher = models.teacher()

    class Stored(ModelTeacher):
        """Answers from the batch, as a cache does."""

        def observe(self, x, recording=None):
            return Observed(x.logits)

    logits = teacher(x).numpy()
    batches = tf.data.Dataset.from_tensors((CachedBatch(x, logits, {}), y))
    losses = []
    for given, train in ((teacher, (x, y)), (Stored(teacher), (batches,))):
        distiller = compile_peers(MutualDistiller(build_peers(models, 2), teacher=given))
        losses.append(distiller.fit(*train, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
