"""Bias correction (Nagel et al., arXiv 1906.04721, section 4.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.progress import say
from kdtflite.quantization.graph import Call, calls, substitute
from kdtflite.quantization.inputs import input_batches
from kdtflite.quantization.layers import FakeQuantized
from kdtflite.quantization.ranges import ranged, rounding_off
from kdtflite.quantization.strip import is_quantization_aware

__all__ = ["BiasCorrection", "CorrectedBias", "check_calibrated", "correct_biases"]

Array = np.ndarray[Any, np.dtype[np.float64]]
# Tensors of a graph by id: each one's values, a batch an entry.
_Values = dict[int, list[tf.Tensor]]


@dataclass(frozen=True)
class CorrectedBias:
    """A layer whose mean output was brought back to that of the float model.

    Attributes:
        layer: Name of the layer whose rounding moved the mean.
        parameter: What was corrected: "bias", or the beta of the batch normalization after it.
        largest: The largest correction of a channel, in the unit of the layer's output.
    """

    layer: str
    parameter: str
    largest: float


@dataclass(frozen=True)
class BiasCorrection:
    """What `correct_biases` did.

    Attributes:
        corrected: The layers in the order in which they were corrected.
        left: Why each other layer with rounded weights was left as it is, by name.
    """

    corrected: tuple[CorrectedBias, ...]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values for JSON."""
        return {"corrected": [asdict(one) for one in self.corrected], "left": dict(self.left)}


def correct_biases(student: keras.Model, data: Any, *, samples: int = 256) -> BiasCorrection:
    """Takes from each bias what rounding adds to its layer's mean output. Changes `student`.

    Rounding a channel's few weights gives an error that does not average out over the samples:
    it moves the mean of the output. With y the layer's output before its activation in the float
    model and y_hat the same with rounded weights, on inputs rounded and corrected up to there,

        b_c ← b_c - (E[y_hat_c] - E[y_c])

    over samples and positions, a channel c at a time, layer by layer as the model computes
    (Nagel et al., arXiv 1906.04721, section 4.2 and appendix D, the empirical form). Where batch
    normalization follows, its beta is corrected, which the converter folds into the bias. The
    float values are those of the model as it comes: correct once, after the ranges are set, and
    before any training or instead of it.

    Args:
        student: What `quantize_aware` made of a float model, its ranges set. Its biases change.
        data: Samples as `kdtflite.data.representative` takes them; no labels are used.
        samples: The most of them to use. Memory grows with it: the largest activations are held
            of all samples, once in float and once rounded.

    Raises:
        UnsupportedModelError: The model holds no fake quantization of kdtflite's.
        ConfigurationError: Its ranges are not set, or `samples` is below 1.
        DataError: The data do not fit the model, or a layer's output is NaN or infinite.
    """
    check_calibrated(student)
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    walk = calls(student)
    targets, left = _targets(walk)
    batches = list(input_batches(student, data, limit=samples))
    exact, rounded = _inputs(student, batches), _inputs(student, batches)
    uses = Counter(id(tensor) for call in walk for tensor in call.inputs)
    corrected = []
    for call in walk:
        target = targets.get(id(call))
        if target is not None:
            name, parameter = target
            layer = call.layer
            with rounding_off(student):
                wanted = _mean(call, exact)
            change = _mean(call, rounded) - wanted
            if not np.isfinite(change).all():
                raise DataError(
                    f"The output of layer {name!r} is NaN or infinite on the data given. Expected "
                    "finite values: check the model's weights and the data's scaling."
                )
            largest = float(np.abs(change).max())
            corrected.append(CorrectedBias(name, parameter, largest))
        with rounding_off(student):
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
    correction = BiasCorrection(tuple(corrected), left)
    say(_said(student.name, correction))
    return correction


