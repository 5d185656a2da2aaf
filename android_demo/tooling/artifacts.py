"""Fetches the artifacts from Maven Central: pinned versions, verified digests."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from tooling.steps import BuildError, run

__all__ = ["fetch", "find_differences", "unpack"]

_TOOLCHAIN = Path(__file__).resolve().parents[1] / "toolchain"


def fetch(folder: Path, name: str = "artifacts") -> None:
    """Copies every artifact on a list in toolchain/ into a folder and verifies it.

    Args:
        folder: The target, which holds nothing else.
        name: Name of the list: NAME.xml has the versions, NAME.sha256 the digests.

    Raises:
        BuildError: An artifact cannot be fetched, or its bytes differ from the pinned ones.
    """
    digests = _TOOLCHAIN / f"{name}.sha256"
    if find_differences(folder, digests):
        shutil.rmtree(folder, ignore_errors=True)
        run(
            *("mvn", "-B", "-q", "-C", "-f", _TOOLCHAIN / f"{name}.xml"),
            *("dependency:copy-dependencies", f"-DoutputDirectory={folder}"),
            failure="Maven cannot fetch the build's artifacts from Maven Central. Is there a "
            "network, or a mirror in ~/.m2/settings.xml?",
        )
    if others := find_differences(folder, digests):
        raise BuildError(
            f"Expected the files of {digests.name} from Maven Central, byte by byte. Received "
            f"others: {'; '.join(others)}. Remove them from ~/.m2/repository and build again."
        )


def find_differences(folder: Path, digests: Path) -> list[str]:
    """Lists the files of a folder that are missing, are not pinned or have other bytes."""
    pinned = dict(reversed(line.split()) for line in digests.read_text().splitlines())
    found = {path.name: path for path in folder.glob("*")}
    others = [f"{name} is not pinned" for name in found.keys() - pinned.keys()]
    for name, digest in pinned.items():
        if name not in found:
            others.append(f"{name} is missing")
        elif (actual := hashlib.sha256(found[name].read_bytes()).hexdigest()) != digest:
            others.append(f"{name} has sha256 {actual}")
    return sorted(others)


def unpack(artifacts: Path, classes: Path, native: Path) -> None:
    """Writes the AARs' classes into one folder and their libraries into another, by ABI."""
    classes.mkdir(parents=True, exist_ok=True)
    for aar in artifacts.glob("*.aar"):
        name, _, _ = aar.stem.rpartition("-")
        with zipfile.ZipFile(aar) as archive:
            (classes / f"{name}.jar").write_bytes(archive.read("classes.jar"))
            for entry in archive.namelist():
                if entry.startswith("jni/") and entry.endswith(".so"):
                    target = native / Path(entry).relative_to("jni")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(entry))
