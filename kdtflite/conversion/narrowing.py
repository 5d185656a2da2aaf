"""Stores the weights of an int8 file in four bits, exactly where they have no more than 15 levels.

The converter writes no int4 file. It writes int8 weights, codes up to ±127 in each channel. Weights
trained with four bits have at most 15 levels there, multiples of 127 / m for the greatest code m of
the channel, and so name their own int4 codes and scale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from kdtflite.quantization.calibration import weight_range

__all__ = ["find_int4_scales", "narrow_weights", "pack_int4"]

# Symmetric codes, from -7 to 7: every weight has its negative.
_LEVELS = 7
# Version of each operator from which its kernels take int4 weights.
_VERSIONS = {"CONV_2D": 7, "FULLY_CONNECTED": 10}
_WEIGHTS, _BIAS = 1, 2  # positions among the inputs of both
_ALIGNMENT = 16  # which the schema demands of weights
# Half an int8 step, and what float32 adds.
_ROUNDING = 0.5 + 1e-3
_SAME = 1e-3  # of two float32 scales, which differ by less


def narrow_weights(content: bytes, *, keep: Collection[str] = ()) -> tuple[bytes, dict[str, bool]]:
    """Returns a fully integer file with int4 weights in its CONV_2D and FULLY_CONNECTED operators.

    A convolution keeps one scale per channel. A FULLY_CONNECTED gets one in all, because TensorFlow
    Lite 2.16.1 and tflite-micro take no others with int4. Biases are expressed in the new scales.

    Args:
        content: A file with int8 weights and int8 activations.
        keep: Names of weights that stay int8.

    Returns:
        The file; and whether each narrowed tensor kept its values, by name: if not, its weights
        were rounded to the steps with the least squared error.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    exact: dict[str, bool] = {}
    for graph in model.subgraphs:
        for index, operators in _list_weights(schema, model, graph):
            weights = graph.tensors[index]
            name = weights.name.decode()
            if name in keep:
                continue
            kinds = {_get_kind(schema, model.operatorCodes[o.opcodeIndex]) for o in operators}
            old = np.asarray(weights.quantization.scale, np.float64)
            # Of both operators' weights the first axis has the channels.
            codes = _read(model, weights, np.int8).reshape(len(old), -1)
            new, exact[name] = find_int4_scales(codes, old, shared="FULLY_CONNECTED" in kinds)
            ratio = old / new
            narrow = np.clip(np.round(codes * ratio[:, np.newaxis]), -_LEVELS, _LEVELS)
            weights.type = schema.TensorType.INT4
            _store(model, weights, pack_int4(narrow))
            _scale(weights, new)
            for bias in {int(o.inputs[_BIAS]) for o in operators if _has_bias(o)}:
                tensor = graph.tensors[bias]
                values = np.round(_read(model, tensor, np.int32) * ratio).astype("<i4")
                _store(model, tensor, values.view(np.uint8))
                _scale(tensor, (np.asarray(tensor.quantization.scale) / ratio)[: len(new)])
            for operator in operators:
                code = model.operatorCodes[operator.opcodeIndex]
                code.version = max(code.version, _VERSIONS[_get_kind(schema, code)])
    _drop_unused_buffers(model)
    builder = _AlignedBuilder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), exact


