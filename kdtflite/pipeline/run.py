"""run: a recipe from data to report, in a folder from which a killed run resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import yaml

from kdtflite.arguments import check_arguments
from kdtflite.data.sources import is_path
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    KdtfliteError,
    OutputExistsError,
    to_line,
)
from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_bytes, write_json, write_text
from kdtflite.leftovers import is_leftover, sweep_leftovers
from kdtflite.pipeline.finished import (
    ABOUT,
    REPORT,
    RESULTS,
    digest_result,
    find_damage,
    list_artifacts,
    note_results,
    read_about,
    read_finished,
)
from kdtflite.pipeline.recipe import Recipe, load_recipe
from kdtflite.pipeline.run_result import SHIPPED, RunResult
from kdtflite.pipeline.teacher import check_teacher_file
from kdtflite.pipeline.workers import Workers
from kdtflite.pipeline.yaml_files import read_yaml
from kdtflite.progress import log_to, say
from kdtflite.reporting.schema import REPORT_VERSION, write_report
from kdtflite.reporting.variants import SHIPPABLE, TRAINING_STAGES, VARIANTS, list_stages
from kdtflite.runtime import list_versions

__all__ = ["run"]

RUN_FILES = (*list_stages(SHIPPABLE), "recipe.yaml", "log.txt", ".lock", *RESULTS, ABOUT)
"""Everything in a run's folder, stages first: only these are removed when a run starts over."""
# What a teacher leaves in its folder while it is trained and once it is finished.
_STARTED_MARKERS = ("checkpoint", "done.json")


@check_arguments
def run(
    recipe: str | os.PathLike[str] | dict[str, Any] | Recipe,
    *,
    output: str | os.PathLike[str] | None = None,
    data_path: str | None = None,
    seed: int | None = None,
    labeled: float | None = None,
    force: bool = False,
    strategy: str = "auto",
) -> RunResult:
    """Runs a recipe: teacher, students, integer file, measurements, report.

    Stopped at any moment and called again, it resumes after the last finished stage, and inside
    a training after the last finished epoch; the files come out the same. For this it turns on
    TensorFlow's deterministic operations for the whole process.

    Args:
        recipe: Name of a recipe, path of a .yaml file, or a dict of its values.
        output: The run's folder; by default runs/<name of the recipe>.
        data_path: File or folder of the data set, in place of the recipe's.
        seed: Seed, in place of the recipe's.
        labeled: Share of the training samples that keep their label, in place of the recipe's;
            the teacher alone teaches on the others; 1 keeps all.
        force: Start over if the folder holds a run already.
        strategy: Where to train: "none" (one device), "mirrored" (all GPUs of this machine),
            "multi_worker" (the workers of the environment variable TF_CONFIG, each started with
            the same call and with access to the same folder), or "auto" (all that are available).

    Returns:
        The folder and the report.

    Raises:
        ConfigurationError: The recipe or the strategy cannot be used.
        OutputExistsError: The folder holds a run of another recipe, or something else.
        DataError: The data cannot be used, or changed since the run began.
        KdtfliteError: Another worker died; started again, they resume from the last checkpoint.
    """
    workers = Workers(strategy)
    workers.start()  # first: reading a recipe makes its losses, which uses TensorFlow
    resolved = _resolve(load_recipe(recipe), data_path, seed, labeled)
    folder = Path(output) if output is not None else Path("runs") / resolved.name
    with workers.watch(folder):
        workers.check_same(resolved.model_dump_json())
        if workers.is_chief:
            _open_folder(folder, resolved, force)
            with _lock(folder), log_to(folder / "log.txt"):
                # What processes left that were killed.
                stages = (folder / stage for stage in list_stages(resolved.variants))
                for place in (Path(gettempdir()), folder, *stages):
                    sweep_leftovers(place)
                _finish(resolved, folder, workers)
        else:
            _finish(resolved, folder, workers)
    return RunResult(folder, json.loads((folder / REPORT).read_text()))


