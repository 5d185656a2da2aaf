"""Compiles the resources and the manifest, and generates R."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from tooling.steps import BuildError, run

__all__ = ["link"]

PACKAGE = "org.kdtflite.demo"
MIN_SDK = 24
TARGET_SDK = 34


def link(main: Path, android: Path, build: Path, version: str) -> Path:
    """Compiles and links resources; writes R into `classes/resources.jar`.

    Args:
        main: The app's `src/main`.
        android: The platform's jar, with its resources.
        build: The build folder.
        version: The app's version name.

    Returns:
        An archive with the binary manifest, `resources.arsc` and `res/`.
    """
    work = build / "resources"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    manifest = work / "AndroidManifest.xml"
    manifest.write_text(_complete_manifest(main / "AndroidManifest.xml"), encoding="utf-8")
    run(
        *("aapt2", "compile", "--dir", main / "res", "-o", work / "compiled.zip"),
        failure="The app's resources do not compile",
    )
    linked = work / "linked.apk"
    run(
        *("aapt2", "link", "-I", android, "--manifest", manifest, "-o", linked),
        *("--java", work / "java", "--proguard", work / "views.pro"),
        *("--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK)),
        *("--version-code", "1", "--version-name", version),
        work / "compiled.zip",
        failure="The app's resources do not link",
    )
    run(
        *("javac", "--release", "8", "-d", work / "classes", *work.glob("java/**/*.java")),
        failure="R does not compile",
    )
    with zipfile.ZipFile(build / "classes" / "resources.jar", "w") as jar:
        for path in sorted((work / "classes").rglob("*.class")):
            jar.writestr(
                zipfile.ZipInfo(str(path.relative_to(work / "classes"))), path.read_bytes()
            )
    return linked


def _complete_manifest(source: Path) -> str:
    """Adds what Gradle has in its build file and aapt2 expects in the manifest."""
    text = source.read_text(encoding="utf-8")
    for tag, attribute in (
        ("<manifest ", f'package="{PACKAGE}" '),
        # Libraries are mapped into memory directly from the APK.
        ("<application\n", '        android:extractNativeLibs="false"\n'),
    ):
        if text.count(tag) != 1:
            raise BuildError(f"Expected one {tag.strip()} in {source}.")
        text = text.replace(tag, tag + attribute)
    return text
