"""What the build takes from Maven Central, by pinned versions and verified digests."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from tooling.steps import BuildError, run

__all__ = ["fetch", "unpack", "wrong"]

_TOOLCHAIN = Path(__file__).resolve().parents[1] / "toolchain"


def fetch(folder: Path, name: str = "artefacts") -> None:
    """Copies every artefact of a file in toolchain/ into a folder, verified.

    Args:
        folder: Where to; nothing else lies there.
        name: Of the list: NAME.xml has the versions, NAME.sha256 the digests.

    Raises:
        BuildError: One cannot be had, or its bytes are not those that were pinned.
    """
    digests = _TOOLCHAIN / f"{name}.sha256"
    if wrong(folder, digests):
        shutil.rmtree(folder, ignore_errors=True)
        run(
            *("mvn", "-B", "-q", "-C", "-f", _TOOLCHAIN / f"{name}.xml"),
            *("dependency:copy-dependencies", f"-DoutputDirectory={folder}"),
            failure="Maven cannot fetch the build's artefacts from Maven Central. Is there a "
            "network, or a mirror in ~/.m2/settings.xml?",
        )
    if others := wrong(folder, digests):
        raise BuildError(
            f"Expected the files of {digests.name} from Maven Central, byte by byte. Received "
            f"others: {'; '.join(others)}. Remove them from ~/.m2/repository and build again."
        )


def wrong(folder: Path, digests: Path) -> list[str]:
    """Says what is missing in a folder, is not pinned or has other bytes."""
    pinned = dict(reversed(line.split()) for line in digests.read_text().splitlines())
    found = {path.name: path for path in folder.glob("*")}
    others = [f"{name} is not pinned" for name in found.keys() - pinned.keys()]
    for name, digest in pinned.items():
        if name not in found:
            others.append(f"{name} is missing")
        elif (actual := hashlib.sha256(found[name].read_bytes()).hexdigest()) != digest:
            others.append(f"{name} has sha256 {actual}")
    return sorted(others)


def unpack(artefacts: Path, classes: Path, native: Path) -> None:
    """Lays the AARs' classes into one folder and their libraries into another, by ABI."""
    classes.mkdir(parents=True, exist_ok=True)
    for aar in artefacts.glob("*.aar"):
        name, _, _ = aar.stem.rpartition("-")
        with zipfile.ZipFile(aar) as archive:
            (classes / f"{name}.jar").write_bytes(archive.read("classes.jar"))
            for entry in archive.namelist():
                if entry.startswith("jni/") and entry.endswith(".so"):
                    target = native / Path(entry).relative_to("jni")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(entry))
