"""run: a recipe from data to report, in a folder that a killed run goes on from."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from kdtflite.data.sources import is_path
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    KdtfliteError,
    ModelFileError,
    OutputExistsError,
)
from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import sha256, write_json, write_text
from kdtflite.litemodel import LiteModel
from kdtflite.models.model_files import open_model_file
from kdtflite.pipeline.recipe import Recipe, load_recipe
from kdtflite.pipeline.workers import Workers
from kdtflite.progress import logged_to, say
from kdtflite.reporting.schema import REPORT_VERSION
from kdtflite.runtime import versions

__all__ = ["RunResult", "run"]

_SHIPPED = "student.tflite"
_ABOUT = "run.json"
MADE = (
    *("data", "teacher", "hard_labels", "distilled", "distilled_qat", "files", "measurements"),
    *("recipe.yaml", "log.txt", ".lock", "report.json", "report.html", _SHIPPED, _ABOUT),
)
"""Everything in a run's folder, its stages first: all that starting over may remove."""
# What a teacher that is being trained, or is there, leaves in its folder.
_BEGUN = ("checkpoint", "done.json")


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: Everything it made.
        report: What report.json holds.
    """

    folder: Path
    report: dict[str, Any]

    @property
    def html(self) -> Path:
        """The report as a page."""
        return self.folder / "report.html"

    @property
    def lite(self) -> LiteModel:
        """The file to ship."""
        return LiteModel.load(self.folder / _SHIPPED)


def run(
    recipe: str | os.PathLike[str] | dict[str, Any] | Recipe,
    *,
    output: str | os.PathLike[str] | None = None,
    data_path: str | None = None,
    seed: int | None = None,
    force: bool = False,
    strategy: str = "auto",
) -> RunResult:
    """Runs a recipe: teacher, students, integer file, measurements, report.

    Stopped at any moment and called again, it goes on from the last finished stage, and inside
    a training from the last epoch; the files come out the same. For that it switches
    TensorFlow's deterministic operations on, for the whole process.

    Args:
        recipe: Name of a recipe, path of a .yaml file, or its values.
        output: The run's folder; by default runs/<name of the recipe>.
        data_path: File or folder of the data set, in place of the recipe's.
        seed: In place of the recipe's.
        force: Start over where the folder holds a run already.
        strategy: Who trains: "none" (one device), "mirrored" (all GPUs of this machine),
            "multi_worker" (the workers of the environment variable TF_CONFIG, each started with
            the same call and seeing the same folder), or "auto" for what there is.

    Raises:
        ConfigurationError: The recipe or the strategy cannot be used.
        OutputExistsError: The folder holds a run of another recipe, or something else.
        DataError: The data cannot be used, or changed since the run began.
        KdtfliteError: Another worker died; started again, they go on from the last checkpoint.
    """
    workers = Workers(strategy)
    workers.start()  # reading a recipe makes its losses, and so begins work with TensorFlow
    resolved = _resolve(load_recipe(recipe), data_path, seed)
    folder = Path(output) if output is not None else Path("runs") / resolved.name
    with workers.together(folder):
        workers.check_same(resolved.model_dump_json())
        if workers.chief:
            _open_folder(folder, resolved, force)
            with _locked(folder), logged_to(folder / "log.txt"):
                _finish(resolved, folder, workers)
        else:
            _finish(resolved, folder, workers)
    return RunResult(folder, json.loads((folder / "report.json").read_text()))


def _finish(recipe: Recipe, folder: Path, workers: Workers) -> None:
    if workers.agreed((folder / "report.json").is_file()):
        say(f"The run in {folder} is finished already. Pass --force to start it over.")
        return
    try:
        _work(recipe, folder, workers)
    except KdtfliteError:
        # Refused for its data or its teacher: nothing in it is worth going on from, and the
        # mended recipe should not find it in its way.
        begun = any((folder / "teacher" / name).exists() for name in _BEGUN)
        if workers.chief and not begun:
            _clear(folder)
        raise


def _resolve(recipe: Recipe, data_path: str | None, seed: int | None) -> Recipe:
    values = recipe.model_dump()
    if data_path is not None:
        values["data"]["path"] = data_path
    if seed is not None:
        values["seed"] = seed
    # Absolute, so that the run's own recipe.yaml works from any folder.
    data, teacher = values["data"], values["teacher"]
    if data["path"] != "auto":
        data["path"] = os.path.abspath(data["path"])
    if is_path(data["name"]):
        data["name"] = os.path.abspath(data["name"])
    if teacher["load"] is not None:
        teacher["load"] = os.path.abspath(teacher["load"])
    return load_recipe(values)


def _open_folder(folder: Path, recipe: Recipe, force: bool) -> None:
    """Makes the folder, or makes sure that what is in it is this run."""
    stored = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file. Expected a folder for the run.")
    if folder.is_dir() and any(folder.iterdir()):
        # Not told by recipe.yaml: users keep files of that name, beside their data.
        if not (folder / _ABOUT).is_file():
            raise OutputExistsError(
                f"{folder} is not empty and holds no run. Choose another folder with --output."
            )
        if force:
            _clear(folder)
        elif stored.is_file():  # unless killed between its first two files
            before = yaml.safe_load(stored.read_text())
            if before != recipe.model_dump(mode="json"):
                raise OutputExistsError(
                    f"{folder} holds a run of another recipe "
                    f"({_difference(before, recipe.model_dump(mode='json'))}). "
                    "Pass --force to start it over, or another folder with --output."
                )
            return
    about = {
        "seed": recipe.seed,
        "versions": versions(),
        "machine": describe_machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / _ABOUT, about, overwrite=True)  # first: it says that this is a run
    write_text(stored, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _clear(folder: Path) -> None:
    """Removes what a run made, and the folder if that was all there was in it."""
    for name in MADE:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files are in it
        folder.rmdir()


def _difference(before: Any, now: Any, path: str = "") -> str:
    """Names the first values in which two recipes differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{path}.{key}".strip("."))
    return f"{path} was {before!r}, is {now!r}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; a killed process leaves no lock behind."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs in one folder are the user's to avoid
        yield
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"Another process is running in {folder}. Wait for it, or choose another folder "
                "with --output."
            ) from error
        yield


