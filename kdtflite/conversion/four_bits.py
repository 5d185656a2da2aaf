"""Four-bit weights: LiteRT Quantizer turns a float file into an int4 one."""

from __future__ import annotations

import importlib.util
import re
from math import prod

from kdtflite.errors import ConfigurationError
from kdtflite.lite.flatbuffer import FileTensor, Operator, read_graph

__all__ = ["fits_blocks", "quantize_to_int4", "require_quantizer"]

_INT4 = ("CONV_2D", "FULLY_CONNECTED", "EMBEDDING_LOOKUP")
# These have no int4 kernels. The names are LiteRT Quantizer's.
_INT8 = ("DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "BATCH_MATMUL")
# For weights in blocks, LiteRT 2.3's built-in kernel (unlike XNNPACK's) silently returns zeros if
# there are fewer rows, and silently skips a fused activation.
_MIN_ROWS = 4


def require_quantizer(what: str) -> None:
    """Raises ConfigurationError, with how to install it, if LiteRT Quantizer is missing."""
    if importlib.util.find_spec("litert_quantizer") is None:
        raise ConfigurationError(
            f"{what} needs the package litert-quantizer, which is not installed. "
            "Install it with: pip install 'kdtflite[edge]'."
        )


def fits_blocks(operator: Operator, weights: FileTensor, block_size: int) -> bool:
    """Returns whether a Dense layer's weights, shape (units, inputs), can have scales per block."""
    rows, columns = weights.shape[0], prod(weights.shape[1:])
    return rows >= _MIN_ROWS and columns % block_size == 0 and operator.activation == "NONE"


def quantize_to_int4(content: bytes, *, block_size: int = 0) -> bytes:
    """Returns a float .tflite file with int4 weights, symmetric, scaled by each channel's largest.

    Activations stay float32 in the file; the kernels round them to int8 at run time.

    Args:
        content: A float32 file.
        block_size: How many weights of a Dense layer's row share a scale: 32, 64, 128 or 256,
            if the row divides into such blocks and every kernel is correct (four units or more,
            no fused activation); 0 for one scale per row.
    """
    from litert_quantizer.qtyping import QuantGranularity, TFLOperationName
    from litert_quantizer.quantizer import Quantizer

    quantizer = Quantizer(content)
    for names, bits in ((_INT4, 4), (_INT8, 8)):
        for name in names:
            quantizer.add_dynamic_config(".*", TFLOperationName(name), bits)
    if block_size:
        for scope in _list_block_scopes(content, block_size):
            quantizer.add_dynamic_config(
                scope,
                TFLOperationName.FULLY_CONNECTED,
                4,
                QuantGranularity(f"BLOCKWISE_{block_size}"),
            )
    return bytes(quantizer.quantize().quantized_model)


def _list_block_scopes(content: bytes, block_size: int) -> list[str]:
    """Returns a pattern for each Dense operator whose weights fit blocks."""
    tensors, operators = read_graph(content)
    by_place = {(tensor.subgraph, tensor.index): tensor for tensor in tensors}
    scopes = []
    for operator in operators:
        if operator.name != "FULLY_CONNECTED":
            continue
        weights = by_place[operator.subgraph, operator.inputs[1]]
        if weights.is_constant and fits_blocks(operator, weights, block_size):
            output = by_place[operator.subgraph, operator.outputs[0]]
            # An operator's scope is the names of its outputs, each followed by a semicolon.
            scopes.append(f"^{re.escape(output.name)};$")
    return scopes
