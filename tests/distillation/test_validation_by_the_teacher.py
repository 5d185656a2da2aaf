"""Learning from the teacher alone is validated by the distillation loss."""

import numpy as np
import pytest
import tf_keras as keras
from scipy.special import log_softmax

import kdtflite
from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import (
    CRD,
    JacobianMatching,
    SoftTargets,
)
from kdtflite.distillation.ways.multi_task import MultiTaskDistiller
from kdtflite.distillation.ways.mutual import MutualDistiller
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller

L = keras.layers


def soft(student, teacher, x, temperature=1.0):
    log_q, log_p = (
        log_softmax(np.float64(model.predict(x, verbose=0)) / temperature, -1)
        for model in (student, teacher)
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_the_validation_loss_is_the_distillation_loss(data, models, l2):
    x, y, weight = data
    student, teacher = models.student(l2=l2), models.teacher()
    distiller = Distiller(
        student, teacher, losses=[SoftTargets(1.0)], loss_weights=[0.5], hard_label_weight=0.0
    )
    distiller.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
    history = distiller.fit(x, y, verbose=0, validation_data=(x, y, weight)).history
    value = (weight * soft(student, teacher, x)).mean() / 2 + float(sum(student.losses))
    np.testing.assert_allclose(history["val_loss"], [value], rtol=1e-5)
    # Labels are not needed, and samples in batches of any size weigh the same.
    plain = soft(student, teacher, x).mean() / 2 + float(sum(student.losses))
    np.testing.assert_allclose(distiller.evaluate(x, batch_size=4, verbose=0)[0], plain, rtol=1e-5)


def test_early_stopping_restores_the_epoch_that_was_best(models):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (64, 4)).astype(np.float32)
    student, teacher = models.student(), models.teacher()
    distiller = Distiller(student, teacher, losses=[SoftTargets(1.0)], hard_label_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = distiller.fit(x, epochs=6, validation_data=(x,), callbacks=[stop], verbose=0).history
    assert all(np.diff(history["val_loss"]) < 0)
    assert stop.best_epoch == 5


def test_a_compiled_loss_on_the_labels_stays_the_validation_loss(data, models):
    x, y, _ = data
    student = models.student()
    distiller = Distiller(student, models.teacher(), hard_label_weight=0.0)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    hard = -log_softmax(np.float64(student.predict(x, verbose=0)), -1)[np.arange(21), y]
    np.testing.assert_allclose(history["val_loss"], [hard.mean()], rtol=1e-5)


def test_what_a_loss_remembers_is_that_of_the_training(data, models):
    x, _, _ = data
    teacher = models.teacher(norm=False)
    crd = CRD("student_relu", teacher.layers[1].name, bank_size=8, embedding=4)
    distiller = Distiller(models.student(), teacher, losses=[crd], hard_label_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    distiller.fit(x, verbose=0)
    before = [variable.numpy() for variable in distiller.loss_variables]
    assert distiller.evaluate(x, verbose=0) > 0
    for variable, value in zip(distiller.loss_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_loss_on_gradients_is_validated(data, models):
    x, _, _ = data
    distiller = Distiller(
        models.student(), models.teacher(), losses=[JacobianMatching()], hard_label_weight=0.0
    )
    distiller.compile(keras.optimizers.SGD(0.0))
    history = distiller.fit(x, validation_data=(x,), batch_size=21, verbose=0).history
    np.testing.assert_allclose(history["val_loss"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize("way", ["semi_supervised", "mutual", "multi_task"])
def test_every_way_of_training(data, models, way):
    x, _, _ = data
    teacher = models.teacher()
    if way == "semi_supervised":
        trained = SemiSupervisedDistiller(
            models.student(), teacher, losses=[SoftTargets(1.0)], hard_label_weight=0.0, threshold=0
        )
        expected = soft(trained.student, teacher, x).mean()
    elif way == "mutual":
        one, other = models.student(name="one", seed=1), models.student(name="other", seed=2)
        trained = MutualDistiller([one, other], hard_label_weight=0.0)
        expected = soft(one, other, x).mean() + soft(other, one, x).mean()
    else:
        inputs = keras.Input((4,))
        heads = [L.Dense(3, name=name)(inputs) for name in ("kind", "color")]
        student = keras.Model(inputs, heads)
        trained = MultiTaskDistiller(
            student,
            {"kind": teacher},
            losses={"kind": [SoftTargets(1.0)]},
            hard_label_weights={"kind": 0.0, "color": 0.0},
        )
        expected = soft(keras.Model(inputs, heads[0]), teacher, x).mean()
    trained.compile(keras.optimizers.SGD(0.1))
    result = trained.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)


def test_a_cache_without_outputs_for_the_validation_samples_gives_no_loss(
    data, models, tmp_path, capsys
):
    x, y, _ = data
    cache = kdtflite.cache_teacher(models.teacher(), (x, y), tmp_path / "cache")
    distiller = Distiller(models.student(), cache, hard_label_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
    batches = cache.batches((x, y), batch_size=7)
    history = distiller.fit(batches, validation_data=(x, y), verbose=0).history
    assert "val_accuracy" in history
    assert "val_loss" not in history
    assert "There is no loss to validate with" in capsys.readouterr().err
    own = distiller.evaluate(cache.batches((x, y), batch_size=7), verbose=0)[0]
    divergence = 16 * soft(distiller.student, models.teacher(), x, 4.0).mean()
    np.testing.assert_allclose(own, divergence, rtol=1e-4)
