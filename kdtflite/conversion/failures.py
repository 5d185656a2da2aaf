"""Why a conversion failed: the model, the disk, the memory, or whoever stopped it."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from kdtflite.conversion.targets import Target
from kdtflite.errors import ConversionError, KdtfliteError, NotFullyIntegerError

__all__ = ["explain_failure"]

_LOG_LINES = 3
# What Python, C++, the loader of shared libraries, LLVM and TensorFlow say without memory.
_MEMORY = re.compile(
    r"MemoryError|bad_alloc|bad_array_new|[Cc]annot allocate memory|[Oo]ut of memory|OOM when"
    r"|failed to map segment|can't start new thread|pthread_create.*(?:EAGAIN|unavailable)"
    r"|Resource temporarily unavailable|ResourceExhausted"
)
_MORE_MEMORY = (
    "It needs some times the size of the model, and 1 GB for TensorFlow: raise the limit (ulimit "
    "-v, the container's, the batch system's), close other programs, or calibrate with fewer "
    "samples."
)


def explain_failure(
    folder: Path, code: int, log: str, layers: list[str], target: Target
) -> KdtfliteError:
    """Returns the error that says why there is no file.

    Args:
        folder: The folder of the conversion, in which the process may have left error.txt.
        code: Its exit code; below 0 the signal that ended it.
        log: What it wrote to stderr.
        layers: Names of the model's layers.
        target: What the model was converted to.
    """
    error = folder / "error.txt"
    message = error.read_text() if error.exists() else log
    if code < 0:
        return _explain_death(-code, log)
    if _MEMORY.search(message) or _MEMORY.search(log):
        return ConversionError(f"The memory was not enough for the converter. {_MORE_MEMORY}")
    if message.rstrip().endswith("Error:"):  # the converter wrote the reason to stderr alone
        message += " ".join(re.findall(r"error: (.*)", log))
    if "No space left" in message or "No space left" in log:
        return ConversionError(
            f"The disk is full: the converter could not write in {folder.parent}. "
            "Free some space, or set TMPDIR to another folder."
        )
    # The converter names an operator without an integer kernel 'tfl.name' or 'tf.Name', and one
    # without an int16 kernel 'NAME'.
    operators = sorted(
        {
            *re.findall(r"'?(?:tfl?|tf)\.([A-Za-z_0-9]+)'? op", message),
            *re.findall(r"not yet supported for op: '([A-Z_0-9]+)'", message),
        }
    )
    found = sorted({name for name in layers if re.search(rf"\b{re.escape(name)}\b", message)})
    from_layers = f", from layer {', '.join(map(repr, found))}" if found else ""
    if any(name.startswith("TensorList") for name in operators):
        kind = NotFullyIntegerError if target.fully_integer else ConversionError
        return kind(
            f"The converter takes no loop over steps{from_layers}. LSTM, GRU and SimpleRNN are "
            "unrolled where the length of the sequences is known: give the input one, as in "
            "Input((steps, channels)). A stateful layer needs its state as an input and an output "
            "of the model instead."
        )
    if operators and "same scale constraint" not in message and target.fully_integer:
        return NotFullyIntegerError(
            f"The converter has no {target.activations} kernel for: {', '.join(operators)}"
            f"{from_layers}. "
            "Replace the layer by one that has such a kernel (see docs/conversion.md)."
        )
    text = " ".join(message.split())
    return ConversionError(f"TensorFlow Lite's converter failed: {text[:600]}")


def _explain_death(number: int, log: str) -> ConversionError:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if name == "SIGKILL" or _MEMORY.search(log):
        how = "was killed by the system" if name == "SIGKILL" else f"died ({name})"
        return ConversionError(
            f"TensorFlow Lite's converter {how}, most likely because the memory was not enough. "
            f"{_MORE_MEMORY}"
        )
    if name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU"):
        why = "at a limit of processor time" if name == "SIGXCPU" else "from outside"
        return ConversionError(
            f"TensorFlow Lite's converter was stopped {why} ({name}). Nothing is wrong with the "
            "model: convert it again."
        )
    if _is_memory_limited():
        return ConversionError(
            f"TensorFlow Lite's converter crashed ({name}). The memory of this process is limited "
            f"(ulimit -v), which is the likely cause. {_MORE_MEMORY} If it crashes without a limit "
            "too, leave out layers one by one to find which one it cannot take."
        )
    last = " ".join(log.strip().splitlines()[-_LOG_LINES:])
    return ConversionError(
        f"TensorFlow Lite's converter crashed ({name}) on this model. "
        f"{f'Its last output: {last} ' if last else ''}"
        "Leave out layers one by one to find which one it cannot take."
    )


def _is_memory_limited() -> bool:
    """Says whether this process, and so its children, may use only some of the address space."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds)
