"""TensorFlow and its companions, imported late and without their chatter."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["import_tfmot", "quiet_tensorflow", "versions"]


def quiet_tensorflow() -> None:
    """Silences TensorFlow's and absl's start-up lines; has an effect before the first import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TFMOT and the converter log through absl at import; only errors are worth a user's time.
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def import_tfmot() -> Any:
    """Imports tensorflow_model_optimization and leaves the user's environment as it was.

    On import TFMOT sets TF_USE_LEGACY_KERAS=1 for the whole process: a user who touches
    `tf.keras` afterwards would silently get Keras 2 there.
    """
    name = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(name)
    try:
        import tensorflow_model_optimization as tfmot
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
    return tfmot


def versions() -> dict[str, str]:
    """Returns the versions of everything that shapes a result, without importing any of it."""
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
