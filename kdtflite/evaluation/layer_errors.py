"""Where accuracy is lost: the error of each tensor of a file against its Keras layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.evaluation.layers.comparison import ComparedTensor, compare_tensors
from kdtflite.evaluation.layers.labels import WithoutTensor
from kdtflite.evaluation.layers.plot import draw_sqnr, make_layer_table
from kdtflite.results import Axes, Result, Table

__all__ = ["LayerError", "LayerErrors", "layer_errors"]

_LISTED = 6


@dataclass(frozen=True)
class LayerError:
    """How far a tensor of the file is from the output of its Keras layer.

    x are the Keras model's values and x̂ the file's, over all elements of all samples.

    Attributes:
        layer: Path of the layer ("backbone/conv" for one in a nested model), with the number of
            the call if there are several. For an input, its name.
        kind: The layer's class.
        fused: Layers that the same operator computes before it, which have no tensor.
        tensor: Name of the tensor in the file.
        operator: The operator that computes it, "" for an input; QUANTIZE is a copy at another
            scale.
        shape: Shape of the tensor, as the file stores it.
        dtype: Its dtype.
        scale: Step between two codes, or None where it is not quantized.
        zero_point: Code of 0.0, or None.
        sqnr: Signal to quantization noise ratio, 10 log10(Σx² / Σ(x - x̂)²), in dB: 6 dB are a
            bit. Infinite where there is no error.
        fall: By how many dB the SQNR lies below the lowest of the tensors that it is computed
            from: what this layer itself loses. Negative where errors average out; None for an
            input, or where its own inputs have no error.
        cosine: Cosine similarity of x and x̂.
        mse: Mean of (x - x̂)².
        largest: Largest |x - x̂|.
        largest_steps: The same in steps of the tensor, or None where it is not quantized.
        saturated: Share of the codes at either end of the range, which includes a ReLU's zeros.
        clipped: Share of the values x that are outside the range by more than half a step.
        range_used: Share of the range between the smallest and the largest code that occur.
    """

    layer: str
    kind: str
    fused: tuple[str, ...]
    tensor: str
    operator: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None
    sqnr: float
    fall: float | None
    cosine: float
    mse: float
    largest: float
    largest_steps: float | None
    saturated: float | None
    clipped: float | None
    range_used: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON; an infinite `sqnr` or `fall` is None."""
        values = asdict(self)
        values["fused"], values["shape"] = list(self.fused), list(self.shape)
        for name in ("sqnr", "fall"):
            if values[name] is not None and not math.isfinite(values[name]):
                values[name] = None
        return values


@dataclass(frozen=True)
class LayerErrors(Result):
    """The error of every layer's output in a file.

    Attributes:
        samples: Number of samples.
        kernels: "XNNPACK" or "built-in": which ran the file.
        layers: One entry per tensor of the file, in execution order.
        without_tensor: The layers that have no tensor of their own in the file, and why.
    """

    _table_width = 140

    samples: int
    kernels: str
    layers: tuple[LayerError, ...]
    without_tensor: tuple[WithoutTensor, ...]

    @property
    def worst(self) -> LayerError:
        """The tensor with the lowest SQNR."""
        return min(self.layers, key=lambda layer: layer.sqnr)

    @property
    def steepest(self) -> LayerError | None:
        """The tensor whose SQNR falls the most below those it is computed from."""
        falling = [layer for layer in self.layers if layer.fall is not None]
        return max(falling, key=lambda layer: layer.fall or 0.0, default=None)

    def to_table(self) -> Table:
        """Returns the tensors as a rich table, in execution order."""
        rows = (
            (
                layer.layer,
                layer is self.worst,
                layer.operator,
                f"{layer.sqnr:.1f}",
                "" if layer.fall is None else f"{layer.fall:.1f}",
                f"{layer.cosine:.5f}",
                f"{layer.mse:.2e}",
                "" if layer.largest_steps is None else f"{layer.largest_steps:.1f}",
                *map(_format_percent, (layer.saturated, layer.clipped, layer.range_used)),
            )
            for layer in self.layers
        )
        shares = ("saturated", "clipped", "range")
        return make_layer_table(rows, "SQNR dB", "fall", "cosine", "MSE", "max steps", *shares)

    def summary(self) -> str:
        """Returns the worst layer, and what happened to layers without a tensor."""
        worst = self.worst
        lines = [
            f"{len(self.layers)} tensors of the file compared on {self.samples:,} samples, run "
            f"with the {self.kernels} kernels. Lowest SQNR: {worst.layer}, {worst.sqnr:.1f} dB."
        ]
        if (steepest := self.steepest) is not None and steepest.fall is not None:
            lines.append(
                f"Steepest fall: {steepest.layer}, {steepest.fall:.1f} dB below its inputs."
            )
        reasons: dict[str, list[str]] = {}
        for layer in self.without_tensor:
            why = "fused into another" if layer.why.startswith("fused into") else layer.why
            reasons.setdefault(why, []).append(layer.layer)
        for why, names in reasons.items():
            listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
            lines.append(f"Without a tensor of their own, {why}: {len(names)} ({listed}).")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the SQNR of the layers in execution order, the lowest ones by name.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        return draw_sqnr([(layer.layer, layer.sqnr) for layer in self.layers], ax)


