"""Bad input through the real command line: one clear sentence, exit code 2, nothing written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdtflite.cli import app
from kdtflite.errors import KdtfliteError, ModelFileError, ShapeMismatchError
from kdtflite.lite.model import LiteModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good.keras (8 × 8 × 1 → 9 classes), elu.keras, volume.keras and good.tflite."""
    import tf_keras as keras

    import kdtflite

    keras.utils.set_random_seed(0)
    layers, folder = keras.layers, tmp_path_factory.mktemp("models")

    def save(name: str, shape: tuple[int, ...], layer: keras.layers.Layer) -> keras.Model:
        model = keras.Sequential(
            [keras.Input(shape), layer, layers.Flatten(), layers.Dense(9, name="scores")]
        )
        model.save(folder / f"{name}.keras")
        return model

    good = save("good", (8, 8, 1), layers.Conv2D(4, 3, activation="relu", name="edges"))
    save("elu", (8, 8, 1), layers.Conv2D(4, 3, activation="elu", name="soft_edges"))
    save("volume", (4, 8, 8, 1), layers.Conv3D(4, 3, name="cubes"))
    x = np.random.default_rng(0).random((64, 8, 8, 1)).astype(np.float32)
    np.savez(folder / "good.npz", x=x, y=np.arange(64) % 9)
    np.savez(folder / "volume.npz", x=np.zeros((32, 4, 8, 8, 1), np.float32) + x[:32, None])
    kdtflite.convert(good, x, progress=False).save(folder / "good.tflite")
    return folder


@contextlib.contextmanager
def _untouched(folder: Path) -> Iterator[None]:
    def listing() -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
        }

    before = listing()
    yield
    assert listing() == before


def _refusal(folder: Path, *arguments: object) -> str:
    """Returns the one sentence with which a command was refused, all else being as it must."""
    with _untouched(folder):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.endswith(f"{errors[0]}\n")
    return errors[0].removeprefix("Error: ")


def _convert(folder: Path, model: Path, data: Path) -> str:
    return _refusal(
        folder, "convert", model, "--representative", data, "-o", folder / "student.tflite"
    )


@pytest.mark.parametrize("command", ["inspect", "benchmark", "evaluate"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it is missing."),
        (b"", "The file is empty. Expected a .tflite file."),
        (
            b"\x8f\x13, random" * 90,
            "This is not a .tflite file. Expected the identifier TFL3 at byte 4. Received: b'rand'",
        ),
        (b"\x1c\x00\x00\x00TFL3" + b"\xff" * 400, "is damaged or cut off"),
    ],
    ids=["missing", "empty", "random", "random behind the identifier"],
)
def test_what_is_no_tflite_file_is_refused(tmp_path, command, content, message):
    path = tmp_path / "student.tflite"
    if content is not None:
        path.write_bytes(content)
    data = ["--data", "digits"] if command == "evaluate" else []
    said = _refusal(tmp_path, command, path, *data)
    assert said.startswith((f"{path}: ", "Expected a .tflite file"))
    assert str(path) in said
    assert message in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.keras", None, "There is no file or folder {path}."),
        ("empty.keras", b"", "{path} is empty (0 bytes). Save or copy the model again."),
        ("text.keras", b"layers: 3\n", "{path} is not a Keras file. Expected a zip archive"),
        ("text.h5", b"layers: 3\n", "{path} is not an HDF5 file"),
        ("cut.keras", b"PK\x03\x04" + b"\0" * 60, "{path} is damaged or cut short"),
        ("model.onnx", b"abc", "{path} has the ending '.onnx'. Expected one of .keras, .h5"),
    ],
)
def test_what_is_no_keras_file_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8, 1), np.float32))
    said = _convert(tmp_path, path, tmp_path / "data.npz")
    assert said.startswith(message.format(path=path))


