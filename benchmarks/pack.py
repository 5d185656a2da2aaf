"""Measures what `kdtflite.pack` takes off files, and whether every kernel set computes the same.

    python benchmarks/pack.py any.tflite --data shared/data

packs the students of the app, the reference models in `--data` and the files given, each with all
names, with those of layers, and with none.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from kdtflite.errors import KdtfliteError
from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.lite import LiteModel, pack
from kdtflite.lite.kernel_sets import compare_outputs
from kdtflite.lite.packing import NAMES

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "benchmarks" / "pack.json"
ANSWERS = {True: "yes", False: "NO", None: "does not run"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="more .tflite files")
    parser.add_argument("--data", type=Path, help="folder with reference_models/")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    paths = sorted((ROOT / "android_demo" / "models").glob("*.tflite"))
    if arguments.data is not None:
        paths += sorted((arguments.data / "reference_models").glob("*.tflite"))
    rows = [measure(path) for path in (*paths, *arguments.files)]
    result: dict[str, Any] = {"machine": describe_machine(), "files": rows}
    write_json(arguments.json, result, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(rows), overwrite=True)
    print(as_markdown(rows), end="")


def measure(path: Path) -> dict[str, Any]:
    """Packs a file in each way; returns its bytes, the seconds, and which outputs are equal."""
    row: dict[str, Any] = {"file": path.name, "packed": {}, "equal": {}, "seconds": {}}
    try:
        lite = LiteModel.load(path)
        row |= {"bytes": len(lite.content), "account": lite.size_account().to_dict()}
        for names in NAMES:
            start = time.perf_counter()
            packed = pack(lite, names)
            row["seconds"][names] = round(time.perf_counter() - start, 3)
            row["packed"][names] = len(packed.content)
            for compared in compare_outputs(lite.content, packed.content):
                before = row["equal"].get(compared.kernels, True)
                row["equal"][compared.kernels] = before and compared.equal
    except KdtfliteError as error:
        row["refused"] = str(error)
    return row


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the results as a table."""
    lines = [
        "Bytes of files as they were, and packed with all names of inner tensors, with those of "
        "layers, and with none; and whether each kernel set of LiteRT gives the same outputs for "
        "all three, bit by bit, on zeros and on random values.",
        "",
        "| file | bytes | all names | layers | no names | XNNPACK | built-in | reference |",
        "|---|---:|---:|---:|---:|---|---|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['file']} | refused: {row['refused']} | | | | | | |")
            continue
        sizes = [f"{count:,}" for count in (row["bytes"], *row["packed"].values())]
        equal = [ANSWERS[value] for value in row["equal"].values()]
        lines.append(f"| {' | '.join([row['file'], *sizes, *equal])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
