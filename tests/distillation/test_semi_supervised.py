"""Distillation with unlabeled samples: which count, in which mean, and what is tracked."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.logits.hard_targets import HardTargets
from kdtflite.distillation.losses.logits.regression import RegressionDistillation
from kdtflite.distillation.mixing import MixUp
from kdtflite.distillation.ways.semi_supervised import (
    SemiSupervisedDistiller,
    semi_supervised_batches,
)
from kdtflite.errors import ConfigurationError, DataError

CrossEntropy = keras.losses.SparseCategoricalCrossentropy
HALF = np.arange(21) % 2 == 0  # those with a label


def build_distiller(student, teacher, loss=None, **options):
    distiller = SemiSupervisedDistiller(
        student, teacher, **{"losses": [SoftTargets(2.0)], "hard_label_weight": 0.3, **options}
    )
    loss = CrossEntropy(from_logits=True) if loss is None else loss
    distiller.compile(keras.optimizers.SGD(0.1), loss, ["accuracy"])
    return distiller


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_term_counts_the_samples_it_should(data, models, weighted, one_hot):
    x, y, sample_weight = data
    student, teacher = models.student(), models.teacher()
    z_s, z_t = np.float64(student(x)), np.float64(teacher(x))
    confidence = softmax(z_t, -1).max(-1)
    threshold = float(np.median(confidence[~HALF]))
    accepted = confidence >= threshold
    assert 0 < accepted[~HALF].sum() < (~HALF).sum()
    w = np.float64(sample_weight) if weighted else np.ones(21)
    hard = w * -log_softmax(z_s, -1)[np.arange(21), y]
    logs = log_softmax(z_t / 2, -1) - log_softmax(z_s / 2, -1)
    soft = w * 4 * (softmax(z_t / 2, -1) * logs).sum(-1)
    labels = np.where(HALF, y, -1)
    loss = None
    if one_hot:
        labels = np.where(HALF[:, None], np.eye(3)[y], -1.0).astype(np.float32)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller = build_distiller(student, teacher, loss, threshold=threshold)
    got = distiller.train_on_batch(x, labels, sample_weight if weighted else None, return_dict=True)
    mean_hard = hard[HALF].sum() / HALF.sum()  # over the labeled
    mean_soft = (soft * (HALF | accepted)).sum() / 21  # over all
    np.testing.assert_allclose(got["hard_labels_loss"], mean_hard, rtol=1e-5)
    np.testing.assert_allclose(got["soft_targets_loss"], mean_soft, rtol=1e-5)
    np.testing.assert_allclose(got["loss"], 0.3 * mean_hard + 0.7 * mean_soft, rtol=1e-5)
    np.testing.assert_allclose(got["accepted_share"], accepted[~HALF].mean(), rtol=1e-6)
    right = (z_s.argmax(-1) == y)[HALF].mean()  # of the labeled alone
    np.testing.assert_allclose(got["accuracy"], right, rtol=1e-6)


def test_the_step_follows_the_samples_that_count_alone(data, models):
    x, y, _ = data
    teacher, student, copy = models.teacher(), models.student(), models.student()
    z_t = np.float64(teacher(x))
    sure = softmax(z_t, -1).max(-1)
    threshold = float(np.sort(sure)[9:11].mean())  # between two samples: no tie to round
    counts = HALF | (sure >= threshold)
    distiller = build_distiller(student, teacher, threshold=threshold, losses=[HardTargets()])
    with tf.GradientTape() as tape:  # FixMatch: cross-entropy with the teacher's class
        z = copy(x)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
        pseudo = tf.nn.sparse_softmax_cross_entropy_with_logits(z_t.argmax(-1), z)
        loss = 0.3 * tf.reduce_mean(hard[HALF]) + 0.7 * tf.reduce_sum(pseudo[counts]) / 21
    gradients = tape.gradient(loss, copy.trainable_variables)
    distiller.train_on_batch(x, np.where(HALF, y, -1))
    for moved, variable, gradient in zip(
        student.trainable_variables, copy.trainable_variables, gradients, strict=True
    ):
        expected = variable.numpy() - 0.1 * gradient.numpy()
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_without_any_label_and_one_without_an_unlabeled_sample(data, models):
    x, y, _ = data
    distiller = build_distiller(models.student(), models.teacher(), threshold=0.0)
    got = distiller.train_on_batch(x, np.full(21, -1), return_dict=True)
    assert got["hard_labels_loss"] == 0.0
    assert got["accepted_share"] == 1.0
    assert np.isfinite(got["loss"])
    distiller = build_distiller(models.student(), models.teacher(), threshold=1.0)
    z = np.float64(distiller.student(x))
    got = distiller.train_on_batch(x, y, return_dict=True)
    hard = -log_softmax(z, -1)[np.arange(21), y].mean()
    np.testing.assert_allclose(got["hard_labels_loss"], hard, rtol=1e-5)
    assert got["accepted_share"] == 0.0
    assert all(np.isfinite(w).all() for w in distiller.get_weights())


def test_losses_that_read_labels_are_given_the_teachers_class_where_there_is_none(data, models):
    x, y, _ = data
    seen = []

    class Reading(SoftTargets):
        def compute(self, step):
            seen.append(step.labels)
            return super().compute(step)

    teacher = models.teacher()
    distiller = SemiSupervisedDistiller(models.student(), teacher, losses=[Reading()])
    distiller.compile("sgd", CrossEntropy(from_logits=True), run_eagerly=True)
    distiller.train_on_batch(x, np.where(HALF, y, -1))
    expected = np.where(HALF, y, teacher(x).numpy().argmax(-1))
    np.testing.assert_array_equal(seen[-1], expected)


def test_arrays_and_batches_fit_and_evaluation_knows_labels_only(data, models):
    x, y, _ = data
    student = models.student()
    distiller = build_distiller(student, models.teacher(), threshold=0.5)
    labels = np.where(HALF, y, -1)
    history = distiller.fit(
        x, labels, batch_size=8, epochs=2, validation_data=(x, y), verbose=0
    ).history
    assert 0 <= history["accepted_share"][0] <= 1
    assert "val_accepted_share" not in history
    student.compile("sgd", CrossEntropy(from_logits=True), ["accuracy"])
    np.testing.assert_allclose(
        distiller.evaluate(x, y, verbose=0), student.evaluate(x, y, verbose=0), rtol=1e-5
    )
    batches = semi_supervised_batches((x[:8], y[:8]), x[8:], batch_size=4, unlabeled_ratio=2)
    history = distiller.fit(batches, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_batches_hold_labeled_samples_then_unlabeled_ones_and_pass_over_all_of_these():
    x = np.arange(6, dtype=np.float32)[:, None]
    unlabeled = np.arange(100, 125, dtype=np.float32)[:, None]
    dataset = semi_supervised_batches(
        (x, np.arange(6, dtype=np.uint8)), unlabeled, batch_size=3, unlabeled_ratio=2, seed=0
    )
    assert len(dataset) == 5
    orders = []
    for _ in range(2):
        batches = list(dataset.as_numpy_iterator())
        for samples, labels in batches:
            np.testing.assert_array_equal(labels[:3], samples[:3, 0])
            np.testing.assert_array_equal(labels[3:], -1)
        seen = np.concatenate([samples[3:, 0] for samples, _ in batches])
        assert sorted(seen) == list(range(100, 125))
        orders.append(seen.tolist())
    assert orders[0] != orders[1]
    x, y = np.zeros((4, 2), np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    _, labels = next(iter(semi_supervised_batches(({"a": x}, y), {"a": x}, batch_size=4)))
    np.testing.assert_array_equal(labels[4:], -np.ones((4, 3)))


def test_unlabeled_samples_help_a_student_with_few_labels():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = (rng.normal(0, 1, (400, 2)) + np.where(y, 1.5, -1.5)[:, None]).astype(np.float32)
    teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)], name="teacher")
    teacher.set_weights([np.array([[-2.0, 2.0], [-2.0, 2.0]]), np.zeros(2)])
    layers = [keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    student = keras.Sequential(layers, name="student")
    distiller = SemiSupervisedDistiller(student, teacher, losses=[HardTargets()])
    distiller.compile(keras.optimizers.Adam(0.05), CrossEntropy(from_logits=True), ["accuracy"])
    batches = semi_supervised_batches((x[:8], y[:8]), x[8:], batch_size=8, unlabeled_ratio=7)
    history = distiller.fit(batches, epochs=8, verbose=0).history
    assert history["accepted_share"][-1] > 0.8
    assert distiller.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.95


def test_the_mean_over_the_labeled_is_that_over_all_replicas():
    # A process of its own: logical devices can only be made before TensorFlow starts.
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        import tensorflow as tf
        import tf_keras as keras
        sys.path.insert(0, sys.argv[1])
        from conftest import dense_student, dense_teacher
        from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller

        cpu = tf.config.list_physical_devices("CPU")[0]
        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [half, half])
        rng = np.random.default_rng(0)
        x = rng.normal(0, 1, (21, 4)).astype("float32")
        # Labels in the first rows alone: replicas have unequally many, some none.
        y = np.where(np.arange(21) % 8 < 3, rng.integers(0, 3, 21), -1)
        results = []
        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        for strategy in (tf.distribute.get_strategy(), mirrored):
            with strategy.scope():
                distiller = SemiSupervisedDistiller(
                    dense_student(l2=0.02), dense_teacher(), threshold=0.5, hard_label_weight=0.5
                )
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                distiller.compile(keras.optimizers.SGD(0.1), loss)
            logs = distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
            results.append((distiller.get_weights(), logs["accepted_share"]))
        for one, other in zip(results[0][0], results[1][0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_what_does_not_go_with_unlabeled_samples_is_refused(data, models):
    student, teacher = models.student(), models.teacher()
    with pytest.raises(ConfigurationError, match="threshold from 0 to 1"):
        SemiSupervisedDistiller(student, teacher, threshold=1.5)
    with pytest.raises(ConfigurationError, match="need a teacher"):
        SemiSupervisedDistiller(student, None, losses=[])
    with pytest.raises(ConfigurationError, match="cannot be mixed"):
        SemiSupervisedDistiller(student, teacher, mixing=MixUp())
    with pytest.raises(ConfigurationError, match="Expected a classification student"):
        SemiSupervisedDistiller(
            student, teacher, losses=[RegressionDistillation()], task="regression"
        )
    x, y, _ = data
    with pytest.raises(DataError, match=r"same shape and dtype.*\(21, 4\).*\(21, 3\)"):
        semi_supervised_batches((x, y), x[:, :3])
    with pytest.raises(DataError, match="Expected labeled and unlabeled samples"):
        semi_supervised_batches((x, y), x[:0])
    with pytest.raises(ConfigurationError, match="of 1 or more"):
        semi_supervised_batches((x, y), x, unlabeled_ratio=0)
