"""Kills a run with SIGKILL again and again and compares its file with an undisturbed run's.

    python benchmarks/kill_and_resume.py digits
    python benchmarks/kill_and_resume.py digits --kills 50

Without --kills, it is killed once in every stage: a training after its second epoch, any other
stage shortly after it starts. With it, at so many random moments; a run that ends before is
compared, and another one begins. The exit code is 1 if two files differ, or if a temporary file or
folder is left.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kdtflite.files import sha256

FILE = "student.tflite"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="name of a recipe, or a .yaml file")
    parser.add_argument("--data", default="auto", help="file or folder of the data set")
    parser.add_argument("--kills", type=int, help="kill at so many random moments instead")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kdtflite-kill-"))
    scratch = folder / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    command = [
        *(sys.executable, "-m", "kdtflite", "run", arguments.recipe, "--data", arguments.data),
        "--output",
    ]
    try:
        start = time.monotonic()
        output = run([*command, str(folder / "undisturbed")])
        seconds = time.monotonic() - start
        expected = sha256(folder / "undisturbed" / FILE)
        print(f"undisturbed  {expected}  {seconds:.0f} s", flush=True)
        if arguments.kills is None:
            kill_in_every_stage([*command, str(folder / "killed")], output)
            run([*command, str(folder / "killed")])
            found = [sha256(folder / "killed" / FILE)]
        else:
            draw = random.Random(arguments.seed)
            # A third of a run: most are killed, and go on from where they were.
            found = kill_at(lambda: draw.uniform(0, seconds / 3), arguments.kills, command, folder)
        left = sorted(path.name for path in scratch.iterdir())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for digest in found:
        print(f"killed       {digest}")
    print(f"temporary files left: {', '.join(left) or 'nothing'}")
    return 0 if set(found) == {expected} and not left else 1


def run(command: list[str]) -> str:
    """Runs to the end and returns what was printed."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        raise SystemExit(f"the run ended with {done.returncode}:\n{done.stderr}")
    return done.stderr


def kill_in_every_stage(command: list[str], output: str) -> None:
    """Kills the run in each stage of an undisturbed one.

    Args:
        command: Starts or resumes the run.
        output: What the undisturbed run printed.
    """
    stages = re.split(r"^(?=Stage \d+ of \d+)", output, flags=re.MULTILINE)[1:]
    for number, printed in enumerate(stages, start=1):
        trains = printed.count(": epoch ") >= 2
        print(kill_in(number, command, trains=trains), flush=True)


def kill_in(stage: int, command: list[str], *, trains: bool) -> str:
    """Starts the run, kills it inside `stage`, and returns what happened."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    epochs = 0
    started = False
    for line in process.stderr:
        started = started or line.startswith(f"Stage {stage} of ")
        epochs += started and ": epoch " in line
        if started and (not trains or epochs == 2):
            break
    else:
        raise SystemExit(f"the run ended before stage {stage} could be killed")
    if not trains:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code != -signal.SIGKILL:
        raise SystemExit(f"stage {stage} ended with {code} before it could be killed")
    return f"stage {stage} killed" + (f" after epoch {epochs}" if epochs else "")


def kill_at(
    draw_moment: Callable[[], float], count: int, command: list[str], folder: Path
) -> list[str]:
    """Kills runs at random moments, lets the last one end, and returns all digests."""
    found = []
    number, kills = 0, 0
    while kills < count:
        target = folder / f"killed-{number}"
        process = subprocess.Popen([*command, str(target)], stderr=subprocess.DEVNULL)
        moment = draw_moment()
        try:
            code = process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            print(f"kill {kills} of {count} after {moment:.1f} s", flush=True)
            continue
        if code:
            raise SystemExit(f"the run ended with {code}")
        found.append(sha256(target / FILE))
        print(f"run {number + 1} ended after {kills} kills: {found[-1]}", flush=True)
        number += 1
    target = folder / f"killed-{number}"
    run([*command, str(target)])
    return [*found, sha256(target / FILE)]


if __name__ == "__main__":
    sys.exit(main())
