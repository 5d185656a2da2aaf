"""Where a file first differs from the fake-quantized model that it was converted from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, UnsupportedModelError
from kdtflite.evaluation.layers.comparison import ComparedTensor, compare_tensors
from kdtflite.evaluation.layers.labels import WithoutTensor
from kdtflite.evaluation.layers.plot import make_layer_table
from kdtflite.results import Axes, Result, Table, make_axes

__all__ = ["TensorDifference", "TensorDifferences", "first_difference"]

# Up to this many tensors are drawn with their names.
_NAMED = 40
_COLOR, _FIRST = "#2361ad", "#c2410c"


@dataclass(frozen=True)
class TensorDifference:
    """How far, in steps, a tensor of the file is from the fake-quantized model's.

    A step is the difference of two neighboring codes, the tensor's scale. The Keras model's
    values are quantized with the file's scale and zero point, which changes nothing where its
    own fake quantization has the same.

    Attributes:
        layer: Path of the layer, with the number of the call if there are several. For an input,
            its name.
        kind: The layer's class.
        fused: Layers that the same operator computes before it, which have no tensor.
        is_output: Whether it is the layer's output, or something inside the layer.
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
        sample: Number of the sample with this difference, among those compared.
        index: Its index in the tensor, without the batch.
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
            # The file concatenates the names of all fused operations.
            f"{inside}{self.layer}, tensor {self.tensor.partition(';')[0]!r}: {abs(self.steps)} "
            f"step{'' if abs(self.steps) == 1 else 's'} of {self.scale:.4g} in sample "
            f"{self.sample}{where}: {self.keras:.6g} in the Keras model, {self.file:.6g} in the "
            f"file; {1 - self.equal:.2%} of the elements differ"
        )


@dataclass(frozen=True)
class TensorDifferences(Result):
    """The differences of all tensors that a fake-quantized model and its file have in common.

    Attributes:
        samples: Number of samples.
        kernels: "XNNPACK" or "built-in": which ran the file.
        steps: The difference that was tolerated.
        first: The first tensor that differs by more than `steps`, or None.
        tensors: Every quantized tensor, in execution order.
        without_tensor: The layers that have no tensor of their own in the file, and why.
    """

    _table_width = 120

    samples: int
    kernels: str
    steps: int
    first: TensorDifference | None
    tensors: tuple[TensorDifference, ...]
    without_tensor: tuple[WithoutTensor, ...]

    def to_table(self) -> Table:
        """Returns the tensors as a rich table, in execution order."""
        rows = (
            (
                tensor.layer if tensor.is_output else f"inside {tensor.layer}",
                tensor is self.first,
                tensor.operator,
                f"{tensor.steps:+d}" if tensor.steps else "0",
                *(f"{share:.2%}" for share in (tensor.equal, tensor.by_one)),
                *(f"{share:.2%}" for share in (tensor.by_two, tensor.by_more)),
                str(tensor.sample) if tensor.steps else "",
            )
            for tensor in self.tensors
        )
        shares = ("equal", "by 1", "by 2", "by more")
        return make_layer_table(rows, "max steps", *shares, "sample")

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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws each tensor's largest difference in steps, in execution order.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        count = len(self.tensors)
        named = count <= _NAMED
        ax = make_axes(ax, 7, 0.9 + 0.2 * count if named else 4)
        colors = [_FIRST if tensor is self.first else _COLOR for tensor in self.tensors]
        heights = [abs(tensor.steps) for tensor in self.tensors]
        label = "Largest difference in steps"
        if named:
            ax.barh(range(1, count + 1), heights, color=colors)
            # parse_math: a layer called "$5" is no formula.
            names = [tensor.layer for tensor in self.tensors]
            ax.set_yticks(range(1, count + 1), names, parse_math=False)
            ax.set_ylim(count + 0.6, 0.4)
            ax.set_xlabel(label)
        else:
            ax.bar(range(1, count + 1), heights, color=colors)
            ax.set_xlabel("Tensor, in execution order")
            ax.set_ylabel(label)
        return ax


@check_arguments
def first_difference(
    model: Any,
    lite: Any,
    data: Any,
    *,
    steps: int = 1,
    samples: int = 128,
    xnnpack: bool = True,
    progress: bool = True,
) -> TensorDifferences:
    """Finds the first tensor in which a file differs from its fake-quantized model.

    Both run on the same samples and are compared code by code, in the file's order of computation.
    A difference may come from earlier tensors, so look at the first tensor that differs. A layer
    that is calibrated at conversion rather than trained quantization-aware computes in float in
    the Keras model: its tensor, and those after it, may differ by some steps.

    Args:
        model: The model that `quantize_aware` returned, trained or not.
        lite: The file converted from it: a LiteModel, the bytes of a `.tflite`, or its path.
        data: Samples as `layer_errors` takes them.
        steps: How many steps to tolerate. One is usual: the kernels sum integers, the Keras model
            floats, and a value halfway between two codes may be rounded either way.
        samples: The maximum number of samples; those of arrays are evenly spread.
        xnnpack: Run the file with LiteRT's default delegate; False takes the built-in kernels.
        progress: Show progress.

    Raises:
        ConfigurationError: `steps` below 0.
        UnsupportedModelError: The model is not quantization-aware, or the file not quantized.
        DataError: Samples that do not fit, or a layer whose output is NaN or infinite.
        ShapeMismatchError: The file was converted from another model.

    Example:
        >>> import kdtflite, numpy
        >>> import tf_keras as keras
        >>> model = keras.Sequential(
        ...     [keras.Input((4,), name="x"), keras.layers.Dense(2, name="dense")]
        ... )
        >>> x = numpy.eye(4, dtype="float32")
        >>> aware = kdtflite.quantize_aware(model, x)
        >>> lite = kdtflite.convert(aware, x, progress=False)
        >>> print(kdtflite.first_difference(aware, lite, x, progress=False).first)
        None
    """
    if steps < 0:
        raise ConfigurationError(f"Expected steps from 0 up. Received: {steps}.")
    comparison = compare_tensors(
        model, lite, data, rounding=True, samples=samples, xnnpack=xnnpack, progress=progress
    )
    tensors = tuple(_make_difference(each) for each in comparison.tensors if each.tally.worst)
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


def _make_difference(compared: ComparedTensor) -> TensorDifference:
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
