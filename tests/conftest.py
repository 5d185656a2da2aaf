"""What all tests share: a quiet TensorFlow on few threads, the benchmark data, the slow marker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
# The folders and files whose tests neither train, nor convert, nor start processes: `make check`
# runs these. Every other test is slow.
FAST = (
    "data/",
    "distillation/test_decoupled_kd.py",
    "distillation/test_dist.py",
    "distillation/test_hard_labels.py",
    "distillation/test_logit_standardization.py",
    "distillation/test_logits_by_hand.py",
    "distillation/test_mixing.py",
    "distillation/test_regression_losses.py",
    "distillation/test_schedules.py",
    "distillation/test_soft_targets.py",
    "lite/test_tensors.py",
    "reporting/",
    "test_architecture.py",
    "test_docs.py",
    "test_files.py",
    "test_language.py",
    "test_progress.py",
    "test_project.py",
    "test_public_names.py",
)
# Those that take longest begin first: a worker that got one last would work alone at the end.
LONG = (
    "end_to_end/",
    "android/",
    "notebooks/",
    "pipeline/",
    "distillation/test_distributed.py",
    "distillation/test_teacher_cache_workers.py",
    "conversion/",
)

# Before anything imports TensorFlow. Under xdist every worker process has its own thread pools;
# with the default of one thread per core they would compete for the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
if os.environ.get("PYTEST_XDIST_WORKER"):
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")

# The same examples on every machine, and no limit that a busy one breaks. The nightly workflow
# looks for new examples: --hypothesis-profile=random.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not get_path(item).startswith(FAST):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not get_path(item).startswith(LONG))


def get_path(item: pytest.Item) -> str:
    """Returns the path of a test's file below tests/."""
    return item.path.relative_to(TESTS).as_posix()


@pytest.fixture(autouse=True)
def begin_alike() -> Iterator[None]:
    """Seeds each test, and ends the determinism of a run: no test depends on those before it."""
    if keras := sys.modules.get("tf_keras"):
        keras.utils.set_random_seed(0)
    yield
    if config := sys.modules.get("tensorflow.python.framework.config"):
        config.disable_op_determinism()  # TensorFlow has no public name for it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the benchmark data: $KDTFLITE_DATA, or shared/data beside the project."""
    given = os.environ.get("KDTFLITE_DATA")
    root = Path(__file__).resolve().parents[1]
    folder = Path(given) if given else root.parent / "shared" / "data"
    if not (folder / "reference_models").is_dir():
        pytest.skip(f"no benchmark data in {folder}: set KDTFLITE_DATA to the folder that has it")
    return folder
