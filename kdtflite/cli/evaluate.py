"""`kdtflite evaluate`: how good the answers of a .tflite file are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtflite.cli.options import (
    AsJson,
    DataPath,
    Force,
    InputRange,
    LiteFile,
    print_result,
    read_labels,
)
from kdtflite.errors import DataError
from kdtflite.pictures import check_picture, save_picture

if TYPE_CHECKING:
    import numpy as np

    from kdtflite.cli.samples import Samples
    from kdtflite.lite.model import LiteModel

__all__ = ["EPILOG", "NAME", "command"]

NAME = "evaluate"
EPILOG = "Example: kdtflite evaluate model.tflite --data test.npz --plot confusion.png"


def command(
    lite: LiteFile,
    data: Annotated[
        str,
        typer.Option(
            help="Labeled samples: an .npz file with x and y (or x_test and y_test), an image "
            "folder with one sub-folder per class, or a named data set, of which the test "
            "split is used.",
            metavar="DATA",
        ),
    ],
    data_path: DataPath = "auto",
    input_range: InputRange = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with the name of each output's class, one per line, by which the "
            "classes of DATA are found.",
            show_default="the labels in FILE's metadata",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What the outputs mean: classification, multilabel, regression or segmentation. "
            "The last three take their labels from an .npz file.",
        ),
    ] = "classification",
    ignore_class: Annotated[
        int | None,
        typer.Option(help="For segmentation: the label of pixels that count nowhere."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Interpreters that run in parallel.", show_default="one per core"),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture (.png, .svg): the confusion matrix, the outputs over the labels, "
            "or the scores of each class."
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measures how good the answers of a file are.

    For a classifier: accuracy, precision, recall, F1 score, confusion matrix and log loss. For
    several labels at once also average precision and AUC, for numbers their errors and R², for
    segmentation Dice and IoU.

    The classes of the data are matched with the file's by name where both have names, and by number
    where folders are named by numbers. What cannot be matched is refused.
    """
    if plot is not None:
        check_picture(plot, overwrite=force, option="--force")
    given = None if labels is None else read_labels(labels)
    from kdtflite.cli.samples import read_test_samples
    from kdtflite.evaluation import evaluate
    from kdtflite.lite.sandbox import load_untrusted
    from kdtflite.tasks.registry import get_task

    other = get_task(task, ignore_class=ignore_class)
    loaded = load_untrusted(lite, kernels=("XNNPACK",))
    read = read_test_samples(
        data, loaded, data_path, input_range, None if other is None else other.read_labels
    )
    if read.y is None:
        raise DataError(
            f"Expected labels beside the samples in {data}: an array y or y_test. Received: no "
            "labels."
        )
    if other is None:
        y, names = _match(read.y, read, loaded, given, data, lite)
    else:
        y, names = read.y, given or read.class_names or None
    evaluated: Any = evaluate(
        loaded,
        (read.x, y),
        task=task,
        ignore_class=ignore_class,
        labels=names,
        workers=workers,
    )
    described = f"{lite} ({len(loaded.content):,} bytes, LiteRT, default kernels)"
    result = replace(evaluated, model=described)
    if plot is not None:
        save_picture(result.plot(), plot, overwrite=force)
    title = "Confusion matrix" if other is None else "Picture"
    text = str(result) if plot is None else f"{result}\n{title}: {plot}"
    print_result({**result.to_dict(), "file": str(lite)}, text, as_json=as_json)


def _match(
    y: np.ndarray,
    read: Samples,
    loaded: LiteModel,
    given: Sequence[str] | None,
    data: str,
    lite: Path,
) -> tuple[np.ndarray, Sequence[str] | None]:
    """Returns the labels of the data as outputs of the file, and the names of the outputs."""
    from kdtflite.data.classes import apply_matching, match_classes

    shape = loaded.outputs[0].shape
    if len(loaded.outputs) != 1 or not shape:
        return y, None  # evaluate() says what it expects
    outputs = max(shape[-1], 2)  # one output is a probability of the second of two classes
    metadata = loaded.metadata
    labels = given or (() if metadata is None else metadata.labels)
    if given is not None and len(given) != outputs:
        raise DataError(
            f"Expected {outputs} names in --labels, one per output of {lite}. Received: "
            f"{len(given)}."
        )
    if not read.class_names:
        return y, labels if len(labels) == outputs else None
    places = match_classes(
        read.class_names, labels, outputs, source=data, model=str(lite), numbered=read.is_numbered
    )
    names = labels
    if not labels and len(places) == outputs:
        names = [read.class_names[place] for place in places.argsort()]
    return apply_matching(y, places, source=data), names or None
