"""What a file gives, read off the operators at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, get_args

from kdtflite.distillation.outputs import Outputs
from kdtflite.errors import ConfigurationError, choose
from kdtflite.progress import say

__all__ = ["ending", "said_or_seen"]

T = TypeVar("T")

# Names of TensorFlow, TensorFlow Lite and ONNX, in lower case without underscores.
_KINDS: dict[str, Outputs] = {
    **dict.fromkeys(("softmax",), "probabilities"),
    **dict.fromkeys(("logistic", "sigmoid"), "sigmoid"),
    # Softmax of log-probabilities gives the probabilities again.
    **dict.fromkeys(("logsoftmax",), "logits"),
    **dict.fromkeys(("add", "addv2", "biasadd", "fullyconnected", "gemm", "matmul"), "logits"),
    **dict.fromkeys(("batchmatmul", "batchmatmulv2", "conv", "conv2d"), "logits"),
}
# They only move or convert values.
_TRANSPARENT = frozenset(
    {"cast", "dequantize", "dequantizelinear", "dropout", "expanddims", "flatten", "identity"}
    | {"quantize", "quantizelinear", "reshape", "squeeze", "unsqueeze"}
)


def ending(tensor: T, producer: Callable[[T], tuple[str, T] | None]) -> tuple[Outputs | None, T]:
    """Returns what a graph gives in `tensor`, or None where that does not show, and where it ends.

    Args:
        tensor: The output.
        producer: Returns the operator that makes a tensor and its first input; None for none.

    Returns:
        The kind of outputs, and the tensor that the telling operator makes.
    """
    while (made := producer(tensor)) is not None:
        operator, before = made
        operator = operator.replace("_", "").lower()
        if operator not in _TRANSPARENT:
            return _KINDS.get(operator), tensor
        tensor = before
    return None, tensor


def said_or_seen(outputs: str, seen: Outputs | None, *, name: str) -> Outputs:
    """Returns what the teacher `name` gives: as said, or for "auto" as its file shows.

    Raises:
        ConfigurationError: `outputs` is none of the valid words, or the file does not show it.
    """
    choose(outputs, ("auto", *get_args(Outputs)), what="kind of outputs")
    if outputs != "auto":
        return outputs  # type: ignore[return-value]
    if seen is None:
        raise ConfigurationError(
            f"The last operator of the teacher {name!r} does not show whether it gives logits or "
            'probabilities. Pass outputs="logits" or outputs="probabilities" (or "sigmoid", '
            '"values").'
        )
    say(f"The teacher {name!r} gives {seen} (seen from its last operator).")
    return seen
