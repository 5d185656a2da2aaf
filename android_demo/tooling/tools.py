"""The programs that the build calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from tooling.steps import BuildError, run, step

__all__ = ["check_tools"]

# A program, and Debian's package that has it.
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
    """Makes sure that every program is there.

    In CI (`CI=true`), and as root, what is missing is installed.

    Raises:
        BuildError: Something is missing; the message is the line that installs it.
    """
    packages = _missing()
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
        packages = _missing()
    if packages:
        raise BuildError(
            "The Android app needs a JDK 17, Maven, a C compiler and the tools of Debian 12. "
            f"Install them: sudo apt-get install -y --no-install-recommends {' '.join(packages)}"
        )


def _missing() -> list[str]:
    packages = [package for program, package in _PROGRAMS.items() if not shutil.which(program)]
    if shutil.which("javac") and _java_version() < _JAVA:
        packages.append(_PROGRAMS["javac"])
    if not shutil.which("gcc") or not _compiles():
        packages.append("libc6-dev")
    return list(dict.fromkeys(packages))


def _java_version() -> int:
    printed = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=False)
    found = re.search(r"javac (\d+)", printed.stdout + printed.stderr)
    return int(found[1]) if found else 0


def _compiles() -> bool:
    """Whether the C library's headers are there: gcc alone does not bring them."""
    tried = subprocess.run(
        ["gcc", "-fsyntax-only", "-xc", "-"],
        input="#include <stdio.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.returncode == 0
