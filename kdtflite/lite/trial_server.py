"""The process that tries files, each in a child of its own: LiteRT is imported once.

python -m kdtflite.lite.trial_server
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kdtflite.forking import serve

__all__ = ["main"]

# A file whose first run takes longer than this is not run again.
_SLOW_SECONDS = 2.0


def main() -> None:
    """Answers jobs until stdin ends."""
    from ai_edge_litert import interpreter as litert

    def work(job: dict[str, Any], content: bytes, send: Callable[[str], None]) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        send(json.dumps([_try(litert, content, job, name) for name in job["kernels"]]))
        return 0

    serve(work)


def _try(litert: Any, content: bytes, job: dict[str, Any], kernels: str) -> tuple[str, str]:
    """Runs a file on zeros, then on other values.

    Returns:
        Why LiteRT refuses it, or ""; a digest of its outputs if they are to be compared, or "".
    """
    answer = _run(litert, content, job, kernels)
    gc.collect()  # the interpreter is freed, and what it was written past is found
    _use_memory()
    return answer


def _run(litert: Any, content: bytes, job: dict[str, Any], kernels: str) -> tuple[str, str]:
    kinds = litert.OpResolverType
    resolvers = {
        "XNNPACK": kinds.AUTO,
        "built-in": kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": kinds.BUILTIN_REF,
    }
    try:
        interpreter = litert.Interpreter(
            model_content=content,
            num_threads=1,
            experimental_op_resolver_type=resolvers[kernels],
            experimental_preserve_all_tensors=job["keep_tensors"],
        )
        for index, shape in job["resize"]:
            interpreter.resize_tensor_input(index, shape)
        interpreter.allocate_tensors()
        interpreter.get_tensor_details()
        start = time.monotonic()
        outputs = _invoke(interpreter, "zeros")
    except Exception as error:
        return (str(error) or type(error).__name__)[:1000], ""
    for kind in ("random", "least", "greatest", "zeros"):
        slow = time.monotonic() - start > _SLOW_SECONDS
        if slow and not (job["compare"] and kind == "random"):
            break
        # Its own samples may be refused, but they must not end the process.
        with contextlib.suppress(Exception):
            given = _invoke(interpreter, kind)
            outputs += given if kind == "random" else []
    return "", hashlib.sha256(b"".join(outputs)).hexdigest() if job["compare"] else ""


def _use_memory() -> None:
    """Takes and frees blocks of many sizes.

    A kernel that writes past its memory does not crash at once: the process ends later, when
    somebody takes memory there. That is to happen here and not in the caller.
    """
    for _ in range(2):
        blocks = [bytearray(size) for size in range(24, 1 << 17, 509)]
        blocks += [bytearray(1 << power) for power in range(4, 23)]
        del blocks


def _invoke(interpreter: Any, kind: str) -> list[bytes]:
    """Runs a file once; returns its outputs."""
    draw = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        dtype = np.dtype(detail["dtype"])
        interpreter.set_tensor(detail["index"], _make_values(kind, detail["shape"], dtype, draw))
    interpreter.invoke()
    given = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
    # Texts are objects, whose bytes are only their addresses.
    return [repr(v.tolist()).encode() if v.dtype == object else v.tobytes() for v in given]


def _make_values(kind: str, shape: Any, dtype: Any, draw: np.random.Generator) -> Any:
    """Returns values for an input; whole numbers of more than 16 bits, as those of words, are 0."""
    if kind == "zeros" or not (dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize <= 2)):
        return np.zeros(shape, dtype)
    if dtype.kind == "f":
        extremes = {"least": -1000.0, "greatest": 1000.0}
        values = draw.normal(size=shape) if kind == "random" else np.full(shape, extremes[kind])
        return values.astype(dtype)
    codes = np.iinfo(dtype)
    if kind == "random":
        return draw.integers(codes.min, codes.max, shape, dtype)
    return np.full(shape, codes.min if kind == "least" else codes.max, dtype)


if __name__ == "__main__":
    main()
