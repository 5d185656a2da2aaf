"""Rounds of distillation and conversion, until the file is accurate enough or patience ends."""

import sys

import h5py
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.conversion.convert import convert
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.features.hints import Hints
from kdtflite.distillation.ways.fit import Fit
from kdtflite.errors import ConfigurationError, OutputExistsError
from kdtflite.evaluation.accuracy import evaluate
from kdtflite.pipeline.until_accurate import until_accurate

# The package's attribute of that name is the function.
module = sys.modules["kdtflite.pipeline.until_accurate"]

FIT = Fit(epochs=1, optimizer=lambda: keras.optimizers.Adam(0.02), batch_size=32, seed=0)


def student_of(name="student"):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((2,)), keras.layers.Dense(6, "relu", name="hidden")]
    return keras.Sequential([*layers, keras.layers.Dense(2, name="out")], name=name)


@pytest.fixture(scope="module")
def problem():
    """Two classes in a plane, and a teacher that knows them."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 320)
    x = (rng.normal(0, 1, (320, 2)) + np.where(y, 1.5, -1.5)[:, None]).astype(np.float32)
    layers = [keras.Input((2,)), keras.layers.Dense(2, name="last")]
    teacher = keras.Sequential(layers, name="teacher")
    teacher.set_weights([np.array([[-2.0, 2.0], [-2.0, 2.0]]), np.zeros(2)])
    return teacher, (x[:256], y[:256]), (x[256:], y[256:])


def test_it_ends_when_the_file_is_accurate_enough(problem, capsys):
    teacher, train, validation = problem
    student = student_of()
    before = student.get_weights()
    result = until_accurate(student, teacher, train, validation, target_accuracy=0.95, fit=FIT)
    assert result.reached
    assert [each.number for each in result.rounds] == list(range(len(result.rounds)))
    assert result.rounds[-1].accuracy >= 0.95 > max(r.accuracy for r in result.rounds[:-1])
    assert result.best == result.rounds[-1]
    # The accuracy is that of the file that is returned, and so is its size.
    stated = evaluate(result.lite, validation, progress=False).accuracy
    assert stated == result.best.accuracy
    assert result.lite.inputs[0].dtype == "int8"
    assert result.best.bytes == len(result.lite.content)
    for one, other in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "Round 0: the int8 file's accuracy is" in capsys.readouterr().err
    assert result.to_dict()["rounds"][0] == {
        "number": 0,
        "accuracy": result.rounds[0].accuracy,
        "bytes": result.rounds[0].bytes,
    }


def faked(monkeypatch, accuracies):
    """Files whose accuracy the test decides, and no conversion."""
    made = []

    class Lite:
        def __init__(self, number):
            self.content = bytes(number + 1)
            self.number = number

    class Evaluated:
        def __init__(self, accuracy):
            self.accuracy = accuracy

    def convert(*args, **kwargs):
        made.append(Lite(len(made)))
        return made[-1]

    monkeypatch.setattr(module, "convert", convert)
    monkeypatch.setattr(
        module, "evaluate", lambda lite, *_, **__: Evaluated(accuracies[lite.number])
    )
    return made


def test_patience_ends_and_the_best_round_is_returned_not_the_last(problem, monkeypatch, capsys):
    teacher, train, validation = problem
    made = faked(monkeypatch, [0.5, 0.7, 0.9, 0.6, 0.9, 0.8, 1.0])
    seen = []
    fit = Fit(epochs=1, callbacks=lambda: [Weights(seen)])
    result = until_accurate(
        student_of(), teacher, train, validation, target_accuracy=0.99, fit=fit, patience=3
    )
    assert [each.accuracy for each in result.rounds] == [0.5, 0.7, 0.9, 0.6, 0.9, 0.8]
    assert not result.reached
    assert result.lite is made[2]
    assert result.best.number == 2
    for one, other in zip(result.student.get_weights(), seen[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(seen[-1][-1] - seen[1][-1]).max() > 0
    assert "was not reached: 0.9000 of 0.9900 after 5 rounds" in capsys.readouterr().err


class Weights(keras.callbacks.Callback):
    """Notes the student's weights at the end of a round."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def on_train_end(self, logs=None):
        self.seen.append(self.model.student.get_weights())