def test_a_truncated_tflite_file_is_refused_at_many_lengths(models, tmp_path):
    content = (models / "good.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        path.write_bytes(content[: int(len(content) * share)])
        said = _refusal(tmp_path, "inspect", path)
        assert said.startswith(f"{path}: ")
        assert "damaged or cut off" in said or "not a .tflite file" in said or "is empty" in said


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_truncation_is_taken_for_another_model(models, data):
    content = (models / "good.tflite").read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    try:
        lite = LiteModel(content[:length])
    except ModelFileError:
        return
    # Only padding or a debugging name at the very end can be missed without harm.
    whole = LiteModel(content)
    assert length >= len(content) - 64
    assert lite.operators == whole.operators
    assert lite.inputs == whole.inputs


# In a process of its own, which no file may end.
FLIPS = """
import json, random, sys
from kdtflite.errors import KdtfliteError
from kdtflite.lite.model import LiteModel

def flipped(content, seed):
    rng = random.Random(seed)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)

def become_of(content):
    try:
        LiteModel(content).interpreter().invoke()
    except (KdtfliteError, RuntimeError):  # RuntimeError: LiteRT's own refusal to run
        return 2
    except Exception:
        return 1
    return 0

path, number = sys.argv[1], int(sys.argv[2])
content = open(path, "rb").read()
LiteModel(content)
codes = [become_of(flipped(content, seed)) for seed in range(number)]
print(json.dumps(codes))
"""


def test_flipped_bytes_never_end_the_process(models):
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, models / "good.tflite", "500"],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    codes = json.loads(done.stdout)
    # 1 would be an exception that nobody meant to raise.
    assert [seed for seed, code in enumerate(codes) if code == 1] == []
    assert codes.count(2) > 20


def test_an_integer_convolution_without_scale_is_refused_before_its_kernel_aborts(models, tmp_path):
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf((models / "good.tflite").read_bytes())
    graph = model.subgraphs[0]
    convolution = next(op for op in graph.operators if len(op.inputs) == 3)
    graph.tensors[convolution.outputs[0]].quantization.scale = None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "bare.tflite"
    path.write_bytes(bytes(builder.Output()))
    assert "is damaged or cut off" in _refusal(tmp_path, "inspect", path)


def test_a_file_on_which_native_code_crashes_is_refused(models, tmp_path, monkeypatch):
    from kdtflite.forking import Outcome
    from kdtflite.lite import trial

    monkeypatch.setattr(trial._server, "run", lambda *_: Outcome(-signal.SIGABRT))
    monkeypatch.setattr(trial, "_answers", {})  # another test may have run the same bytes
    path = shutil.copy(models / "good.tflite", tmp_path)
    said = _refusal(tmp_path, "benchmark", path)
    assert said.startswith(f"{path}: LiteRT crashes on this file (SIGABRT).")


@pytest.mark.parametrize(
    ("model", "data", "operator", "layer"),
    [("elu", "good", "ELU", "soft_edges"), ("volume", "volume", "CONV_3D", "cubes")],
)
def test_an_operator_without_integer_kernel_is_named(
    models, tmp_path, model, data, operator, layer
):
    said = _convert(tmp_path, models / f"{model}.keras", models / f"{data}.npz")
    assert said.startswith(("The file is not fully integer: ", "The converter has no integer"))
    assert operator.lower().replace("_", "") in said.lower().replace("_", "")
    assert f"from layer '{layer}'" in said


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((64, 7, 8, 1), np.float32), "Received: (64, 7, 8, 1)."),
        (np.full((64, 8, 8, 1), np.nan, np.float32), "Expected finite numbers in 'x' of {path}."),
        (np.zeros((0, 8, 8, 1), np.float32), "Expected at least one sample in 'x' of {path}."),
        (np.array(["a", "b"]), "Expected numbers in 'x' of {path}."),
    ],
    ids=["wrong shape", "NaN", "empty", "words"],
)
def test_representative_data_that_do_not_fit_are_refused(models, tmp_path, x, message):
    path = tmp_path / "data.npz"
    np.savez(path, x=x)
    assert message.format(path=path) in _convert(tmp_path, models / "good.keras", path)


