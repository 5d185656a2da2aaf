"""Prepares what Robolectric needs to run the app's screens on this machine."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from tooling.artifacts import fetch

__all__ = ["prepare_screens"]


def prepare_screens(build: Path, linked: Path, assets: Path) -> None:
    """Writes Android, the app's resources and their locations into the build folder."""
    fetch(build / "robolectric-android", "screens")
    folder = build / "robolectric"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # It reads the app's files from one archive, as Android does.
    shutil.copyfile(linked, folder / "app.apk")
    with zipfile.ZipFile(folder / "app.apk", "a") as apk:
        for file in sorted(assets.iterdir()):
            apk.write(file, f"assets/{file.name}")
    configuration = folder / "com" / "android" / "tools" / "test_config.properties"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(
        f"android_resource_apk={folder / 'app.apk'}\n"
        f"android_merged_manifest={build / 'resources' / 'AndroidManifest.xml'}\n"
        f"android_merged_assets={assets}\n"
        "android_custom_package=org.kdtflite.demo\n",
        encoding="utf-8",
    )