def pack_int4(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Packs codes from -8 to 7 as a .tflite file stores them, two per byte, the first one low.

    Args:
        codes: Integers of any shape, taken in C order. For an odd number the last byte's high half
            is 0.

    Example:
        >>> import numpy as np
        >>> from kdtflite.conversion.narrowing import pack_int4
        >>> pack_int4(np.array([1, -1, 7, -8, -7])).tobytes().hex(" ")
        'f1 87 09'
    """
    halves = np.ravel(codes).astype(np.int8).view(np.uint8) & 0x0F
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    return (halves[0::2] | (halves[1::2] << 4)).astype(np.uint8)


class _AlignedBuilder(flatbuffers.Builder):
    """Aligns vectors of bytes, and so the weights, as the converter does."""

    def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802
        """Starts a vector of `count` elements of `size` bytes."""
        return super().StartVector(size, count, _ALIGNMENT if size == 1 else alignment)


def _list_weights(schema: Any, model: Any, graph: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yields the index of each weights tensor that can be int4, with the operators that read it."""
    readers: dict[int, list[tuple[Any, int]]] = {}
    for operator in graph.operators:
        for position, index in enumerate(_to_list(operator.inputs)):
            readers.setdefault(index, []).append((operator, position))

    def is_alone(index: int, operators: list[Any], position: int) -> bool:
        return all(
            place == position and any(reader is operator for operator in operators)
            for reader, place in readers[index]
        )

    for index, found in readers.items():
        if index < 0 or not _is_int8_constant(schema, model, graph.tensors[index]):
            continue
        operators = [
            operator
            for operator, place in found
            if place == _WEIGHTS
            and _get_kind(schema, model.operatorCodes[operator.opcodeIndex]) in _VERSIONS
        ]
        biases = [int(operator.inputs[_BIAS]) for operator in operators if _has_bias(operator)]
        if is_alone(index, operators, _WEIGHTS) and all(
            is_alone(bias, operators, _BIAS) for bias in biases
        ):
            yield index, operators


def find_int4_scales(
    codes: NDArray[np.int8], scales: NDArray[np.float64], *, shared: bool = False
) -> tuple[NDArray[np.float64], bool]:
    """Returns scales for int4 weights, and whether they hold the values that int8 rounded.

    Args:
        codes: The int8 codes, shape (scales, weights).
        scales: The scale of each row.
        shared: One scale for all rows.

    Returns:
        The scales, shape (scales,) or (1,); with the least squared error where none is exact.
    """
    steps, exact = _find_steps(codes)
    fine = scales * steps
    if not shared or len(scales) == 1:
        return fine, exact
    greatest = np.abs(codes).max(axis=1) / steps
    used = greatest > 0
    for divisor in range(1, _LEVELS + 1) if exact and used.any() else ():
        scale = fine[used].min() / divisor
        multiples = fine[used] / scale
        whole = np.abs(multiples - np.round(multiples)) < _SAME
        if whole.all() and (np.round(greatest[used] * multiples) <= _LEVELS).all():
            return np.array([scale]), True
    if not used.any():
        return scales[:1], True
    end = weight_range(codes * scales[:, np.newaxis], None, "mse", bits=4)
    return np.array([float(end) / _LEVELS]), False


def _find_steps(codes: NDArray[np.int8]) -> tuple[NDArray[np.float64], bool]:
    """Returns the int4 step of each row in int8 steps, and whether rounding to them is exact."""
    rows = codes.astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    # Zeros, and codes that are small enough already.
    steps = np.where(largest <= _LEVELS, 1.0, 0.0)
    for greatest in range(1, _LEVELS + 1):
        tried = np.where(largest > 0, largest, 1.0) / greatest
        multiples = np.round(rows / tried[:, np.newaxis]) * tried[:, np.newaxis]
        fits = (np.abs(rows - multiples) <= _ROUNDING).all(axis=1)
        steps = np.where((steps == 0.0) & fits, tried, steps)
    inexact = steps == 0.0
    if inexact.any():
        steps[inexact] = weight_range(rows[inexact], 0, "mse", bits=4) / _LEVELS
    return steps, not inexact.any()


def _scale(tensor: Any, scales: NDArray[np.float64]) -> None:
    tensor.quantization.scale = scales.astype(np.float32)
    tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
    tensor.quantization.quantizedDimension = 0


def _read(model: Any, tensor: Any, dtype: Any) -> NDArray[Any]:
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    return np.frombuffer(data.tobytes(), np.dtype(dtype).newbyteorder("<"))


def _store(model: Any, tensor: Any, data: NDArray[np.uint8]) -> None:
    # Another tensor may have the old buffer, too.
    buffer = type(model.buffers[0])()
    buffer.data = data
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)


def _drop_unused_buffers(model: Any) -> None:
    """Removes the buffers that nothing refers to; the first is the empty one of activations."""
    owners = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    owners += model.metadata or []
    used = sorted({0, *(owner.buffer for owner in owners)})
    places = {old: new for new, old in enumerate(used)}
    for owner in owners:
        owner.buffer = places[owner.buffer]
    model.buffers = [model.buffers[old] for old in used]
    model.metadataBuffer = None  # of old files; no program reads it


def _is_int8_constant(schema: Any, model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return tensor.type == schema.TensorType.INT8 and data is not None and len(data) > 0


def _has_bias(operator: Any) -> bool:
    inputs = _to_list(operator.inputs)
    return len(inputs) > _BIAS and inputs[_BIAS] >= 0


def _get_kind(schema: Any, code: Any) -> str:
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    kinds = vars(schema.BuiltinOperator)
    return next((name for name in _VERSIONS if kinds[name] == number), "")


def _to_list(vector: Any) -> list[int]:
    return [] if vector is None else [int(value) for value in vector]
