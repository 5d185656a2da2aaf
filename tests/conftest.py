"""What every test gets: a quiet TensorFlow on few threads, and the shared data where there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports TensorFlow. Under xdist every worker process has its own thread pools;
# with the default of one thread a core they would fight over the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
if os.environ.get("PYTEST_XDIST_WORKER"):
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the benchmark data: $KDTFLITE_DATA, or shared/data beside the project."""
    given = os.environ.get("KDTFLITE_DATA")
    root = Path(__file__).resolve().parents[1]
    folder = Path(given) if given else root.parent / "shared" / "data"
    if not (folder / "reference_models").is_dir():
        pytest.skip(f"no benchmark data in {folder}: set KDTFLITE_DATA to the folder that has it")
    return folder
