"""What a rewrite needs to build the layers that stand for one layer of the source model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tf_keras as keras

from kdtflite.models.keras_internals import TFOpLambda

__all__ = ["Graph", "LayerParts"]

L = keras.layers


@dataclass
class Graph:
    """The new graph while it grows.

    Attributes:
        folding: The classes of layers into which a batch normalization after them is folded.
        layers: The new layers, by the identity of their source and by part. A layer used twice is
            made once, while layers of two nested models may share a name.
        names: Unique names for those layers of the source that share theirs with another layer,
            by identity.
        reserved: The names of all layers of the source, once they are unique.
        origin: The path of the source's layer that each new layer stands for, by name.
        rows: The image (batch, 1, steps, channels) behind a tensor (batch, steps, channels) or
            (batch, channels), by the tensor's id.
        masks: The mask (batch, steps) of a tensor, by the tensor's id.
        kept_alive: The tensors known by id, so that no other tensor gets the same id.
    """

    folding: frozenset[type] = frozenset()
    layers: dict[tuple[int, str], Any] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)
    origin: dict[str, str] = field(default_factory=dict)
    rows: dict[int, Any] = field(default_factory=dict)
    masks: dict[int, Any] = field(default_factory=dict)
    kept_alive: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class LayerParts:
    """Builds the parts into which one layer of the source model is rewritten.

    A part has the layer's name and its own, "attention_scores". The last part, which gives the
    layer's output, has the layer's name alone.

    Attributes:
        source: The layer.
        path: Where it is in the source model: "outer/inner".
        graph: The graph to which the parts are added.
        followers: The layers that take its output in the source; None stands for the model's end.
        is_only_user: Whether no other layer takes its (first) input.
    """

    source: keras.layers.Layer
    path: str
    graph: Graph
    followers: tuple[Any, ...] = ()
    is_only_user: bool = True

    def add_layer(
        self, kind: Callable[..., Any], part: str = "", *, weights: Any = None, **config: Any
    ) -> Callable[..., Any]:
        """Returns a function that calls a layer, which is made once, with these weights."""
        return self._add(part, lambda name: kind(name=name, **config), weights)

    def add_pointwise(self, part: str, weights: Sequence[Any], **config: Any) -> Callable[..., Any]:
        """Returns a function that calls a 1 × 1 convolution with a kernel, and a bias if given."""
        return self.add_layer(
            L.Conv2D,
            part,
            weights=weights,
            filters=weights[0].shape[-1],
            kernel_size=1,
            use_bias=len(weights) > 1,
            **config,
        )

    def add_op(self, function: Callable[..., Any], part: str = "") -> Callable[..., Any]:
        """Returns a function that calls a TensorFlow operation as a layer."""
        return self._add(part, lambda name: TFOpLambda(function, name=name), None)

    def add_copy(self, part: str = "", **changes: Any) -> Callable[..., Any]:
        """Returns a function that calls a copy of the source, with its weights."""
        source = self.source

        def make(name: str) -> Any:
            return type(source).from_config({**source.get_config(), **changes, "name": name})

        return self._add(part, make, source.get_weights())

    def as_row(self, x: Any) -> Any:
        """Returns (batch, steps, channels) or (batch, channels) as (batch, 1, steps, channels)."""
        if len(x.shape) == 4:
            return x
        known = self.graph.rows.get(id(x))
        if known is not None:
            return known
        steps = (x.shape[1] or -1) if len(x.shape) == 3 else 1
        name = f"{x.node.layer.name}_as_image_{len(self.graph.rows)}"
        row = L.Reshape((1, steps, x.shape[-1]), name=name)(x)
        self.graph.origin[name] = self.path
        self._note_row(x, row)
        return row

    def from_row(self, row: Any, rank: int) -> Any:
        """Returns the tensor of `rank` behind an image (batch, 1, steps, channels)."""
        if rank == 4:
            return row
        shape = (row.shape[2] or -1, row.shape[3]) if rank == 3 else (row.shape[3],)
        name = self._make_name()
        x = L.Reshape(shape, name=name)(row)
        self.graph.origin[name] = self.path
        self._note_row(x, row)
        return x

    def has_row(self, *tensors: Any) -> bool:
        """Whether there is an image of one row behind each of the tensors."""
        return all(len(x.shape) < 4 and id(x) in self.graph.rows for x in tensors)

    def find_mask(self, x: Any) -> Any:
        """Returns the mask (batch, steps) of a tensor, or None."""
        return self.graph.masks.get(id(x))

    def note_mask(self, x: Any, mask: Any) -> None:
        """Notes the mask (batch, steps) of a tensor."""
        self.graph.masks[id(x)] = mask
        self.graph.kept_alive.append(x)

    def is_followed_by(self, *kinds: type) -> bool:
        """Whether the output goes to one layer alone, of one of these classes."""
        return len(self.followers) == 1 and type(self.followers[0]) in kinds

    def _add(self, part: str, make: Callable[[str], Any], weights: Any) -> Callable[..., Any]:
        key = (id(self.source), part)
        if key not in self.graph.layers:
            name = self._make_name(part)
            self.graph.layers[key] = make(name)
            self.graph.origin[name] = self.path
        layer = self.graph.layers[key]

        def call(*args: Any, **kwargs: Any) -> Any:
            built = layer.built and bool(layer.inbound_nodes)
            outputs = layer(*args, **kwargs)
            if not built:
                if weights is not None:
                    layer.set_weights(weights)
                if layer.trainable and not self.source.trainable:
                    layer.trainable = False
            return outputs

        return call

    def _make_name(self, part: str = "") -> str:
        own = self.graph.names.get(id(self.source), self.source.name)
        name = f"{own}_{part}" if part else own
        while name in self.graph.origin or (part and name in self.graph.reserved):
            name += "_"
        return name

    def _note_row(self, x: Any, row: Any) -> None:
        self.graph.rows[id(x)] = row
        self.graph.kept_alive.append(x)
