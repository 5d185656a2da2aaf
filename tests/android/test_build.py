"""The APK as `make android` builds it, and the app's tests on the JVM.

All tests here need a JDK and Debian's Android tools. In CI (CI=true) the tools are installed, or
the run fails. Elsewhere the tests are skipped, with the command that installs the tools.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import drawings
import models
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "android_demo"
ABIS = {"arm64-v8a", "armeabi-v7a", "x86", "x86_64"}
TARGETS = ("int8", "uint8", "int8x4", "int16x8", "float16", "dynamic", "float32")
REFUSALS = ("not_runnable", "dtype", "inputs", "shape", "output")
PAGE = 16384


@dataclass(frozen=True)
class Built:
    """A build: its folder, the APK, its output and the tests that ran."""

    folder: Path
    apk: Path
    printed: str
    tests: dict[str, list[str]]
    cases: Path


def build(*options: object, demo: Path = DEMO) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, demo / "build.py", *options]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def tools():
    found = build("--tools")
    if found.returncode != 0:
        line = found.stderr.strip()
        if os.environ.get("CI") == "true":
            pytest.fail(line)
        pytest.skip(line)


@pytest.fixture(scope="module")
def built(tools, tmp_path_factory) -> Built:
    folder = tmp_path_factory.mktemp("android")
    cases = folder / "cases"
    references = find_data() / "reference_models"
    models.write(cases, references if references.is_dir() else None, samples=32)
    drawings.write(folder / "drawings.json")
    shutil.rmtree(DEMO / "build" / "maven", ignore_errors=True)
    done = build(
        *("--model", cases / "int8.tflite", "--golden", cases / "int8.json"),
        *("--cases", cases, "--drawings", folder / "drawings.json"),
        *("--output", folder / "demo.apk"),
        "--screens",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests = {module: list_tests(module) for module in ("core", "app", "screens")}
    return Built(DEMO / "build", folder / "demo.apk", done.stdout, tests, cases)


def find_data() -> Path:
    given = os.environ.get("KDTFLITE_DATA")
    return Path(given) if given else ROOT.parent / "shared" / "data"


def list_tests(module: str) -> list[str]:
    """Returns the names of the module's tests, all of which passed."""
    names = []
    for report in sorted((DEMO / "build" / "maven" / module).glob("surefire-reports/*.xml")):
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            assert not list(case.iter("skipped")), case.attrib
            assert not [*case.iter("failure"), *case.iter("error")], case.attrib
            names.append(f"{case.attrib['classname']} {case.attrib['name']}")
    return names


def test_the_core_repeats_every_golden_vector_and_drawing_on_the_jvm(built):
    names = built.tests["core"]
    golden = [name for name in names if "GoldenFilesTest" in name]
    assert len(golden) == len(list(built.cases.glob("*.json"))) / 2 >= len(TARGETS)
    assert any("DrawingsTest" in name for name in names)
    assert len(names) >= 80


def test_the_apks_own_library_runs_every_file_and_refuses_what_it_must(built):
    for target in TARGETS:
        assert (built.cases / f"{target}.row.txt").read_text().count("\n") == 2
    app = [name for name in built.tests["app"] if "refused for its reason" in name]
    assert len(app) == len(REFUSALS)
    assert len(built.tests["app"]) >= 20


def test_the_screens_ran_and_were_drawn(built):
    assert len(built.tests["screens"]) >= 11
    pictures = {path.stem for path in (built.folder / "screens").glob("*.png")}
    assert pictures >= {"draw", "draw_dark", "pictures", "model", "benchmark", "self_test"}


def test_integer_answers_are_within_three_steps_of_the_same_kernels_in_python(built):
    students = [path.stem for path in models.BUNDLED.glob("*.tflite")]
    assert students
    for name in ("int8", "uint8", "int8x4", "int16x8", *students):
        rows = (built.cases / f"{name}.row.txt").read_text().splitlines()
        assert [row.split("\t")[0] for row in rows] == ["XNNPACK", "BUILT_IN"]
        for row in rows:
            assert int(row.split("\t")[3].removesuffix(" steps")) <= 3, f"{name}: {row}"


