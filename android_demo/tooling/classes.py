"""Kotlin becomes classes, tested, and one dex."""

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
        cases: Files that the tests run on the native library. None runs no test.
        drawings: Drawings with Python's images of them, or None.
        screens: Whether the screens are tested too, on Robolectric.
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
    """Shrinks all classes into one dex and returns it."""
    folder = build / "dex"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    artefacts, classes = build / "artefacts", build / "classes"
    inputs = [
        *sorted(build.glob("maven/*/*.jar")),
        *sorted(classes.glob("*.jar")),
        *sorted(artefacts.glob("kotlin-stdlib-*.jar")),
        *sorted(artefacts.glob("tensorflow-lite-metadata-*.jar")),
        *sorted(artefacts.glob("flatbuffers-java-*.jar")),
    ]
    (r8,) = artefacts.glob("r8-*.jar")
    (android,) = artefacts.glob("android-all-*.jar")
    run(
        *("java", "-cp", r8, "com.android.tools.r8.R8", "--release", "--min-api", "24"),
        *("--lib", android, "--lib", _java(build), "--output", folder),
        *("--pg-conf", build / "resources" / "views.pro"),
        *("--pg-conf", _ROOT / "app" / "proguard-rules.pro"),
        *inputs,
        failure="R8 cannot make the dex",
    )
    made = sorted(folder.glob("*.dex"))
    if [path.name for path in made] != ["classes.dex"]:
        raise BuildError(f"Expected one dex. Received: {[path.name for path in made]}.")
    return made[0]


def _java(build: Path) -> Path:
    """Returns java.*, which android-all does not have, out of the JDK.

    R8 takes a whole JDK too, and twenty seconds for it.
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
            failure="The JDK's classes cannot be laid into a jar",
        )
        part.rename(made)
        shutil.rmtree(folder)
    return made
