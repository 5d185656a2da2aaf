"""Checks the programs that the build calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from tooling.steps import BuildError, run, step

__all__ = ["check_tools"]

# Each program, and the Debian package that contains it.
_PROGRAMS = {
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "keytool": "openjdk-17-jdk-headless",
    "mvn": "maven",
    "aapt2": "aapt",
    "apksigner": "apksigner",
    "gcc": "gcc",
}
_JAVA = 17


def check_tools() -> None:
    """Checks that every program is installed.

    In CI (`CI=true`), as root, it installs missing ones.

    Raises:
        BuildError: Something is missing; the message has the command that installs it.
    """
    packages = _list_missing()
    may_install = os.environ.get("CI") == "true" and os.geteuid() == 0
    if packages and may_install and shutil.which("apt-get"):
        with step(f"Installing {' '.join(packages)}"):
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            run("apt-get", "update", "-qq", failure="apt-get cannot be updated", environment=quiet)
            run(
                *("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages),
                failure="The tools cannot be installed",
                environment=quiet,
            )
        packages = _list_missing()
    if packages:
        raise BuildError(
            "The Android app needs JDK 17, Maven, a C compiler and the tools of Debian 12. "
            f"Install them: sudo apt-get install -y --no-install-recommends {' '.join(packages)}"
        )


def _list_missing() -> list[str]:
    packages = [package for program, package in _PROGRAMS.items() if not shutil.which(program)]
    if shutil.which("javac") and _read_java_version() < _JAVA:
        packages.append(_PROGRAMS["javac"])
    if not shutil.which("gcc") or not _can_compile():
        packages.append("libc6-dev")
    return list(dict.fromkeys(packages))


def _read_java_version() -> int:
    printed = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=False)
    found = re.search(r"javac (\d+)", printed.stdout + printed.stderr)
    return int(found[1]) if found else 0


def _can_compile() -> bool:
    """Returns whether the C library's headers exist: gcc alone does not install them."""
    tried = subprocess.run(
        ["gcc", "-fsyntax-only", "-xc", "-"],
        input="#include <stdio.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.returncode == 0
