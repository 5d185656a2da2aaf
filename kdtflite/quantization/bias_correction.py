"""Bias correction (Nagel et al., arXiv 1906.04721, section 4.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from rich.text import Text

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.keras_internals import expects_training
from kdtflite.models.layer_names import strip_prefix
from kdtflite.progress import say
from kdtflite.quantization.graph import Call, list_calls, substitute
from kdtflite.quantization.inputs import batch_inputs
from kdtflite.quantization.layers import FakeQuantized
from kdtflite.quantization.ranges import list_ranged_layers, suspend_rounding
from kdtflite.quantization.stripping import is_quantization_aware
from kdtflite.results import Axes, Result, Table, make_table, plot_bars

__all__ = ["BiasCorrection", "CorrectedBias", "check_calibrated", "correct_biases"]

Array = np.ndarray[Any, np.dtype[np.float64]]
# The values of each tensor of a graph, one entry per batch, by the tensor's id.
_Values = dict[int, list[tf.Tensor]]


@dataclass(frozen=True)
class CorrectedBias:
    """A layer whose mean output was brought back to that of the float model.

    Attributes:
        layer: Name of the layer whose rounding moved the mean.
        parameter: The corrected weight: "bias", or the beta of the batch normalization after it.
        largest: The largest correction of a channel, in the unit of the layer's output.
    """

    layer: str
    parameter: str
    largest: float


@dataclass(frozen=True)
class BiasCorrection(Result):
    """What `correct_biases` did.

    Attributes:
        corrected: The layers in the order in which they were corrected.
        left: The reason why each other layer with rounded weights was left as it is, by name.
        model: Name of the model.
    """

    corrected: tuple[CorrectedBias, ...]
    left: dict[str, str]
    model: str = field(default="model", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the corrections as plain values for JSON."""
        return {"corrected": [asdict(one) for one in self.corrected], "left": dict(self.left)}

    def to_table(self) -> Table:
        """Returns the corrections as a rich table with one row per layer."""
        rows = [(Text(one.layer), one.parameter, f"{one.largest:.3g}") for one in self.corrected]
        left = [(Text(layer), f"no: {why}") for layer, why in self.left.items()]
        return make_table(
            [*rows, *left], text=("layer", "corrected"), numbers=["largest correction"]
        )

    def summary(self) -> str:
        """Returns how many biases were corrected, and which layers were left, in one line."""
        left = "; ".join(f"{layer}: {why}" for layer, why in list(self.left.items())[:8])
        more = f" Left as they are: {left}." if left else ""
        if not self.corrected:
            return f"No bias of {self.model!r} was corrected.{more}"
        most = max(self.corrected, key=lambda one: one.largest)
        return (
            f"Corrected the biases of {len(self.corrected)} layers of {self.model!r}, most in "
            f"{most.layer}, by {most.largest:.3g}.{more}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the largest correction of each layer as bars, in the model's order.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        return plot_bars(
            [(one.layer, one.largest) for one in self.corrected], "Largest correction", ax
        )


@check_arguments
def correct_biases(model: Any, data: Any, *, samples: int = 256) -> BiasCorrection:
    """Subtracts from each bias what rounding adds to its layer's mean output. Changes `model`.

    Rounding the few weights of a channel causes an error that does not average out over the
    samples: it moves the mean of the output. With y the layer's output before its activation in
    the float model, and y_hat the same with rounded weights, on inputs that are rounded and
    corrected up to there,

        b_c ← b_c - (E[y_hat_c] - E[y_c])

    over samples and positions, for each channel c, layer by layer as the model computes
    (Nagel et al., arXiv 1906.04721, section 4.2 and appendix D, the empirical form). Where batch
    normalization follows, its beta is corrected, which the converter folds into the bias. The
    float values are those of the model as it is passed: correct once, after the ranges are set,
    and before any training or instead of it.

    Args:
        model: A model from `quantize_aware`, its ranges set. Its biases change.
        data: Samples as `kdtflite.data.take_samples` takes them, without labels.
        samples: The largest number of samples to use. It determines the memory needed: the
            largest activations are kept for all samples, once in float and once rounded.

    Raises:
        UnsupportedModelError: The model has no fake quantization.
        ConfigurationError: Its ranges are not set, or `samples` is below 1.
        DataError: The data do not fit the model, or a layer's output is NaN or infinite.

    Example:
        >>> import kdtflite
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])
        >>> x = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
        >>> student = kdtflite.quantize_aware(model, x)
        >>> correction = kdtflite.quantization.correct_biases(student, x)
        >>> [one.layer for one in correction.corrected]
        ['dense']
    """
    model = as_tf_keras(model)
    check_calibrated(model)
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    calls = list_calls(model)
    targets, left = _find_targets(calls)
    batches = list(batch_inputs(model, data, limit=samples))
    exact, rounded = _as_values(model, batches), _as_values(model, batches)
    uses = Counter(id(tensor) for call in calls for tensor in call.inputs)
    corrected = []
    for call in calls:
        target = targets.get(id(call))
        if target is not None:
            name, parameter = target
            layer = call.layer
            with suspend_rounding(model):
                wanted = _compute_mean(call, exact)
            change = _compute_mean(call, rounded) - wanted
            if not np.isfinite(change).all():
                raise DataError(
                    f"The output of layer {name!r} is NaN or infinite on the data. Expected finite "
                    "values: check the model's weights and the data's scaling."
                )
            largest = float(np.abs(change).max())
            corrected.append(CorrectedBias(name, parameter, largest))
        with suspend_rounding(model):
            _run(call, exact)
        if target is not None:
            inner = layer.layer if isinstance(layer, FakeQuantized) else layer
            variable = inner.bias if parameter == "bias" else inner.beta
            variable.assign(variable.numpy() - change)
        _run(call, rounded)
        uses.subtract(id(tensor) for tensor in call.inputs)
        for tensor in call.inputs:
            if not uses[id(tensor)]:
                exact.pop(id(tensor), None)
                rounded.pop(id(tensor), None)
    correction = BiasCorrection(tuple(corrected), left, model.name)
    say(correction.summary())
    return correction


