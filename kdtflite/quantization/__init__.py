"""Quantization-aware training: the student learns with the rounding it will meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["quantize_aware"]

if TYPE_CHECKING:
    from kdtflite.quantization.aware import quantize_aware


def __getattr__(name: str) -> Any:
    if name == "quantize_aware":
        from kdtflite.quantization.aware import quantize_aware

        return quantize_aware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
