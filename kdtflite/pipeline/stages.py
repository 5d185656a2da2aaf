"""The stages of a run: each turns the files of earlier stages into its own."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tf_keras as keras

from kdtflite.conversion.convert import convert
from kdtflite.conversion.integer_proof import prove_fully_integer
from kdtflite.data.batches import steps_an_epoch
from kdtflite.data.sources import is_path, load
from kdtflite.data.splits import Dataset
from kdtflite.distillation.auto import Auto
from kdtflite.distillation.distiller import Distiller
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.files import staged
from kdtflite.litemodel import LiteModel
from kdtflite.models.builders import build_model
from kdtflite.models.inspect import number_of_classes
from kdtflite.models.load import load_model
from kdtflite.pipeline.choosing import choose_resumably
from kdtflite.pipeline.losses import make_mixing
from kdtflite.pipeline.measure import LABELS, measure
from kdtflite.pipeline.metadata import with_run_metadata
from kdtflite.pipeline.recipe import DistillationRecipe, Recipe, TrainingRecipe
from kdtflite.pipeline.training import adam, cross_entropy, fit_resumably
from kdtflite.pipeline.workers import ALONE, Workers
from kdtflite.progress import say
from kdtflite.quantization.aware import quantize_aware

__all__ = ["STAGES", "Run", "Stage"]


@dataclass
class Run:
    """What every stage sees: the recipe, the run's folder, and the data, loaded once."""

    recipe: Recipe
    folder: Path
    results: dict[str, dict[str, Any]]
    workers: Workers = ALONE

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set, the same in every process for the same recipe."""
        data = self.recipe.data
        options: dict[str, Any] = {}
        if is_path(data.name) and Path(data.name).is_dir():
            size = data.image_size
            options["image_size"] = tuple(size) if isinstance(size, list) else size
            options["channels"] = data.channels
        elif data.image_size is not None:
            raise ConfigurationError(
                f"`data.image_size` is for a folder of images. Received: {data.name}. Leave it "
                "out: other data have their size."
            )
        return load(data.name, path=data.path, seed=self.recipe.seed, **options)

    def model(self, stage: str) -> keras.Model:
        """The Keras model that a stage kept."""
        return load_model(self.folder / stage / self.results[stage]["model"])

    def keep(self, model: keras.Model, stage: str, name: str) -> str:
        """Writes a Keras model into a stage's folder and returns its file name."""
        folder = self.workers.own(self.folder / stage)
        with staged(folder / name, overwrite=True) as path, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are saving your model as an HDF5")
            model.save(path)
        return name


@dataclass(frozen=True)
class Stage:
    """A step of the run.

    Attributes:
        name: Its folder.
        title: What it does, for people.
        work: Does it and returns what later stages and the report need, as JSON values. Files
            go into the stage's folder; called again after a kill, it goes on or starts over.
        together: Whether all workers do it; else the chief does it for all.
    """

    name: str
    title: str
    work: Callable[[Run], dict[str, Any]]
    together: bool = False


def _data(run: Run) -> dict[str, Any]:
    dataset = run.dataset
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(split.x.tobytes())
        digest.update(split.y.tobytes())
    return {"dataset": dataset.to_dict(), "fingerprint": digest.hexdigest()}


def _teacher(run: Run) -> dict[str, Any]:
    recipe = run.recipe.teacher
    if recipe.load is not None:
        model = load_model(recipe.load)
        if number_of_classes(model) != run.dataset.classes:
            raise ShapeMismatchError(
                f"The teacher {recipe.load} does not fit the data. Expected "
                f"{run.dataset.classes} classes. Received: {number_of_classes(model)}, teacher "
                f"output {tuple(model.output_shape)}."
            )
        return {"model": run.keep(model, "teacher", "model.keras")}
    assert recipe.architecture is not None  # the recipe's own check
    assert recipe.training is not None
    model = _build(run, recipe.architecture, recipe.widths, "teacher")
    return _train_plainly(run, model, recipe.training, "teacher", "teacher")


def _hard_labels(run: Run) -> dict[str, Any]:
    student = _student(run)
    return _train_plainly(run, student, run.recipe.baseline, "hard_labels", "student, hard labels")


def _distilled(run: Run) -> dict[str, Any]:
    recipe = run.recipe.distillation
    options = recipe.distiller_options()
    return _distil(run, _student(run), recipe, options, "distilled", "student, distilled")


def _distilled_qat(run: Run) -> dict[str, Any]:
    recipe = run.recipe.quantization
    options = _chosen(run) if recipe.losses == "distillation" else recipe.distiller_options()
    student = quantize_aware(run.model("distilled"), run.dataset.train.x)
    title = "student, distilled QAT"
    result = _distil(run, student, recipe, options, "distilled_qat", title)
    return {**result, "quantization": student.quantization.to_dict()}


