"""Representative data: samples that calibrate activation ranges, checked before use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.errors import DataError
from kdtflite.progress import say

__all__ = ["InputSpec", "RepresentativeData", "representative"]

Array = NDArray[Any]

# Ranges settle with a few hundred samples; TensorFlow's own guide asks for 100 to 500.
DEFAULT_SAMPLES = 500
_FEW = 32
# How much wider than the trained range data may be before it is of another scaling.
_SCALING_FACTOR = 4.0
# How far outside the trained range, in its widths, values may lie, and how many may lie further
# out: a range that training averaged leaves out the data's own outliers.
_MARGIN = 0.25
_OUTLIERS = 0.01


@dataclass(frozen=True)
class InputSpec:
    """What a model takes at one input.

    Attributes:
        name: Name of the input.
        shape: Shape of one sample, without the batch; None where any size is taken.
        dtype: "float32", "int32", ...
        trained_range: Least and greatest value seen in training, where known.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    trained_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class RepresentativeData:
    """Checked samples by input name, shape (samples, ...), in the model's dtypes."""

    samples: dict[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.samples.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yields batches of up to `size` samples by input name."""
        for start in range(0, len(self), size):
            yield {name: value[start : start + size] for name, value in self.samples.items()}


def representative(
    data: Any, inputs: Sequence[InputSpec], *, limit: int = DEFAULT_SAMPLES, few: int = _FEW
) -> RepresentativeData:
    """Takes samples from `data` and checks that they fit the model.

    Args:
        data: An array, shape (samples, ...); a dict of arrays by input name; a pair (x, y); an
            object with an attribute `x`; a tf.data.Dataset, batched or not; or a function that
            gives an iterable of batches, as TensorFlow Lite takes it. A model with several
            inputs needs dicts: a file's input order need not be the model's.
        inputs: What the model takes.
        limit: The most samples to use; of arrays, evenly spread over the whole set.
        few: Below how many samples to say that ranges taken from them may be too narrow.

    Raises:
        DataError: Nothing in it, NaN or infinite values, a wrong shape, dtype, name or scaling.
    """
    taken = _collect(data, inputs, limit)
    names = [spec.name for spec in inputs]
    if set(taken) != set(names):
        raise DataError(
            f"Expected representative data for the inputs {', '.join(names)}. "
            f"Received: {', '.join(map(str, taken)) or 'none'}. Pass a dict by input name."
        )
    samples = {spec.name: _checked(spec, np.asarray(taken[spec.name])) for spec in inputs}
    lengths = {name: len(value) for name, value in samples.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"Expected as many samples for every input. Received: {lengths}.")
    checked = RepresentativeData(samples)
    if len(checked) < few:
        say(
            f"Only {len(checked)} representative samples: activation ranges may be too narrow. "
            f"A few hundred are usual."
        )
    return checked


def _collect(data: Any, inputs: Sequence[InputSpec], limit: int) -> dict[str, Any]:
    if data is None:
        raise DataError(
            "Expected representative data: a few hundred samples as the model sees them in use. "
            "Received: None. Pass representative_data=, for example the training inputs."
        )
    if hasattr(data, "x") and not isinstance(data, np.ndarray):
        data = data.x
    if hasattr(data, "element_spec"):
        return _from_iterable(_dataset_batches(data, inputs), inputs, limit)
    if isinstance(data, tuple) and len(data) in (2, 3):
        data = data[0]
    if callable(data):
        given = data()
        if not isinstance(given, Iterable):
            raise DataError(
                "Expected the function that gives representative data to return an iterable of "
                f"batches. Received: {type(given).__name__}."
            )
        return _from_iterable(given, inputs, limit)
    if isinstance(data, Mapping):
        return {name: _spread(np.asarray(value), limit) for name, value in data.items()}
    if isinstance(data, Iterator):
        return _from_iterable(data, inputs, limit)
    if len(inputs) > 1:
        raise DataError(
            f"The model has {len(inputs)} inputs. Expected a dict with the keys "
            f"{', '.join(spec.name for spec in inputs)}. Received: {type(data).__name__}."
        )
    try:
        return {inputs[0].name: _spread(np.asarray(data), limit)}
    except ValueError as error:
        raise DataError(
            f"Expected representative data as one array. Received: {type(data).__name__} that "
            f"NumPy cannot turn into an array ({error})."
        ) from error


def _spread(value: Array, limit: int) -> Array:
    """Returns up to `limit` samples, evenly spread: data sets are often sorted by class."""
    if value.ndim == 0 or len(value) <= limit:
        return value
    return value[np.linspace(0, len(value) - 1, limit).astype(int)]


def _dataset_batches(dataset: Any, inputs: Sequence[InputSpec]) -> Iterable[Any]:
    spec = dataset.element_spec
    spec = spec[0] if isinstance(spec, tuple) else spec
    # The first input's own entry: a dict's order need not be the model's.
    first = spec.get(inputs[0].name) if isinstance(spec, Mapping) else spec
    shape = getattr(first, "shape", None)
    if shape is not None and shape.rank == len(inputs[0].shape):
        dataset = dataset.batch(DEFAULT_SAMPLES)
    for element in dataset.as_numpy_iterator():
        yield element[0] if isinstance(element, tuple) else element


def _from_iterable(
    batches: Iterable[Any], inputs: Sequence[InputSpec], limit: int
) -> dict[str, Any]:
    parts: dict[str, list[Array]] = {}
    count = 0
    for batch in batches:
        # [x] as TensorFlow Lite's own generators yield it; (x, y) as those for fit do.
        if (isinstance(batch, list | tuple) and len(batch) == 1) or (
            isinstance(batch, tuple) and len(batch) in (2, 3)
        ):
            batch = batch[0]
        if not isinstance(batch, Mapping):
            if len(inputs) > 1:
                raise DataError(
                    f"The model has {len(inputs)} inputs. Expected batches as dicts with the keys "
                    f"{', '.join(spec.name for spec in inputs)}. Received: "
                    f"{type(batch).__name__}."
                )
            batch = {inputs[0].name: batch}
        arrays = {name: np.asarray(value) for name, value in batch.items()}
        if not arrays or any(value.ndim == 0 for value in arrays.values()):
            raise DataError(
                "Expected batches of representative data with the samples along the first axis. "
                f"Received: {', '.join(f'{name} {v!r}' for name, v in arrays.items()) or 'none'}."
            )
        for name, value in arrays.items():
            parts.setdefault(name, []).append(value)
        count += len(next(iter(arrays.values())))
        if count >= limit:
            break
    return {name: _joined(name, values)[:limit] for name, values in parts.items()}


def _joined(name: str, values: list[Array]) -> Array:
    shapes = sorted({value.shape[1:] for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"Expected representative data for input {name} in samples of one shape. "
            f"Received samples of shapes {', '.join(map(str, shapes[:4]))}. "
            "Pad, crop or resize them alike."
        )
    return np.concatenate(values)


def _checked(spec: InputSpec, value: Array) -> Array:
    where = f"representative data for input {spec.name}"
    if value.ndim == 0 or len(value) == 0:
        raise DataError(f"Expected at least one sample of {where}. Received: an empty array.")
    fits = value.ndim == len(spec.shape) + 1 and all(
        want is None or want == got for want, got in zip(spec.shape, value.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"Expected {where} of shape {('samples', *spec.shape)}. Received: {value.shape}. "
            "Shape the samples as the model takes them, with the samples first."
        )
    if value.dtype.kind not in "biuf":
        raise DataError(f"Expected {where} to be numbers. Received: dtype {value.dtype}.")
    # As the model's own dtype: 1e60 is finite in float64 and infinite to a float32 model.
    with np.errstate(over="ignore"):
        taken = value.astype(spec.dtype) if spec.dtype.startswith("float") else value
    bad = ~np.isfinite(taken)
    if bad.any():
        samples = np.unique(np.nonzero(bad)[0])
        raise DataError(
            f"Expected finite {where}. Received NaN or infinite values in {len(samples)} of "
            f"{len(value)} samples, the first at {samples[0]}. Clean the data first."
        )
    takes_integers = spec.dtype.startswith(("int", "uint"))
    if takes_integers and not np.array_equal(value, np.trunc(value)):
        raise DataError(
            f"Expected {where} to be whole numbers ({spec.dtype}). Received: {value.dtype} "
            "with fractions."
        )
    _check_scaling(spec, value, where)
    return np.ascontiguousarray(value, dtype=spec.dtype)


def _check_scaling(spec: InputSpec, value: Array, where: str) -> None:
    low, high = float(value.min()), float(value.max())
    if spec.trained_range is not None:
        trained_low, trained_high = spec.trained_range
        width = max(trained_high - trained_low, 1e-12)
        seen = max(high - low, 0.0)
        further = (value < trained_low - _MARGIN * width) | (value > trained_high + _MARGIN * width)
        if (
            seen > _SCALING_FACTOR * width
            or 0 < seen < width / (8 * _SCALING_FACTOR)
            or further.mean() > _OUTLIERS
        ):
            raise DataError(
                f"Expected {where} scaled as in training, from {trained_low:.6g} to "
                f"{trained_high:.6g}. Received values from {low:.6g} to {high:.6g}. "
                "Apply the same preprocessing as in training."
            )
    elif value.dtype.kind in "iu" and spec.dtype.startswith("float"):
        say(
            f"The {where} are {value.dtype} from {low:.0f} to {high:.0f}; the model takes "
            f"{spec.dtype}. They are used as they are: was the model trained on that scale?"
        )
