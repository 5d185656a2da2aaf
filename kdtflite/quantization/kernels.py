"""What is known about each Keras layer: how an integer kernel computes it. One row per layer.

A layer is taught in one line, a row of `KERNELS`. A layer of your own that keeps the values as
they are, and does the same on the image of one row that a sequence becomes, is

    Shuffle: Kernel("input", on_rows=True),

and one that has weights with one scale per output channel

    MyConv2D: Kernel("own", {"kernel": (-1,)}, folds_batch_norm=True, fuses_relu=True),

A layer without an integer kernel has a rewrite into layers that have one, a function of
`kdtflite/quantization/rewrites/`:

    L.Conv1D: Kernel(rewrite=convolutions.rewrite_convolution_1d),

A layer without a row stays in float while the model trains, and is calibrated at conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import tf_keras as keras

from kdtflite.models.keras_internals import (
    CustomScaleLayer,
    LayerScale,
    SlicingOpLambda,
    TFOpLambda,
)
from kdtflite.quantization.layers import DepthwiseBatchNormalization
from kdtflite.quantization.rewrites import (
    activations,
    attention,
    convolutions,
    normalizations,
    operations,
    recurrent,
    sequences,
)

__all__ = ["GRIDS", "KERNELS", "OPERATIONS", "Kernel", "find_kernel", "get_operation"]

L = keras.layers


@dataclass(frozen=True)
class Kernel:
    """How integer kernels compute a layer.

    Attributes:
        output: The scale of the output: "own" (a range from data, or `grid`), "input" (that of
            the input, whose values are only moved or chosen), or "weights" (that of the layer's
            table). None where no kernel computes the layer as it stands.
        weights: The attributes that hold weights, and the axes of each whose positions have a
            scale of their own; no axes for one scale in all.
        int4: The kernel also takes weights of four bits.
        grid: The range that TensorFlow Lite's specification prescribes for the output.
        fuses_relu: The kernel also computes a ReLU that follows.
        folds_batch_norm: A batch normalization that follows becomes part of the weights.
        joins_inputs: All inputs must have the scale of the output.
        clips: With a single input and a constant, the output keeps the scale of the input.
        rewrite: The function that builds other layers with the same result, or returns
            NotImplemented for a form of the layer that it does not cover.
        on_rows: The layer gives the same on the image (batch, 1, steps, channels) of a sequence.
        equalizes: The layer has a kernel whose channels can be rescaled against its neighbor's.
        channelwise: Each output channel comes from one input channel alone and grows with it:
            f(s · x) = s · f(x) for s > 0.
    """

    output: Literal["own", "input", "weights"] | None = None
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    int4: bool = False
    grid: tuple[float, float] | None = None
    fuses_relu: bool = False
    folds_batch_norm: bool = False
    joins_inputs: bool = False
    clips: bool = False
    rewrite: Callable[..., Any] | None = None
    on_rows: bool = False
    equalizes: bool = False
    channelwise: bool = False


def find_kernel(layer: keras.layers.Layer) -> Kernel | None:
    """Returns the row of a layer, or of the TensorFlow operation that it calls, or None.

    Example:
        >>> import tf_keras as keras
        >>> dict(find_kernel(keras.layers.DepthwiseConv2D(3)).weights)
        {'depthwise_kernel': (-2, -1)}
    """
    operation = get_operation(layer)
    if operation is not None:
        return OPERATIONS.get(operation, Kernel("own"))
    return KERNELS.get(type(layer))


def get_operation(layer: keras.layers.Layer) -> str | None:
    """Returns the plain name of the TensorFlow operation that a layer calls, as in "add"."""
    if type(layer) is not TFOpLambda:
        return None
    name = str(layer.symbol).removeprefix("compat.v1.")
    return name.removeprefix("math.").removeprefix("nn.")


GRIDS = {"sigmoid": (0.0, 255 / 256), "softmax": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
"""The ranges that TensorFlow Lite's specification prescribes, by activation."""

