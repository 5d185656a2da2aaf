"""Cross-layer equalization (Nagel et al., arXiv 1906.04721; Xiao et al., arXiv 2211.10438)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from rich.text import Text

from kdtflite.errors import DataError, UnsupportedModelError
from kdtflite.models.as_graph import as_graph
from kdtflite.models.keras_internals import get_input_structure
from kdtflite.models.parity import compare, draw_inputs
from kdtflite.models.policy import use_custom_layers, use_float32
from kdtflite.progress import say
from kdtflite.quantization.inputs import batch_inputs
from kdtflite.quantization.layer_pairs import Pair, find_pairs
from kdtflite.quantization.layer_weights import LayerWeights
from kdtflite.results import Axes, Result, Table, make_table, plot_bars

__all__ = ["Equalization", "EqualizedPair", "equalize"]

Array = np.ndarray[Any, np.dtype[np.float64]]

_SWEEPS = 200
# The sweeps end when one changes no scale by more than this share.
_SETTLED = 1e-5


@dataclass(frozen=True, eq=False)
class EqualizedPair:
    """Two consecutive layers whose channels' weights were brought to equal ranges.

    Attributes:
        first: Name of the layer that produces the channels.
        second: Name of the layer that takes them.
        before: Two ranges per channel, shape (channels, 2): the largest size of the weights that
            produce it, batch normalization folded in, or with representative data of its values;
            and the largest size of the weights that take it, with representative data as a share
            of what is quantized together with it.
        after: The same after equalization.
    """

    first: str
    second: str
    before: Array
    after: Array

    @property
    def spreads(self) -> tuple[float, float]:
        """The ratio of the largest to the smallest range, before and after."""
        return _compute_spread(self.before), _compute_spread(self.after)

    def to_dict(self) -> dict[str, Any]:
        """Returns the pair as plain values for JSON."""
        before, after = self.spreads
        return {
            "first": self.first,
            "second": self.second,
            "channels": len(self.before),
            "spread_before": before,
            "spread_after": after,
        }


@dataclass(frozen=True, eq=False)
class Equalization(Result):
    """What `equalize` did, as `model.equalization`.

    Attributes:
        pairs: The pairs of layers, in the model's order.
        left: The reason why each other layer with weights is not paired with what follows, by name.
        model: Name of the model.
    """

    pairs: tuple[EqualizedPair, ...]
    left: dict[str, str]
    model: str = "model"

    def to_dict(self) -> dict[str, Any]:
        """Returns the pairs as plain values for JSON."""
        return {"pairs": [pair.to_dict() for pair in self.pairs], "left": dict(self.left)}

    def to_table(self) -> Table:
        """Returns the pairs as a rich table, with the ratio of largest to smallest range."""
        rows: list[tuple[str | Text, ...]] = [
            (Text(pair.first), Text(pair.second), *(f"{spread:.3g}" for spread in pair.spreads))
            for pair in self.pairs
        ]
        rows += [(Text(layer), Text(f"nothing: {why}")) for layer, why in self.left.items()]
        return make_table(
            rows, text=("layer", "equalized with"), numbers=("spread before", "after")
        )

    def summary(self) -> str:
        """Returns how many pairs were equalized, and the widest ranges, in one line."""
        if not self.pairs:
            return (
                f"Nothing in {self.model!r} can be equalized: no two layers with weights follow "
                "each other through ReLU alone. model.equalization.left gives the reason for each "
                "layer."
            )
        widest = max(self.pairs, key=lambda pair: pair.spreads[0])
        before, after = widest.spreads
        return (
            f"Equalized {len(self.pairs)} pairs of layers in {self.model!r}. Ranges of channels "
            f"differed most from {widest.first} to {widest.second}: {before:.3g} times before, "
            f"{after:.3g} after."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the ratio of largest to smallest range of each pair as bars, before and after.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        bars = []
        for pair in self.pairs:
            for when, spread in zip(("before", "after"), pair.spreads, strict=True):
                bars.append((f"{pair.first} to {pair.second}, {when}", spread))
        return plot_bars(bars, "Largest range of a channel as a multiple of the smallest", ax)


def equalize(model: Any, representative_data: Any = None) -> keras.Model:
    """Returns a float model that computes the same, with channels of more equal ranges.

    Where channel i of a layer passes only through functions that commute with a positive factor,
    as a ReLU does, to a single other layer, the weights that produce it may be divided by s_i and
    the weights that take it be multiplied by s_i. Without data

        s_i = sqrt(r1_i / r2_i),  so that afterwards  r1_i / s_i = r2_i · s_i = sqrt(r1_i · r2_i)

    with r the largest size of the weights that produce the channel and of those that take it,
    batch normalization folded in (Nagel et al., arXiv 1906.04721, equation 11). The pairs are
    processed in turn until no scale changes, which also settles the chain convolution, depthwise,
    convolution.

    This evens out weights that are quantized per tensor. Convolutions are quantized per channel:
    there the gain lies in the activations, which have one scale for all channels, and in the
    kernels that take them, whose input channels share one. With data these two are evened out
    (Xiao et al., arXiv 2211.10438, equation 4 at α = 0.5); before a depthwise layer, each of
    whose channels has its own scale, the activations alone:

        s_i = c · sqrt(a_i / t_i),   before a depthwise layer  s_i = c · a_i

    with a_i the largest size of the channel's values, t_i the largest share that its weights
    have of the range in which they are quantized (that of a convolution's output channel, or of
    a Dense kernel), and c such that the geometric mean of the s_i is 1.

    A pair consists of convolutions, depthwise convolutions or Dense layers. Between its layers
    may lie batch normalization, ReLU, LeakyReLU, PReLU, pooling, padding, dropout and Flatten.
    All else is left alone, so the result stays exact: a tensor that goes to several layers, a
    shared layer, ReLU6 and every other activation, Add, Concatenate, a nested model. A model that
    is to be equalized is better trained with ReLU than with ReLU6. Where the channels differ
    little, the gain is little.

    Args:
        model: A model as `kdtflite.models.as_graph` takes it, not yet quantization-aware. It is
            not changed.
        representative_data: A few hundred samples as `kdtflite.data.take_samples` takes them.

    Returns:
        A tf_keras model with the same layers and an attribute `equalization`, not compiled. A
        batch normalization without gamma gets one.

    Raises:
        UnsupportedModelError: The model is quantization-aware, or subclassed and cannot be
            traced, or the result does not compute what the model does.
        DataError: A weight or activation is NaN or infinite, or the data do not fit the model.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(6, activation="relu", name="hidden"),
        ...     keras.layers.Dense(3, name="logits"),
        ... ])
        >>> equalized = kdtflite.quantization.equalize(model)
        >>> [(pair.first, pair.second) for pair in equalized.equalization.pairs]
        [('hidden', 'logits')]
    """
    model = as_graph(model)
    if any(hasattr(layer, "quantize_config") for layer in model.layers):
        raise UnsupportedModelError(
            f"The model {model.name!r} is quantization-aware already. Pass the float model."
        )
    copy = _copy(model)
    pairs, left = find_pairs(copy)
    weights = {layer.name: LayerWeights(layer, norm) for layer, norm in _list_layers(pairs)}
    links = [(weights[pair.first.name], weights[pair.second.name]) for pair in pairs]
    if representative_data is None:
        ranges = _equalize_weights(links)
    else:
        largest = _measure_largest_values(copy, pairs, representative_data)
        ranges = _equalize_activations(links, largest)
    for one in weights.values():
        one.write()
    equalized = tuple(
        EqualizedPair(pair.first.name, pair.second.name, *before_and_after)
        for pair, before_and_after in zip(pairs, ranges, strict=True)
    )
    compare(
        f"The model {model.name!r} was equalized",
        model,
        copy,
        draw_inputs(model, get_input_structure(model)),
        "Leave equalization out for this model.",
        allow_noise=False,
    )
    copy.equalization = Equalization(equalized, left, model.name)
    say(copy.equalization.summary())
    return copy


def _equalize_weights(links: list[tuple[LayerWeights, LayerWeights]]) -> list[tuple[Array, Array]]:
    """Equalizes weights with weights; returns each pair's ranges before and after."""

    def find_ranges(first: LayerWeights, second: LayerWeights) -> Array:
        given = first.find_output_ranges()
        return np.stack([given, second.find_input_ranges(len(given))], axis=1)

    before = [find_ranges(*link) for link in links]
    for _ in range(_SWEEPS):
        largest = 1.0
        for first, second in links:
            scale = _compute_root_of_ratio(*find_ranges(first, second).T)
            first.divide_output(scale)
            second.multiply_input(scale)
            largest = max(largest, scale.max(), 1 / scale.min())
        if largest < 1 + _SETTLED:
            break
    return list(zip(before, [find_ranges(*link) for link in links], strict=True))


