"""Rewrites attention into matrix products, so that its parts train quantization-aware."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import unpack_attention
from kdtflite.models.layer_names import name_image
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = [
    "MASKED",
    "rewrite_additive_attention",
    "rewrite_attention",
    "rewrite_multi_head_attention",
]

L = keras.layers
MASKED = -16.0
"""The score of a masked step. Keras adds -1e9, which would leave one int8 code for all other
scores. Next to a score of 0, the softmax of -16 is 1e-7, far below a step of 1/256."""


def rewrite_multi_head_attention(
    parts: LayerParts,
    query: Any,
    value: Any,
    key: Any = None,
    attention_mask: Any = None,
    return_attention_scores: bool = False,
    training: Any = None,
    use_causal_mask: bool = False,
) -> Any:
    """MultiHeadAttention (Vaswani et al., arXiv 1706.03762) over one axis of sequences.

    Projections are 1 × 1 convolutions with one scale per channel. That of the query includes the
    factor 1 / sqrt(key_dim).
    """
    del training
    layer = unpack_attention(parts.source)
    key = value if key is None else key
    if any(len(x.shape) != 3 for x in (query, value, key)) or len(layer.axes or [1]) > 1:
        return NotImplemented
    scale = 1.0 / np.sqrt(layer.key_dim)
    q = _project_heads(parts, query, layer.query, "query", scale)
    k = _project_heads(parts, key, layer.key, "key")
    v = _project_heads(parts, value, layer.value, "value")
    if use_causal_mask and None in (query.shape[1], key.shape[1]):
        return NotImplemented
    scores = parts.add_op(tf.linalg.matmul, "scores")(q, k, transpose_b=True)
    mask = _combine_masks(parts, query, value, key, attention_mask, use_causal_mask)
    if mask is not None:
        scores = _mask_scores(parts, scores, mask)
    weights = parts.add_layer(L.Softmax, "softmax")(scores)
    dropped = weights
    if layer.dropout:
        dropped = parts.add_layer(L.Dropout, "dropout", rate=layer.dropout)(weights)
    context = parts.add_op(tf.linalg.matmul, "context")(dropped, v)
    together = parts.add_layer(L.Permute, "steps_first", dims=(2, 1, 3))(context)
    steps = query.shape[1] or -1
    width = layer.heads * v.shape[-1]
    joined = parts.add_layer(L.Reshape, "joined", target_shape=(1, steps, width))(together)
    kernel, *bias = layer.output.get_weights()
    if len(kernel.shape) != 3:
        return NotImplemented
    kernel = kernel.reshape(1, 1, width, kernel.shape[2])
    y = parts.add_pointwise(name_image(3), [kernel, *bias])(joined)
    output = parts.from_row(y, 3)
    return (output, weights) if return_attention_scores else output


def _project_heads(
    parts: LayerParts, x: Any, projection: Any, role: str, scale: float = 1.0
) -> Any:
    """Returns x projected, shape (batch, heads, steps, size)."""
    kernel, *bias = projection.get_weights()
    channels, heads, size = kernel.shape
    weights = [
        (kernel * scale).reshape(1, 1, channels, heads * size),
        *((b * scale).ravel() for b in bias),
    ]
    y = parts.add_pointwise(role, weights)(parts.as_row(x))
    steps = x.shape[1] or -1
    split = parts.add_layer(L.Reshape, f"{role}_heads", target_shape=(steps, heads, size))(y)
    return parts.add_layer(L.Permute, f"{role}_heads_first", dims=(2, 1, 3))(split)


def rewrite_attention(parts: LayerParts, inputs: Any, **kwargs: Any) -> Any:
    """Attention (Luong-style): softmax(query · keyᵀ · scale) · value."""
    layer = parts.source
    if layer.score_mode != "dot" or layer.use_scale or not _is_plain(inputs, kwargs):
        return NotImplemented
    query, value, *rest = inputs
    key = rest[0] if rest else value
    scores = parts.add_op(tf.linalg.matmul, "scores")(query, key, transpose_b=True)
    return _compute_context(parts, scores, query, value, causal=bool(kwargs.get("use_causal_mask")))


def rewrite_additive_attention(parts: LayerParts, inputs: Any, **kwargs: Any) -> Any:
    """AdditiveAttention (Bahdanau et al., arXiv 1409.0473): scores Σ scale · tanh(query + key).

    The sum over the channels is a 1 × 1 convolution, whose kernel is the layer's scale.
    """
    layer = parts.source
    query, value, *rest = inputs
    key = rest[0] if rest else value
    if not _is_plain(inputs, kwargs) or None in (query.shape[1], key.shape[1]):
        return NotImplemented
    queries, steps, channels = query.shape[1], key.shape[1], query.shape[2]
    rows = parts.add_layer(L.Reshape, "rows", target_shape=(queries, 1, channels))(query)
    columns = parts.add_layer(L.Reshape, "columns", target_shape=(1, steps, channels))(key)
    pairs = parts.add_op(tf.math.tanh, "tanh")(parts.add_op(tf.math.add, "pairs")(rows, columns))
    scale = layer.scale.numpy() if layer.use_scale else np.ones(channels, np.float32)
    weights = [scale.reshape(1, 1, channels, 1)]
    sums = parts.add_pointwise("sums", weights, trainable=layer.use_scale)(pairs)
    scores = parts.add_layer(L.Reshape, "scores", target_shape=(queries, steps))(sums)
    return _compute_context(parts, scores, query, value, causal=bool(kwargs.get("use_causal_mask")))


def _is_plain(inputs: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an attention layer is called on sequences for its context alone."""
    asked = kwargs.get("return_attention_scores") or kwargs.get("mask") is not None
    if kwargs.get("use_causal_mask") and None in (inputs[0].shape[1], inputs[1].shape[1]):
        return False
    return not asked and all(len(x.shape) == 3 for x in inputs)


