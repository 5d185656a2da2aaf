"""The operands of TensorFlow operations that may not become 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdtflite.quantization.graph import Call, is_symbolic
from kdtflite.quantization.kernels import get_operation

__all__ = ["list_nonzero_operands"]

_INVERTED = frozenset({"digamma", "lgamma", "log", "reciprocal", "rsqrt", "sqrt"})
_DIVISIONS = frozenset(
    {"div", "divide", "floordiv", "floormod", "mod", "realdiv", "truediv", "xdivy"}
)
_POWERS = frozenset({"pow"})


def list_nonzero_operands(call: Call) -> list[Any]:
    """Returns the operands of a call whose result, or its gradient, is infinite at 0.

    These are the operand of a root, a logarithm or a reciprocal, a divisor, and the base of a power
    with an exponent below 1.
    """
    operation = (get_operation(call.layer) or "").rsplit(".", 1)[-1]
    if operation in _INVERTED:
        return call.inputs[:1]
    if operation not in _DIVISIONS | _POWERS:
        return []
    first, second = _get_operands(call)
    if operation in _DIVISIONS:
        return [second] if is_symbolic(second) else []
    if not is_symbolic(first):
        return []
    return [first] if is_symbolic(second) or np.any(np.asarray(second) < 1) else []


def _get_operands(call: Call) -> tuple[Any, Any]:
    """Returns the two operands, which may have been passed by name."""
    values = [*call.args, *(call.kwargs[name] for name in ("x", "y") if name in call.kwargs)]
    return (values[0], values[1]) if len(values) > 1 else (None, None)
