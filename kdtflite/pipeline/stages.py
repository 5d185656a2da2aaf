"""The stages of a run: each makes its files from those of earlier stages."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tf_keras as keras

from kdtflite.conversion.convert import convert
from kdtflite.conversion.integer_proof import prove_fully_integer
from kdtflite.data.sources import is_path, load
from kdtflite.data.splits import Dataset
from kdtflite.data.unlabeled import hide_labels
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.search.auto import Auto
from kdtflite.distillation.teachers.lite import LiteTeacher
from kdtflite.errors import ConfigurationError
from kdtflite.evaluation.accuracy import evaluate
from kdtflite.evaluation.footprint import macs
from kdtflite.files import write_atomically
from kdtflite.lite.model import LiteModel
from kdtflite.lite.packing import pack
from kdtflite.models.builders import build_model
from kdtflite.models.layer_names import strip_prefix
from kdtflite.models.load import load_model
from kdtflite.pipeline.choosing import choose_resumably
from kdtflite.pipeline.measure import measure
from kdtflite.pipeline.metadata import add_run_metadata
from kdtflite.pipeline.optimizers import make_optimizer
from kdtflite.pipeline.recipe import DistillationRecipe, Recipe, TrainingRecipe
from kdtflite.pipeline.samples import TrainingSamples
from kdtflite.pipeline.selection import MeasuredFile, select_file
from kdtflite.pipeline.teacher import (
    check_same_teacher,
    is_keras_file,
    load_teacher,
    measure_teacher,
)
from kdtflite.pipeline.teaching import cache_views, make_distiller, make_mixing_options
from kdtflite.pipeline.training import fit_resumably, make_cross_entropy
from kdtflite.pipeline.workers import ALONE, Workers
from kdtflite.progress import say
from kdtflite.quantization.aware import quantize_aware
from kdtflite.reporting.variants import Variant, list_variants

__all__ = ["STAGES", "Run", "Stage", "build_student", "build_teacher"]


@dataclass
class Run:
    """What every stage can use: the recipe, the run's folder, and the data, loaded once."""

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
                "out: other data have a size of their own."
            )
        dataset = load(data.name, path=data.path, seed=self.recipe.seed, **options)
        if data.labeled in (None, 1):
            return dataset
        return hide_labels(dataset, data.labeled, seed=self.recipe.seed)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The models that the run makes."""
        return list_variants(self.recipe.variants)

    def read_file(self, variant: Variant) -> LiteModel:
        """Loads the file that the stage "files" wrote of a model."""
        return LiteModel.load(self.folder / "files" / f"{variant.key}.tflite")

    def read_model(self, stage: str) -> keras.Model:
        """Loads the Keras model that a stage saved."""
        return load_model(self.folder / stage / self.results[stage]["model"])

    def read_teacher(self) -> Any:
        """Loads the teacher: a Keras model, or a Teacher for a file of another kind."""
        path, result = self.recipe.teacher.load, self.results["teacher"]
        if path is None or is_keras_file(path):
            return self.read_model("teacher")
        return check_same_teacher(load_teacher(path, self.dataset), result["fingerprint"], path)

    def save_model(self, model: keras.Model, stage: str, name: str) -> str:
        """Writes a Keras model into a stage's folder and returns its file name."""
        folder = self.workers.choose_folder(self.folder / stage)
        with write_atomically(folder / name, overwrite=True) as path, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are saving your model as an HDF5")
            model.save(path)
        return name


@dataclass(frozen=True)
class Stage:
    """A step of the run.

    Attributes:
        name: Its folder.
        title: What it does, for people.
        work: Does the work and returns what later stages and the report need, as JSON values.
            Files go into the stage's folder; called again after a kill, it resumes or starts
            over.
        together: Whether all workers do it; otherwise the chief does it for all.
    """

    name: str
    title: str
    work: Callable[[Run], dict[str, Any]]
    together: bool = False


def _load_data(run: Run) -> dict[str, Any]:
    dataset = run.dataset
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(split.x.tobytes())
        digest.update(split.y.tobytes())
    if dataset.unlabeled is not None:
        digest.update(dataset.unlabeled.tobytes())
    return {"dataset": dataset.to_dict(), "fingerprint": digest.hexdigest()}


def _make_teacher(run: Run) -> dict[str, Any]:
    recipe = run.recipe.teacher
    teacher = build_teacher(run)
    if recipe.load is None:
        assert recipe.training is not None  # ModelRecipe checks it
        return _train_plainly(run, teacher, recipe.training, "teacher", "teacher")
    measure_teacher(teacher, build_student(run), run.dataset, recipe.load)
    if not is_keras_file(recipe.load):
        return {"fingerprint": teacher.fingerprint()}
    return {"model": run.save_model(teacher, "teacher", "model.keras")}