def _finish(recipe: Recipe, folder: Path, workers: Workers) -> None:
    damage = None
    finished = workers.is_chief and (folder / REPORT).is_file()
    if finished:
        damage = find_damage(folder, list_stages(recipe.variants))
    if workers.broadcast(int(finished and damage is None)):
        say(f"The run in {folder} is already finished. Pass --force to start over.")
        return
    if damage is not None:
        say(f"The run in {folder} was finished, but {damage}. It is mended.")
    if finished and not workers.has_others and _mend_results(recipe, folder):
        return
    try:
        _run_stages(recipe, folder, workers)
    except KdtfliteError:
        # Refused because of its data or teacher: nothing in the folder is worth resuming from,
        # and it should not get in the way of the corrected recipe.
        started = any((folder / "teacher" / name).exists() for name in _STARTED_MARKERS)
        if workers.is_chief and not started:
            _clear(folder)
        raise


def _resolve(
    recipe: Recipe, data_path: str | None, seed: int | None, labeled: float | None
) -> Recipe:
    values = recipe.model_dump()
    if labeled is not None:
        values["data"]["labeled"] = labeled
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
    """Makes the folder, or makes sure that it holds this run."""
    stored = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file. Expected a folder for the run.")
    # A process that was killed before its first file leaves only where it was to be written.
    if folder.is_dir() and not all(map(is_leftover, folder.iterdir())):
        # recipe.yaml does not identify a run: users keep files of that name beside their data.
        if not (folder / ABOUT).is_file():
            raise OutputExistsError(
                f"{folder} is not empty and holds no run. Choose another folder with --output."
            )
        if force:
            _clear(folder)
        elif stored.is_file():  # unless killed between its first two files
            before = _read_stored(stored)
            if before != recipe.model_dump(mode="json"):
                raise OutputExistsError(
                    f"{folder} holds a run of another recipe "
                    f"({_describe_difference(before, recipe.model_dump(mode='json'))}). "
                    "Pass --force to start over, or choose another folder with --output."
                )
            if read_about(folder) is not None:
                return
            say(f"{folder / ABOUT} is damaged. It is written again, with the versions of today.")
    about = {
        "seed": recipe.seed,
        "versions": list_versions(),
        "machine": describe_machine(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder / ABOUT, about, overwrite=True)  # first: it marks the folder as a run
    content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    write_text(stored, content, overwrite=True)


def _read_stored(path: Path) -> Any:
    try:
        return read_yaml(path)
    except ConfigurationError as error:
        raise OutputExistsError(
            f"The recipe of the run in {path.parent} is damaged ({to_line(error)}). Pass --force "
            "to start over, or choose another folder with --output."
        ) from error


def _clear(folder: Path) -> None:
    """Removes a run's files, and the folder if nothing else is in it."""
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds other files
        folder.rmdir()


def _describe_difference(before: Any, now: Any, path: str = "") -> str:
    """Returns the first key in which two recipes differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _describe_difference(
                    before.get(key), now.get(key), f"{path}.{key}".strip(".")
                )
    return f"{path} was {before!r}, is {now!r}"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; a killed process leaves no lock behind."""
    try:
        import fcntl
    except ImportError:  # Windows: the user must avoid two runs in one folder
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


def _run_stages(recipe: Recipe, folder: Path, workers: Workers) -> None:
    teacher = recipe.teacher.load
    if teacher is not None and not (folder / "teacher" / "done.json").is_file():
        check_teacher_file(teacher)  # refused now rather than after the data are loaded

    import tensorflow as tf
    import tf_keras as keras

    from kdtflite.pipeline.check import check_recipe
    from kdtflite.pipeline.stages import STAGES, Run

    stages = [stage for stage in STAGES if stage.name in list_stages(recipe.variants)]

    tf.config.experimental.enable_op_determinism()
    about = workers.wait_for(lambda: read_about(folder), str(folder / ABOUT))
    if about["versions"] != list_versions():
        say("The versions differ from those the run began with: its files may differ, too.")
    current = Run(recipe, folder, {}, workers)
    seconds = {}
    redo = False
    for number, stage in enumerate(stages, start=1):
        done = None if redo else read_finished(folder / stage.name)
        if workers.broadcast(done is None):
            redo = True  # later stages were made from files that are missing
            say(f"Stage {number} of {len(stages)}: {stage.title}")
            done = _run_stage(stage, current, folder / stage.name)
            made = workers.is_chief
        else:
            done = done or _wait_for_stage(workers, folder / stage.name)
            made = False
        if stage.name == "data" and not made and stage.work(current) != done["result"]:
            raise DataError(
                f"The data changed since the run in {folder} began, or differ from the "
                f"chief's. Expected the same samples ({done['result']['fingerprint'][:12]}). Pass "
                "--force to start over."
            )
        current.results[stage.name] = done["result"]
        if stage.name == "data" and read_finished(folder / "teacher", quiet=True) is None:
            check_recipe(current)
        seconds[stage.name] = done["seconds"]
        keras.backend.clear_session()
    if workers.is_chief:
        _write_results(recipe, folder, current.results, seconds, about)
    workers.broadcast(0)
    workers.wait_for(lambda: (folder / REPORT).is_file() or None, REPORT)


def _mend_results(recipe: Recipe, folder: Path) -> bool:
    """Writes a finished run's results again; False if a stage must be repeated first."""
    about = read_about(folder)
    names = list_stages(recipe.variants)
    stages = {name: read_finished(folder / name, quiet=True) for name in names}
    if about is None or not all(stages.values()):
        return False
    found = {name: done for name, done in stages.items() if done is not None}
    results = {name: done["result"] for name, done in found.items()}
    seconds = {name: done["seconds"] for name, done in found.items()}
    _write_results(recipe, folder, results, seconds, about)
    return True


def _write_results(
    recipe: Recipe,
    folder: Path,
    results: dict[str, dict[str, Any]],
    seconds: dict[str, float],
    about: dict[str, Any],
) -> None:
    from kdtflite.reporting import write_html

    chosen = results["selection"]["chosen"]
    shipped = (folder / "files" / f"{chosen}.tflite").read_bytes()
    write_bytes(folder / SHIPPED, shipped, overwrite=True)
    report = _build_report(recipe, folder, results, seconds, about)
    write_html(report, folder / "report.html", overwrite=True)
    content = json.dumps(report, indent=2) + "\n"
    note_results(folder, about, content)
    write_text(folder / REPORT, content, overwrite=True)  # last: marks the end


def _run_stage(stage: Any, current: Any, folder: Path) -> dict[str, Any]:
    import tf_keras as keras

    workers = current.workers
    if workers.is_chief:
        folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(current.recipe.seed)
    started = time.monotonic()
    if stage.together:
        with workers.scope():
            result = stage.work(current)
    elif workers.is_chief:
        result = stage.work(current)
    if workers.is_chief:
        # The checkpoints are no longer needed; what is left are the stage's artifacts.
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        done = {
            "seconds": round(time.monotonic() - started, 2),
            "artifacts": list_artifacts(folder, folder.parent),
            "result": result,
            "result_sha256": digest_result(result),
        }
        write_json(folder / "done.json", done, overwrite=True)
    workers.broadcast(0)  # the others wait for the chief here
    return done if workers.is_chief else _wait_for_stage(workers, folder)


def _wait_for_stage(workers: Workers, folder: Path) -> dict[str, Any]:
    return workers.wait_for(lambda: read_finished(folder), str(folder))


def _build_report(
    recipe: Recipe,
    folder: Path,
    results: dict[str, dict[str, Any]],
    seconds: dict[str, float],
    about: dict[str, Any],
) -> dict[str, Any]:
    measured, selection = results["measurements"], results["selection"]
    stages = {variant.key: variant.stage for variant in VARIANTS}
    parts = {**results.get("distilled", {}), **results[stages[selection["chosen"]]]}
    source = recipe.data.path
    root = folder.absolute()
    command = f"kdtflite run {shlex.quote(str(root / 'recipe.yaml'))}"
    kept = (*TRAINING_STAGES, "files")
    artifacts = [each for stage in kept for each in list_artifacts(folder / stage, folder)]
    digests = {artifact["file"]: artifact["sha256"] for artifact in artifacts}
    values: dict[str, Any] = {
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
            key: results[stage]["training"]
            for stage, key in TRAINING_STAGES.items()
            if "training" in results.get(stage, {})
        },
        **{key: parts[key] for key in ("choice", "quantization") if key in parts},
        "selection": selection,
        "proof": results["files"]["proofs"][selection["chosen"]],
        "reproduce": {
            "command": f"{command} --output {shlex.quote(f'{root}-again')}"
            + ("" if source == "auto" else f" --data {shlex.quote(source)}"),
            "artifacts": artifacts,
        },
    }
    return write_report(values)
