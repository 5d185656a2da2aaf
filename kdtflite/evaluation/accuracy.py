"""How often a model is right, and where it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.data.classes import apply_matching, match_classes
from kdtflite.data.splits import Split, as_labels
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError, choose
from kdtflite.evaluation.models import as_model, find_output_kind, find_output_step, predict
from kdtflite.evaluation.result import ClassScores, Evaluation
from kdtflite.evaluation.scores import (
    decide,
    guess_kind,
    rank_true_classes,
    refuse_broken_outputs,
    to_log_probabilities,
    to_two_classes,
    validate_outputs,
)
from kdtflite.lite.model import LiteModel
from kdtflite.results import Result
from kdtflite.tasks.base import Answers, list_names
from kdtflite.tasks.registry import get_task

__all__ = ["collect", "evaluate"]

Samples = np.ndarray | dict[str, np.ndarray]


# Keras' own epsilon: log loss of a float model is then what Keras would print.
_FLOAT_FLOOR = 1e-7


@overload
def evaluate(
    model: Any,
    data: Any,
    *,
    task: Literal["classification"] = ...,
    labels: Sequence[str] | None = ...,
    outputs: str = ...,
    top_k: Sequence[int] = ...,
    ignore_class: int | None = ...,
    workers: int | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
) -> Evaluation: ...
@overload
def evaluate(
    model: Any,
    data: Any,
    *,
    task: str,
    labels: Sequence[str] | None = ...,
    outputs: str = ...,
    top_k: Sequence[int] = ...,
    ignore_class: int | None = ...,
    workers: int | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
) -> Result: ...
@check_arguments
def evaluate(
    model: Any,
    data: Any,
    *,
    task: str = "classification",
    labels: Sequence[str] | None = None,
    outputs: str = "auto",
    top_k: Sequence[int] = (5,),
    ignore_class: int | None = None,
    workers: int | None = 1,
    batch_size: int = 256,
    progress: bool = True,
) -> Result:
    """Evaluates a model on labeled samples.

    A classifier's outputs may be logits or probabilities, one per class, or a single one for two
    classes, which is then the score of class 1. Other tasks are named: "multilabel" (yes or no for
    each output), "regression" (numbers, in the labels' unit) and "segmentation" (a class per pixel
    or position; one channel is the score of class 1).

    Args:
        model: A `.tflite` file (a LiteModel, bytes or a path), or a Keras model (tf_keras,
            Keras 3, a Distiller or a path).
        data: A Split, a tuple (x, y), or a tf.data.Dataset of batches (x, y), which is read
            into memory. x has shape (samples, ...) or is a dict of such arrays by input name;
            y holds class indices, shape (samples,), or one-hot rows; for "multilabel" 0 and 1,
            shape (samples, labels); for "regression" numbers of the outputs' shape; for
            "segmentation" class indices, shape (samples, height, width).
        task: "classification", "multilabel", "regression" or "segmentation".
        labels: Name of each class (or label, or value), in the order of the outputs; by default
            their numbers. The classes of a Split of a Dataset are found by them, or by the labels
            in the file's metadata.
        outputs: "logits", "probabilities", or "auto": decided by the model's last operator or
            layer, otherwise by the values. The result states the decision.
        top_k: The values of k for which to compute top-k accuracy. A k that is not below the
            number of classes is left out, as every sample would count. For classification.
        ignore_class: For segmentation, the label of pixels that count nowhere, often 255.
        workers: For a file, how many interpreters run in parallel; None uses one per core for
            large sets.
        batch_size: For a Keras model, samples per step.
        progress: Show progress.

    Returns:
        The results, with notes on ties and on classes without samples: an `Evaluation`, or a
        `MultiLabelEvaluation`, `RegressionEvaluation` or `SegmentationEvaluation` of
        `kdtflite.tasks`.

    Raises:
        ConfigurationError: An unknown `outputs` or `task`, or a k below 1.
        DataError: No samples, labels out of range, samples that do not fit the model's inputs
            or have another scale than a file's inputs, or outputs that are not finite.
        ShapeMismatchError: Outputs that are not one score per class, or a wrong number of
            `labels`.

    Example:
        >>> import kdtflite, numpy
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> model.set_weights([numpy.eye(2), numpy.zeros(2)])
        >>> x, y = numpy.eye(2, dtype="float32"), numpy.array([0, 0])
        >>> kdtflite.evaluate(model, (x, y), progress=False).accuracy
        0.5
        >>> y = numpy.array([[1.0, 0.0], [0.5, 1.0]])
        >>> kdtflite.evaluate(model, (x, y), task="regression", progress=False).mean_absolute_error
        0.125
    """
    other = get_task(task, ignore_class=ignore_class)
    model = as_model(model)
    choose(outputs, ("auto", "logits", "probabilities"), what="kind of outputs")
    wrong_k = [k for k in top_k if k < 1]
    if wrong_k:
        raise ConfigurationError(
            f"Expected `top_k` of whole numbers from 1 up. Received: {wrong_k}."
        )
    x, y = collect(data) if other is None else collect(data, other.read_labels)
    if isinstance(model, LiteModel) and (problem := model.check_scaling(x)):
        raise DataError(problem)
    given = predict(model, x, workers=workers, batch_size=batch_size, progress=progress)
    if other is not None:
        return other.measure(_make_answers(model, given, y, labels, outputs))
    given = validate_outputs(given, len(y))
    step = find_output_step(model)
    kind, source = _find_kind(model, given, step, outputs)
    scores = to_two_classes(given, kind) if given.shape[1] == 1 else given
    names = _validate_labels(labels, scores.shape[1])
    y = _match_classes(model, data, None if labels is None else names, y, scores.shape[1])
    _check_range(y, scores.shape[1])
    return _measure(scores, y, names, kind, source, step, top_k, _describe(model))


def _as_classes(y: Any) -> np.ndarray:
    return as_labels(y, quiet=True)


def collect(
    data: Any, read_labels: Callable[[Any], np.ndarray] = _as_classes
) -> tuple[Samples, np.ndarray]:
    """Returns samples and labels of a Split, a tuple (x, y) or a tf.data.Dataset.

    Args:
        data: As in `evaluate`.
        read_labels: Returns the labels in the task's form; by default class indices.

    Raises:
        DataError: Another kind of data, no samples, or different lengths.
    """
    if isinstance(data, Split):
        return data.x, read_labels(data.y)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = _as_arrays(data[0]), read_labels(data[1])
    elif hasattr(data, "as_numpy_iterator"):
        _refuse_endless(data)
        x, y = _read_batches(data.as_numpy_iterator(), read_labels)
    else:
        raise DataError(
            "Expected a Split, a tuple (x, y) or a tf.data.Dataset of batches (x, y). "
            f"Received: {type(data).__name__}. Of a Dataset, pass one split: data.test."
        )
    lengths = {len(value) for value in (x.values() if isinstance(x, dict) else (x,))}
    if lengths != {len(y)}:
        raise DataError(
            f"Expected one label per sample. Received: {sorted(lengths)} samples and {len(y)} "
            "labels."
        )
    if not len(y):
        raise DataError("Expected at least one sample to evaluate on. Received: none.")
    return x, y


def _refuse_endless(data: Any) -> None:
    # tf.data.INFINITE_CARDINALITY; importing TensorFlow for it would take seconds.
    if hasattr(data, "cardinality") and int(data.cardinality()) == -1:
        raise DataError(
            "Expected a tf.data.Dataset that ends. Received: one that repeats for ever. Leave out "
            ".repeat(), or cut it with .take(batches)."
        )


def _as_arrays(x: Any) -> Samples:
    if isinstance(x, Mapping):
        return {str(name): np.asarray(value) for name, value in x.items()}
    return np.asarray(x)


def _read_batches(
    batches: Iterable[Any], read_labels: Callable[[Any], np.ndarray]
) -> tuple[Samples, np.ndarray]:
    xs: list[Any] = []
    ys: list[np.ndarray] = []
    for batch in batches:
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise DataError(
                f"Expected batches (x, y) from the tf.data.Dataset. Received: "
                f"{type(batch).__name__}{f' of {len(batch)}' if hasattr(batch, '__len__') else ''}."
                " Map it to pairs of samples and labels."
            )
        if np.ndim(batch[1]) == 0:
            raise DataError(
                "Expected batches from the tf.data.Dataset. Received: single samples. "
                "Call .batch(256) on it."
            )
        xs.append(batch[0])
        ys.append(np.asarray(batch[1]))
    if not xs:
        raise DataError("Expected at least one batch to evaluate on. Received: an empty Dataset.")
    y = read_labels(np.concatenate(ys))
    if isinstance(xs[0], Mapping):
        return {str(name): np.concatenate([x[name] for x in xs]) for name in xs[0]}, y
    return np.concatenate(xs), y


def _make_answers(
    model: Any, given: np.ndarray, y: np.ndarray, labels: Sequence[str] | None, outputs: str
) -> Answers:
    """Returns what a task measures."""
    refuse_broken_outputs(given)
    read = find_output_kind(model) if outputs == "auto" else (outputs, "as asked for")
    kind, source = read or ("", "")
    return Answers(
        outputs=given,
        labels=y,
        model=_describe(model),
        kind=kind,
        kind_from=source,
        step=find_output_step(model),
        limits=model.outputs[0].range if isinstance(model, LiteModel) else None,
        names=labels or (),
    )


def _find_kind(model: Any, given: np.ndarray, step: float | None, wanted: str) -> tuple[str, str]:
    if wanted != "auto":
        if wanted == "probabilities" and (given.min() < 0 or given.max() > 1):
            raise DataError(
                f"Expected probabilities between 0 and 1. Received: outputs from {given.min():g} "
                f'to {given.max():g}. Pass outputs="logits".'
            )
        return wanted, "as asked for"
    read = find_output_kind(model)
    # The values reveal a layer called "softmax" that is something else (a Lambda rescaling it).
    if read is not None and not (read[0] == "probabilities" and (given < 0).any()):
        return read
    return guess_kind(given, step), "guessed from the values"


def _validate_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    if labels is None:
        return tuple(str(n) for n in range(classes))
    if isinstance(labels, str) or len(labels) != classes:
        raise ShapeMismatchError(
            f"Expected {classes} class names in `labels`, as the model gives {classes} scores. "
            f"Received: {labels!r}."
        )
    return tuple(str(name) for name in labels)


def _match_classes(
    model: Any, data: Any, given: tuple[str, ...] | None, y: np.ndarray, classes: int
) -> np.ndarray:
    """Returns the labels as outputs of the model: by name, where both sides have names."""
    metadata = model.metadata if isinstance(model, LiteModel) else None
    own = () if metadata is None or len(metadata.labels) != classes else metadata.labels
    if given is not None and given != own and sorted(given) == sorted(own):
        raise DataError(
            f"Expected `labels` in the order of the outputs, which the file says: "
            f"{', '.join(own[:10])}. Received: {', '.join(given[:10])}. Leave them out, or give "
            "the order of the file."
        )
    names = data.class_names if isinstance(data, Split) else ()
    outputs = given or own
    if not names or not outputs:
        return y
    places = match_classes(
        names, outputs, classes, source="the samples", model="the file", numbered=True
    )
    return apply_matching(y, places, source="the samples")


def _check_range(y: np.ndarray, classes: int) -> None:
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if wrong.size:
        raise DataError(
            f"Labels out of range: expected 0 to {classes - 1}, as the model knows {classes} "
            f"classes. Received: {y[wrong[0]]} at sample {wrong[0]}, and {wrong.size} such labels "
            "in all. Evaluate on the classes that the model was trained on."
        )


def _measure(
    scores: np.ndarray,
    y: np.ndarray,
    names: tuple[str, ...],
    kind: str,
    source: str,
    step: float | None,
    top_k: Sequence[int],
    description: str,
) -> Evaluation:
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        precision_recall_fscore_support,
    )

    classes = range(len(names))
    decision = decide(scores)
    right = decision.predicted == y
    found = np.take_along_axis(decision.best, y[:, np.newaxis], axis=1)[:, 0]
    precision, recall, f1, support = precision_recall_fscore_support(
        y, decision.predicted, labels=list(classes), zero_division=0
    )
    # scikit-learn's top_k_accuracy_score puts the last of equal scores first, a phone the first.
    place = rank_true_classes(scores, y)
    # A file cannot express less than one step of probability; 0 means anything below half a step.
    floor = step / 2 if step is not None else _FLOAT_FLOOR
    logs = to_log_probabilities(scores, kind, floor)
    return Evaluation(
        model=description,
        samples=len(y),
        accuracy=float(accuracy_score(y, decision.predicted)),
        ties=int(decision.tied.sum()),
        accuracy_if_ties_lost=float((right & ~decision.tied).mean()),
        accuracy_if_ties_won=float(found.mean()),
        top_k={int(k): float((place < k).mean()) for k in top_k if k < len(names)},
        log_loss=float(-np.take_along_axis(logs, y[:, np.newaxis], axis=1).mean()),
        log_loss_floor=floor if kind == "probabilities" else 0.0,
        outputs=kind,
        outputs_from=source,
        per_class=tuple(
            ClassScores(name, float(p), float(r), float(f), int(s))
            for name, p, r, f, s in zip(names, precision, recall, f1, support, strict=True)
        ),
        macro_precision=float(precision.mean()),
        macro_recall=float(recall.mean()),
        macro_f1=float(f1.mean()),
        confusion=confusion_matrix(y, decision.predicted, labels=list(classes)).astype(np.int64),
        predictions=decision.predicted,
        notes=_write_notes(names, y, decision.predicted),
    )


def _write_notes(names: tuple[str, ...], y: np.ndarray, predicted: np.ndarray) -> tuple[str, ...]:
    notes = []
    for missing_from, what in (
        (y, "Classes without samples, which count as 0 in the macro means"),
        (predicted, "Classes never predicted, whose precision counts as 0"),
    ):
        counts = np.bincount(missing_from, minlength=len(names))
        missing = [name for name, count in zip(names, counts, strict=True) if not count]
        if missing:
            notes.append(f"{what}: {list_names(missing)}.")
    return tuple(notes)


def _describe(model: Any) -> str:
    if isinstance(model, LiteModel):
        return f".tflite file of {len(model.content):,} bytes (LiteRT, default kernels)"
    return f"Keras model {model.name}"