def _files(run: Run) -> dict[str, Any]:
    folder = run.folder / "files"
    conversion = run.recipe.conversion
    proofs = {}

    def write(key: str, stage: str, target: str) -> None:
        integer = target != "float32"
        model = run.model(stage)
        lite = convert(
            model,
            run.dataset.train.x if integer else None,
            target,
            io_dtype=conversion.io_dtype if integer else None,
            input_range=run.dataset.input_range,
            samples=conversion.representative_samples,
        )
        lite = with_run_metadata(lite, run.recipe, run.dataset, name=key, target=target)
        if integer:
            layers = [layer.name.removeprefix("quant_") for layer in model.layers]
            proofs[key] = prove_fully_integer(lite, layers=layers).to_dict()
        lite.save(folder / f"{key}.tflite", overwrite=True)
        say(f"{key}.tflite: {len(lite.content):,} bytes" + (", fully integer" if integer else ""))

    write("teacher", "teacher", "float32")
    write("hard_labels", "hard_labels", "float32")
    write("distilled", "distilled", "float32")
    write("ptq_int8", "hard_labels", conversion.target)
    write("distilled_int8", "distilled_qat", conversion.target)
    return {"proofs": proofs}


def _measurements(run: Run) -> dict[str, Any]:
    files = {key: LiteModel.load(run.folder / "files" / f"{key}.tflite") for key in LABELS}
    keras_models = {
        "teacher": run.model("teacher"),
        "hard_labels": run.model("hard_labels"),
        "distilled": run.model("distilled"),
        "ptq_int8": run.model("hard_labels"),
        "distilled_int8": run.model("distilled_qat"),
    }
    return measure(files, keras_models, run.dataset, run.recipe.evaluation)


def _build(run: Run, architecture: str, widths: list[int] | None, name: str) -> keras.Model:
    return build_model(
        architecture,
        input_shape=run.dataset.sample_shape,
        classes=run.dataset.classes,
        widths=widths,
        name=name,
    )


def _student(run: Run) -> keras.Model:
    """Builds the student; with the same seed before it, with the same weights."""
    keras.utils.set_random_seed(run.recipe.seed)
    recipe = run.recipe.student
    return _build(run, recipe.architecture, recipe.widths, "student")


def _train_plainly(
    run: Run, model: keras.Model, recipe: TrainingRecipe, stage: str, title: str
) -> dict[str, Any]:
    # Only the Distiller mixes; without a teacher it is a plain training.
    fitted = (
        model if recipe.mixing is None else Distiller(model, None, losses=[], **_mixing(recipe))
    )
    _compile(run, fitted, recipe)
    return _fit(run, fitted, model, recipe, stage, title)


def _distil(
    run: Run,
    student: keras.Model,
    recipe: DistillationRecipe,
    options: dict[str, Any],
    stage: str,
    title: str,
) -> dict[str, Any]:
    distiller = Distiller(student, run.model("teacher"), **options, **_mixing(recipe))
    _compile(run, distiller, recipe)
    choice = {}
    if options["losses"] == "auto":
        seed, folder = run.recipe.seed, run.folder / stage
        chosen = choose_resumably(
            distiller, run.dataset, recipe, seed=seed, folder=folder, workers=run.workers
        )
        choice = {"choice": chosen.to_dict()}
        # The optimizer trains what the chosen losses train as well.
        _compile(run, distiller, recipe)
    return {**_fit(run, distiller, distiller.student, recipe, stage, title), **choice}


def _chosen(run: Run) -> dict[str, Any]:
    """Returns what `Distiller` takes to go on by the losses of the distillation."""
    choice = run.results["distilled"].get("choice")
    if choice is None:
        return run.recipe.distillation.distiller_options()
    chosen = Auto().named(choice["chosen"])
    return {
        "losses": chosen.losses(),
        "hard_label_weight": chosen.hard_label_weight,
        "loss_weights": chosen.loss_weights,
    }


def _mixing(recipe: TrainingRecipe) -> dict[str, Any]:
    return {} if recipe.mixing is None else {"mixing": make_mixing(recipe.mixing.model_dump())}


def _compile(run: Run, model: keras.Model, recipe: TrainingRecipe) -> None:
    steps = steps_an_epoch(run.dataset.train, recipe.batch_size)
    trained = model.trained_variables if isinstance(model, Distiller) else model.trainable_variables
    model.compile(adam(recipe, steps, trained), cross_entropy(recipe), metrics=["accuracy"])
    # What metrics show is every replica's already; by default Keras would add it up.
    model.distribute_reduction_method = "first"


def _fit(
    run: Run,
    model: keras.Model,
    trained: keras.Model,
    recipe: TrainingRecipe,
    stage: str,
    title: str,
) -> dict[str, Any]:
    training = fit_resumably(
        model,
        trained,
        run.dataset,
        recipe,
        seed=run.recipe.seed,
        folder=run.folder / stage,
        title=title,
        workers=run.workers,
    )
    name = run.keep(trained, stage, "model.keras")
    return {"model": name, "training": training}


STAGES = (
    Stage("data", "load the data", _data, together=True),
    Stage("teacher", "train or load the teacher", _teacher, together=True),
    Stage(
        "hard_labels", "train the baseline: the student on hard labels", _hard_labels, together=True
    ),
    Stage("distilled", "distil the float student", _distilled, together=True),
    Stage("distilled_qat", "distil the quantization-aware student", _distilled_qat, together=True),
    Stage("files", "convert and prove", _files),
    Stage("measurements", "measure the files", _measurements),
)
"""In the order of the work; the report is written from their results."""
