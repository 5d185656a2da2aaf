"""Where a file first differs from the fake-quantized model that it was converted from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kdtflite.errors import ConfigurationError, UnsupportedModelError
from kdtflite.evaluation.layers.comparison import Compared, compare_tensors
from kdtflite.evaluation.layers.labels import WithoutTensor
from kdtflite.tables import as_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TensorDifference", "TensorDifferences", "first_difference"]

_WIDTH = 120


@dataclass(frozen=True)
class TensorDifference:
    """By how many steps a tensor of the file differs from the fake-quantized model's.

    A step is the difference of two neighbouring codes, the tensor's scale. The Keras model's
    values are quantized with the file's scale and zero point, which changes nothing where its
    own fake quantization has the same.

    Attributes:
        layer: Name of the layer, after those of the models it is in, and which call where it has
            several. An input goes by the input's name.
        kind: Its class.
        fused: Layers that are computed in the same operator before it, and have no tensor.
        is_output: Whether it is what the layer gives, or something inside it.
        tensor: Name of the tensor in the file.
        operator: The operator that computes it, "" for an input.
        dtype: Dtype of the codes.
        scale: Step between two codes.
        zero_point: Code of 0.0.
        equal: Share of the elements with equal codes.
        by_one: Share of the elements that differ by one step.
        by_two: Share that differ by two steps.
        by_more: Share that differ by more.
        steps: The largest difference, file minus Keras.
        sample: Number of the sample where that is, among those compared.
        index: Where in the tensor, the batch left out.
        keras: The Keras model's value there.
        file: The file's value there.
    """

    layer: str
    kind: str
    fused: tuple[str, ...]
    is_output: bool
    tensor: str
    operator: str
    dtype: str
    scale: float
    zero_point: int
    equal: float
    by_one: float
    by_two: float
    by_more: float
    steps: int
    sample: int
    index: tuple[int, ...]
    keras: float
    file: float

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return {**asdict(self), "fused": list(self.fused), "index": list(self.index)}

    def __str__(self) -> str:
        inside = "" if self.is_output else "inside "
        where = f" at index {list(self.index)}" if self.index else ""
        return (
            # The file strings together the names of all that is fused.
            f"{inside}{self.layer}, tensor {self.tensor.partition(';')[0]!r}: {abs(self.steps)} "
            f"step{'' if abs(self.steps) == 1 else 's'} of {self.scale:.4g} in sample "
            f"{self.sample}{where}: {self.keras:.6g} in the Keras model, {self.file:.6g} in the "
            f"file; {1 - self.equal:.2%} of the elements differ"
        )


@dataclass(frozen=True)
class TensorDifferences:
    """The differences of all tensors that a fake-quantized model and its file have in common.

    Attributes:
        first: The first tensor that differs by more than `steps`, or None.
        steps: What was let pass.
        tensors: Every quantized tensor, in execution order.
        without_tensor: The layers that have no tensor of their own in the file, and why.
        samples: Number of samples.
        kernels: "XNNPACK" or "built-in": which ran the file.
    """

    first: TensorDifference | None
    steps: int
    tensors: tuple[TensorDifference, ...]
    without_tensor: tuple[WithoutTensor, ...]
    samples: int
    kernels: str

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return {
            "samples": self.samples,
            "kernels": self.kernels,
            "steps": self.steps,
            "first": self.first.to_dict() if self.first else None,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "without_tensor": [asdict(layer) for layer in self.without_tensor],
        }

    def to_table(self) -> Table:
        """Returns the tensors as a rich table, in execution order."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("layer", max_width=40, overflow="fold")
        table.add_column("operator", no_wrap=True)
        for column in ("max steps", "equal", "by 1", "by 2", "by more", "sample"):
            table.add_column(column, justify="right", no_wrap=True)
        for tensor in self.tensors:
            table.add_row(
                Text(
                    tensor.layer if tensor.is_output else f"inside {tensor.layer}",
                    style="bold" if tensor is self.first else "",
                ),
                tensor.operator or "input",
                f"{tensor.steps:+d}" if tensor.steps else "0",
                *(f"{share:.2%}" for share in (tensor.equal, tensor.by_one)),
                *(f"{share:.2%}" for share in (tensor.by_two, tensor.by_more)),
                str(tensor.sample) if tensor.steps else "",
            )
        return table

    def summary(self) -> str:
        """Returns the first difference, and what was compared, as two lines of text."""
        named = f"{self.steps} step{'' if self.steps == 1 else 's'}"
        found = (
            f"No tensor differs by more than {named}."
            if self.first is None
            else f"First to differ by more than {named}: {self.first}."
        )
        return (
            f"{found}\n{len(self.tensors)} tensors compared on {self.samples:,} samples, the file "
            f"run with the {self.kernels} kernels."
        )

    def __str__(self) -> str:
        return f"{as_text(self.to_table(), width=_WIDTH)}\n{self.summary()}"


