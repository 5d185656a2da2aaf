"""Which output of a model stands for which class of the data: by name, or by number."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdtflite.errors import DataError
from kdtflite.progress import say

__all__ = ["apply_matching", "is_number", "match_classes"]

_LISTED = 6
# No model has more classes than that; a longer name is not a class number.
_MOST_DIGITS = 7


def match_classes(
    names: Sequence[str],
    labels: Sequence[str],
    outputs: int,
    *,
    source: str,
    model: str,
    numbered: bool,
) -> npt.NDArray[np.int64]:
    """Returns the model's output for every class of the data.

    Where both sides have names, classes are matched by name, whatever their order or number: first
    exactly, then without regard to case, blanks, hyphens and underscores. Classes of the data whose
    names are numbers are matched by that number with a model that has no such names.

    Args:
        names: Name of each class of the data.
        labels: Name of each output of the model; empty if it has none.
        outputs: The number of classes that the model knows.
        source: The data, for messages.
        model: The model, for messages.
        numbered: Whether the data number their classes themselves, as an `.npz` file does. The
            classes of a folder have no numbers but those that sorting gives them.

    Returns:
        Output of each class of the data, shape (len(names),), int64.

    Raises:
        DataError: The model lacks a class of the data, or several of its classes match one.

    Example:
        >>> from kdtflite.data.classes import match_classes
        >>> labels = ["cat", "dog", "cow"]
        >>> options = {"source": "photos", "model": "model.tflite", "numbered": False}
        >>> match_classes(["Cow", "cat"], labels, 3, **options)
        array([2, 0])
    """
    if labels and len(labels) != outputs:
        raise DataError(
            f"Expected {outputs} labels in {model}, one per output. Received: {len(labels)}, so "
            f"the classes of {source} cannot be matched with them. Name each "
            "output: --labels FILE, one name per line."
        )
    if tuple(names) == tuple(labels):
        return np.arange(len(names))
    if labels and not (all(map(is_number, names)) and not any(map(is_number, labels))):
        return _match_names(names, labels, source, model)
    places = [int(name) for name in names] if all(map(is_number, names)) else []
    fits = len(set(places)) == len(names) and max(places, default=0) < outputs
    if names and places and fits:
        return np.array(places)
    if numbered and len(names) == outputs and not labels:
        return np.arange(outputs)
    if places:
        raise DataError(
            f"Expected the classes of {source} as numbers from 0 to {outputs - 1}, since {model} "
            f"knows {outputs} classes{'' if labels else ' without names'}. Received: "
            f"{_list(names)}. Renumber them, or pass --labels FILE with the name of each output, "
            "one per line."
        )
    raise DataError(
        f"The {len(names)} classes of {source} ({_list(names)}) cannot be matched with the "
        f"{outputs} outputs of {model}, which has no labels. Pass --labels FILE with the name of "
        f"each output, one per line, or name the classes by the numbers 0 to {outputs - 1}."
    )


def apply_matching(
    y: npt.NDArray[np.int64], places: npt.NDArray[np.int64], *, source: str
) -> npt.NDArray[np.int64]:
    """Returns the labels of the data as outputs of the model.

    Args:
        y: Class of each sample in the data's numbering, shape (samples,).
        places: Output of each class, as `match_classes` returns it.
        source: The data, for messages.

    Raises:
        DataError: A label has no name.
    """
    wrong = np.flatnonzero((y < 0) | (y >= len(places)))
    if wrong.size:
        raise DataError(
            f"Labels out of range in {source}: expected 0 to {len(places) - 1}, as it names "
            f"{len(places)} classes. Received: {y[wrong[0]]} at sample {wrong[0]}, and "
            f"{wrong.size} such labels in all. Name every class, or correct the labels."
        )
    matched: npt.NDArray[np.int64] = places[y]
    return matched


def is_number(name: str) -> bool:
    """Says whether a class is named by a number, such as "7" or "07"."""
    return name.isascii() and name.isdigit() and len(name) <= _MOST_DIGITS


def _match_names(
    names: Sequence[str], labels: Sequence[str], source: str, model: str
) -> npt.NDArray[np.int64]:
    exact = {label: place for place, label in enumerate(labels)}
    loose = {_simplify(label): place for place, label in enumerate(labels)}
    repeated = Counter(labels)
    alike = Counter(map(_simplify, labels))
    places, unknown, unclear = [], [], []
    for name in names:
        if name in exact:
            places.append(exact[name])
            unclear += [name] if repeated[name] > 1 else []
        elif _simplify(name) in loose:
            places.append(loose[_simplify(name)])
            unclear += [name] if alike[_simplify(name)] > 1 else []
        else:
            unknown.append(name)
    taken = Counter(places)
    if not unknown:
        unclear += [n for n, place in zip(names, places, strict=True) if taken[place] > 1]
    if unknown or unclear:
        what = "has no such label" if unknown else "does not tell them apart"
        raise DataError(
            f"Expected the classes of {source} by the names that {model} has for them: "
            f"{_list(labels)}. Received: {_list(unknown or list(dict.fromkeys(unclear)))}, and "
            f"{model} {what}. Rename the classes of the data, or pass --labels FILE with the name "
            "of each output, one per line."
        )
    if places != list(range(len(labels))):
        missing = [label for place, label in enumerate(labels) if place not in taken]
        rest = f" No samples of: {_list(missing)}." if missing else ""
        say(f"Classes of {source}: matched by name with the labels of {model}.{rest}")
    return np.array(places, np.int64)


def _simplify(name: str) -> str:
    """Returns a name without what file systems and people write differently."""
    # macOS stores a letter and its accent apart.
    plain = unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ")
    plain = " ".join(plain.split())
    return str(int(plain)) if is_number(plain) else plain


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
