"""Chains of assistants: who teaches whom, and that a stopped chain goes on."""

import json

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.distillation import Distiller, schedules
from kdtflite.distillation.losses import LogitStandardization, ReverseKL, SoftTargets
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.ways.assistants import assistant_chain
from kdtflite.distillation.ways.fit import Fit
from kdtflite.errors import ConfigurationError, OutputExistsError

CrossEntropy = keras.losses.SparseCategoricalCrossentropy
FIT = Fit(epochs=2, optimizer=lambda: keras.optimizers.Adam(0.02), batch_size=7, seed=3)


def chain_of(models):
    return [models.student(name="middle", seed=1), models.student(name="small", seed=2)]


def assert_same(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(models, data):
    """The chain written out with Distiller alone."""
    x, y, _ = data
    taught_by = models.teacher()
    trained = chain_of(models)
    for number, student in enumerate(trained, start=1):
        distiller = Distiller(student, taught_by, hard_label_weight=0.2)
        distiller.compile(keras.optimizers.Adam(0.02), CrossEntropy(from_logits=True))
        keras.utils.set_random_seed(3 + number)
        distiller.fit(x, y, batch_size=7, epochs=2, verbose=0)
        taught_by = student
    return trained


def test_each_model_learns_from_the_one_before(data, models):
    x, y, _ = data
    students = chain_of(models)
    result = assistant_chain(models.teacher(), students, (x, y), FIT, hard_label_weight=0.2)
    assert result.models == tuple(students)
    assert result.student is students[1]
    for one, other in zip(result.models, by_hand(models, data), strict=True):
        assert_same(one, other)
    assert [len(history["loss"]) for history in result.histories] == [2, 2]
    assert set(result.histories[0]) >= {"loss", "soft_targets_loss", "accuracy"}


def test_a_stopped_chain_goes_on_and_ends_as_it_would_have(data, models, tmp_path, capsys):
    x, y, _ = data

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    trainings = []

    def callbacks():
        trainings.append(1)
        return [Stop()] if len(trainings) == 2 else []

    fit = Fit(**{**vars(FIT), "callbacks": callbacks})
    arguments = {"folder": tmp_path / "chain", "hard_label_weight": 0.2}
    with pytest.raises(KeyboardInterrupt):
        assistant_chain(models.teacher(), chain_of(models), (x, y), fit, **arguments)
    kept = sorted(path.name for path in (tmp_path / "chain").iterdir())
    assert kept == ["01_middle.h5", "01_middle.json"]
    result = assistant_chain(models.teacher(), chain_of(models), (x, y), fit, **arguments)
    assert len(trainings) == 3  # the first stage was not trained again
    for one, other in zip(result.models, by_hand(models, data), strict=True):
        assert_same(one, other)
    assert "was trained before" in capsys.readouterr().err
    again = assistant_chain(models.teacher(), chain_of(models), (x, y), fit, **arguments)
    assert len(trainings) == 3
    assert_same(again.student, result.student)
    assert again.histories == result.histories
    (tmp_path / "chain" / "02_small.json").write_text('{"about": {}, "history": {"loss": "low"}}')
    mended = assistant_chain(models.teacher(), chain_of(models), (x, y), fit, **arguments)
    assert len(trainings) == 4
    assert_same(mended.student, result.student)
    assert "are damaged; trained again" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_another_job_is_refused(data, models, tmp_path):
    x, y, _ = data
    assistant_chain(models.teacher(), chain_of(models), (x, y), FIT, folder=tmp_path)
    other = models.teacher()
    other.set_weights([weight + 0.1 for weight in other.get_weights()])
    with pytest.raises(OutputExistsError, match="another job: teacher differ"):
        assistant_chain(other, chain_of(models), (x, y), FIT, folder=tmp_path)
    longer = Fit(**{**vars(FIT), "epochs": 3})
    with pytest.raises(OutputExistsError, match="another job: epochs differ"):
        assistant_chain(models.teacher(), chain_of(models), (x, y), longer, folder=tmp_path)
    assert json.loads((tmp_path / "02_small.json").read_text())["about"]["student"] == "small"


def schedule(end):
    return schedules.Linear(1.0, end)


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ({"losses": [SoftTargets(2.0)]}, {"losses": [SoftTargets(3.0)]}, "losses"),
        ({"losses": [SoftTargets(2.0)]}, {"losses": [ReverseKL(2.0)]}, "losses"),
        (
            {"losses": [SoftTargets(schedule(2.0))]},
            {"losses": [SoftTargets(schedule(3.0))]},
            "losses",
        ),
        (
            {"losses": [LogitStandardization(SoftTargets(1.0))]},
            {"losses": [LogitStandardization(SoftTargets(2.0))]},
            "losses",
        ),
        ({"losses": lambda: [Hints("middle_hidden", "features")]}, {"losses": None}, "losses"),
        ({"hard_label_weight": 0.1}, {"hard_label_weight": 0.2}, "weights"),
        ({"hard_label_weight": schedule(0.5)}, {"hard_label_weight": schedule(0.6)}, "weights"),
    ],
)
def test_a_folder_of_other_losses_is_refused(data, models, tmp_path, one, other, differs):
    def chain(**options):
        students = chain_of(models)[:1]
        fit = Fit(epochs=1)
        return assistant_chain(
            models.teacher(), students, data[:2], fit, folder=tmp_path, **options
        )

    chain(**one)
    chain(**one)
    with pytest.raises(OutputExistsError, match=f"another job: {differs} differ"):
        chain(**other)