def first_difference(
    aware_model: Any,
    lite: Any,
    data: Any,
    *,
    steps: int = 1,
    samples: int = 128,
    xnnpack: bool = True,
    progress: bool = True,
) -> TensorDifferences:
    """Finds the first tensor in which a file differs from its fake-quantized model.

    Both run on the same samples and are compared code by code, in the order in which the file
    computes. What a tensor differs by may come from the tensors before it; the first one that
    differs is where to look. A layer that is calibrated at conversion rather than trained
    quantization-aware computes in float in the Keras model: its tensor, and those after it, may
    well differ by some steps.

    Args:
        aware_model: What `quantize_aware` returned, trained or not.
        lite: The LiteModel converted from it, or the path of a `.tflite`.
        data: Samples as `layer_errors` takes them.
        steps: How many steps to let pass. One is usual: the kernels add up in integers, the
            Keras model in float, and a value halfway between two codes goes either way.
        samples: The most samples to compare on; of arrays, evenly spread.
        xnnpack: Run the file with LiteRT's default delegate; False takes the built-in kernels.
        progress: Show progress.

    Raises:
        ConfigurationError: `steps` below 0.
        UnsupportedModelError: The model is not quantization-aware, or the file not quantized.
        DataError: Samples that do not fit, or a layer whose output is NaN or infinite.
        ShapeMismatchError: The file was converted from another model.

    Example:
        >>> found = kdtflite.first_difference(aware, kdtflite.convert(aware, x), x)
        >>> print(found.first)
    """
    if steps < 0:
        raise ConfigurationError(f"Expected steps from 0 up. Received: {steps}.")
    comparison = compare_tensors(
        aware_model, lite, data, rounding=True, samples=samples, xnnpack=xnnpack, progress=progress
    )
    tensors = tuple(_difference(each) for each in comparison.tensors if each.tally.worst)
    if not tensors:
        raise UnsupportedModelError(
            "Expected a quantized file, whose codes can be compared. Received: one without a "
            "quantized tensor. Compare its outputs with kdtflite.compare()."
        )
    return TensorDifferences(
        first=next((tensor for tensor in tensors if abs(tensor.steps) > steps), None),
        steps=steps,
        tensors=tensors,
        without_tensor=comparison.without_tensor,
        samples=comparison.samples,
        kernels=comparison.kernels,
    )


def _difference(compared: Compared) -> TensorDifference:
    tally, tensor = compared.tally, compared.value.tensor
    assert tally.grid is not None  # only then are there steps
    assert tally.worst is not None
    assert tally.differing is not None
    equal, by_one, by_two, by_more = tally.differing
    return TensorDifference(
        layer=compared.layer,
        kind=compared.kind,
        fused=compared.fused,
        is_output=compared.is_output,
        tensor=tensor.name,
        operator=compared.value.operator,
        dtype=tensor.dtype,
        scale=tally.grid.scale,
        zero_point=tally.grid.zero_point,
        equal=float(equal),
        by_one=float(by_one),
        by_two=float(by_two),
        by_more=float(by_more),
        steps=tally.worst.steps,
        sample=tally.worst.sample,
        index=tally.worst.index,
        keras=tally.worst.keras,
        file=tally.worst.file,
    )