KERNELS: dict[type, Kernel] = {
    CustomScaleLayer: Kernel(rewrite=normalizations.rewrite_scaled_sum),
    DepthwiseBatchNormalization: Kernel("own", fuses_relu=True),
    L.Activation: Kernel("own", rewrite=activations.rewrite_activation, on_rows=True),
    L.ActivityRegularization: Kernel("input", on_rows=True, channelwise=True),
    L.Add: Kernel("own", fuses_relu=True, on_rows=True),
    L.AdditiveAttention: Kernel(rewrite=attention.rewrite_additive_attention),
    L.AlphaDropout: Kernel("input", on_rows=True),
    L.Attention: Kernel(rewrite=attention.rewrite_attention),
    L.Average: Kernel("own", rewrite=sequences.rewrite_average),
    L.AveragePooling1D: Kernel(rewrite=sequences.rewrite_pooling_1d, channelwise=True),
    L.AveragePooling2D: Kernel("input", channelwise=True),
    # It is folded into the kernel before it, which fuses the ReLU.
    L.BatchNormalization: Kernel(
        "own", rewrite=normalizations.rewrite_batch_normalization, fuses_relu=True
    ),
    L.Bidirectional: Kernel(rewrite=recurrent.rewrite_bidirectional),
    L.Concatenate: Kernel("own", joins_inputs=True, on_rows=True),
    L.Conv1D: Kernel(rewrite=convolutions.rewrite_convolution_1d, equalizes=True),
    L.Conv1DTranspose: Kernel(rewrite=convolutions.rewrite_transposed_1d),
    L.Conv2D: Kernel(
        "own",
        {"kernel": (-1,)},
        int4=True,
        rewrite=convolutions.rewrite_convolution,
        fuses_relu=True,
        folds_batch_norm=True,
        equalizes=True,
    ),
    # Its kernel has one scale per channel too, but the converter takes no trained ones.
    L.Conv2DTranspose: Kernel(
        "own", {"kernel": ()}, rewrite=convolutions.rewrite_convolution, equalizes=True
    ),
    L.Cropping1D: Kernel(rewrite=sequences.rewrite_padding_1d, channelwise=True),
    L.Cropping2D: Kernel("input", channelwise=True),
    L.Dense: Kernel(
        "own",
        {"kernel": ()},
        int4=True,
        rewrite=convolutions.rewrite_dense,
        fuses_relu=True,
        equalizes=True,
    ),
    L.DepthwiseConv1D: Kernel(rewrite=convolutions.rewrite_depthwise_1d),
    L.DepthwiseConv2D: Kernel(
        "own",
        {"depthwise_kernel": (-2, -1)},
        rewrite=convolutions.rewrite_convolution,
        fuses_relu=True,
        folds_batch_norm=True,
        equalizes=True,
    ),
    L.Dot: Kernel("own"),
    L.Dropout: Kernel("input", on_rows=True, channelwise=True),
    L.ELU: Kernel(rewrite=activations.rewrite_activation),
    L.EinsumDense: Kernel(rewrite=convolutions.rewrite_einsum_dense),
    L.Embedding: Kernel("weights", {"embeddings": ()}, rewrite=sequences.rewrite_embedding),
    L.Flatten: Kernel("input"),
    L.GRU: Kernel(rewrite=recurrent.rewrite_recurrent),
    L.GaussianDropout: Kernel("input", on_rows=True, channelwise=True),
    L.GaussianNoise: Kernel("input", on_rows=True),
    L.GlobalAveragePooling1D: Kernel(rewrite=sequences.rewrite_global_pooling_1d, channelwise=True),
    L.GlobalAveragePooling2D: Kernel("own", channelwise=True),
    L.GlobalMaxPooling1D: Kernel(rewrite=sequences.rewrite_global_pooling_1d, channelwise=True),
    L.GlobalMaxPooling2D: Kernel("input", channelwise=True),
    L.GroupNormalization: Kernel(rewrite=normalizations.rewrite_group_normalization),
    L.Identity: Kernel("input"),
    L.LSTM: Kernel(rewrite=recurrent.rewrite_recurrent),
    L.LayerNormalization: Kernel(rewrite=normalizations.rewrite_layer_normalization),
    L.LeakyReLU: Kernel("own", on_rows=True, channelwise=True),
    L.Masking: Kernel(rewrite=sequences.rewrite_masking),
    L.MaxPooling1D: Kernel(rewrite=sequences.rewrite_pooling_1d, channelwise=True),
    L.MaxPooling2D: Kernel("input", channelwise=True),
    L.Maximum: Kernel("own", joins_inputs=True, on_rows=True),
    L.Minimum: Kernel("own", joins_inputs=True, on_rows=True),
    L.MultiHeadAttention: Kernel(rewrite=attention.rewrite_multi_head_attention),
    L.Multiply: Kernel("own", on_rows=True),
    L.Normalization: Kernel(rewrite=normalizations.rewrite_scaling),
    L.PReLU: Kernel("own", channelwise=True),
    L.Permute: Kernel("input"),
    L.RNN: Kernel(rewrite=recurrent.rewrite_recurrent),
    L.RandomBrightness: Kernel("input"),
    L.RandomContrast: Kernel("input"),
    L.RandomCrop: Kernel("input"),
    L.RandomFlip: Kernel("input"),
    L.RandomRotation: Kernel("input"),
    L.RandomTranslation: Kernel("input"),
    L.RandomZoom: Kernel("input"),
    L.ReLU: Kernel("own", on_rows=True),
    L.RepeatVector: Kernel("input"),
    L.Rescaling: Kernel(rewrite=normalizations.rewrite_scaling),
    L.Reshape: Kernel("input"),
    L.Resizing: Kernel("input"),
    L.SeparableConv1D: Kernel(rewrite=convolutions.rewrite_separable),
    L.SeparableConv2D: Kernel(rewrite=convolutions.rewrite_separable),
    L.SimpleRNN: Kernel(rewrite=recurrent.rewrite_recurrent),
    L.Softmax: Kernel("own", grid=GRIDS["softmax"], on_rows=True),
    L.SpatialDropout1D: Kernel("input", channelwise=True),
    L.SpatialDropout2D: Kernel("input", channelwise=True),
    L.Subtract: Kernel("own", fuses_relu=True, on_rows=True),
    L.ThresholdedReLU: Kernel(rewrite=activations.rewrite_activation),
    L.UnitNormalization: Kernel(rewrite=normalizations.rewrite_unit_normalization),
    L.UpSampling1D: Kernel(rewrite=sequences.rewrite_padding_1d, channelwise=True),
    L.UpSampling2D: Kernel("input", channelwise=True),
    L.ZeroPadding1D: Kernel(rewrite=sequences.rewrite_padding_1d, channelwise=True),
    L.ZeroPadding2D: Kernel("input", channelwise=True),
    LayerScale: Kernel(rewrite=normalizations.rewrite_layer_scale),
    SlicingOpLambda: Kernel("input"),
}
"""The rows by class. A subclass needs a row of its own: it may compute anything."""

