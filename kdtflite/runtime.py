"""TensorFlow and its companions, imported late and without their chatter."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["import_tfmot", "list_versions", "quiet_native_stderr", "quiet_tensorflow"]

# Lines that TensorFlow and LiteRT print from C++ and that help nobody: absl's information and
# warnings, the delegate's greeting, and the CUDA factories that register twice.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} [\d:.]+\s+\d+ \S+:\d+\]"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] \S+:\d+\]"
    rb"|E\d{4} .*Unable to register cu"
    rb"|To enable the following instructions:"
    rb"|INFO: (Created|Initialized|Applying) .*(TensorFlow Lite|TfLite|delegate)"
)


def quiet_tensorflow() -> None:
    """Silences TensorFlow's and absl's start-up lines; has an effect before the first import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TFMOT and the converter log through absl at import; only their errors matter to a user.
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_native_stderr() -> Iterator[None]:
    """Drops TensorFlow's and LiteRT's C++ chatter from stderr while the block runs.

    No setting reaches these lines: they are written to file descriptor 2 before absl's logging
    is initialized, or by loggers without a switch. So descriptor 2 becomes a pipe whose lines
    are filtered, while Python's own stderr still writes directly to its destination. For the
    entry point of a program; a library must not do this to its user's process.
    """
    quiet_tensorflow()
    try:
        ours = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        ours = False
    if not ours:  # captured or closed by somebody else
        yield
        return
    python_stderr = sys.stderr
    python_stderr.flush()
    real = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = open(  # noqa: SIM115, it lives as long as the block
        real,
        "w",
        buffering=1,
        encoding=python_stderr.encoding,
        errors="backslashreplace",
        closefd=False,
    )
    filtering = threading.Thread(target=_filter_lines, args=(reading, real), daemon=True)
    filtering.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = python_stderr
        os.dup2(real, 2)
        # A child process that outlives this one may hold the pipe open: do not wait for it.
        filtering.join(timeout=1.0)


def _filter_lines(reading: int, real: int) -> None:
    with open(reading, "rb") as lines:
        for line in lines:
            if not _CHATTER.match(line):
                with contextlib.suppress(OSError):
                    os.write(real, line)


def import_tfmot() -> Any:
    """Imports tensorflow_model_optimization and leaves the user's `tf.keras` as it was.

    On import TFMOT sets TF_USE_LEGACY_KERAS=1 for the whole process and uses `tf.keras`, which
    is then Keras 2 for good: a user of `tf.keras` would silently get Keras 2.
    """
    import tensorflow as tf
    import tf_keras

    name = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(name)
    lazy = tf.keras  # chooses its Keras at the first access to an attribute, once
    try:
        tf.keras = tf_keras
        import tensorflow_model_optimization as tfmot
    finally:
        tf.keras = lazy
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
    return tfmot


def list_versions() -> dict[str, str]:
    """Returns the versions of all packages that affect results, without importing them."""
    import platform
    from importlib import metadata

    names = (
        "kdtflite",
        "tensorflow",
        "tf_keras",
        "keras",
        "tensorflow-model-optimization",
        "ai-edge-litert",
        "numpy",
        "scikit-learn",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
