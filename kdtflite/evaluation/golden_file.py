"""Golden vectors as a result and as a file, `golden.json`."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.arguments import check_arguments
from kdtflite.files import write_bytes
from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["FORMAT", "GoldenVectors", "encode"]

FORMAT = "kdtflite-golden-1"


@dataclass(frozen=True)
class GoldenVectors(Result):
    """Samples and a file's outputs for them, to be repeated on another machine.

    Attributes:
        content: Everything as plain values, in the layout of `golden.json`
            (docs/android.md): the file's name and digest, its inputs and outputs, the samples as
            base64 of little-endian arrays, and values for the quantizer alone.
    """

    content: dict[str, Any]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.content["samples"])

    @property
    def xnnpack_steps(self) -> int | None:
        """Largest difference of XNNPACK's outputs from the built-in kernels', in codes.

        None where every output is float; `xnnpack_difference` has it in real values.
        """
        steps: int | None = self.content["kernels"]["xnnpack_steps"]
        return steps

    @property
    def xnnpack_difference(self) -> float:
        """Largest difference of XNNPACK's outputs from the built-in kernels', in real values."""
        return float(self.content["kernels"]["xnnpack_difference"])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return self.content

    @check_arguments
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        option: str = "overwrite=True",
    ) -> Path:
        """Writes the vectors as JSON, atomically, and returns the path."""
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        return write_bytes(path, text.encode(), overwrite=overwrite, option=option)

    def to_table(self) -> Table:
        """Returns the file's inputs and outputs as a rich table."""
        rows = [
            (
                role,
                spec["name"],
                spec["dtype"],
                str(spec["shape"]),
                "" if spec["scale"] is None else f"{spec['scale']:.6g}",
                "" if spec["zero_point"] is None else str(spec["zero_point"]),
            )
            for role in ("input", "output")
            for spec in self.content[f"{role}s"]
        ]
        return make_table(rows, notes=("tensor", "name", "dtype", "shape", "scale", "zero point"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws each sample's largest difference between XNNPACK and the built-in kernels.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on; differences are in real values.
        """
        specs = self.content["outputs"]
        differences = [
            max(
                float(np.abs(_decode(fast, spec) - _decode(exact, spec)).max(initial=0.0))
                * (spec["scale"] or 1.0)
                for spec, fast, exact in (
                    (spec, answer["xnnpack"], answer["quantized"])
                    for spec, answer in zip(specs, sample["outputs"], strict=True)
                )
            )
            for sample in self.content["samples"]
        ]
        ylabel = "largest difference of XNNPACK's outputs"
        ax = make_axes(ax, 6, 4, xlabel="sample", ylabel=ylabel)
        ax.bar(range(len(differences)), differences)
        return ax

    def summary(self) -> str:
        """Returns how many samples there are, and how far XNNPACK differs, in one line."""
        if self.xnnpack_steps is None:
            apart = f"{self.xnnpack_difference:.3g}"
        else:
            apart = f"{self.xnnpack_steps} step{'' if self.xnnpack_steps == 1 else 's'}"
        tested = sum(entry["count"] for entry in self.content["quantizer"])
        return (
            f"{self.samples} samples of {self.content['model']['file']} with the outputs of "
            f"LiteRT's built-in kernels; XNNPACK's differ by {apart} at most. "
            f"{tested:,} values for the quantizer alone."
        )


def encode(values: NDArray[Any]) -> str:
    """Returns an array as base64 of its little-endian bytes."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def _decode(text: str, spec: Mapping[str, Any]) -> NDArray[np.float64]:
    dtype = np.dtype(spec["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(text), dtype).astype(np.float64)
