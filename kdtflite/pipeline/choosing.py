"""losses="auto" in a run: trials that can be killed and resumed."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tensorflow as tf

from kdtflite.data.splits import Dataset
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.search.auto import Auto, Choice, Score
from kdtflite.distillation.search.candidates import Candidate
from kdtflite.distillation.search.trials import Trials
from kdtflite.files import read_json, write_json
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.pipeline.samples import TrainingSamples, make_labels
from kdtflite.pipeline.workers import ALONE, Workers
from kdtflite.progress import say

__all__ = ["choose_resumably"]


def choose_resumably(
    distiller: Distiller,
    dataset: Dataset,
    recipe: TrainingRecipe,
    *,
    seed: int,
    folder: Path,
    samples: TrainingSamples | None = None,
    workers: Workers = ALONE,
) -> Choice:
    """Chooses the losses of a Distiller for a training by `recipe`, and applies the choice.

    Every trial's score is saved: stopped and started again, the choice is the same.

    Args:
        distiller: Compiled, with losses="auto".
        dataset: The scores of trials are those on its validation samples.
        recipe: The training that the choice is for.
        seed: Seed of order and augmentation: trials see the training's own first batches.
        folder: Where trials.json is saved.
        samples: What trials train on; by default all training samples of the data set.
        workers: The processes that run the trials together.
    """
    samples = TrainingSamples.take_all(dataset) if samples is None else samples
    an_epoch = samples.count_steps(recipe.batch_size)
    steps = recipe.epochs * an_epoch
    validation = dataset.validation

    def make_training_batches(length: int) -> tf.data.Dataset:
        epochs = math.ceil(length / an_epoch)
        batches = samples.make_batches(recipe, seed=seed, epochs=epochs)
        return workers.shard(batches.take(length))

    trials = Trials(
        distiller,
        make_training_batches,
        (validation.x, make_labels(validation.y, dataset.classes, recipe)),
        steps=steps,
        validation_batch_size=500,
    )
    file = folder / "trials.json"
    teacher = trials.teacher
    kept = _read(file, teacher)

    def run(candidate: Candidate, length: int) -> Score:
        key = f"{candidate.name}, {length} steps"
        if key not in kept:
            tf.random.set_seed(seed)  # for the random numbers of a training step
            kept[key] = asdict(trials(candidate, length))
            if workers.is_chief:
                write_json(file, {"teacher": teacher, "scores": kept}, overwrite=True)
        return Score(**kept[key])

    with trials, workers.synchronize(distiller.student):
        choice = Auto().choose(run, distiller.task, steps=steps, steps_per_epoch=an_epoch)
    say(str(choice))
    distiller.apply_choice(choice)
    return choice


def _read(file: Path, teacher: str) -> dict[str, dict[str, float]]:
    if not file.is_file():
        return {}
    found = read_json(file)
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("scores"), dict)
        or not all(map(_is_score, found["scores"].values()))
    ):
        say(f"{file} is damaged: its trials run again.")
        return {}
    # Scores with another teacher do not count.
    return found["scores"] if found.get("teacher") == teacher else {}


def _is_score(values: Any) -> bool:
    try:
        score = Score(**values)
    except TypeError:
        return False
    return all(isinstance(value, int | float | None) for value in vars(score).values())
