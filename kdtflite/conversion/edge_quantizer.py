"""Quantizes a float file by litert-quantizer, with some operators wider than int8."""

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
from kdtflite.errors import ConversionError, ModelFileError, to_line
from kdtflite.lite.flatbuffer import Operator, read_graph
from kdtflite.lite.model import LiteModel

__all__ = ["WIDE", "EdgeQuantizer"]

WIDE = ("float32", "int16")
"""Types besides int8 in which an operator can compute."""

_BATCH = 32
# Later scopes of a recipe win. This one matches everything, as ".*" does, but is another scope.
_ALL = "(?s:.*)"


class EdgeQuantizer:
    """Makes quantized files from one float file, which is calibrated once.

    Weights are int8 with one scale per channel; activations are int8 except in chosen operators.

    Args:
        file: The float file.
        data: Samples for the ranges of its activations: the least and greatest value of all.

    Raises:
        ConfigurationError: litert-quantizer is not installed.
        ConversionError: It does not accept the file.
        ModelFileError: Several tensors of the file have one name.
    """

    def __init__(self, file: LiteModel, data: RepresentativeData) -> None:
        self.file = file
        self._modules = _import_modules()
        self._names = _read_names(file)
        self._ranges = self._calibrate(data)

    def quantize(
        self, wide: Iterable[Operator] = (), dtype: str = "int16", *, io_dtype: str = "int8"
    ) -> LiteModel:
        """Returns the file with these operators computed in `dtype`, all others in int8.

        QUANTIZE and DEQUANTIZE operators connect the two kinds.

        Args:
            wide: Operators of the float file's main graph.
            dtype: "int16", with int8 weights, or "float32".
            io_dtype: "int8" or "int16", for the file's inputs and outputs.

        Raises:
            ConversionError: litert-quantizer fails.
        """
        quantizer, operation = self._create_quantizer()
        for operator in wide:
            scope = "".join(self._names[index] + ";" for index in operator.outputs)
            self._widen(quantizer, f"^{re.escape(scope)}$", operation.ALL_SUPPORTED, dtype)
        for end in (operation.INPUT, operation.OUTPUT):
            self._widen(quantizer, _ALL, end, io_dtype)
        with _silence("quantize the file"):
            result = quantizer.quantize(
                self._ranges, enable_progress_bar=False, enable_progress_report=False
            )
        return LiteModel(bytes(result.quantized_model))

    def _create_quantizer(self) -> tuple[Any, Any]:
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

    def _calibrate(self, data: RepresentativeData) -> dict[str, Any]:
        """Returns the range of every tensor over all samples.

        litert-quantizer averages the ranges of several batches, which makes them narrower than
        the values. So each batch is calibrated alone.
        """
        with _silence("calibrate the file"):
            quantizer, _ = self._create_quantizer()
            # kdtflite's files have one signature.
            (signature,) = self.file.interpreter(xnnpack=False).get_signature_list()
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


def _read_names(file: LiteModel) -> dict[int, str]:
    """Returns the names that the file itself has, by which litert-quantizer finds operators."""
    tensors, _ = read_graph(file.content)
    names = {tensor.index: tensor.name for tensor in tensors if not tensor.subgraph}
    if len(set(names.values())) < len(names):
        raise ModelFileError(
            "Expected a file whose tensors have names of their own. Received: one in which several "
            "have the same, as in a file packed with names='layers' or names='none'. Pass the file "
            "before it was packed."
        )
    return names


def _import_modules() -> tuple[Any, Any, Any]:
    require_quantizer("Mixed precision")
    from litert_quantizer import qtyping, quantizer, recipe

    return quantizer, recipe, qtyping


@contextlib.contextmanager
def _silence(action: str) -> Iterator[None]:
    """Silences progress bars and warnings, and turns every error into a ConversionError."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                yield
            except Exception as error:  # it has no error classes of its own
                raise ConversionError(
                    f"litert-quantizer could not {action}: {type(error).__name__}: "
                    f"{to_line(error)[:400]}."
                ) from error
