"""Attention by matrix products, so that it is trained quantization-aware inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.rewrites.context import Parts

__all__ = ["MASKED", "additive_attention", "attention", "multi_head_attention"]

L = keras.layers
MASKED = -16.0
"""The score of a masked step. Keras adds -1e9, which would leave one int8 code for all other
scores; beside a score of 0 its share after the softmax is 1e-7, far below the step of 1/256."""


def multi_head_attention(
    parts: Parts,
    query: Any,
    value: Any,
    key: Any = None,
    attention_mask: Any = None,
    return_attention_scores: bool = False,
    training: Any = None,
    use_causal_mask: bool = False,
) -> Any:
    """MultiHeadAttention (Vaswani et al., arXiv 1706.03762) over one axis of sequences.

    Projections are 1 × 1 convolutions with a scale a channel; 1 / sqrt(key_dim) is in the query's.
    """
    del training
    layer = parts.source
    key = value if key is None else key
    if any(len(x.shape) != 3 for x in (query, value, key)) or len(layer._attention_axes or [1]) > 1:
        return NotImplemented
    heads, size = layer._num_heads, layer._key_dim
    scale = 1.0 / np.sqrt(size)
    q = _heads(parts, query, layer._query_dense, "query", scale)
    k = _heads(parts, key, layer._key_dense, "key")
    v = _heads(parts, value, layer._value_dense, "value")
    if use_causal_mask and None in (query.shape[1], key.shape[1]):
        return NotImplemented
    scores = parts.op(tf.linalg.matmul, "scores")(q, k, transpose_b=True)
    mask = _mask(parts, query, value, key, attention_mask, use_causal_mask)
    if mask is not None:
        scores = _masked(parts, scores, mask)
    weights = parts.layer(L.Softmax, "softmax")(scores)
    dropped = weights
    if layer._dropout:
        dropped = parts.layer(L.Dropout, "dropout", rate=layer._dropout)(weights)
    context = parts.op(tf.linalg.matmul, "context")(dropped, v)
    together = parts.layer(L.Permute, "steps_first", dims=(2, 1, 3))(context)
    steps = query.shape[1] or -1
    width = heads * v.shape[-1]
    joined = parts.layer(L.Reshape, "joined", target_shape=(1, steps, width))(together)
    kernel, *bias = layer._output_dense.get_weights()
    out = np.prod(kernel.shape[2:], dtype=int)
    if len(kernel.shape) != 3:
        return NotImplemented
    y = parts.layer(
        L.Conv2D,
        "row",
        weights=[kernel.reshape(1, 1, width, out), *bias],
        filters=out,
        kernel_size=1,
        use_bias=bool(bias),
    )(joined)
    output = parts.unrow(y, 3)
    return (output, weights) if return_attention_scores else output


def _heads(parts: Parts, x: Any, projection: Any, role: str, scale: float = 1.0) -> Any:
    """Returns x projected, shape (batch, heads, steps, size)."""
    kernel, *bias = projection.get_weights()
    channels, heads, size = kernel.shape
    y = parts.layer(
        L.Conv2D,
        role,
        weights=[
            (kernel * scale).reshape(1, 1, channels, heads * size),
            *((b * scale).ravel() for b in bias),
        ],
        filters=heads * size,
        kernel_size=1,
        use_bias=bool(bias),
    )(parts.row(x))
    steps = x.shape[1] or -1
    split = parts.layer(L.Reshape, f"{role}_heads", target_shape=(steps, heads, size))(y)
    return parts.layer(L.Permute, f"{role}_heads_first", dims=(2, 1, 3))(split)


def attention(parts: Parts, inputs: Any, **kwargs: Any) -> Any:
    """Attention (Luong-style): softmax(query · keyᵀ · scale) · value."""
    layer = parts.source
    if layer.score_mode != "dot" or layer.use_scale or not _is_plain(inputs, kwargs):
        return NotImplemented
    query, value, *rest = inputs
    key = rest[0] if rest else value
    scores = parts.op(tf.linalg.matmul, "scores")(query, key, transpose_b=True)
    return _context(parts, scores, query, value, causal=bool(kwargs.get("use_causal_mask")))


def additive_attention(parts: Parts, inputs: Any, **kwargs: Any) -> Any:
    """AdditiveAttention (Bahdanau et al., arXiv 1409.0473): scores Σ scale · tanh(query + key).

    The sum over the channels is a 1 × 1 convolution, whose kernel is the layer's scale.
    """
    layer = parts.source
    query, value, *rest = inputs
    key = rest[0] if rest else value
    if not _is_plain(inputs, kwargs) or None in (query.shape[1], key.shape[1]):
        return NotImplemented
    queries, steps, channels = query.shape[1], key.shape[1], query.shape[2]
    rows = parts.layer(L.Reshape, "rows", target_shape=(queries, 1, channels))(query)
    columns = parts.layer(L.Reshape, "columns", target_shape=(1, steps, channels))(key)
    pairs = parts.op(tf.math.tanh, "tanh")(parts.op(tf.math.add, "pairs")(rows, columns))
    scale = layer.scale.numpy() if layer.use_scale else np.ones(channels, np.float32)
    sums = parts.layer(
        L.Conv2D,
        "sums",
        weights=[scale.reshape(1, 1, channels, 1)],
        filters=1,
        kernel_size=1,
        use_bias=False,
        trainable=layer.use_scale,
    )(pairs)
    scores = parts.layer(L.Reshape, "scores", target_shape=(queries, steps))(sums)
    return _context(parts, scores, query, value, causal=bool(kwargs.get("use_causal_mask")))


def _is_plain(inputs: Any, kwargs: dict[str, Any]) -> bool:
    """Says whether an attention layer is called on sequences for its context alone."""
    asked = kwargs.get("return_attention_scores") or kwargs.get("mask") is not None
    if kwargs.get("use_causal_mask") and None in (inputs[0].shape[1], inputs[1].shape[1]):
        return False
    return not asked and all(len(x.shape) == 3 for x in inputs)


def _context(parts: Parts, scores: Any, query: Any, value: Any, *, causal: bool) -> Any:
    """Returns softmax(scores) · value, without masked values, and 0 for masked queries."""
    masks: list[Any] = []
    seen, asking = parts.mask(value), parts.mask(query)
    if seen is not None:
        masks.append(parts.layer(L.Reshape, "mask", target_shape=(1, seen.shape[1] or -1))(seen))
    if causal:
        masks.append(np.tril(np.ones((1, *scores.shape[1:]), bool)).tolist())
    if masks:
        scores = _masked(parts, scores, _all_of(parts, masks))
    weights = parts.layer(L.Softmax, "softmax")(scores)
    if parts.source.dropout:
        weights = parts.layer(L.Dropout, "dropout", rate=parts.source.dropout)(weights)
    if asking is None:
        return parts.op(tf.linalg.matmul)(weights, value)
    context = parts.op(tf.linalg.matmul, "context")(weights, value)
    column = parts.op(tf.expand_dims, "query_mask")(asking, axis=-1)
    return parts.op(tf.where)(column, context, 0.0)


def _mask(parts: Parts, query: Any, value: Any, key: Any, given: Any, causal: bool) -> Any:
    """Returns where a step may be seen, as booleans (batch or 1, 1, queries or 1, steps or 1)."""
    masks: list[Any] = []
    if given is not None:
        if given.dtype != tf.bool:
            given = parts.op(tf.cast, "given_mask")(given, "bool")
        if len(given.shape) == 3:
            given = parts.op(tf.expand_dims, "given_mask_heads")(given, axis=1)
        masks.append(given)
    seen = parts.mask(value)
    if seen is None:
        seen = parts.mask(key)
    if seen is not None:
        shape = (1, 1, seen.shape[1] or -1)
        masks.append(parts.layer(L.Reshape, "step_mask", target_shape=shape)(seen))
    asking = parts.mask(query)
    if asking is not None:  # Keras lets a masked step see all steps alike
        shape = (1, asking.shape[1] or -1, 1)
        masks.append(parts.layer(L.Reshape, "query_mask", target_shape=shape)(asking))
    if causal:
        masks.append(np.tril(np.ones((1, 1, query.shape[1], key.shape[1]), bool)).tolist())
    return _all_of(parts, masks) if masks else None


def _all_of(parts: Parts, masks: list[Any]) -> Any:
    mask = masks[0]
    for i, other in enumerate(masks[1:]):
        mask = parts.op(tf.math.logical_and, f"masks_{i}")(mask, other)
    return mask


def _masked(parts: Parts, scores: Any, mask: Any) -> Any:
    """Returns the scores, and the least of all where the mask is false."""
    if isinstance(mask, list):
        lowered = np.where(mask, 0.0, MASKED).astype(np.float32).tolist()
        return parts.op(tf.math.add, "masked")(scores, lowered)
    return parts.op(tf.where, "masked")(mask, scores, MASKED)
