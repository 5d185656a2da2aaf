"""Conversion: a Keras model becomes a .tflite file that is proven to be what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["TARGETS", "IntegerProof", "Target", "convert", "prove_fully_integer"]

if TYPE_CHECKING:
    from kdtflite.conversion.convert import convert
    from kdtflite.conversion.integer_proof import IntegerProof, prove_fully_integer
    from kdtflite.conversion.targets import TARGETS, Target

_HOME = {
    "TARGETS": "targets",
    "Target": "targets",
    "convert": "convert",
    "IntegerProof": "integer_proof",
    "prove_fully_integer": "integer_proof",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    # `convert` is also the name of its module, which the import has just put here.
    globals()[name] = value
    return value