def build_teacher(run: Run) -> Any:
    """Returns the recipe's teacher, loaded, or built with its initial weights."""
    recipe = run.recipe.teacher
    if recipe.load is not None:
        return load_teacher(recipe.load, run.dataset)
    assert recipe.architecture is not None  # ModelRecipe checks it
    return _build(run, recipe.architecture, recipe.widths, "teacher")


def _train_baseline(run: Run) -> dict[str, Any]:
    student = build_student(run)
    return _train_plainly(run, student, run.recipe.baseline, "hard_labels", "student, hard labels")


def _quantize_baseline(run: Run) -> dict[str, Any]:
    student = quantize_aware(run.read_model("hard_labels"), run.dataset.train.x)
    recipe = run.recipe.baseline_quantization
    title = "student, hard labels QAT"
    result = _train_plainly(run, student, recipe, "hard_labels_qat", title)
    return {**result, "quantization": student.quantization.to_dict()["layers"]}


def _distill_float(run: Run) -> dict[str, Any]:
    recipe = run.recipe.distillation
    options = recipe.distiller_options()
    return _distill(run, build_student(run), recipe, options, "distilled", "student, distilled")


def _distill_quantized(
    run: Run, *, stage: str = "distilled_qat", weight_bits: int = 8
) -> dict[str, Any]:
    recipe = run.recipe.quantization
    options = (
        _choose_options(run) if recipe.losses == "distillation" else recipe.distiller_options()
    )
    student = quantize_aware(
        run.read_model("distilled"), run.dataset.train.x, weight_bits=weight_bits
    )
    title = "student, distilled QAT" + (f", int{weight_bits} weights" if weight_bits < 8 else "")
    result = _distill(run, student, recipe, options, stage, title)
    return {**result, "quantization": student.quantization.to_dict()["layers"]}


def _write_files(run: Run) -> dict[str, Any]:
    folder = run.folder / "files"
    conversion = run.recipe.conversion
    proofs = {}

    def write(key: str, stage: str, target: str) -> None:
        integer = target != "float32"
        model = run.read_model(stage)
        lite = convert(
            model,
            run.dataset.train.x if integer else None,
            target,
            io_dtype=conversion.io_dtype if integer else None,
            input_range=run.dataset.input_range,
            samples=conversion.representative_samples,
            pack=False,  # the metadata is to be packed, too
        )
        lite = add_run_metadata(lite, run.recipe, run.dataset, name=key, target=target)
        lite = pack(lite, conversion.names)
        if integer:
            layers = [strip_prefix(layer.name) for layer in model.layers]
            proofs[key] = prove_fully_integer(lite, layers=layers).to_dict()
        lite.save(folder / f"{key}.tflite", overwrite=True)
        say(f"{key}.tflite: {len(lite.content):,} bytes" + (", fully integer" if integer else ""))

    for variant in run.variants:
        if "model" in run.results[variant.stage]:
            write(variant.key, variant.stage, variant.target)
        elif isinstance(teacher := run.read_teacher(), LiteTeacher):
            teacher.lite.save(folder / f"{variant.key}.tflite", overwrite=True)
    return {"proofs": proofs}


def _select_file(run: Run) -> dict[str, Any]:
    """Chooses the file to ship without a look at the test samples."""
    validation = run.dataset.validation
    found = []
    for variant in run.variants:
        if variant.key not in run.recipe.variants:
            continue
        lite = run.read_file(variant)
        right = evaluate(lite, validation, progress=False).predictions == validation.y
        operations = macs(run.read_model(variant.stage))
        found.append(MeasuredFile(variant.key, variant.label, right, len(lite.content), operations))
        say(f"{variant.label}: accuracy {right.mean():.4f} on validation samples")
    selection = select_file(found, validation.y)
    say(f"The file to ship: files/{selection.chosen}.tflite. {selection.why}")
    return selection.to_dict()


def _measure_files(run: Run) -> dict[str, Any]:
    files = {
        variant.key: run.read_file(variant)
        for variant in run.variants
        if (run.folder / "files" / f"{variant.key}.tflite").is_file()
    }
    keras_models = {
        variant.key: run.read_model(variant.stage)
        for variant in run.variants
        if "model" in run.results[variant.stage]
    }
    chosen = run.results["selection"]["chosen"]
    return measure(files, keras_models, run.dataset, run.recipe.evaluation, chosen=chosen)