def _equalize_activations(
    links: list[tuple[LayerWeights, LayerWeights]], largest: list[Array]
) -> list[tuple[Array, Array]]:
    """Equalizes values with the weights that take them; returns the ranges before and after."""
    ranges = []
    for (first, second), values in zip(links, largest, strict=True):
        shares = second.find_input_shares(len(values))
        root = _compute_root_of_ratio(values, shares)
        scale = root**2 if second.depthwise else root
        scale /= np.exp(np.mean(np.log(scale)))
        first.divide_output(scale)
        second.multiply_input(scale)
        after = values / scale, second.find_input_shares(len(values))
        ranges.append((np.stack([values, shares], axis=1), np.stack(after, axis=1)))
    return ranges


def _compute_root_of_ratio(one: Array, other: Array) -> Array:
    """Returns sqrt(one / other), and 1 for a channel that is zero on one side."""
    both = (one > 0) & (other > 0)
    return np.sqrt(np.where(both, one, 1.0) / np.where(both, other, 1.0))


def _measure_largest_values(model: keras.Model, pairs: list[Pair], data: Any) -> list[Array]:
    """Returns the largest size of each channel's values at the input of the second layer."""
    taken = keras.Model(model.inputs, [pair.second.input for pair in pairs])
    largest: list[Any] = [0.0] * len(pairs)
    for batch in batch_inputs(model, data) if pairs else ():
        values = taken(tf.nest.flatten(batch), training=False)
        for i, (pair, value) in enumerate(zip(pairs, tf.nest.flatten(values), strict=True)):
            # Flatten keeps the channels of a position together.
            by_channel = tf.reshape(tf.abs(value), [-1, pair.first.output_shape[-1]])
            largest[i] = np.maximum(largest[i], tf.reduce_max(by_channel, axis=0).numpy())
            if not np.isfinite(largest[i]).all():
                raise DataError(
                    f"The output of layer {pair.first.name!r} is NaN or infinite on the "
                    "representative data. Expected finite values: check the model's weights and "
                    "the data's scaling."
                )
    return [np.asarray(one, np.float64) for one in largest]


