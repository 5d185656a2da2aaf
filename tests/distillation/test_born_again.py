"""Born-again generations: each new, each taught by the one before."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.teachers.ensemble import EnsembleTeacher
from kdtflite.distillation.ways.born_again import born_again
from kdtflite.distillation.ways.fit import Fit
from kdtflite.errors import ConfigurationError

FIT = Fit(epochs=2, optimizer=lambda: keras.optimizers.Adam(0.02), batch_size=7, seed=3)


def build():
    layers = [keras.Input((4,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3)]
    return keras.Sequential(layers, name="student")


def test_generations_start_anew_and_learn_from_the_former(data, models):
    x, y, _ = data
    starts = []

    def noted():
        model = build()
        starts.append(model.get_weights())
        return model

    result = born_again(noted, models.teacher(), (x, y), FIT, generations=3)
    assert len(result.models) == len(result.histories) == 3
    assert not np.array_equal(starts[0][0], starts[1][0])
    taught_by = models.teacher()
    for number, (weights, born) in enumerate(zip(starts, result.models, strict=True), start=1):
        student = build()
        student.set_weights(weights)
        distiller = Distiller(student, taught_by)
        FIT.compile(distiller)
        FIT.run(distiller, (x, y), stage=number)
        for a, b in zip(student.get_weights(), born.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        taught_by = student


def test_it_goes_on_from_its_folder(data, models, tmp_path):
    x, y, _ = data
    whole = born_again(build, models.teacher(), (x, y), FIT, generations=2)
    born_again(build, models.teacher(), (x, y), FIT, generations=1, folder=tmp_path)
    written = (tmp_path / "01_student.h5").stat().st_mtime_ns
    result = born_again(build, models.teacher(), (x, y), FIT, generations=2, folder=tmp_path)
    assert (tmp_path / "01_student.h5").stat().st_mtime_ns == written
    for one, other in zip(result.models, whole.models, strict=True):
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_all_generations_together_teach_as_an_ensemble(data, models):
    x, y, _ = data
    result = born_again(build, models.teacher(), (x, y), FIT, generations=2)
    logits = EnsembleTeacher(result.models)(tf.constant(x)).numpy()
    shares = np.mean([softmax(np.float64(m(x)), axis=-1) for m in result.models], axis=0)
    np.testing.assert_allclose(log_softmax(np.float64(logits), axis=-1), np.log(shares), rtol=1e-5)


def test_a_builder_that_gives_the_same_model_twice_and_no_generation_are_refused(data, models):
    x, y, _ = data
    same = build()
    with pytest.raises(ConfigurationError, match="a new model at each call"):
        born_again(lambda: same, models.teacher(), (x, y), FIT)
    with pytest.raises(ConfigurationError, match="a function that makes a student"):
        born_again(same, models.teacher(), (x, y), FIT)
    with pytest.raises(ConfigurationError, match="one generation or more"):
        born_again(build, models.teacher(), (x, y), FIT, generations=0)
