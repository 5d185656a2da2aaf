"""The kind of a file's outputs, as its last operators show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, get_args

from kdtflite.distillation.outputs import Outputs
from kdtflite.errors import ConfigurationError, choose
from kdtflite.progress import say

__all__ = ["choose_outputs", "trace_outputs"]

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
# Operators that only move or convert values.
_TRANSPARENT = frozenset(
    {"cast", "dequantize", "dequantizelinear", "dropout", "expanddims", "flatten", "identity"}
    | {"quantize", "quantizelinear", "reshape", "squeeze", "unsqueeze"}
)


def trace_outputs(
    tensor: T, producer: Callable[[T], tuple[str, T] | None]
) -> tuple[Outputs | None, T]:
    """Returns what a graph gives in `tensor`, by the last operator that computes.

    Args:
        tensor: The output.
        producer: Returns the operator that makes a tensor, and its first input; None if no
            operator makes it.

    Returns:
        The kind of outputs, or None if the operator does not show it, and the tensor it makes.
    """
    while (made := producer(tensor)) is not None:
        operator, before = made
        operator = operator.replace("_", "").lower()
        if operator not in _TRANSPARENT:
            return _KINDS.get(operator), tensor
        tensor = before
    return None, tensor


def choose_outputs(outputs: str, seen: Outputs | None, *, name: str) -> Outputs:
    """Returns the kind of outputs of the teacher `name`: as given, or for "auto" as its file shows.

    Raises:
        ConfigurationError: `outputs` is not a valid word, the file does not show the kind, or it
            shows that its outputs are no logits.
    """
    choose(outputs, ("auto", *get_args(Outputs)), what="kind of outputs")
    if outputs == "logits" and seen in ("probabilities", "sigmoid"):
        raise ConfigurationError(
            f'Expected a file whose outputs are logits, as outputs="logits" says. Received: the '
            f"teacher {name!r}, whose last operator is a "
            f"{'softmax' if seen == 'probabilities' else 'sigmoid'}: probabilities taken for "
            f'logits teach almost nothing. Pass outputs="{seen}" or "auto", or export the file '
            "without that operator."
        )
    if outputs != "auto":
        return outputs  # type: ignore[return-value]
    if seen is None:
        raise ConfigurationError(
            f"The last operator of the teacher {name!r} does not show whether it gives logits or "
            'probabilities. Pass outputs="logits" or outputs="probabilities" (or "sigmoid", '
            '"values").'
        )
    say(f"The teacher {name!r} gives {seen} (as its last operator shows).")
    return seen