def check_calibrated(student: keras.Model) -> None:
    """Raises unless `student` is a quantization-aware model whose ranges are set."""
    if not isinstance(student, keras.Model) or not is_quantization_aware(student):
        name = getattr(student, "name", type(student).__name__)
        raise UnsupportedModelError(
            f"Expected a model from quantize_aware(). Received: {name!r}, which has no fake "
            "quantization."
        )
    unset = [
        layer.name.removeprefix("quant_")
        for layer in ranged(student)
        if layer.quantizer.range_of(layer.range) is None
    ]
    if unset:
        raise ConfigurationError(
            f"Expected a model whose activation ranges are set. Received: {student.name!r}, "
            f"without a range for {', '.join(unset[:4])}{', ...' if len(unset) > 4 else ''}. "
            "Pass representative_data to quantize_aware()."
        )


def _targets(walk: list[Call]) -> tuple[dict[int, tuple[str, str]], dict[str, str]]:
    """Returns of each call to correct the layer's and the parameter's name; and what is left."""
    times = Counter(id(call.layer) for call in walk)
    takers: dict[int, list[Call]] = {}
    for call in walk:
        for tensor in call.inputs:
            takers.setdefault(id(tensor), []).append(call)
    targets: dict[int, tuple[str, str]] = {}
    left = {}
    names: dict[int, str] = {}  # of the layer before a batch normalization
    for call in walk:
        layer = call.layer
        if isinstance(layer, FakeQuantized):
            name, has_bias = layer.layer.name, getattr(layer.layer, "bias", None) is not None
            norm = _norm_after(call, takers)
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


def _norm_after(call: Call, takers: dict[int, list[Call]]) -> Call | None:
    after = takers.get(id(call.outputs), [])
    if len(after) == 1 and isinstance(after[0].layer, keras.layers.BatchNormalization):
        return after[0]
    return None


def _inputs(model: keras.Model, batches: list[Any]) -> _Values:
    flat = [tf.nest.flatten(batch) for batch in batches]
    return {
        id(tensor): [tf.convert_to_tensor(batch[i]) for batch in flat]
        for i, tensor in enumerate(model.inputs)
    }


def _run(call: Call, values: _Values) -> None:
    """Adds the call's outputs to `values`."""
    outputs = _each(call, values, lambda args, kwargs: call.layer(*args, **kwargs))
    flat = [tf.nest.flatten(batch) for batch in outputs]
    for i, tensor in enumerate(tf.nest.flatten(call.outputs)):
        values[id(tensor)] = [batch[i] for batch in flat]


def _mean(call: Call, values: _Values) -> Array:
    """Returns the mean of each channel of the call's output before its activation."""
    layer = call.layer

    def sums(args: Any, kwargs: Any) -> Any:
        fake = isinstance(layer, FakeQuantized)
        output = layer.pre_activation(args[0]) if fake else layer(*args, **kwargs)
        channels = tf.reshape(tf.cast(output, tf.float64), [-1, output.shape[-1]])
        return tf.reduce_sum(channels, axis=0).numpy(), len(channels)

    totals, counts = zip(*_each(call, values, sums), strict=True)
    return np.asarray(np.sum(totals, axis=0) / np.sum(counts))


def _each(call: Call, values: _Values, of: Callable[[Any, Any], Any]) -> list[Any]:
    """Returns what `of` gives for the call's arguments with the values of each batch."""
    count = len(next(iter(values.values())))
    results = []
    for i in range(count):
        batch = {key: value[i] for key, value in values.items()}
        args, kwargs = substitute(call.args, batch), substitute(call.kwargs, batch)
        if call.layer._expects_training_arg and kwargs.get("training") is None:
            kwargs["training"] = False
        results.append(of(args, kwargs))
    return results


def _said(name: str, correction: BiasCorrection) -> str:
    left = "; ".join(f"{layer}: {why}" for layer, why in list(correction.left.items())[:8])
    more = f" Left as they are: {left}." if left else ""
    if not correction.corrected:
        return f"No bias of {name!r} was corrected.{more}"
    most = max(correction.corrected, key=lambda one: one.largest)
    return (
        f"Corrected the biases of {len(correction.corrected)} layers of {name!r}, most in "
        f"{most.layer}, by {most.largest:.3g}.{more}"
    )