def check_calibrated(model: keras.Model) -> None:
    """Raises an error unless `model` is quantization-aware and its ranges are set."""
    if not is_quantization_aware(model):
        raise UnsupportedModelError(
            f"Expected a model from quantize_aware(). Received: {model.name!r}, which has no fake "
            "quantization."
        )
    unset = [
        strip_prefix(layer.name)
        for layer in list_ranged_layers(model)
        if layer.quantizer.read_range(layer.range) is None
    ]
    if unset:
        raise ConfigurationError(
            f"Expected a model whose activation ranges are set. Received: {model.name!r}, "
            f"without a range for {', '.join(unset[:4])}{', ...' if len(unset) > 4 else ''}. "
            "Pass representative_data to quantize_aware(), or call "
            "model.quantization.calibrate(batches)."
        )


def _find_targets(calls: list[Call]) -> tuple[dict[int, tuple[str, str]], dict[str, str]]:
    """Returns the layer's and the parameter's name for each call to correct, and what is left."""
    times = Counter(id(call.layer) for call in calls)
    takers: dict[int, list[Call]] = {}
    for call in calls:
        for tensor in call.inputs:
            takers.setdefault(id(tensor), []).append(call)
    targets: dict[int, tuple[str, str]] = {}
    left = {}
    names: dict[int, str] = {}  # of the layer before a batch normalization
    for call in calls:
        layer = call.layer
        if isinstance(layer, FakeQuantized):
            name, has_bias = layer.layer.name, getattr(layer.layer, "bias", None) is not None
            norm = _find_norm_after(call, takers)
            if times[id(layer)] > 1:
                left[name] = "it is called more than once: one bias serves all calls"
            elif norm is not None and norm.layer.center and times[id(norm.layer)] == 1:
                names[id(norm)] = name
            elif has_bias:
                targets[id(call)] = (name, "bias")
            else:
                left[name] = "it has no bias"
        elif (
            isinstance(layer, keras.layers.BatchNormalization)
            and layer.center
            and times[id(layer)] == 1
            and list(layer.axis) == [len(call.outputs.shape) - 1]
        ):
            before = names.get(id(call), layer.name)
            targets[id(call)] = (before, f"beta of {layer.name}")
    return targets, left


def _find_norm_after(call: Call, takers: dict[int, list[Call]]) -> Call | None:
    after = takers.get(id(call.outputs), [])
    if len(after) == 1 and isinstance(after[0].layer, keras.layers.BatchNormalization):
        return after[0]
    return None


def _as_values(model: keras.Model, batches: list[Any]) -> _Values:
    flat = [tf.nest.flatten(batch) for batch in batches]
    return {
        id(tensor): [tf.convert_to_tensor(batch[i]) for batch in flat]
        for i, tensor in enumerate(model.inputs)
    }


def _run(call: Call, values: _Values) -> None:
    """Adds the call's outputs to `values`."""
    outputs = _map_batches(call, values, lambda args, kwargs: call.layer(*args, **kwargs))
    flat = [tf.nest.flatten(batch) for batch in outputs]
    for i, tensor in enumerate(tf.nest.flatten(call.outputs)):
        values[id(tensor)] = [batch[i] for batch in flat]


def _compute_mean(call: Call, values: _Values) -> Array:
    """Returns the mean of each channel of the call's output before its activation."""
    layer = call.layer

    def sum_channels(args: Any, kwargs: Any) -> Any:
        fake = isinstance(layer, FakeQuantized)
        output = layer.compute_pre_activation(args[0]) if fake else layer(*args, **kwargs)
        channels = tf.reshape(tf.cast(output, tf.float64), [-1, output.shape[-1]])
        return tf.reduce_sum(channels, axis=0).numpy(), len(channels)

    totals, counts = zip(*_map_batches(call, values, sum_channels), strict=True)
    return np.asarray(np.sum(totals, axis=0) / np.sum(counts))


def _map_batches(call: Call, values: _Values, function: Callable[[Any, Any], Any]) -> list[Any]:
    """Returns `function(args, kwargs)` of the call with the values of each batch."""
    count = len(next(iter(values.values())))
    results = []
    for i in range(count):
        batch = {key: value[i] for key, value in values.items()}
        args, kwargs = substitute(call.args, batch), substitute(call.kwargs, batch)
        if expects_training(call.layer) and kwargs.get("training") is None:
            kwargs["training"] = False
        results.append(function(args, kwargs))
    return results