def _compute_context(
    parts: LayerParts, scores: Any, query: Any, value: Any, *, causal: bool
) -> Any:
    """Returns softmax(scores) · value without the masked values, and 0 for masked queries."""
    masks: list[Any] = []
    seen, asking = parts.find_mask(value), parts.find_mask(query)
    if seen is not None:
        masks.append(
            parts.add_layer(L.Reshape, "mask", target_shape=(1, seen.shape[1] or -1))(seen)
        )
    if causal:
        masks.append(np.tril(np.ones((1, *scores.shape[1:]), bool)).tolist())
    if masks:
        scores = _mask_scores(parts, scores, _join_masks(parts, masks))
    weights = parts.add_layer(L.Softmax, "softmax")(scores)
    if parts.source.dropout:
        weights = parts.add_layer(L.Dropout, "dropout", rate=parts.source.dropout)(weights)
    if asking is None:
        return parts.add_op(tf.linalg.matmul)(weights, value)
    context = parts.add_op(tf.linalg.matmul, "context")(weights, value)
    column = parts.add_op(tf.expand_dims, "query_mask")(asking, axis=-1)
    return parts.add_op(tf.where)(column, context, 0.0)


def _combine_masks(
    parts: LayerParts, query: Any, value: Any, key: Any, given: Any, causal: bool
) -> Any:
    """Returns where a step may be seen, as booleans (batch or 1, 1, queries or 1, steps or 1)."""
    masks: list[Any] = []
    if given is not None:
        if given.dtype != tf.bool:
            given = parts.add_op(tf.cast, "given_mask")(given, "bool")
        if len(given.shape) == 3:
            given = parts.add_op(tf.expand_dims, "given_mask_heads")(given, axis=1)
        masks.append(given)
    seen = parts.find_mask(value)
    if seen is None:
        seen = parts.find_mask(key)
    if seen is not None:
        shape = (1, 1, seen.shape[1] or -1)
        masks.append(parts.add_layer(L.Reshape, "step_mask", target_shape=shape)(seen))
    asking = parts.find_mask(query)
    if asking is not None:  # in Keras a masked step sees all steps equally
        shape = (1, asking.shape[1] or -1, 1)
        masks.append(parts.add_layer(L.Reshape, "query_mask", target_shape=shape)(asking))
    if causal:
        masks.append(np.tril(np.ones((1, 1, query.shape[1], key.shape[1]), bool)).tolist())
    return _join_masks(parts, masks) if masks else None


def _join_masks(parts: LayerParts, masks: list[Any]) -> Any:
    mask = masks[0]
    for i, other in enumerate(masks[1:]):
        mask = parts.add_op(tf.math.logical_and, f"masks_{i}")(mask, other)
    return mask


def _mask_scores(parts: LayerParts, scores: Any, mask: Any) -> Any:
    """Returns the scores, lowered to that of a masked step where the mask is false."""
    if isinstance(mask, list):
        lowered = np.where(mask, 0.0, MASKED).astype(np.float32).tolist()
        return parts.add_op(tf.math.add, "masked")(scores, lowered)
    return parts.add_op(tf.where, "masked")(mask, scores, MASKED)
