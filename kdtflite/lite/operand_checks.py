"""What must hold between an operator's tensors: kernels copy by the size of one into another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING

from kdtflite.lite.operators import KEEP_DTYPE, KEEP_ELEMENTS

if TYPE_CHECKING:
    from kdtflite.lite.flatbuffer import FileTensor

__all__ = ["Operands", "check_operands"]

_MAX_ELEMENTS = 2**31


class Operands:
    """The tensors of one operator, and what the file says of their values.

    Args:
        name: The operator's kind.
        inputs: The tensors it reads; None for an optional one that is left out.
        outputs: The tensors it writes.
        is_static: Says whether a tensor's shape is the one that it has when the file runs.
        read_integers: Returns the values of a constant of whole numbers, or None.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[FileTensor | None],
        outputs: Sequence[FileTensor],
        is_static: Callable[[FileTensor], bool],
        read_integers: Callable[[FileTensor], tuple[int, ...] | None],
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.is_static = is_static
        self.read_integers = read_integers

    def read(self, position: int) -> tuple[int, ...] | None:
        """Returns the values of an input; None if it is computed or left out."""
        tensor = self.inputs[position] if position < len(self.inputs) else None
        return None if tensor is None else self.read_integers(tensor)


def check_operands(operands: Operands) -> None:
    """Raises for tensors that make the operator's kernel write or read past their memory.

    Raises:
        ValueError: Says what is wrong.
    """
    _check_dtypes(operands)
    name, inputs = operands.name, operands.inputs
    if not inputs or inputs[0] is None or not operands.outputs:
        return
    given, output = inputs[0], operands.outputs[0]
    static = operands.is_static(given) and operands.is_static(output)
    if name in KEEP_ELEMENTS and static and prod(given.shape) != prod(output.shape):
        raise ValueError(f"has an input of shape {given.shape} and an output of {output.shape}")
    if name == "BATCH_MATMUL":
        for tensor in inputs[:2]:
            if tensor is not None and len(tensor.shape) < 2:
                raise ValueError(f"has an input of shape {tensor.shape}")
    elif name == "SLICE":
        _check_slice(operands, given, output)
    elif name == "TILE":
        times = operands.read(1)
        if times is not None and (
            min(times, default=0) < 0 or prod(given.shape) * prod(times) > _MAX_ELEMENTS
        ):
            raise ValueError(f"repeats a shape {given.shape} {times} times")


def _check_dtypes(operands: Operands) -> None:
    positions = KEEP_DTYPE.get(operands.name)
    if positions is None:
        return
    first = operands.outputs[:1] if operands.name == "TOPK_V2" else operands.outputs
    kept = [operands.inputs[i] for i in positions if i < len(operands.inputs)]
    kept = list(operands.inputs) if not positions else kept
    dtypes = {tensor.dtype for tensor in (*kept, *first) if tensor is not None}
    if len(dtypes) > 1:
        raise ValueError(f"has inputs and outputs of {' and '.join(sorted(dtypes))}")


def _check_slice(operands: Operands, given: FileTensor, output: FileTensor) -> None:
    """The kernel takes the declared shape of its output, and writes as many values as it reads."""
    begins, sizes = operands.read(1), operands.read(2)
    if begins is None or sizes is None:
        return
    rank = len(given.shape)
    fits = len(begins) == len(sizes) == rank and len(output.shape) in (0, rank)
    fits = fits and min((*begins, 0)) >= 0 and min((*sizes, 0)) >= -1
    for i in range(rank if fits else 0):
        size = given.shape[i] - begins[i] if sizes[i] < 0 else sizes[i]
        if operands.is_static(given):
            fits = fits and 0 <= size <= given.shape[i] - begins[i]
            if operands.is_static(output) and output.shape:
                fits = fits and size == output.shape[i]
        elif operands.is_static(output) and output.shape and sizes[i] >= 0:
            fits = fits and sizes[i] == output.shape[i]
    if not fits:
        raise ValueError(
            f"takes {sizes} from {begins} of a shape {given.shape} into one of {output.shape}"
        )