def test_the_signature_verifies(built):
    printed = subprocess.run(
        ["apksigner", "verify", "--verbose", "--min-sdk-version", "24", built.apk],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.startswith("Verifies")
    for scheme in ("v2", "v3"):
        assert re.search(rf"using {scheme} scheme .*: true", printed)


def test_one_dex_holds_the_classes(built):
    with zipfile.ZipFile(built.apk) as apk:
        assert [name for name in apk.namelist() if name.endswith(".dex")] == ["classes.dex"]
        dex = apk.read("classes.dex")
    for name in ("demo/MainActivity", "demo/DrawingView", "core/Classifier"):
        assert f"Lorg/kdtflite/{name};".encode() in dex


def test_libraries_are_stored_at_multiples_of_16_kb(built):
    libraries = find_contents(built.apk, ".so")
    assert {name.split("/")[1] for name in libraries} == ABIS
    for name, (offset, stored) in libraries.items():
        assert stored, name
        assert offset % PAGE == 0, f"{name} at {offset}"


def test_the_model_is_stored_with_its_golden_vectors(built):
    ((name, (offset, stored)),) = find_contents(built.apk, ".tflite").items()
    assert (name, stored, offset % 4) == ("assets/model.tflite", True, 0)
    with zipfile.ZipFile(built.apk) as apk:
        assert apk.read(name) == (built.cases / "int8.tflite").read_bytes()
        assert apk.read("assets/golden.json") == (built.cases / "int8.json").read_bytes()
        assert apk.read("assets/model.txt") == b"int8.tflite\n"


def find_contents(apk: Path, end: str) -> dict[str, tuple[int, bool]]:
    """Returns where the content of each entry begins, and whether it is uncompressed."""
    with zipfile.ZipFile(apk) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(end)]
    content = apk.read_bytes()
    found = {}
    for info in infos:
        name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
        offset = info.header_offset + 30 + name + extra
        found[info.filename] = (offset, info.compress_type == zipfile.ZIP_STORED)
    return found


def test_the_manifest_asks_for_no_permission(built):
    printed = subprocess.run(
        ["aapt2", "dump", "badging", built.apk], capture_output=True, text=True, check=True
    ).stdout
    assert "package: name='org.kdtflite.demo'" in printed
    assert "permission" not in printed
    assert "sdkVersion:'24'" in printed
    assert int(re.search(r"targetSdkVersion:'(\d+)'", printed)[1]) >= 34
    assert "launchable-activity: name='org.kdtflite.demo.MainActivity'" in printed
    assert "application-debuggable" not in printed


def test_a_build_of_another_folder_gives_the_same_bytes_and_arm64_alone_is_small(built, tmp_path):
    demo = tmp_path / "android_demo"
    shutil.copytree(DEMO, demo, ignore=shutil.ignore_patterns("build", "__pycache__"))
    (demo / "build").mkdir()
    for cached in ("artifacts", "java.jar"):
        (demo / "build" / cached).symlink_to(DEMO / "build" / cached)
    options = ("--model", built.cases / "int8.tflite", "--golden", built.cases / "int8.json")
    done = build(*options, "--skip-tests", "--output", tmp_path / "second.apk", demo=demo)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (demo / "build/unsigned.apk" for demo in (DEMO, demo))
    assert (
        hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    )
    # The other processors' libraries are uncompressed in the archive.
    with zipfile.ZipFile(second) as apk:
        others = sum(
            info.file_size
            for info in apk.infolist()
            if info.filename.startswith("lib/") and "arm64" not in info.filename
        )
    assert (tmp_path / "second.apk").stat().st_size - others < 6e6


def test_bad_input_is_refused_with_one_sentence_and_the_previous_apk_stays(built, tmp_path):
    before = built.apk.read_bytes()
    text = tmp_path / "text.tflite"
    text.write_text("no model")
    model = built.cases / "int8.tflite"
    for options, sentence in (
        (("--abis", "mips"), "Expected --abis of arm64-v8a"),
        (("--model", tmp_path / "none.tflite"), "where there is no file"),
        (("--model", text), "cannot come with the app"),
        (("--model", model, "--golden", built.cases / "uint8.json"), "file with other bytes"),
        (("--model", model, "--golden", text), "cannot be read as such"),
    ):
        done = build(*options, "--output", built.apk)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert built.apk.read_bytes() == before


def test_an_artifact_with_other_bytes_is_named(built, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DEMO)
    from tooling import artifacts

    monkeypatch.setattr(artifacts, "run", lambda *_, **__: "")
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for source in (built.folder / "artifacts").iterdir():
        (folder / source.name).symlink_to(source)
    artifacts.fetch(folder)
    changed = folder / "flatbuffers-java-1.12.0.jar"
    changed.unlink()
    changed.write_bytes(b"other bytes")
    assert artifacts.find_differences(folder, DEMO / "toolchain" / "artifacts.sha256") == [
        f"{changed.name} has sha256 {hashlib.sha256(b'other bytes').hexdigest()}"
    ]
