"""What a rewrite needs to build its part of the new graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tf_keras as keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

__all__ = ["Graph", "Parts", "image_part"]

L = keras.layers


def image_part(rank: int) -> str:
    """Returns the name of the part that gives a layer's output as an image.

    A sequence (batch, steps, channels) becomes a row (batch, 1, steps, channels), a vector
    (batch, channels) a point (batch, 1, 1, channels). The plain name belongs to the tensor of the
    layer's own rank.
    """
    return {2: "point", 3: "row", 4: ""}[rank]


@dataclass
class Graph:
    """The new graph while it grows.

    Attributes:
        layers: The layers made, by the identity of their source and by part: a layer used twice is
            made once, while layers of two nested models may share a name.
        names: What to call the source's layers whose own name is not theirs alone, by identity.
        reserved: The names of all layers of the source, once they are unique.
        origin: The path of the layer of the source that each new layer stands for, by name.
        rows: The image (batch, 1, steps, channels) behind a tensor (batch, steps, channels) or
            (batch, channels), by the tensor's id.
        masks: The mask (batch, steps) of a tensor, by its id.
    """

    layers: dict[tuple[int, str], Any] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)
    origin: dict[str, str] = field(default_factory=dict)
    rows: dict[int, Any] = field(default_factory=dict)
    masks: dict[int, Any] = field(default_factory=dict)
    kept_alive: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """Builds the parts of one layer of the source model.

    Attributes:
        source: The layer.
        path: Where it is in the source model: "outer/inner".
        graph: The graph in which the parts go.
        followers: The layers that take its output in the source; None stands for the model's end.
        alone: Whether it is the only one that takes its (first) input.
    """

    source: keras.layers.Layer
    path: str
    graph: Graph
    followers: tuple[Any, ...] = ()
    alone: bool = True

    def name(self, part: str = "") -> str:
        """Returns the name of a part; the last one, whose output is the layer's, has none."""
        own = self.graph.names.get(id(self.source), self.source.name)
        name = f"{own}_{part}" if part else own
        while name in self.graph.origin or (part and name in self.graph.reserved):
            name += "_"
        return name

    def layer(
        self, kind: Callable[..., Any], part: str = "", *, weights: Any = None, **config: Any
    ) -> Callable[..., Any]:
        """Returns a function that calls a layer, made once, with these weights."""
        return self._made(part, lambda name: kind(name=name, **config), weights)

    def op(self, function: Callable[..., Any], part: str = "") -> Callable[..., Any]:
        """Returns a function that calls a TensorFlow operation as a layer of that name."""
        return self._made(part, lambda name: TFOpLambda(function, name=name), None)

    def clone(self, part: str = "", **changes: Any) -> Callable[..., Any]:
        """Returns a function that calls a copy of the source, with its weights."""
        source = self.source

        def make(name: str) -> Any:
            return type(source).from_config({**source.get_config(), **changes, "name": name})

        return self._made(part, make, source.get_weights())

    def _made(self, part: str, make: Callable[[str], Any], weights: Any) -> Callable[..., Any]:
        key = (id(self.source), part)
        if key not in self.graph.layers:
            name = self.name(part)
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

    def row(self, x: Any) -> Any:
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
        self._note(x, row)
        return row

    def unrow(self, row: Any, rank: int) -> Any:
        """Returns the tensor of `rank` behind an image (batch, 1, steps, channels)."""
        if rank == 4:
            return row
        shape = (row.shape[2] or -1, row.shape[3]) if rank == 3 else (row.shape[3],)
        name = self.name()
        x = L.Reshape(shape, name=name)(row)
        self.graph.origin[name] = self.path
        self._note(x, row)
        return x

    def _note(self, x: Any, row: Any) -> None:
        self.graph.rows[id(x)] = row
        self.graph.kept_alive.append(x)

    def has_row(self, *tensors: Any) -> bool:
        """Says whether each of the tensors is known as an image of one row."""
        return all(len(x.shape) < 4 and id(x) in self.graph.rows for x in tensors)

    def mask(self, x: Any) -> Any:
        """Returns the mask (batch, steps) that a tensor carries, or None."""
        return self.graph.masks.get(id(x))

    def note_mask(self, x: Any, mask: Any) -> None:
        """Notes the mask (batch, steps) that a tensor carries."""
        self.graph.masks[id(x)] = mask
        self.graph.kept_alive.append(x)

    def follower(self, *kinds: type) -> bool:
        """Says whether the output goes to one layer alone, and that one is of these kinds."""
        return len(self.followers) == 1 and type(self.followers[0]) in kinds
