"""Compiles and tests the Kotlin code, and makes one dex file."""

from __future__ import annotations

import shutil
from pathlib import Path

from tooling.steps import BuildError, run

__all__ = ["compile_and_test", "dex"]

_ROOT = Path(__file__).resolve().parents[1]


def compile_and_test(
    build: Path, cases: Path | None, drawings: Path | None, *, screens: bool = False
) -> None:
    """Compiles both modules and runs their tests.

    Args:
        build: The build folder.
        cases: Folder of files that the tests run on the native library. None skips the tests.
        drawings: Drawings with the images that Python makes of them, or None.
        screens: Whether to test the screens too, on Robolectric.
    """
    options = [f"-Ddemo.build={build}"]
    if cases is None:
        options.append("-Dmaven.test.skip=true")
    else:
        options += [f"-Dkdtflite.cases={cases}", f"-Dkdtflite.drawings={drawings or ''}"]
        options += ["-Pscreens"] if screens else []
    run(
        *("mvn", "-B", "-q", "-f", _ROOT / "pom.xml", "package", *options),
        failure="The app does not compile, or a test fails",
    )


def dex(build: Path) -> Path:
    """Shrinks all classes into one dex file and returns its path."""
    folder = build / "dex"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    artifacts, classes = build / "artifacts", build / "classes"
    inputs = [
        *sorted(build.glob("maven/*/*.jar")),
        *sorted(classes.glob("*.jar")),
        *sorted(artifacts.glob("kotlin-stdlib-*.jar")),
        *sorted(artifacts.glob("tensorflow-lite-metadata-*.jar")),
        *sorted(artifacts.glob("flatbuffers-java-*.jar")),
    ]
    (r8,) = artifacts.glob("r8-*.jar")
    (android,) = artifacts.glob("android-all-*.jar")
    run(
        *("java", "-cp", r8, "com.android.tools.r8.R8", "--release", "--min-api", "24"),
        *("--lib", android, "--lib", _extract_java(build), "--output", folder),
        *("--pg-conf", build / "resources" / "views.pro"),
        *("--pg-conf", _ROOT / "app" / "proguard-rules.pro"),
        *inputs,
        failure="R8 cannot make the dex file",
    )
    made = sorted(folder.glob("*.dex"))
    if [path.name for path in made] != ["classes.dex"]:
        raise BuildError(f"Expected one dex file. Received: {[path.name for path in made]}.")
    return made[0]


def _extract_java(build: Path) -> Path:
    """Returns a jar of the JDK's java.*, which android-all lacks.

    R8 accepts a whole JDK too, but then takes twenty seconds.
    """
    made = build / "java.jar"
    if not made.exists():
        home = Path(shutil.which("javac") or "javac").resolve().parents[1]
        folder = build / "java"
        shutil.rmtree(folder, ignore_errors=True)
        for module in ("java.base", "java.logging"):
            run(
                *("jmod", "extract", "--dir", folder, home / "jmods" / f"{module}.jmod"),
                failure=f"The JDK's {module} cannot be read",
            )
        (folder / "classes" / "module-info.class").unlink()
        part = build / "java.jar.part"
        run(
            *("jar", "--create", "--no-compress", "--file", part, "-C", folder / "classes", "."),
            failure="The JDK's classes cannot be packed into a jar",
        )
        part.rename(made)
        shutil.rmtree(folder)
    return made