def _work(recipe: Recipe, folder: Path, workers: Workers) -> None:
    teacher = recipe.teacher.load
    if teacher is not None and not (folder / "teacher" / "done.json").is_file():
        open_model_file(teacher)  # refused now rather than after the data are loaded

    import tensorflow as tf
    import tf_keras as keras

    from kdtflite.pipeline.stages import STAGES, Run
    from kdtflite.reporting import write_html

    tf.config.experimental.enable_op_determinism()
    about = workers.seen(lambda: _read_json(folder / _ABOUT), str(folder / _ABOUT))
    if about["versions"] != versions():
        say("The versions differ from those the run began with; its files may come out different.")
    current = Run(recipe, folder, {}, workers)
    seconds = {}
    redo = False
    for number, stage in enumerate(STAGES, start=1):
        done = None if redo else _finished(folder / stage.name)
        if workers.agreed(done is None):
            redo = True  # what follows was made from what is gone
            say(f"Stage {number} of {len(STAGES)}: {stage.title}")
            done = _run_stage(stage, current, folder / stage.name)
            made = workers.chief
        else:
            done = done or _wait_for(workers, folder / stage.name)
            made = False
        if stage.name == "data" and not made and stage.work(current) != done["result"]:
            raise DataError(
                f"The data changed since the run in {folder} began, or are others than the "
                f"chief's. Expected the same samples ({done['result']['fingerprint'][:12]}). Pass "
                "--force to start over."
            )
        current.results[stage.name] = done["result"]
        seconds[stage.name] = done["seconds"]
        keras.backend.clear_session()
    if workers.chief:
        shutil.copyfile(folder / "files" / "distilled_int8.tflite", folder / f".{_SHIPPED}")
        os.replace(folder / f".{_SHIPPED}", folder / _SHIPPED)
        report = _report(recipe, folder, current.results, seconds, about)
        write_html(report, folder / "report.html", overwrite=True)
        write_json(folder / "report.json", report, overwrite=True)  # last: it says "finished"
    workers.agreed(0)
    workers.seen(lambda: _read_json(folder / "report.json"), "report.json")


