"""Representative data: samples that calibrate activation ranges, checked before use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.arguments import check_arguments
from kdtflite.errors import DataError
from kdtflite.progress import say

__all__ = ["InputSpec", "RepresentativeData", "take_samples"]

Array = NDArray[Any]

# Ranges settle with a few hundred samples; TensorFlow's own guide asks for 100 to 500.
DEFAULT_SAMPLES = 500
_FEW = 32
# Data this many times wider than the trained range have another scaling.
_SCALING_FACTOR = 4.0
# How far values may lie outside the trained range, as a share of its width, and the share of
# values that may lie further out: a range averaged in training excludes the data's outliers.
_MARGIN = 0.25
_OUTLIERS = 0.01


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Name of the input.
        shape: Shape of one sample, without the batch; None where any size is allowed.
        dtype: "float32", "int32", ...
        trained_range: Smallest and largest value seen in training, where known.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    trained_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class RepresentativeData:
    """Checked samples by input name, shape (samples, ...), in the dtypes of the model."""

    samples: dict[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.samples.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yields batches of up to `size` samples by input name."""
        for start in range(0, len(self), size):
            yield {name: value[start : start + size] for name, value in self.samples.items()}


@check_arguments
def take_samples(
    data: Any, inputs: Sequence[InputSpec], *, limit: int = DEFAULT_SAMPLES, few: int = _FEW
) -> RepresentativeData:
    """Takes samples from `data` and checks that they fit the model.

    Args:
        data: An array, shape (samples, ...); a dict of arrays by input name; a pair (x, y); an
            object with an attribute `x`; a tf.data.Dataset, batched or not; or a function that
            returns an iterable of batches, as TensorFlow Lite takes it. A model with several
            inputs needs dicts, since a file may order its inputs differently.
        inputs: The inputs of the model.
        limit: The maximum number of samples; those of an array are spread evenly over it.
        few: Report that ranges may be too narrow if there are fewer samples.

    Raises:
        DataError: The data are empty, hold NaN or infinity, or have a wrong shape, dtype, name or
            scaling.

    Example:
        >>> import numpy as np
        >>> from kdtflite.data import InputSpec, take_samples
        >>> data = take_samples(np.zeros((1000, 4)), [InputSpec("x", (4,))])
        >>> len(data), data.samples["x"].dtype
        (500, dtype('float32'))
    """
    taken = _collect(data, inputs, limit)
    names = [spec.name for spec in inputs]
    if set(taken) != set(names):
        raise DataError(
            f"Expected representative data for the inputs {', '.join(names)}. "
            f"Received: {', '.join(map(str, taken)) or 'none'}. Pass a dict by input name."
        )
    samples = {spec.name: _check(spec, np.asarray(taken[spec.name])) for spec in inputs}
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
        return _collect_batches(_iterate_dataset(data, inputs), inputs, limit)
    if isinstance(data, tuple) and len(data) in (2, 3):
        data = data[0]
    if callable(data):
        given = data()
        if not isinstance(given, Iterable):
            raise DataError(
                "Expected the function that gives representative data to return an iterable of "
                f"batches. Received: {type(given).__name__}."
            )
        return _collect_batches(given, inputs, limit)
    if isinstance(data, Mapping):
        return {name: _spread(np.asarray(value), limit) for name, value in data.items()}
    if isinstance(data, Iterator):
        return _collect_batches(data, inputs, limit)
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


def _iterate_dataset(dataset: Any, inputs: Sequence[InputSpec]) -> Iterable[Any]:
    spec = dataset.element_spec
    spec = spec[0] if isinstance(spec, tuple) else spec
    # Looked up by name: a dict may order its entries differently from the model's inputs.
    first = spec.get(inputs[0].name) if isinstance(spec, Mapping) else spec
    shape = getattr(first, "shape", None)
    if shape is not None and shape.rank == len(inputs[0].shape):
        dataset = dataset.batch(DEFAULT_SAMPLES)
    for element in dataset.as_numpy_iterator():
        yield element[0] if isinstance(element, tuple) else element


def _collect_batches(
    batches: Iterable[Any], inputs: Sequence[InputSpec], limit: int
) -> dict[str, Any]:
    parts: dict[str, list[Array]] = {}
    count = 0
    for batch in batches:
        # TensorFlow Lite's own generators yield [x]; those for fit yield (x, y).
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
    return {name: _join(name, values)[:limit] for name, values in parts.items()}


def _join(name: str, values: list[Array]) -> Array:
    shapes = sorted({value.shape[1:] for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"Expected representative data for input {name} in samples of one shape. "
            f"Received samples of shapes {', '.join(map(str, shapes[:4]))}. "
            "Pad, crop or resize them to one shape."
        )
    return np.concatenate(values)


def _check(spec: InputSpec, value: Array) -> Array:
    where = f"representative data for input {spec.name}"
    if value.ndim == 0 or len(value) == 0:
        raise DataError(f"Expected at least one sample of {where}. Received: an empty array.")
    fits = value.ndim == len(spec.shape) + 1 and all(
        want is None or want == got for want, got in zip(spec.shape, value.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"Expected {where} of shape {('samples', *spec.shape)}. Received: {value.shape}. "
            "Give them the shape that the model takes, with the samples first."
        )
    if value.dtype.kind not in "biuf":
        raise DataError(f"Expected {where} to be numbers. Received: dtype {value.dtype}.")
    # In the dtype of the model: 1e60 is finite in float64 and infinite for a float32 model.
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
            f"{spec.dtype}. They are used as they are. Was the model trained on that scale?"
        )
