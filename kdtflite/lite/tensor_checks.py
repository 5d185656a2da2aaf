"""What must hold for a tensor of a .tflite file before native code sees it."""

from __future__ import annotations

from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kdtflite.lite.flatbuffer import FileTensor

__all__ = ["check_tensor"]

# No machine that runs such files has memory for a larger activation, and LiteRT would clear
# gigabytes before it notices.
_MAX_BYTES = 2**31
_BITS = {
    **dict.fromkeys(("int2",), 2),
    **dict.fromkeys(("int4", "uint4"), 4),
    **dict.fromkeys(("int8", "uint8", "bool"), 8),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("int32", "uint32", "float32"), 32),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64),
    "complex128": 128,
}
_CODES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


def check_tensor(schema: Any, tensor: Any, read: FileTensor, buffer: Any) -> None:
    """Raises for a tensor whose shape, stored bytes, quantization or sparsity cannot be right.

    Args:
        schema: The generated schema module.
        tensor: The tensor's table.
        read: What was read from it.
        buffer: The buffer with its values, or None if they are not in the flatbuffer.

    Raises:
        ValueError: Says what is wrong, and with which tensor.
    """
    problem = (
        _find_shape_problem(tensor, read)
        or _find_quantization_problem(tensor, read)
        or _find_sparsity_problem(schema, tensor.Sparsity(), read)
    )
    if not problem and read.dtype == "string" and buffer is not None:
        problem = _find_text_problem(buffer.DataAsNumpy())
    if problem:
        raise ValueError(f"tensor {read.index} {read.name!r} of subgraph {read.subgraph} {problem}")


def _find_shape_problem(tensor: Any, read: FileTensor) -> str:
    if any(size < 0 for size in read.shape):
        return f"has the shape {read.shape}"
    signature = tensor.ShapeSignatureLength()
    if signature and signature != len(read.shape):
        return f"has {len(read.shape)} dimensions and a signature of {signature}"
    if signature and int(np.min(tensor.ShapeSignatureAsNumpy())) < -1:
        return "has a shape signature with sizes below -1"
    elements = prod(read.shape)
    bits = _BITS.get(read.dtype)
    if elements * (bits or 8) > 8 * _MAX_BYTES:
        return f"is too large to run: {elements:,} elements"
    dense = tensor.Sparsity() is None
    needed = -(-elements * (bits or 0) // 8)
    if read.is_constant and bits and dense and read.bytes != needed:
        # Kernels copy all bytes that are stored, into as many as the shape needs.
        only = "only " if read.bytes < needed else ""
        return f"of {elements:,} {read.dtype} elements has {only}{read.bytes:,} bytes"
    return ""


def _find_quantization_problem(tensor: Any, read: FileTensor) -> str:
    if not read.scales:
        return ""
    if not all(isfinite(scale) and scale >= 0 for scale in read.scales):
        return "has a scale that is negative or no number"
    count = len(read.scales)
    if len(read.zero_points) not in (0, 1, count):
        return f"has {count} scales and {len(read.zero_points)} zero points"
    if count > 1:
        axis = tensor.Quantization().QuantizedDimension()
        if not 0 <= axis < len(read.shape) or read.shape[axis] != count:
            return f"has {count} scales along dimension {axis} of its shape {read.shape}"
    low, high = _CODES.get(read.dtype, (-(2**31), 2**31 - 1))
    if not all(low <= zero <= high for zero in read.zero_points):
        return f"has a zero point that is no {read.dtype}"
    return ""


def _find_sparsity_problem(schema: Any, sparsity: Any, read: FileTensor) -> str:
    """Kernels unfold sparse weights to where these numbers point."""
    if sparsity is None:
        return ""
    order, blocks = sparsity.TraversalOrderLength(), sparsity.BlockMapLength()
    dimensions = sparsity.DimMetadataLength()
    total = len(read.shape) + blocks
    if order != total or dimensions != total:
        return "is sparse along dimensions that it does not have"
    if sorted(np.atleast_1d(sparsity.TraversalOrderAsNumpy()).tolist()) != list(range(total)):
        return "is sparse in an impossible order"
    if blocks and not all(
        0 <= axis < len(read.shape) for axis in np.atleast_1d(sparsity.BlockMapAsNumpy())
    ):
        return "is sparse in blocks of dimensions that it does not have"
    stored = 1
    for i in range(dimensions):
        dimension = sparsity.DimMetadata(i)
        if dimension.Format() == schema.DimensionType.DENSE:
            if dimension.DenseSize() < 1:
                return "is sparse with a dense part of no elements"
            stored *= dimension.DenseSize()
            continue
        segments = _read_sparse(schema, dimension.ArraySegmentsType(), dimension.ArraySegments())
        indices = _read_sparse(schema, dimension.ArrayIndicesType(), dimension.ArrayIndices())
        if (
            len(segments) != stored + 1
            or segments[0] != 0
            or (np.diff(segments) < 0).any()
            or segments[-1] != len(indices)
            or (indices < 0).any()
            or (indices >= max(read.shape)).any()
        ):
            return "is sparse with indices that do not fit its shape"
        stored = len(indices)
    bits = _BITS.get(read.dtype, 8)
    return "has too few bytes" if read.is_constant and 8 * read.bytes < bits * stored else ""


def _read_sparse(schema: Any, kind: int, table: Any) -> Any:
    vectors = {
        schema.SparseIndexVector.Int32Vector: schema.Int32Vector,
        schema.SparseIndexVector.Uint16Vector: schema.Uint16Vector,
        schema.SparseIndexVector.Uint8Vector: schema.Uint8Vector,
    }
    if kind not in vectors or table is None:
        return np.zeros(0, np.int64)
    vector = vectors[kind]()
    vector.Init(table.Bytes, table.Pos)
    return np.atleast_1d(vector.ValuesAsNumpy()).astype(np.int64)


def _find_text_problem(data: Any) -> str:
    """A tensor of texts stores their number, where each starts, and where the last one ends."""
    if len(data) < 4:
        return "has too few bytes"
    count = int(np.frombuffer(data[:4].tobytes(), "<i4")[0])
    if not 0 <= count <= (len(data) - 8) // 4:
        return f"claims {count:,} texts"
    offsets = np.frombuffer(data[4 : 8 + 4 * count].tobytes(), "<i4").astype(np.int64)
    if offsets[0] != 8 + 4 * count or (np.diff(offsets) < 0).any() or offsets[-1] > len(data):
        return "has texts that lie outside of it"
    return ""
