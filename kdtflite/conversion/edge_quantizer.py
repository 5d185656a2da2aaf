"""A float file quantized by ai-edge-quantizer, some of its operators wider than int8."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kdtflite.conversion.four_bits import require_quantizer
from kdtflite.data.representative import RepresentativeData
from kdtflite.errors import ConversionError, one_line
from kdtflite.flatbuffer import Operator
from kdtflite.litemodel import LiteModel

__all__ = ["WIDE", "EdgeQuantizer"]

WIDE = ("float32", "int16")
"""What an operator can be computed in beside int8."""

_BATCH = 32
# A recipe's later scopes win; this one matches everything, as ".*" does, and is a scope of its own.
_ENDS = "(?s:.*)"


class EdgeQuantizer:
    """Makes files of one float file, which it has calibrated once.

    Weights are int8, one scale a channel; activations int8 but for the operators named.

    Args:
        file: The float file.
        data: Samples for the ranges of its activations: the least and greatest value over all.

    Raises:
        ConfigurationError: ai-edge-quantizer is not installed.
        ConversionError: It cannot take the file.
    """

    def __init__(self, file: LiteModel, data: RepresentativeData) -> None:
        self.file = file
        self._modules = _imported()
        self._names = {tensor.index: tensor.name for tensor in file.tensors if not tensor.subgraph}
        self._ranges = self._calibrated(data)

    def quantized(
        self, wide: Iterable[Operator] = (), dtype: str = "int16", *, io_dtype: str = "int8"
    ) -> LiteModel:
        """Returns the file with these operators computed in `dtype`, all others in int8.

        Where one meets the other a QUANTIZE or DEQUANTIZE operator stands between.

        Args:
            wide: Operators of the float file's main graph.
            dtype: "int16", with int8 weights, or "float32".
            io_dtype: "int8" or "int16": the file's inputs and outputs.

        Raises:
            ConversionError: ai-edge-quantizer fails.
        """
        quantizer, operation = self._new()
        for one in wide:
            scope = "".join(self._names[index] + ";" for index in one.outputs)
            self._widen(quantizer, f"^{re.escape(scope)}$", operation.ALL_SUPPORTED, dtype)
        for end in (operation.INPUT, operation.OUTPUT):
            self._widen(quantizer, _ENDS, end, io_dtype)
        with _quiet("quantize the file"):
            made = quantizer.quantize(
                self._ranges, enable_progress_bar=False, enable_progress_report=False
            )
        return LiteModel(bytes(made.quantized_model))

    def _new(self) -> tuple[Any, Any]:
        quantizer_module, recipe, types = self._modules
        quantizer = quantizer_module.Quantizer(bytearray(self.file.content))
        quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
        return quantizer, types.TFLOperationName

    def _widen(self, quantizer: Any, scope: str, operation: Any, dtype: str) -> None:
        if dtype == "float32":
            quantizer.update_quantization_recipe(scope, operation, algorithm_key="no_quantize")
        else:
            bits = {"int8": 8, "int16": 16}[dtype]
            quantizer.add_static_config(scope, operation, bits, 8)

    def _calibrated(self, data: RepresentativeData) -> dict[str, Any]:
        """Returns the range of every tensor over all samples.

        ai-edge-quantizer's own pass over several batches averages their ends, so that a range is
        narrower than the values: each batch is given alone.
        """
        with _quiet("calibrate the file"):
            quantizer, _ = self._new()
            # The first signature's; files of kdtflite have one.
            (signature,) = _signatures(self.file)
            ranges: dict[str, Any] = {}
            for batch in data.batches(_BATCH):
                found = quantizer.calibrate({signature: [batch]}, num_threads=1)
                for name, values in found.items():
                    known = ranges.get(name)
                    if known and values:
                        known["min"] = np.minimum(known["min"], values["min"])
                        known["max"] = np.maximum(known["max"], values["max"])
                    elif not known:
                        ranges[name] = dict(values)
        return ranges


def _signatures(file: LiteModel) -> list[str]:
    """Returns the names of a file's signatures."""
    return list(file.interpreter(xnnpack=False).get_signature_list())


def _imported() -> tuple[Any, Any, Any]:
    require_quantizer("Mixed precision")
    from ai_edge_quantizer import qtyping, quantizer, recipe

    return quantizer, recipe, qtyping


@contextlib.contextmanager
def _quiet(doing: str) -> Iterator[None]:
    """Keeps its bars and warnings off the screen, and makes its errors ours."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                yield
            except Exception as error:  # it has no errors of its own, but Python's in all kinds
                raise ConversionError(
                    f"ai-edge-quantizer could not {doing}: {type(error).__name__}: "
                    f"{one_line(error)[:400]}."
                ) from error
