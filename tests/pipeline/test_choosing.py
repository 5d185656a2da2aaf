"""A run chooses its losses by trials, the same ones if it is killed among them."""

import json

import numpy as np
import pytest
import tensorflow as tf
from pipeline_data import dataset, student, teacher

import kdtflite.pipeline.choosing as choosing
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.search.auto import Auto
from kdtflite.distillation.search.candidates import CANDIDATES, HARD_LABELS
from kdtflite.pipeline.optimizers import make_optimizer
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.pipeline.training import make_cross_entropy

DATA = dataset(noise=0.6)
STEPS = 100 * 6


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    tf.config.experimental.enable_op_determinism()
    monkeypatch.setattr(choosing, "Auto", lambda: Auto(CANDIDATES[:3], min_steps=10))


def choose(folder, *, knows=True, **aids):
    values = TrainingRecipe(epochs=100, batch_size=16, learning_rate=0.02, **aids)
    made = Distiller(student(), teacher(knows=knows), losses="auto")
    made.compile(make_optimizer(values, 6, made.trained_variables), make_cross_entropy(values))
    before = made.student.get_weights()
    choice = choosing.choose_resumably(made, DATA, values, seed=4, folder=folder)
    for now, then in zip(made.student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert made.choice is choice
    return choice


def test_killed_among_its_trials_it_makes_the_same_choice(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    undisturbed = choose(tmp_path / "one")
    assert undisturbed.steps == STEPS
    assert undisturbed.chosen != HARD_LABELS.name
    real, left = choosing.Trials.__call__, [4]

    def call(self, candidate, steps):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, candidate, steps)

    monkeypatch.setattr(choosing.Trials, "__call__", call)
    with pytest.raises(Killed):
        choose(tmp_path / "two")
    left[0] = 1  # what is left of the five
    assert choose(tmp_path / "two") == undisturbed
    assert left == [0]
    assert choose(tmp_path / "two") == undisturbed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"teacher": "%s", "scores": [1]}',
        '{"teacher": "%s", "scores": {"hard labels alone, 10 steps": {"accuracy": 1.0}}}',
        '{"teacher": "%s", "scores": {"a": {"accuracy": "1", "log_loss": 0.0}}}',
    ],
)
def test_damaged_trials_are_made_again(tmp_path, content, capsys):
    file = tmp_path / "trials.json"
    file.write_text(content.replace("%s", "teacher"))
    assert choosing._read(file, "teacher") == {}
    assert "trials.json is damaged: its trials run again." in " ".join(
        capsys.readouterr().err.split()
    )


def test_trials_with_another_teacher_are_made_again(tmp_path):
    kept = {f"{c.name}, {n} steps": {"accuracy": 1.0, "log_loss": 0.0}
            for c in CANDIDATES for n in range(10, 60)}  # fmt: skip
    (tmp_path / "trials.json").write_text(json.dumps({"teacher": "another", "scores": kept}))
    choice = choose(tmp_path, knows=False, label_smoothing=0.1)
    assert choice.chosen == HARD_LABELS.name
    assert max(trial.log_loss for trial in choice.trials) > 0.1
