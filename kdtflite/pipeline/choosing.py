"""losses="auto" in a run: trials that survive being killed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import tensorflow as tf

from kdtflite.data.batches import steps_an_epoch
from kdtflite.data.splits import Dataset
from kdtflite.distillation.auto import Auto, Choice, Score
from kdtflite.distillation.candidates import Candidate
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.trials import Trials
from kdtflite.files import write_json
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.pipeline.training import batches_of, labels_of
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
    workers: Workers = ALONE,
) -> Choice:
    """Chooses the losses of a Distiller for a training by `recipe`, and has it adopt them.

    Every trial's score is written down: stopped and started again, the choice is the same.

    Args:
        distiller: Compiled, with losses="auto".
        dataset: Its training samples are trained on and its validation samples judged by.
        recipe: The training that the choice is for.
        seed: Seed of order and augmentation: trials see the training's own first batches.
        folder: Where trials.json is kept.
        workers: Who runs the trials together.
    """
    an_epoch = steps_an_epoch(dataset.train, recipe.batch_size)
    steps = recipe.epochs * an_epoch
    validation = dataset.validation
    trials = Trials(
        distiller,
        lambda length: workers.shared(
            batches_of(dataset, recipe, seed=seed, epochs=math.ceil(length / an_epoch)).take(length)
        ),
        (validation.x, labels_of(validation.y, dataset, recipe)),
        steps=steps,
        validation_batch_size=500,
    )
    file = folder / "trials.json"
    teacher = trials.teacher
    kept = _read(file, teacher)

    def run(candidate: Candidate, length: int) -> Score:
        key = f"{candidate.name}, {length} steps"
        if key not in kept:
            tf.random.set_seed(seed)  # of what a training step itself draws
            kept[key] = asdict(trials(candidate, length))
            if workers.chief:
                write_json(file, {"teacher": teacher, "scores": kept}, overwrite=True)
        return Score(**kept[key])

    with trials, workers.synchronized(distiller.student):
        choice = Auto().choose(run, distiller.task, steps=steps, steps_an_epoch=an_epoch)
    say(str(choice))
    distiller.adopt(choice)
    return choice


def _read(file: Path, teacher: str) -> dict[str, dict[str, float]]:
    found = json.loads(file.read_text()) if file.is_file() else {}
    # Another teacher's scores say nothing.
    return found["scores"] if found.get("teacher") == teacher else {}