def _run_stage(stage: Any, current: Any, folder: Path) -> dict[str, Any]:
    import tf_keras as keras

    workers = current.workers
    if workers.chief:
        folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(current.recipe.seed)
    started = time.monotonic()
    if stage.together:
        with workers.scope():
            result = stage.work(current)
    elif workers.chief:
        result = stage.work(current)
    if workers.chief:
        # The checkpoints have served; what is left are the stage's artefacts.
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        done = {
            "seconds": round(time.monotonic() - started, 2),
            "artefacts": [_artefact(path, folder.parent) for path in _artefacts(folder)],
            "result": result,
        }
        write_json(folder / "done.json", done, overwrite=True)
    workers.agreed(0)  # the others wait for the chief here
    return done if workers.chief else _wait_for(workers, folder)


def _wait_for(workers: Workers, folder: Path) -> dict[str, Any]:
    return workers.seen(lambda: _finished(folder), str(folder))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _artefacts(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != "done.json")


def _artefact(path: Path, run_folder: Path) -> dict[str, Any]:
    return {
        "file": path.relative_to(run_folder).as_posix(),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
    }


def _finished(folder: Path) -> dict[str, Any] | None:
    """Returns what a finished stage left, or None if it is not finished or its files changed."""
    try:
        done = json.loads((folder / "done.json").read_text())
        for artefact in done["artefacts"]:
            if sha256(folder.parent / artefact["file"]) != artefact["sha256"]:
                raise ModelFileError(f"{artefact['file']} changed")
    except FileNotFoundError:
        return None
    except (ModelFileError, json.JSONDecodeError) as error:
        say(f"Stage {folder.name} is done again: {error}.")
        return None
    return done


def _report(
    recipe: Recipe,
    folder: Path,
    results: dict[str, dict[str, Any]],
    seconds: dict[str, float],
    about: dict[str, Any],
) -> dict[str, Any]:
    measured = results["measurements"]
    trainings = ("teacher", "hard_labels", "distilled", "distilled_qat")
    source = recipe.data.path
    root = folder.absolute()
    command = f"kdtflite run {shlex.quote(str(root / 'recipe.yaml'))}"
    kept = ("teacher", "hard_labels", "distilled", "distilled_qat", "files")
    artefacts = [_artefact(path, folder) for stage in kept for path in _artefacts(folder / stage)]
    digests = {artefact["file"]: artefact["sha256"] for artefact in artefacts}
    return {
        "version": REPORT_VERSION,
        "name": recipe.name,
        "created": about["created"],
        "seed": recipe.seed,
        "recipe": recipe.model_dump(mode="json"),
        "versions": about["versions"],
        "machine": about["machine"],
        "seconds": seconds,
        "dataset": results["data"]["dataset"],
        **measured,
        "models": [{**model, "sha256": digests[model["file"]]} for model in measured["models"]],
        "training": {
            # The report calls a training by the model that came of it.
            "distilled_int8" if stage == "distilled_qat" else stage: results[stage]["training"]
            for stage in trainings
            if "training" in results[stage]
        },
        **{key: value for key, value in results["distilled"].items() if key == "choice"},
        "proof": results["files"]["proofs"]["distilled_int8"],
        "quantization": results["distilled_qat"]["quantization"],
        "reproduce": {
            "command": f"{command} --output {shlex.quote(f'{root}-again')}"
            + ("" if source == "auto" else f" --data {shlex.quote(source)}"),
            "artefacts": artefacts,
        },
    }