def _list_layers(pairs: list[Pair]) -> list[tuple[keras.layers.Layer, keras.layers.Layer | None]]:
    """Returns every layer of the pairs once, with the batch normalization that follows it."""
    layers = {}
    for pair in pairs:
        for layer, norm in ((pair.second, pair.second_norm), (pair.first, pair.first_norm)):
            layers[layer.name] = (layer, norm)
    return list(layers.values())


def _copy(model: keras.Model) -> keras.Model:
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer)
        config = layer.get_config()
        if type(layer) is keras.layers.BatchNormalization:
            # Without gamma, ahead of a ReLU, it could not take up a scale.
            config["scale"] = True
        return type(layer).from_config(config)

    with use_float32(), use_custom_layers(model):
        copy = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        weights = layer.get_weights()
        if type(layer) is keras.layers.BatchNormalization and not layer.scale:
            weights.insert(0, np.ones_like(weights[0]))
        copy.get_layer(layer.name).set_weights(weights)
    return copy


def _compute_spread(ranges: Array) -> float:
    """Returns the ratio of the largest to the smallest range, zeros left out."""
    ranges = ranges[(ranges > 0).all(axis=1)]
    if not len(ranges):
        return 1.0
    return float((ranges.max(axis=0) / ranges.min(axis=0)).max())