@pytest.mark.parametrize("content", [None, b"", b"words\n", b"PK\x03\x04 cut"])
def test_what_is_no_npz_file_is_refused(models, tmp_path, content):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    said = _convert(tmp_path, models / "good.keras", path)
    assert said.startswith(f"Expected an .npz file. Received: {path}, ")


def test_an_existing_output_is_refused_without_force(models, tmp_path):
    (tmp_path / "student.tflite").write_text("mine")
    said = _convert(tmp_path, models / "good.keras", models / "good.npz")
    assert said == f"{tmp_path / 'student.tflite'} exists already. Pass --force to replace it."


def test_labels_out_of_range_are_refused(models, tmp_path):
    with np.load(models / "good.npz") as good:
        np.savez(tmp_path / "data.npz", x=good["x"], y=np.where(good["y"] == 8, 9, good["y"]))
    said = _refusal(tmp_path, "evaluate", models / "good.tflite", "--data", tmp_path / "data.npz")
    assert said.startswith("Labels out of range: expected 0 to 8, as the model knows 9 classes.")
    assert "Received: 9 at sample 8, and 7 such labels in all." in said


RECIPE = """
name: bad
data: {name: digits}
teacher: {load: TEACHER}
student: {architecture: depthwise, widths: [4, 4]}
distillation: {epochs: 1, learning_rate: 0.01}
quantization: {epochs: 1, learning_rate: 0.01}
"""


def test_an_unknown_recipe_key_lists_the_valid_ones(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(RECIPE.replace("learning_rate: 0.01}", "learning_rate: 0.01, epoch: 3}", 1))
    said = _refusal(tmp_path, "run", path, "--output", tmp_path / "run")
    assert said.startswith(f"{path} cannot be used: unknown key 'distillation.epoch' (valid there")
    for key in ("epochs", "batch_size", "learning_rate", "temperature", "hard_label_weight"):
        assert key in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("just words", "to hold keys and values"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in _refusal(tmp_path, "run", path, "--output", tmp_path / "run")


def test_a_teacher_of_other_classes_than_the_data_is_refused(models, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(RECIPE.replace("TEACHER", str(models / "good.keras")))
    folder = tmp_path / "run"
    result = CliRunner().invoke(app, ["run", str(path), "--output", str(folder)])
    assert result.exit_code == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "9" in errors[0]
    assert "10" in errors[0]
    # The run's own notes may stand there; no model and no report do.
    made = {path.name for path in folder.rglob("*")}
    assert made.isdisjoint({"student.tflite", "report.json", "report.html"})


def test_a_teacher_of_other_classes_than_the_student_is_refused_by_the_distiller(models):
    import tf_keras as keras

    import kdtflite

    student = kdtflite.load_model(models / "good.keras")
    teacher = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    with pytest.raises(ShapeMismatchError, match=r"teacher output \(None, 10\).*\(None, 9\)"):
        kdtflite.Distiller(student, teacher)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB without a free byte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root and mount(8)")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
            while filler.write(b"\0" * 4096):
                pass
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_file_behind(models, full_disk):
    target = full_disk / "student.tflite"
    said = _convert(full_disk, models / "good.keras", models / "good.npz")
    assert said.startswith(f"Could not write {target}: No space left on device.")
    with (
        _untouched(full_disk),
        pytest.raises(KdtfliteError, match="No space left on device"),
    ):
        LiteModel.load(models / "good.tflite").save(target)
    with _untouched(full_disk):
        result = CliRunner().invoke(
            app,
            [
                *("evaluate", str(models / "good.tflite")),
                *("--data", str(models / "good.npz")),
                *("--plot", str(full_disk / "confusion.png")),
            ],
        )
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
