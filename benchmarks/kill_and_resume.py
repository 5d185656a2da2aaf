"""Kills a run with SIGKILL once in every stage and compares the file with an undisturbed run's.

    python benchmarks/kill_and_resume.py digits

A training is killed after its second epoch, any other stage shortly after it began. Exits with 1
if the two files differ.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdtflite.files import sha256

STAGES = 7
TRAININGS = {2, 3, 4, 5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="name of a recipe, or a .yaml file")
    parser.add_argument("--data", default="auto", help="file or folder of the data set")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kdtflite-kill-"))
    command = [
        *(sys.executable, "-m", "kdtflite.cli", "run", arguments.recipe, "--data", arguments.data),
        "--output",
    ]
    try:
        subprocess.run([*command, str(folder / "undisturbed")], check=True)
        for stage in range(1, STAGES + 1):
            print(kill_in(stage, [*command, str(folder / "killed")]), flush=True)
        subprocess.run([*command, str(folder / "killed")], check=True)
        digests = [sha256(folder / run / "student.tflite") for run in ("undisturbed", "killed")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"undisturbed  {digests[0]}\nkilled       {digests[1]}")
    return 0 if digests[0] == digests[1] else 1


def kill_in(stage: int, command: list[str]) -> str:
    """Starts the run, kills it inside `stage`, and returns what happened."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    epochs = 0
    begun = False
    for line in process.stderr:
        begun = begun or line.startswith(f"Stage {stage} of {STAGES}")
        epochs += begun and ": epoch " in line
        if begun and (stage not in TRAININGS or epochs == 2):
            break
    else:
        raise SystemExit(f"the run ended before stage {stage} could be killed")
    if stage not in TRAININGS:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code != -signal.SIGKILL:
        raise SystemExit(f"stage {stage} ended with {code} before it could be killed")
    return f"stage {stage} killed" + (f" after epoch {epochs}" if epochs else "")


if __name__ == "__main__":
    sys.exit(main())
