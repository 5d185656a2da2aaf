"""Makes the APK's native library for x86_64 run on this machine's JVM.

The library is Android's: it needs bionic's libraries, with bionic's symbol versions. Its code
stays unchanged. Only the table of versions is hidden, and `bionic/shim.c` provides what glibc
lacks.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from tooling.steps import BuildError, run

__all__ = ["build_native"]

_SHIM = Path(__file__).resolve().parent / "bionic" / "shim.c"
_VERSIONS = (0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF)
_IGNORED = 0x6000000E
_PT_DYNAMIC = 2


def build_native(library: Path, folder: Path) -> None:
    """Writes the library and the shim into a folder for the tests' JVM.

    Raises:
        BuildError: This machine does not run Linux on x86_64, or the compiler fails.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BuildError(
            "The tests run the APK's library for x86_64 on Linux. Received: "
            f"{platform.system()} on {platform.machine()}. Build with --skip-tests there."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / library.name).write_bytes(hide_versions(library.read_bytes()))
    shim = folder / "libbionic.so"
    run(
        *("gcc", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", shim, _SHIM),
        *("-Wl,--no-as-needed", "-lm", "-ldl", "-lpthread"),
        failure="The shim for Android's C library does not compile",
    )
    for name in ("libc.so", "libm.so", "libdl.so", "liblog.so"):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(shim.name)


def hide_versions(elf: bytes) -> bytes:
    """Returns a 64-bit ELF file without the symbol versions of its dynamic section."""
    edited = bytearray(elf)
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for header in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, header)
        if kind != _PT_DYNAMIC:
            continue
        for entry in range(offset, offset + length, 16):
            (tag,) = struct.unpack_from("<Q", elf, entry)
            if tag in _VERSIONS:
                struct.pack_into("<Q", edited, entry, _IGNORED)
    return bytes(edited)
