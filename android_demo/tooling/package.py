"""Packs the APK, with the same bytes each time, and signs it."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tooling.steps import run

__all__ = ["ABIS", "sign", "write_apk"]

ABIS = ("arm64-v8a", "armeabi-v7a", "x86", "x86_64")
PAGE = 16384
"""Alignment of the libraries, for devices with 16 KB pages too."""

_STORED = (".so", ".arsc", ".tflite")
_DATE = (1980, 1, 1, 0, 0, 0)
# apksigner reads the alignment from this field and keeps it.
_ALIGNMENT_FIELD = 0xD935
_HEADER = 30  # bytes of an entry's header before its name


def write_apk(
    path: Path, linked: Path, dex: Path, assets: Path, native: Path, abis: Iterable[str]
) -> None:
    """Writes the unsigned APK, complete or not at all, with entries sorted by name."""
    entries: dict[str, bytes] = {"classes.dex": dex.read_bytes()}
    with zipfile.ZipFile(linked) as archive:
        entries |= {name: archive.read(name) for name in archive.namelist()}
    entries |= {f"assets/{file.name}": file.read_bytes() for file in assets.iterdir()}
    for abi in abis:
        for file in (native / abi).glob("*.so"):
            entries[f"lib/{abi}/{file.name}"] = file.read_bytes()
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w") as apk:
        for name, content in sorted(entries.items()):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 0  # the same on every system
            if name.endswith(_STORED):
                alignment = PAGE if name.endswith(".so") else 4
                info.extra = _pad(apk.fp.tell() + _HEADER + len(name.encode()), alignment)
            else:
                info.compress_type = zipfile.ZIP_DEFLATED
            apk.writestr(info, content)
    os.replace(part, path)


def _pad(offset: int, alignment: int) -> bytes:
    """Returns an extra field after which the content starts at a multiple of `alignment`."""
    fixed = 6  # id, size, alignment
    padding = -(offset + fixed) % alignment
    return struct.pack("<HHH", _ALIGNMENT_FIELD, 2 + padding, alignment) + bytes(padding)


def sign(unsigned: Path, apk: Path, keystore: Path) -> str:
    """Signs with a debug key, creating it if necessary, and returns the verifier's output."""
    if not keystore.exists():
        run(
            *("keytool", "-genkeypair", "-keystore", keystore, "-storetype", "PKCS12"),
            *("-storepass", "android", "-alias", "debug", "-keyalg", "RSA", "-keysize", "2048"),
            *("-validity", "10000", "-dname", "CN=Android Debug"),
            failure="The debug key cannot be made",
        )
    part = apk.with_name(apk.name + ".part")
    run(
        *("apksigner", "sign", "--ks", keystore, "--ks-pass", "pass:android"),
        # The oldest supported API level, 24, knows the second scheme. The first, which signs each
        # file, is not needed.
        *("--v1-signing-enabled", "false", "--v2-signing-enabled", "true"),
        *("--v3-signing-enabled", "true", "--v4-signing-enabled", "false"),
        *("--min-sdk-version", "24", "--in", unsigned, "--out", part),
        failure="The APK cannot be signed",
    )
    os.replace(part, apk)
    return run(
        *("apksigner", "verify", "--verbose", "--min-sdk-version", "24", apk),
        failure="The APK's signature does not verify",
    )