def test_no_more_rounds_than_allowed(problem, monkeypatch):
    teacher, train, validation = problem
    faked(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    result = until_accurate(
        student_of(), teacher, train, validation, target_accuracy=1.0, fit=FIT, max_rounds=2
    )
    assert len(result.rounds) == 3
    faked(monkeypatch, [0.97])  # good before any training
    result = until_accurate(student_of(), teacher, train, validation, target_accuracy=0.97, fit=FIT)
    assert [each.number for each in result.rounds] == [0]
    assert result.reached


def test_a_stopped_job_goes_on_to_the_same_weights(problem, tmp_path, monkeypatch, capsys):
    teacher, train, validation = problem
    lite = convert(student_of(), train[0], progress=False)
    monkeypatch.setattr(module, "convert", lambda *_, **__: lite)  # one for all rounds: it is slow
    options = {
        "target_accuracy": 1.0,
        "fit": FIT,
        "patience": 9,
        "losses": [SoftTargets(2.0), Hints("hidden", "last")],
    }
    kept = tmp_path / "whole"
    keras.utils.set_random_seed(5)  # of the adapter's first weights
    whole = until_accurate(
        student_of(), teacher, train, validation, folder=kept, max_rounds=2, **options
    )
    folder = tmp_path / "stopped"
    options["losses"] = [SoftTargets(2.0), Hints("hidden", "last")]
    keras.utils.set_random_seed(5)
    until_accurate(student_of(), teacher, train, validation, folder=folder, max_rounds=1, **options)
    written = (folder / "round_01.h5").stat().st_mtime_ns
    options["losses"] = [SoftTargets(2.0), Hints("hidden", "last")]
    capsys.readouterr()
    result = until_accurate(
        student_of(), teacher, train, validation, folder=folder, max_rounds=2, **options
    )
    assert (folder / "round_01.h5").stat().st_mtime_ns == written
    assert "Round 1 (from before)" in capsys.readouterr().err
    assert result.rounds == whole.rounds
    for name in ("round_01", "round_02"):
        with h5py.File(folder / f"{name}.h5") as one, h5py.File(kept / f"{name}.h5") as other:
            for values, others in zip(arrays(one), arrays(other), strict=True):
                np.testing.assert_array_equal(values, others)
        with np.load(folder / f"{name}.npz") as one, np.load(kept / f"{name}.npz") as other:
            for path in one:
                np.testing.assert_array_equal(one[path], other[path])
    (folder / "round_02.json").write_text("{")
    options["losses"] = [SoftTargets(2.0), Hints("hidden", "last")]
    again = until_accurate(
        student_of(), teacher, train, validation, folder=folder, max_rounds=2, **options
    )
    assert again.rounds == whole.rounds
    assert "round 2 is made again" in " ".join(capsys.readouterr().err.split())
    other = Fit(**{**vars(FIT), "epochs": 2})
    for differs, more in (("epochs", {"fit": other}), ("io_dtype", {"io_dtype": "uint8"})):
        with pytest.raises(OutputExistsError, match=f"another job: {differs} differ"):
            until_accurate(
                student_of(), teacher, train, validation, folder=folder, **{**options, **more}
            )


def arrays(file):
    """Every array in a weights file; the names of wrapped layers count on within a process."""
    found = []
    file.visititems(lambda _, item: found.append(item[()]) if hasattr(item, "shape") else None)
    assert len(found) > 4
    return found


def test_the_students_own_inputs_reach_calibration_training_and_the_file(problem):
    teacher, (x, y), (x_val, y_val) = problem

    def raw(values):
        return {"plane": 100.0 * values + 7.0, "noise": values[:, :1] * 0 + 5e4}

    result = until_accurate(
        student_of(),
        teacher,
        (raw(x), y),
        (raw(x_val), y_val),
        target_accuracy=0.9,
        fit=FIT,
        student_preprocessing=lambda batch: (batch["plane"] - 7.0) / 100.0,
        teacher_preprocessing=lambda batch: (batch["plane"] - 7.0) / 100.0,
    )
    assert result.reached
    low, high = result.lite.inputs[0].range
    assert -8 < low < high < 8  # the file takes what the student takes
    assert evaluate(result.lite, (x_val, y_val), progress=False).accuracy >= 0.9


def test_what_makes_no_sense_is_refused(problem):
    teacher, train, validation = problem
    for options in ({"target_accuracy": 0.0}, {"target_accuracy": 95.0}):
        with pytest.raises(ConfigurationError, match="target_accuracy above 0 and up to 1"):
            until_accurate(student_of(), teacher, train, validation, **options)
    with pytest.raises(ConfigurationError, match="patience of one round or more"):
        until_accurate(student_of(), teacher, train, validation, target_accuracy=0.9, patience=0)
