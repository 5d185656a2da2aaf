"""Recurrent layers step by step: the converter takes no loop into an integer file.

Every step calls the same layers, so the ranges of all steps are one, and the weights are held once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.rewrites import activations
from kdtflite.quantization.rewrites.context import Parts

__all__ = ["bidirectional", "recurrent"]

L = keras.layers
_KINDS = (L.LSTM, L.GRU, L.SimpleRNN)
_MERGES = {"concat": L.Concatenate, "sum": L.Add, "mul": L.Multiply, "ave": L.Average}


def recurrent(parts: Parts, x: Any, initial_state: Any = None, **kwargs: Any) -> Any:
    """LSTM, GRU or SimpleRNN over sequences of a fixed length."""
    if initial_state is not None or any(value is not None for value in kwargs.values()):
        return NotImplemented
    layer = parts.source
    found = _unrolled(parts, x)
    if found is NotImplemented:
        return NotImplemented
    steps, states = found
    if layer.return_sequences:
        output = parts.op(tf.stack)(steps, axis=1)
    else:
        # A name of its own for the last step's output, which all steps share.
        output = parts.layer(L.Identity)(steps[-1])
    return (output, *states) if layer.return_state else output


def bidirectional(parts: Parts, x: Any, **kwargs: Any) -> Any:
    """Bidirectional around one of those: forwards, backwards, and both together."""
    source = parts.source
    if any(value is not None for value in kwargs.values()) or source.merge_mode not in _MERGES:
        return NotImplemented
    outputs = []
    for layer in (source.forward_layer, source.backward_layer):
        if layer.return_state:
            return NotImplemented
        inner = replace(parts, source=layer)
        found = _unrolled(inner, x)
        if found is NotImplemented:
            return NotImplemented
        steps, _ = found
        if not layer.return_sequences:
            outputs.append(steps[-1])
            continue
        in_order = steps[::-1] if layer.go_backwards else steps
        outputs.append(inner.op(tf.stack)(in_order, axis=1))
    return parts.layer(_MERGES[source.merge_mode])(outputs)


def _unrolled(parts: Parts, x: Any) -> Any:
    """Returns the outputs of all steps in the order of work, and the last states."""
    layer = parts.source
    if type(layer) not in _KINDS or layer.stateful or len(x.shape) != 3 or x.shape[1] is None:
        return NotImplemented
    cell = _CELLS[type(layer)](parts)
    inputs = parts.layer(L.Dropout, "dropout", rate=layer.dropout)(x) if layer.dropout else x
    kernel = layer.cell.kernel.numpy()
    projected = parts.layer(
        L.Conv2D,
        "inputs",
        weights=[kernel[None, None], *([] if cell.bias is None else [cell.bias])],
        filters=kernel.shape[-1],
        kernel_size=1,
        use_bias=cell.bias is not None,
        kernel_regularizer=layer.kernel_regularizer,
    )(parts.row(inputs))
    count = x.shape[1]
    flat = parts.layer(L.Reshape, "steps", target_shape=(count, kernel.shape[-1]))(projected)
    given = _list(parts.op(tf.unstack, "step")(flat, axis=1))
    mask = parts.mask(x)
    masks = [None] * count if mask is None else _masks(parts, mask, count)
    if layer.go_backwards:
        given, masks = given[::-1], masks[::-1]
    states: Sequence[Any] | None = None
    steps = []
    for values, seen in zip(given, masks, strict=True):
        after = cell.step(values, states)
        if seen is not None:
            # Before the first step that is seen all states are 0.
            before = states or [0.0] * len(after)
            after = [
                parts.op(tf.where, f"kept_{i}" if states else f"begun_{i}")(seen, new, old)
                for i, (new, old) in enumerate(zip(after, before, strict=True))
            ]
        states = after
        steps.append(after[0])
    return steps, states


def _masks(parts: Parts, mask: Any, count: int) -> list[Any]:
    columns = parts.layer(L.Reshape, "mask_columns", target_shape=(count, 1))(mask)
    return _list(parts.op(tf.unstack, "mask_steps")(columns, axis=1))


def _list(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


@dataclass
class _Cell:
    """One step: what the projected input and the states before (None: all 0) make of the states."""

    step: Callable[[Any, Any], list[Any]]
    bias: np.ndarray | None


def _recurrence(
    parts: Parts, part: str, kernel: np.ndarray, bias: np.ndarray | None = None
) -> Callable[[Any], Any]:
    layer = parts.source
    product = parts.layer(
        L.Dense,
        part,
        weights=[kernel, *([] if bias is None else [bias])],
        units=kernel.shape[-1],
        use_bias=bias is not None,
        kernel_regularizer=layer.recurrent_regularizer,
    )
    if not layer.recurrent_dropout:
        return product
    dropout = parts.layer(L.Dropout, f"{part}_dropout", rate=layer.recurrent_dropout)
    return lambda state: product(dropout(state))


def _apply(parts: Parts, function: Any, x: Any, part: str) -> Any:
    name = getattr(function, "__name__", "linear")
    return x if name == "linear" else activations.apply(parts, name, x, part)


def _lstm(parts: Parts) -> _Cell:
    """LSTM: c = f · c + i · g, h = o · tanh(c) (Hochreiter & Schmidhuber 1997)."""
    layer, cell = parts.source, parts.source.cell
    product = _recurrence(parts, "recurrent", cell.recurrent_kernel.numpy())

    def step(x: Any, states: Any) -> list[Any]:
        z = x if states is None else parts.op(tf.math.add, "gates")(x, product(states[0]))
        i, f, g, o = parts.op(tf.split, "gate")(z, 4, axis=-1)
        i = _apply(parts, layer.recurrent_activation, i, "input_gate")
        g = _apply(parts, layer.activation, g, "candidate")
        o = _apply(parts, layer.recurrent_activation, o, "output_gate")
        c = parts.op(tf.math.multiply, "new")(i, g)
        if states is not None:
            f = _apply(parts, layer.recurrent_activation, f, "forget_gate")
            kept = parts.op(tf.math.multiply, "old")(f, states[1])
            c = parts.op(tf.math.add, "carry")(kept, c)
        bounded = _apply(parts, layer.activation, c, "bounded")
        return [parts.op(tf.math.multiply, "hidden")(o, bounded), c]

    bias = cell.bias.numpy() if layer.use_bias else None
    return _Cell(step, bias)


def _gru(parts: Parts) -> _Cell:
    """GRU: h = z · h + (1 - z) · g (Cho et al., arXiv 1406.1078)."""
    layer, cell = parts.source, parts.source.cell
    units, kernel = layer.units, parts.source.cell.recurrent_kernel.numpy()
    bias = cell.bias.numpy() if layer.use_bias else None
    add, multiply, subtract = tf.math.add, tf.math.multiply, tf.math.subtract
    late = np.zeros(units, np.float32)  # the bias that the reset gate multiplies
    if layer.reset_after:
        if bias is not None:
            late = bias[1, 2 * units :]
            # The other two are added to the input's anyway.
            bias = bias[0] + np.concatenate([bias[1, : 2 * units], np.zeros(units, np.float32)])
        held = np.concatenate([np.zeros(2 * units, np.float32), late])
        product = _recurrence(parts, "recurrent", kernel, None if bias is None else held)
    else:
        product = _recurrence(parts, "recurrent", kernel[:, : 2 * units])
        candidate = _recurrence(parts, "recurrent_candidate", kernel[:, 2 * units :])

    def step(x: Any, states: Any) -> list[Any]:
        if states is None:
            # Slices: the converter leaves a split in float where one of its outputs is not used.
            z = parts.op(tf.slice, "x_update")(x, [0, 0], [-1, units])
            g = parts.op(tf.slice, "x_candidate")(x, [0, 2 * units], [-1, units])
            z = _apply(parts, layer.recurrent_activation, z, "update_gate")
            if late.any():
                r = parts.op(tf.slice, "x_reset")(x, [0, units], [-1, units])
                r = _apply(parts, layer.recurrent_activation, r, "reset_gate")
                g = parts.op(add, "new")(g, parts.op(multiply, "first_reset")(r, late.tolist()))
            g = _apply(parts, layer.activation, g, "candidate")
            return [parts.op(subtract, "hidden_first")(g, parts.op(multiply, "first")(z, g))]
        x_gates, x_new = parts.op(tf.split, "x")(x, [2 * units, units], axis=-1)
        (h,) = states
        if layer.reset_after:
            h_gates, h_new = parts.op(tf.split, "h")(product(h), [2 * units, units], axis=-1)
        else:
            h_gates, h_new = product(h), None
        gates = parts.op(add, "gates")(x_gates, h_gates)
        gates = _apply(parts, layer.recurrent_activation, gates, "gate")
        z, r = parts.op(tf.split, "zr")(gates, 2, axis=-1)
        if h_new is None:
            h_new = candidate(parts.op(multiply, "reset")(r, h))
        else:
            h_new = parts.op(multiply, "reset")(r, h_new)
        g = parts.op(add, "new")(x_new, h_new)
        g = _apply(parts, layer.activation, g, "candidate")
        # z · h + (1 - z) · g = g + z · (h - g)
        moved = parts.op(multiply, "kept")(z, parts.op(subtract, "moved")(h, g))
        return [parts.op(add, "hidden")(g, moved)]

    return _Cell(step, bias)


def _simple(parts: Parts) -> _Cell:
    """Elman's: h = tanh(x + h · U)."""
    layer, cell = parts.source, parts.source.cell
    product = _recurrence(parts, "recurrent", cell.recurrent_kernel.numpy())

    def step(x: Any, states: Any) -> list[Any]:
        z = x if states is None else parts.op(tf.math.add, "sum")(x, product(states[0]))
        return [_apply(parts, layer.activation, z, "hidden")]

    return _Cell(step, cell.bias.numpy() if layer.use_bias else None)


_CELLS = {L.LSTM: _lstm, L.GRU: _gru, L.SimpleRNN: _simple}
