"""Columns of one output whose ranges are too unlike for the one scale that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdtflite.lite.model import LiteModel
from kdtflite.lite.tensors import TensorSpec

__all__ = ["find_unlike_columns"]

# A column with so few levels says little, where another has so many times its range.
_FEW_LEVELS = 8
_WIDER = 16.0
# More columns than these are classes or features, which share a unit.
_MAX_COLUMNS = 4096
_SAMPLES = 32
_LISTED = 4


def find_unlike_columns(
    model: Any, names: Sequence[str], samples: Mapping[str, Any], lite: LiteModel
) -> list[str]:
    """Returns a sentence for each output of a file in which a column keeps only a few levels.

    The kernels give an output one scale. A score from 0 to 1 beside boxes in pixels, in one
    output, is then rounded to a single code.

    Args:
        model: The tf_keras model that was converted.
        names: The name in the file of each output of the model.
        samples: Representative samples by the model's input names.
        lite: The file.

    Example:
        >>> import kdtflite, numpy as np, tf_keras as keras
        >>> x = keras.Input((2,), name="x")
        >>> box, score = x * 1000, keras.layers.Activation("sigmoid")(x)
        >>> model = keras.Model(x, keras.layers.Concatenate(name="found")([box, score]))
        >>> data = np.random.default_rng(0).normal(size=(50, 2)).astype("float32")
        >>> lite = kdtflite.convert(model, data, progress=False)
        >>> from kdtflite.conversion.unlike_columns import find_unlike_columns
        >>> find_unlike_columns(model, ["found"], {"x": data}, lite)[0][:60]
        "Columns 2, 3 of the output 'found' keep 1 level each of the "
    """
    wanted = {spec.name: spec for spec in lite.outputs if _is_candidate(spec)}
    if not wanted.keys() & set(names):
        return []
    import tensorflow as tf

    from kdtflite.models.keras_internals import get_input_structure

    first = [tf.convert_to_tensor(samples[name][:_SAMPLES]) for name in model.input_names]
    given = tf.nest.pack_sequence_as(get_input_structure(model), first)
    outputs = tf.nest.flatten(model(given, training=False))
    found = []
    for name, output in zip(names, outputs, strict=True):
        if name in wanted:
            values = np.asarray(output, np.float64)
            found.append(_describe(wanted[name], values.reshape(-1, values.shape[-1])))
    return [sentence for sentence in found if sentence]


def _is_candidate(spec: TensorSpec) -> bool:
    return bool(spec.scale and len(spec.shape) > 1 and 1 < spec.shape[-1] <= _MAX_COLUMNS)


def _describe(spec: TensorSpec, values: Any) -> str:
    if values.min() >= 0 and values.max() <= 1:
        return ""  # probabilities: rare classes stay near 0
    widths = np.ptp(values, axis=0)
    assert spec.scale is not None
    levels = 1 + np.floor(widths / spec.scale).astype(int)
    few = np.flatnonzero(
        (levels <= _FEW_LEVELS) & (widths > 0) & (_WIDER * widths < widths.max(initial=0))
    )
    if not len(few):
        return ""
    listed = ", ".join(map(str, few[:_LISTED])) + (", ..." if len(few) > _LISTED else "")
    most = int(levels[few].max())
    several = len(few) > 1
    return (
        f"Column{'s' if several else ''} {listed} of the output {spec.name!r} "
        f"keep{'' if several else 's'} {most} level{'s' if most > 1 else ''}"
        f"{' each' if several else ''} of the file's codes: the columns of an output share one "
        f"step, here {spec.scale:.3g}, and {'these span' if several else 'this one spans'} at most "
        f"{widths[few].max():.3g} where the widest spans {widths.max():.3g}. Give "
        f"{'them' if several else 'it'} an output of {'their' if several else 'its'} own, or scale "
        "all columns alike."
    )
