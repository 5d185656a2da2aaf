"""kdtflite: from a big Keras teacher to a small, proven full-integer .tflite.

The public names are imported when first used: `import kdtflite` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtflite import data, models
    from kdtflite.conversion.convert import convert
    from kdtflite.conversion.integer_proof import IntegerProof, prove_fully_integer
    from kdtflite.distillation import losses
    from kdtflite.distillation.distiller import Distiller
    from kdtflite.errors import KdtfliteError, NotFullyIntegerError
    from kdtflite.evaluation.accuracy import evaluate
    from kdtflite.evaluation.latency import benchmark
    from kdtflite.evaluation.parity import compare
    from kdtflite.litemodel import LiteModel
    from kdtflite.models.load import load_model
    from kdtflite.pipeline.run import run
    from kdtflite.quantization.aware import quantize_aware

__all__ = [
    "Distiller",
    "IntegerProof",
    "KdtfliteError",
    "LiteModel",
    "NotFullyIntegerError",
    "__version__",
    "benchmark",
    "compare",
    "convert",
    "data",
    "evaluate",
    "load_model",
    "losses",
    "models",
    "prove_fully_integer",
    "quantize_aware",
    "run",
]

# Public name -> the module that has it, or is it.
_HOMES = {
    "Distiller": "kdtflite.distillation.distiller",
    "IntegerProof": "kdtflite.conversion.integer_proof",
    "KdtfliteError": "kdtflite.errors",
    "LiteModel": "kdtflite.litemodel",
    "NotFullyIntegerError": "kdtflite.errors",
    "benchmark": "kdtflite.evaluation.latency",
    "compare": "kdtflite.evaluation.parity",
    "convert": "kdtflite.conversion.convert",
    "data": "kdtflite.data",
    "evaluate": "kdtflite.evaluation.accuracy",
    "load_model": "kdtflite.models.load",
    "losses": "kdtflite.distillation.losses",
    "models": "kdtflite.models",
    "prove_fully_integer": "kdtflite.conversion.integer_proof",
    "quantize_aware": "kdtflite.quantization.aware",
    "run": "kdtflite.pipeline.run",
}
_MODULES = frozenset({"data", "losses", "models"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("kdtflite")
    if name not in _HOMES:
        raise AttributeError(f"module 'kdtflite' has no attribute {name!r}")
    from kdtflite.runtime import quiet_tensorflow

    quiet_tensorflow()
    module = import_module(_HOMES[name])
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
