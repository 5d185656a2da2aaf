"""Builds the wheel and uses it on every supported Python, each in a fresh environment.

    python tools/pythons.py              # all of them; those not installed are skipped
    python tools/pythons.py 3.12 3.13
    python tools/pythons.py --require 3.12   # fails where it is not installed

On each Python it installs the wheel with the versions of constraints.txt, runs the README's first
example, a shortened `kdtflite run digits` and the fast tests, and prints a table of the results.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TextIO

from readme_example import README, python_blocks

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
STEPS = ("install", "README", "digits", "tests")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--require", action="store_true", help="fail if a version is missing")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "pythons")
    arguments = parser.parse_args()
    if unknown := set(arguments.versions) - set(VERSIONS):
        parser.error(f"expected versions among {', '.join(VERSIONS)}, received {sorted(unknown)}")
    found = {version: find_interpreter(version) for version in arguments.versions}
    arguments.logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        rows = [
            check_version(version, python, wheel, arguments.logs) if python else {}
            for version, python in found.items()
        ]
    print(f"\n{'Python':8}" + "".join(f"{step:>16}" for step in STEPS))
    for (version, python), row in zip(found.items(), rows, strict=True):
        cells = [row.get(step, "-") for step in STEPS] if python else ["not installed: skipped"]
        print(f"{version:8}" + "".join(f"{cell:>16}" for cell in cells))
    missing = arguments.require and None in found.values()
    return int(missing or any("failed" in cell for row in rows for cell in row.values()))


def find_interpreter(version: str) -> str | None:
    """Returns an interpreter of that version: on the PATH, this one, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), sys.executable]
    candidates += [str(path / "bin" / "python") for path in sorted(pyenv.glob(f"{version}.*"))]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        # A shim of pyenv stands on the PATH for versions that are not active, and fails.
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


def build_wheel(folder: Path) -> Path:
    """Builds the wheel into dist/ and checks that nothing of the package is missing in it."""
    print("Building the wheel ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "build"], check=True)
    # A copy: setuptools would put whatever an older build left in build/lib into the wheel.
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored, symlinks=True)
    python, shelf = folder / "build" / "bin" / "python", folder / "wheel"
    subprocess.run(
        [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", shelf, source], check=True
    )
    (wheel,) = shelf.glob("*.whl")
    package = source / "kdtflite"
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = {str(path.relative_to(source)) for path in package.rglob("*") if path.is_file()}
    if missing := sorted(files - packed):
        raise SystemExit(f"The wheel lacks {', '.join(missing)}. See package_data in setup.cfg.")
    (ROOT / "dist").mkdir(exist_ok=True)
    return Path(shutil.copy(wheel, ROOT / "dist"))


def check_version(version: str, python: str, wheel: Path, logs: Path) -> dict[str, str]:
    """Runs every step on one Python; a step that fails to install ends it."""
    print(f"Python {version}:", end=" ", flush=True)
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, open(logs / f"{version}.log", "w") as log:
        folder = Path(name)
        (folder / "example.py").write_text(python_blocks(README)[0])
        for step, commands in list_commands(python, wheel, folder).items():
            print(step, end=" ", flush=True)
            began = time.monotonic()
            passed = all(run(command, folder, log) for command in commands)
            seconds = time.monotonic() - began
            results[step] = f"{'passed' if passed else 'failed'} ({seconds:.0f} s)"
            if step == "install" and not passed:
                break
            if step == "install":
                shorten_recipe(folder)
    print(f"(log: {logs / f'{version}.log'})", flush=True)
    return results


def list_commands(python: str, wheel: Path, folder: Path) -> dict[str, list[list[str]]]:
    """Returns the commands of each step."""
    binaries = folder / "venv" / "bin"
    here, pip = str(binaries / "python"), [str(binaries / "python"), "-m", "pip", "install", "-q"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    # pytest in its own name, and not in the checkout: `python -m` would put the folder it stands
    # in before the installed package.
    tests = [str(binaries / "pytest"), "-q", "-m", "not slow", "-n", "2", "--dist", "loadscope"]
    tests += ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests")]
    where = "import kdtflite; assert 'site-packages' in kdtflite.__file__, kdtflite.__file__"
    return {
        "install": [
            [python, "-m", "venv", str(folder / "venv")],
            [*pip, *constraints, f"{wheel}[dev,notebooks]"],
            [here, "-m", "pip", "check"],
            [here, "-c", where],
            [here, "-m", "kdtflite", "--version"],
        ],
        "README": [[here, "example.py"]],
        "digits": [
            [str(binaries / "kdtflite"), "run", "short.yaml", "--output", "run"],
            [str(binaries / "kdtflite"), "inspect", "run/student.tflite"],
        ],
        "tests": [tests],
    }


def shorten_recipe(folder: Path) -> None:
    """Writes the recipe `digits` with two epochs in place of each number of epochs."""
    command = [str(folder / "venv" / "bin" / "kdtflite"), "recipes", "digits"]
    recipe = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (folder / "short.yaml").write_text(re.sub(r"epochs: \d+", "epochs: 2", recipe))


def run(command: list[str], folder: Path, log: TextIO) -> bool:
    log.write(f"$ {' '.join(map(str, command))}\n")
    log.flush()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
    )
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
