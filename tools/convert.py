"""Converts a model from a checkout, without installing kdtflite.

    python tools/convert.py model.keras --representative data.npz --target int8 -o student.tflite

The same as `kdtflite convert`; `--help` lists the options. Its dependencies must be there:
the environment that `make` sets up has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    from kdtflite.cli import main as kdtflite

    sys.argv[1:1] = ["convert"]
    kdtflite()


if __name__ == "__main__":
    main()
