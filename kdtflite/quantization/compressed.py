"""Notices weights that were pruned or clustered, which a training undoes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tf_keras as keras
from numpy.typing import NDArray

__all__ = ["CompressedWeights", "describe_compression", "find_compressed_weights"]

_SPARSE_SHARE = 0.3  # of zeros; an initializer or a training leaves none
_FEWEST_WEIGHTS = 64  # smaller kernels have few values anyway
_MOST_CLUSTERS = 64
_WEIGHTS_PER_CLUSTER = 4


class CompressedWeights(NamedTuple):
    """The kernels of a model that are sparse or clustered.

    Attributes:
        sparse: Share of zeros by the layer's name.
        clustered: Number of distinct values by the layer's name.
    """

    sparse: dict[str, float]
    clustered: dict[str, int]


def find_compressed_weights(model: keras.Model) -> CompressedWeights:
    """Returns which layers of a model have sparse or clustered kernels.

    Args:
        model: A tf_keras model.
    """
    sparse: dict[str, float] = {}
    clustered: dict[str, int] = {}
    for layer in model.layers:
        for weight in layer.trainable_weights:
            values = np.asarray(weight)
            if values.ndim < 2 or values.size < _FEWEST_WEIGHTS or values.dtype.kind != "f":
                continue
            zeros = float((values == 0).mean())
            if _SPARSE_SHARE <= zeros < 1:
                sparse[layer.name] = zeros
            elif zeros < 1 and (count := _count_clusters(values)):
                clustered[layer.name] = count
    return CompressedWeights(sparse, clustered)


def describe_compression(model: keras.Model) -> str | None:
    """Returns what training would undo in a model's weights, as a sentence; None for nothing.

    Args:
        model: A tf_keras model.
    """
    found = find_compressed_weights(model)
    parts = []
    if found.sparse:
        least = min(found.sparse.values())
        parts.append(f"sparse {_list(found.sparse)} ({least:.0%} zeros or more)")
    if found.clustered:
        most = max(found.clustered.values())
        parts.append(f"clustered {_list(found.clustered)} ({most} values or fewer)")
    if not parts:
        return None
    return (
        f"Weights are {' and '.join(parts)}. Quantization-aware training does not keep zeros or "
        "clusters: one epoch removes most of them. Without training, quantize_post_training and "
        "convert keep both."
    )


def _count_clusters(values: NDArray[np.floating]) -> int:
    """Returns the number of distinct values if they are few; 0 if not."""
    few = min(_MOST_CLUSTERS, values.size // _WEIGHTS_PER_CLUSTER)
    # Most kernels show at their first values that they are not clustered.
    if len(np.unique(values.ravel()[: 4 * few])) > few:
        return 0
    count = len(np.unique(values))
    return count if 1 < count <= few else 0


def _list(layers: dict[str, float] | dict[str, int]) -> str:
    names = [repr(name) for name in layers]
    more = f" and {len(names) - 3} more layers" if len(names) > 3 else ""
    return f"in {', '.join(names[:3])}{more}"
