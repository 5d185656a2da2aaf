"""Unrolls recurrent layers into steps: the converter puts no loop into an integer file.

Every step calls the same layers, so all steps share their ranges and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.rewrites import activations
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = ["rewrite_bidirectional", "rewrite_recurrent"]

L = keras.layers
_MERGES = {"concat": L.Concatenate, "sum": L.Add, "mul": L.Multiply, "ave": L.Average}


def rewrite_recurrent(parts: LayerParts, x: Any, initial_state: Any = None, **kwargs: Any) -> Any:
    """LSTM, GRU, SimpleRNN or RNN around one of their cells, over sequences of a fixed length.

    It begins from 0 or from given states.
    """
    if initial_state is not None or any(value is not None for value in kwargs.values()):
        return NotImplemented
    layer = parts.source
    # Keras puts states that are tensors of the graph behind the input.
    x, *begin = _as_list(x)
    found = _unroll(parts, x, begin)
    if found is NotImplemented:
        return NotImplemented
    steps, states = found
    if layer.return_sequences:
        output = parts.add_op(tf.stack)(steps, axis=1)
    else:
        # All steps share their layers, so the last output gets a layer with a name of its own.
        output = parts.add_layer(L.Identity)(steps[-1])
    return (output, *states) if layer.return_state else output


def rewrite_bidirectional(parts: LayerParts, x: Any, **kwargs: Any) -> Any:
    """Bidirectional around one of these: forwards, backwards, and both together."""
    source = parts.source
    if any(value is not None for value in kwargs.values()) or source.merge_mode not in _MERGES:
        return NotImplemented
    outputs = []
    x, *begin = _as_list(x)
    half = len(begin) // 2
    for layer, states in (
        (source.forward_layer, begin[:half]),
        (source.backward_layer, begin[half:]),
    ):
        if layer.return_state:
            return NotImplemented
        inner = replace(parts, source=layer)
        found = _unroll(inner, x, states)
        if found is NotImplemented:
            return NotImplemented
        steps, _ = found
        if not layer.return_sequences:
            outputs.append(steps[-1])
            continue
        in_order = steps[::-1] if layer.go_backwards else steps
        outputs.append(inner.add_op(tf.stack)(in_order, axis=1))
    return parts.add_layer(_MERGES[source.merge_mode])(outputs)


def _unroll(parts: LayerParts, x: Any, begin: Sequence[Any] = ()) -> Any:
    """Returns the outputs of all steps in the order of computation, and the last states.

    Args:
        parts: Builds the parts of the layer.
        x: The sequences, shape (batch, steps, channels).
        begin: The states before the first step, shape (batch, units) each; by default all 0.
    """
    layer = parts.source
    make_cell = _CELLS.get(type(getattr(layer, "cell", None)))
    if make_cell is None or layer.stateful or layer.time_major:
        return NotImplemented
    if len(x.shape) != 3 or x.shape[1] is None:
        return NotImplemented
    source, cell = layer.cell, make_cell(parts)
    rate = source.dropout
    inputs = parts.add_layer(L.Dropout, "dropout", rate=rate)(x) if rate else x
    kernel = source.kernel.numpy()
    projected = parts.add_pointwise(
        "inputs",
        [kernel[None, None], *([] if cell.bias is None else [cell.bias])],
        kernel_regularizer=source.kernel_regularizer,
    )(parts.as_row(inputs))
    count = x.shape[1]
    flat = parts.add_layer(L.Reshape, "steps", target_shape=(count, kernel.shape[-1]))(projected)
    given = _as_list(parts.add_op(tf.unstack, "step")(flat, axis=1))
    mask = parts.find_mask(x)
    masks = [None] * count if mask is None else _split_mask(parts, mask, count)
    if layer.go_backwards:
        given, masks = given[::-1], masks[::-1]
    states: Sequence[Any] | None = begin or None
    steps = []
    for values, seen in zip(given, masks, strict=True):
        after = cell.step(values, states)
        if seen is not None:
            # All states are 0 before the first step that is not masked.
            before = states or [0.0] * len(after)
            after = [
                parts.add_op(tf.where, f"kept_{i}" if states else f"begun_{i}")(seen, new, old)
                for i, (new, old) in enumerate(zip(after, before, strict=True))
            ]
        states = after
        steps.append(after[0])
    return steps, states


def _split_mask(parts: LayerParts, mask: Any, count: int) -> list[Any]:
    columns = parts.add_layer(L.Reshape, "mask_columns", target_shape=(count, 1))(mask)
    return _as_list(parts.add_op(tf.unstack, "mask_steps")(columns, axis=1))


def _as_list(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


@dataclass
class _Cell:
    """A recurrent cell.

    Attributes:
        step: Returns the new states from the projected input and the previous states, or None for
            states that are all 0.
        bias: The bias of the projected input.
    """

    step: Callable[[Any, Any], list[Any]]
    bias: np.ndarray | None


def _make_recurrence(
    parts: LayerParts, part: str, kernel: np.ndarray, bias: np.ndarray | None = None
) -> Callable[[Any], Any]:
    cell = parts.source.cell
    product = parts.add_layer(
        L.Dense,
        part,
        weights=[kernel, *([] if bias is None else [bias])],
        units=kernel.shape[-1],
        use_bias=bias is not None,
        kernel_regularizer=cell.recurrent_regularizer,
    )
    if not cell.recurrent_dropout:
        return product
    dropout = parts.add_layer(L.Dropout, f"{part}_dropout", rate=cell.recurrent_dropout)
    return lambda state: product(dropout(state))


def _activate(parts: LayerParts, function: Any, x: Any, part: str) -> Any:
    name = getattr(function, "__name__", "linear")
    return x if name == "linear" else activations.apply(parts, name, x, part)


def _make_lstm(parts: LayerParts) -> _Cell:
    """LSTM: c = f · c + i · g, h = o · tanh(c) (Hochreiter & Schmidhuber 1997)."""
    cell = parts.source.cell
    units = cell.units
    product = _make_recurrence(parts, "recurrent", cell.recurrent_kernel.numpy())

    def step(x: Any, states: Any) -> list[Any]:
        z = x if states is None else parts.add_op(tf.math.add, "gates")(x, product(states[0]))
        if states is None:
            # Slices: the converter leaves a split in float where one of its outputs is not used.
            i, g, o = (
                parts.add_op(tf.slice, f"first_{part}")(z, [0, place * units], [-1, units])
                for part, place in (("input", 0), ("candidate", 2), ("output", 3))
            )
        else:
            i, f, g, o = parts.add_op(tf.split, "gate")(z, 4, axis=-1)
        i = _activate(parts, cell.recurrent_activation, i, "input_gate")
        g = _activate(parts, cell.activation, g, "candidate")
        o = _activate(parts, cell.recurrent_activation, o, "output_gate")
        c = parts.add_op(tf.math.multiply, "new")(i, g)
        if states is not None:
            f = _activate(parts, cell.recurrent_activation, f, "forget_gate")
            kept = parts.add_op(tf.math.multiply, "old")(f, states[1])
            c = parts.add_op(tf.math.add, "carry")(kept, c)
        bounded = _activate(parts, cell.activation, c, "bounded")
        return [parts.add_op(tf.math.multiply, "hidden")(o, bounded), c]

    bias = cell.bias.numpy() if cell.use_bias else None
    return _Cell(step, bias)


def _make_gru(parts: LayerParts) -> _Cell:
    """GRU: h = z · h + (1 - z) · g (Cho et al., arXiv 1406.1078)."""
    cell = parts.source.cell
    units, kernel = cell.units, cell.recurrent_kernel.numpy()
    bias = cell.bias.numpy() if cell.use_bias else None
    add, multiply, subtract = tf.math.add, tf.math.multiply, tf.math.subtract
    late = np.zeros(units, np.float32)  # the part of the bias that the reset gate multiplies
    if cell.reset_after:
        if bias is not None:
            late = bias[1, 2 * units :]
            # The other two parts are added to those of the input in any case.
            bias = bias[0] + np.concatenate([bias[1, : 2 * units], np.zeros(units, np.float32)])
        held = np.concatenate([np.zeros(2 * units, np.float32), late])
        product = _make_recurrence(parts, "recurrent", kernel, None if bias is None else held)
    else:
        product = _make_recurrence(parts, "recurrent", kernel[:, : 2 * units])
        candidate = _make_recurrence(parts, "recurrent_candidate", kernel[:, 2 * units :])

    def step(x: Any, states: Any) -> list[Any]:
        if states is None:
            # Slices, as in an LSTM.
            z = parts.add_op(tf.slice, "x_update")(x, [0, 0], [-1, units])
            g = parts.add_op(tf.slice, "x_candidate")(x, [0, 2 * units], [-1, units])
            z = _activate(parts, cell.recurrent_activation, z, "update_gate")
            if late.any():
                r = parts.add_op(tf.slice, "x_reset")(x, [0, units], [-1, units])
                r = _activate(parts, cell.recurrent_activation, r, "reset_gate")
                g = parts.add_op(add, "new")(
                    g, parts.add_op(multiply, "first_reset")(r, late.tolist())
                )
            g = _activate(parts, cell.activation, g, "candidate")
            return [
                parts.add_op(subtract, "hidden_first")(g, parts.add_op(multiply, "first")(z, g))
            ]
        x_gates, x_new = parts.add_op(tf.split, "x")(x, [2 * units, units], axis=-1)
        (h,) = states
        if cell.reset_after:
            h_gates, h_new = parts.add_op(tf.split, "h")(product(h), [2 * units, units], axis=-1)
        else:
            h_gates, h_new = product(h), None
        gates = parts.add_op(add, "gates")(x_gates, h_gates)
        gates = _activate(parts, cell.recurrent_activation, gates, "gate")
        z, r = parts.add_op(tf.split, "zr")(gates, 2, axis=-1)
        if h_new is None:
            h_new = candidate(parts.add_op(multiply, "reset")(r, h))
        else:
            h_new = parts.add_op(multiply, "reset")(r, h_new)
        g = parts.add_op(add, "new")(x_new, h_new)
        g = _activate(parts, cell.activation, g, "candidate")
        # z · h + (1 - z) · g = g + z · (h - g)
        moved = parts.add_op(multiply, "kept")(z, parts.add_op(subtract, "moved")(h, g))
        return [parts.add_op(add, "hidden")(g, moved)]

    return _Cell(step, bias)


def _make_simple_rnn(parts: LayerParts) -> _Cell:
    """Elman's: h = tanh(x + h · U)."""
    cell = parts.source.cell
    product = _make_recurrence(parts, "recurrent", cell.recurrent_kernel.numpy())

    def step(x: Any, states: Any) -> list[Any]:
        z = x if states is None else parts.add_op(tf.math.add, "sum")(x, product(states[0]))
        return [_activate(parts, cell.activation, z, "hidden")]

    return _Cell(step, cell.bias.numpy() if cell.use_bias else None)


_CELLS = {L.LSTMCell: _make_lstm, L.GRUCell: _make_gru, L.SimpleRNNCell: _make_simple_rnn}