def _build(run: Run, architecture: str, widths: list[int] | None, name: str) -> keras.Model:
    return build_model(
        architecture,
        input_shape=run.dataset.sample_shape,
        classes=run.dataset.classes,
        widths=widths,
        name=name,
    )


def build_student(run: Run) -> keras.Model:
    """Builds the student, always with the same initial weights."""
    keras.utils.set_random_seed(run.recipe.seed)
    recipe = run.recipe.student
    return _build(run, recipe.architecture, recipe.widths, "student")


def _train_plainly(
    run: Run, model: keras.Model, recipe: TrainingRecipe, stage: str, title: str
) -> dict[str, Any]:
    # Only the Distiller mixes samples; without a teacher its training is a plain one.
    options = make_mixing_options(recipe)
    fitted = Distiller(model, None, losses=[], **options) if options else model
    samples = TrainingSamples.take_labeled(run.dataset)
    _compile(fitted, recipe, samples)
    return _fit(run, fitted, model, recipe, samples, stage, title)


def _distill(
    run: Run,
    student: keras.Model,
    recipe: DistillationRecipe,
    options: dict[str, Any],
    stage: str,
    title: str,
) -> dict[str, Any]:
    samples = TrainingSamples.take_all(run.dataset)
    teacher = run.read_teacher()
    if recipe.cached_views is not None:
        # Removed with the checkpoints once the stage is finished.
        folder = run.folder / stage / "checkpoint" / "teacher"
        teacher = cache_views(
            teacher, samples, recipe, options, folder=folder, seed=run.recipe.seed
        )
        samples = replace(samples, cache=teacher)
    unlabeled = run.dataset.unlabeled is not None
    distiller = make_distiller(student, teacher, options, recipe, unlabeled=unlabeled)
    _compile(distiller, recipe, samples)
    choice = {}
    if options["losses"] == "auto":
        seed, folder = run.recipe.seed, run.folder / stage
        chosen = choose_resumably(
            distiller,
            run.dataset,
            recipe,
            seed=seed,
            folder=folder,
            samples=samples,
            workers=run.workers,
        )
        choice = {"choice": chosen.to_dict()}
        # Again: the chosen losses may have variables of their own to train.
        _compile(distiller, recipe, samples)
    return {**_fit(run, distiller, distiller.student, recipe, samples, stage, title), **choice}


def _choose_options(run: Run) -> dict[str, Any]:
    """Returns the arguments of `Distiller` for the losses that the distillation used."""
    choice = run.results["distilled"].get("choice")
    if choice is None:
        return run.recipe.distillation.distiller_options()
    chosen = Auto().find_candidate(choice["chosen"])
    return {
        "losses": chosen.losses(),
        "hard_label_weight": chosen.hard_label_weight,
        "loss_weights": chosen.loss_weights,
    }


def _compile(model: keras.Model, recipe: TrainingRecipe, samples: TrainingSamples) -> None:
    trained = model.trained_variables if isinstance(model, Distiller) else model.trainable_variables
    optimizer = make_optimizer(recipe, samples.count_steps(recipe.batch_size), trained)
    model.compile(optimizer, make_cross_entropy(recipe), metrics=["accuracy"])
    # Each replica's metrics already cover all replicas; by default Keras would add them up.
    model.distribute_reduction_method = "first"


def _fit(
    run: Run,
    model: keras.Model,
    trained: keras.Model,
    recipe: TrainingRecipe,
    samples: TrainingSamples,
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
        samples=samples,
        workers=run.workers,
    )
    name = run.save_model(trained, stage, "model.keras")
    return {"model": name, "training": training}


STAGES = (
    Stage("data", "load the data", _load_data, together=True),
    Stage("teacher", "train or load the teacher", _make_teacher, together=True),
    Stage(
        "hard_labels",
        "train the baseline: the student on hard labels",
        _train_baseline,
        together=True,
    ),
    Stage(
        "hard_labels_qat",
        "train the baseline quantization-aware",
        _quantize_baseline,
        together=True,
    ),
    Stage("distilled", "distill the float student", _distill_float, together=True),
    Stage(
        "distilled_qat", "distill the quantization-aware student", _distill_quantized, together=True
    ),
    Stage(
        "distilled_qat_int8x4",
        "distill the quantization-aware student with int4 weights",
        functools.partial(_distill_quantized, stage="distilled_qat_int8x4", weight_bits=4),
        together=True,
    ),
    Stage("files", "convert and prove", _write_files),
    Stage("selection", "choose the file to ship, on validation samples", _select_file),
    Stage("measurements", "measure the files, on test samples", _measure_files),
)
"""In order; a run leaves out those that no file it makes needs. The report shows their results."""