OPERATIONS: dict[str, Kernel] = {
    **dict.fromkeys(
        (
            *("broadcast_to", "expand_dims", "gather", "identity", "pad", "repeat"),
            *("reshape", "reverse", "shape", "slice", "split", "squeeze", "stop_gradient"),
            *("strided_slice", "tile", "transpose", "unstack"),
        ),
        Kernel("input"),
    ),
    **dict.fromkeys(("__operators__.add", "add", "subtract"), Kernel("own", fuses_relu=True)),
    **dict.fromkeys(("concat", "stack", "where"), Kernel("own", joins_inputs=True)),
    **dict.fromkeys(("maximum", "minimum"), Kernel("own", joins_inputs=True, clips=True)),
    **{name: Kernel("own", grid=grid) for name, grid in GRIDS.items()},
    "cast": Kernel("input", rewrite=operations.rewrite_cast),
    "elu": Kernel(rewrite=operations.rewrite_elu),
    "linalg.norm": Kernel("own", rewrite=operations.rewrite_norm),
    "log_sigmoid": Kernel(rewrite=operations.rewrite_log_sigmoid),
    "negative": Kernel(rewrite=operations.rewrite_negative),
    "norm": Kernel("own", rewrite=operations.rewrite_norm),
    "pow": Kernel("own", rewrite=operations.rewrite_power),
    "reduce_euclidean_norm": Kernel(rewrite=operations.rewrite_norm),
    "reduce_std": Kernel("own", rewrite=operations.rewrite_deviation),
    "square": Kernel(rewrite=operations.rewrite_square),
}
"""The rows of TensorFlow operations that a graph calls as layers. Every other has a scale of its
own."""
