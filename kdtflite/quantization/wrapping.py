"""Puts fake quantization around each layer of a rewritten model, as the integer kernels compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.layer_names import add_prefix
from kdtflite.quantization.graph import Call, build_like, is_symbolic, list_calls, substitute
from kdtflite.quantization.kernels import GRIDS, Kernel, find_kernel, get_operation
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized, FoldedBatchNormalization
from kdtflite.quantization.operands import list_nonzero_operands
from kdtflite.quantization.quantizers import (
    ActivationQuantizer,
    FixedQuantizer,
    LearnedQuantizer,
    LearnedWeightQuantizer,
    WeightQuantizer,
)
from kdtflite.quantization.rewrites.activations import RELUS, get_activation_name

__all__ = ["is_known", "wrap"]

L = keras.layers


def is_known(layer: keras.layers.Layer) -> bool:
    """Whether an integer kernel computes a layer as it stands."""
    kernel = find_kernel(layer)
    return kernel is not None and kernel.output is not None


def wrap(model: keras.Model, *, ranges: str = "moving", weight_bits: int = 8) -> keras.Model:
    """Returns the model with fake quantization of its inputs, weights and activations.

    Args:
        model: A model from `rewrite`. It is not changed.
        ranges: "moving" (activation ranges follow the batches in training), "fixed" (they stay
            where calibration puts them), or "learned" (scales of activations and weights train).
        weight_bits: 8, or 4 for the weights whose kernels take four bits.
    """
    plans, nonzero_inputs = _plan(model, ranges, weight_bits)
    clones: dict[int, Any] = {}
    rounders: dict[int, Any] = {}

    def build(source: keras.Model, tensors: dict[int, Any]) -> None:
        for old, name in zip(source.inputs, source.input_names, strict=True):
            if old.dtype.is_floating:
                quantizer = _make_quantizer(ranges, nonzero=id(old) in nonzero_inputs)
                rounder = FakeQuantize(quantizer, name=add_prefix(name))
                tensors[id(old)] = rounder(tensors[id(old)])
        for call, plan in plans:
            layer = call.layer
            args, kwargs = substitute(call.args, tensors), substitute(call.kwargs, tensors)
            is_new = id(layer) not in clones
            if is_new:
                clones[id(layer)] = _clone(layer)
                if plan.weights:
                    clones[id(layer)] = FakeQuantized(
                        clones[id(layer)],
                        plan.weights,
                        plan.output,
                        name=add_prefix(layer.name),
                        # SavedModels set it on all that is inside.
                        trainable=layer.trainable,
                    )
            outputs = clones[id(layer)](*args, **kwargs)
            if is_new and layer.weights:
                _copy_weights(layer, clones[id(layer)])
            if plan.output is not None and not plan.weights:
                if id(layer) not in rounders:
                    rounders[id(layer)] = FakeQuantize(plan.output, name=add_prefix(layer.name))
                outputs = rounders[id(layer)](outputs)
            for before, after in zip(
                tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True
            ):
                tensors[id(before)] = after

    return build_like(model, build)


def _clone(layer: Any) -> Any:
    kind = FoldedBatchNormalization if type(layer) is L.BatchNormalization else type(layer)
    return kind.from_config(layer.get_config())


def _copy_weights(source: Any, target: Any) -> None:
    if not isinstance(target, FakeQuantized):
        target.set_weights(source.get_weights())
        return
    target.layer.set_weights(source.get_weights())
    for name, quantizer in target.weight_quantizers.items():
        quantizer.set_from(getattr(target.layer, name), target.weight_ranges[name])


def _make_quantizer(ranges: str, non_negative: bool = False, nonzero: bool = False) -> Any:
    if ranges == "learned":
        return LearnedQuantizer(non_negative=non_negative, nonzero=nonzero)
    return ActivationQuantizer(
        moving=ranges == "moving", non_negative=non_negative, nonzero=nonzero
    )


@dataclass
class _Plan:
    weights: dict[str, WeightQuantizer]
    output: Any


def _make_weight_quantizers(
    kernel: Kernel, ranges: str, weight_bits: int
) -> dict[str, WeightQuantizer]:
    bits = weight_bits if kernel.int4 else 8
    # With 15 levels it matters which weights are clipped: those scales are always learned.
    learns = ranges == "learned" or bits < 8
    kind = LearnedWeightQuantizer if learns else WeightQuantizer
    return {name: kind(axes, bits) for name, axes in kernel.weights.items()}


def _plan(
    model: keras.Model, ranges: str, weight_bits: int
) -> tuple[list[tuple[Call, _Plan]], set[int]]:
    """Decides what is rounded in each call; returns also the ids of inputs that may not be 0."""
    calls = list_calls(model)
    users: dict[int, list[Call | None]] = {}
    for call in calls:
        for tensor in call.inputs:
            users.setdefault(id(tensor), []).append(call)
    for tensor in tf.nest.flatten(model.outputs):
        users.setdefault(id(tensor), []).append(None)
    plans = {}
    for call in calls:
        kernel = find_kernel(call.layer) or Kernel()
        weights = _make_weight_quantizers(kernel, ranges, weight_bits)
        plans[id(call)] = _Plan(weights, _make_output_quantizer(call, kernel, users, ranges))
    by_output = {id(t): call for call in calls for t in tf.nest.flatten(call.outputs)}
    for call in calls:
        if not _joins_inputs(call):
            continue
        # The inputs of a concatenation share its scale. A tensor that goes nowhere else is not
        # rounded before it, or it would be rounded twice.
        for tensor in call.inputs:
            before = by_output.get(id(tensor))
            if before is not None and len(users[id(tensor)]) == 1:
                plan = plans[id(before)]
                if isinstance(plan.output, ActivationQuantizer | LearnedQuantizer):
                    plan.output = None
    planned = [(call, plans[id(call)]) for call in calls]
    _mark_heads(planned, users)
    return planned, _mark_nonzero(planned, by_output)


def _mark_heads(planned: list[tuple[Call, _Plan]], users: dict[int, list[Call | None]]) -> None:
    """Marks the probabilities that no other layer takes, only the loss."""

    def ends(tensor: Any) -> bool:
        return all(
            call is None
            or (
                (find_kernel(call.layer) or Kernel()).output == "input"
                and all(ends(output) for output in tf.nest.flatten(call.outputs))
            )
            for call in users.get(id(tensor), ())
        )

    inside = {id(call.layer) for call, _ in planned if not all(map(ends, _flatten_outputs(call)))}
    for call, plan in planned:
        # tanh is no probability: no loss takes its logarithm.
        if isinstance(plan.output, FixedQuantizer) and plan.output.low >= 0.0:
            plan.output.head = id(call.layer) not in inside


def _mark_nonzero(planned: list[tuple[Call, _Plan]], by_output: dict[int, Call]) -> set[int]:
    """Marks the values whose root, logarithm or inverse is taken; returns the inputs among them."""
    # All calls of a layer share the quantizer of the first.
    by_layer: dict[int, _Plan] = {}
    for call, plan in planned:
        by_layer.setdefault(id(call.layer), plan)
    inputs = set()
    for call, _ in planned:
        for tensor in list_nonzero_operands(call):
            before = by_output.get(id(tensor))
            # Back to where the value was rounded.
            while before is not None and by_layer[id(before.layer)].output is None:
                tensor = before.inputs[0] if before.inputs else tensor
                before = by_output.get(id(tensor)) if before.inputs else None
            if before is None:
                inputs.add(id(tensor))
            else:
                by_layer[id(before.layer)].output.nonzero = True
    return inputs


def _flatten_outputs(call: Call) -> list[Any]:
    return [tensor for tensor in tf.nest.flatten(call.outputs) if is_symbolic(tensor)]


def _make_output_quantizer(
    call: Call, kernel: Kernel, users: dict[int, list[Call | None]], ranges: str
) -> Any:
    """Returns the quantizer of a call's output, or None where it needs none."""
    layer, output = call.layer, call.outputs
    if not is_symbolic(output) or not output.dtype.is_floating:
        return None
    if kernel.clips and len(call.inputs) == 1:
        return None
    if kernel.output in ("input", "weights"):
        return None
    if kernel.output is None:
        # The output of an unknown layer is rounded: otherwise the converter may fold one of its
        # constants into the rounded weights that follow.
        return _make_quantizer(ranges)
    activation = get_activation_name(layer)
    grid = kernel.grid or GRIDS.get(activation)
    if grid is not None:
        return FixedQuantizer(*grid)
    after = users.get(id(output), [])
    if len(after) == 1 and after[0] is not None:
        follower = after[0].layer
        if kernel.folds_batch_norm and type(follower) is L.BatchNormalization:
            return None
        if kernel.fuses_relu and activation == "linear" and _is_relu(follower):
            return None
    return _make_quantizer(ranges, non_negative=_is_relu(layer) or activation in RELUS)


def _joins_inputs(call: Call) -> bool:
    """Whether a call's inputs must have one scale, that of its output."""
    kernel = find_kernel(call.layer)
    if kernel is None or not kernel.joins_inputs:
        return False
    return get_operation(call.layer) is None or len(call.inputs) > 1


def _is_relu(layer: Any) -> bool:
    operation = get_operation(layer)
    if operation is not None:
        return operation in RELUS
    if type(layer) is L.Activation:
        return get_activation_name(layer) in RELUS
    return (
        type(layer) is L.ReLU
        and not layer.negative_slope
        and not layer.threshold
        and layer.max_value in (None, 6.0)
    )
