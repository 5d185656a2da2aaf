"""Compares the answers of the APK's runtime with Python's, file by file.

    python benchmarks/android_kernels.py --data shared/data

writes golden vectors of the students that come with the app, of a small model converted to each
target and of the reference models in `--data`. The app's own code runs them on the APK's native
library (x86_64, on this machine's JVM). It needs the same tools as `make android`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "benchmarks" / "android_kernels.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with reference_models/")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = Path(folder)
        references = [] if arguments.data is None else [arguments.data / "reference_models"]
        for command in (
            ["tests/android/models.py", cases, *references],
            ["android_demo/build.py", "--cases", cases, "--output", cases / "demo.apk"],
        ):
            parts = [sys.executable, *map(str, command)]
            subprocess.run(parts, check=True, cwd=ROOT)
        rows = [read_row(path) for path in sorted(cases.glob("*.row.txt"))]
    result: dict[str, Any] = {"machine": describe_machine(), "files": rows}
    write_json(arguments.json, result, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(rows), overwrite=True)
    print(as_markdown(rows), end="")


def read_row(path: Path) -> dict[str, Any]:
    """Reads the results of the app's test and of Python's two sets of kernels for one file."""
    name = path.name.removesuffix(".row.txt")
    golden = json.loads((path.parent / f"{name}.json").read_text())
    row: dict[str, Any] = {"file": name, "samples": len(golden["samples"])}
    for line in path.read_text().splitlines():
        kernels, equal, same_class, apart = line.split("\t")
        row[kernels.lower()] = {
            "equal": int(equal.split()[0]),
            "same_class": int(same_class),
            "apart": apart,
        }
    steps = golden["kernels"]["xnnpack_steps"]
    difference = f"{golden['kernels']['xnnpack_difference']:.2g}"
    row["python_apart"] = difference if steps is None else f"{steps} steps"
    row["python_equal"] = sum(
        all(output["quantized"] == output["xnnpack"] for output in sample["outputs"])
        for sample in golden["samples"]
    )
    return row


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the results as a table."""
    lines = [
        "Bit-identical samples, samples with the same class, and the largest difference: the APK's "
        "TensorFlow Lite 2.16.1 against Python's LiteRT with the same kernels, and Python's two "
        "sets of kernels against each other.",
        "",
        "| file | samples | XNNPACK: equal | class | apart | built-in: equal | class | apart "
        "| in Python: equal | apart |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["file"], row["samples"]]
        for kernels in ("xnnpack", "built_in"):
            cells += [row[kernels][key] for key in ("equal", "same_class", "apart")]
        cells += [row["python_equal"], row["python_apart"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