@check_arguments
def layer_errors(
    model: Any,
    lite: Any,
    data: Any,
    *,
    samples: int = 128,
    xnnpack: bool = True,
    progress: bool = True,
) -> LayerErrors:
    """Measures how far each tensor of a file is from its Keras layer's output, on real samples.

    The file runs with all its tensors kept, the Keras model in float32. The fake quantization of a
    quantization-aware model is left out, so that the error includes all rounding of weights and
    activations up to each layer. The signal to quantization noise ratio (SQNR) falls by 6 dB for
    every bit that is lost; where it falls and does not recover, accuracy is lost.

    A tensor of the file is matched with a layer by its name, the order of computation and its
    shape. The converter fuses layers (convolution, batch normalization, activation): such a
    tensor belongs to the last of them, which is determined from its values.

    Args:
        model: The Keras model that the file was converted from, float or quantization-aware.
        lite: A LiteModel, the bytes of a `.tflite`, or its path.
        data: Samples as the model takes them, shape (samples, ...) or a dict by input name; also
            a Split, a pair (x, y) or a tf.data.Dataset.
        samples: The maximum number of samples; those of arrays are evenly spread.
        xnnpack: Run the file with LiteRT's default delegate, as a phone does; False takes the
            built-in kernels. The two sometimes round differently.
        progress: Show progress.

    Raises:
        DataError: Samples that do not fit, or a layer whose output is NaN or infinite.
        ShapeMismatchError: The file was converted from another model.
        ModelFileError: LiteRT cannot run the file.

    Example:
        >>> import kdtflite, numpy
        >>> import tf_keras as keras
        >>> model = keras.Sequential(
        ...     [keras.Input((4,), name="x"), keras.layers.Dense(2, name="dense")]
        ... )
        >>> x = numpy.eye(4, dtype="float32")
        >>> lite = kdtflite.convert(model, x, progress=False)
        >>> errors = kdtflite.layer_errors(model, lite, x, progress=False)
        >>> [layer.layer for layer in errors.layers]
        ['x', 'dense']
    """
    comparison = compare_tensors(
        model, lite, data, rounding=False, samples=samples, xnnpack=xnnpack, progress=progress
    )
    sqnr = {each.value.tensor.index: each.tally.sqnr for each in comparison.tensors}
    return LayerErrors(
        layers=tuple(_make_error(each, sqnr) for each in comparison.tensors if each.is_output),
        without_tensor=comparison.without_tensor,
        samples=comparison.samples,
        kernels=comparison.kernels,
    )


def _make_error(compared: ComparedTensor, sqnr: Mapping[int, float]) -> LayerError:
    tally, tensor = compared.tally, compared.value.tensor
    taken = min((sqnr[index] for index in compared.takes), default=math.inf)
    return LayerError(
        layer=compared.layer,
        kind=compared.kind,
        fused=compared.fused,
        tensor=tensor.name,
        operator=compared.value.operator,
        shape=tensor.shape,
        dtype=tensor.dtype,
        scale=tally.grid.scale if tally.grid else None,
        zero_point=tally.grid.zero_point if tally.grid else None,
        sqnr=tally.sqnr,
        fall=taken - tally.sqnr if math.isfinite(taken) else None,
        cosine=tally.cosine,
        mse=tally.mse,
        largest=tally.largest,
        largest_steps=tally.largest_steps,
        saturated=tally.saturated,
        clipped=tally.clipped,
        range_used=tally.range_used,
    )


def _format_percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