@pytest.mark.parametrize("changed", ["x", "y"])
def test_a_folder_of_other_data_is_refused(data, models, tmp_path, changed):
    given = {"x": data[0], "y": data[1]}
    for _ in range(2):
        made = chain_of(models)[:1]
        assistant_chain(models.teacher(), made, tuple(given.values()), FIT, folder=tmp_path)
    given[changed] = given[changed][::-1]
    with pytest.raises(OutputExistsError, match="another job: data differ"):
        assistant_chain(
            models.teacher(), chain_of(models)[:1], tuple(given.values()), FIT, folder=tmp_path
        )


def test_the_first_teachers_own_inputs_and_the_students(data, models):
    x, y, _ = data
    students = chain_of(models)
    raw = 10.0 * x  # the students' preprocessing undoes it, the teacher's takes two columns

    result = assistant_chain(
        models.teacher(features=2),
        students,
        (raw, y),
        FIT,
        teacher_preprocessing=lambda batch: batch[:, :2] / 10.0,
        student_preprocessing=lambda batch: batch / 10.0,
    )
    taught_by = models.teacher(features=2)
    for number, student in enumerate(chain_of(models), start=1):
        prepare = (lambda batch: batch[:, :2]) if number == 1 else None
        distiller = Distiller(student, taught_by, teacher_preprocessing=prepare)
        FIT.compile(distiller)
        FIT.run(distiller, (x, y), stage=number)
        for a, b in zip(student.get_weights(), students[number - 1].get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        taught_by = student
    assert result.student is students[-1]


def test_keras_3_models_and_losses_made_anew_for_each(data, models):
    x, y, _ = data

    def keras3_student(name):
        layers = [keras3.Input((4,)), keras3.layers.Dense(5, name="hidden")]
        return keras3.Sequential([*layers, keras3.layers.Dense(3)], name=name)

    result = assistant_chain(
        keras3_student("teacher"),
        [keras3_student("one"), keras3_student("two")],
        (x, y),
        Fit(epochs=1),
        losses=lambda: [SoftTargets(2.0), Hints("hidden", "hidden")],
    )
    assert all(isinstance(model, keras.Model) for model in result.models)
    assert "hints_loss" in result.histories[1]


def test_what_cannot_be_a_chain_is_refused(data, models):
    x, y, _ = data
    with pytest.raises(ConfigurationError, match="one model or more"):
        assistant_chain(models.teacher(), [], (x, y))
    with pytest.raises(ConfigurationError, match="same model twice"):
        assistant_chain(models.teacher(), [models.student()] * 2, (x, y))
    with pytest.raises(ConfigurationError, match=r"hints keep what they train.*lambda"):
        assistant_chain(models.teacher(), chain_of(models), (x, y), losses=[Hints("a", "b")])
    with pytest.raises(ConfigurationError, match="a name or a function that makes one"):
        Fit(optimizer=keras.optimizers.Adam())
    with pytest.raises(ConfigurationError, match="a function that makes a list"):
        Fit(callbacks=[keras.callbacks.EarlyStopping()])
    with pytest.raises(ConfigurationError, match="one epoch or more"):
        Fit(epochs=0)
