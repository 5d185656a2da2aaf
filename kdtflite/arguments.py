"""Checks what users pass against the annotations of public functions, before anything runs."""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from kdtflite.errors import ConfigurationError

__all__ = ["check_arguments"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MOST = 2**63  # what TensorFlow and NumPy can count to


def check_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a function refuse numbers, words and lists of words that are of another kind.

    Only arguments whose annotation is one of `_KINDS` are checked; models, files and data have
    their own functions that take them. NumPy's numbers are numbers.

    Raises:
        ConfigurationError: In the function: an argument of another kind; names it.

    Example:
        >>> @check_arguments
        ... def repeat(word: str, times: int = 2) -> str:
        ...     return word * times
        >>> repeat("na", "3")
        Traceback (most recent call last):
        ...
        kdtflite.errors.ConfigurationError: Expected times= to be a whole number. Received: '3', a \
value of type str.
    """
    signature = inspect.signature(function)
    kinds = {
        name: _KINDS[str(parameter.annotation).removesuffix(_OR_NONE)]
        for name, parameter in signature.parameters.items()
        if str(parameter.annotation).removesuffix(_OR_NONE) in _KINDS
    }
    optional = {n for n in kinds if str(signature.parameters[n].annotation).endswith(_OR_NONE)}

    @functools.wraps(function)
    def check(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or unknown
        for name, value in given.items():
            if name not in kinds or (value is None and name in optional):
                continue
            what, fits = kinds[name]
            if not fits(value):
                raise ConfigurationError(
                    f"Expected {name}= to be {what}{' or None' if name in optional else ''}. "
                    f"Received: {' '.join(reprlib.repr(value).split())}, a value of type "
                    f"{type(value).__name__}."
                )
        return function(*args, **kwargs)

    return check


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    # An iterator has no length, and could be read only once.
    return hasattr(value, "__iter__") and hasattr(value, "__len__") and not isinstance(value, str)


def _is_pair(value: Any) -> bool:
    return _is_list(value) and len(value) == 2 and all(map(_is_number, value))


def _is_words(value: Any) -> bool:
    return _is_list(value) and all(map(_is_word, value))


def _is_words_by_name(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_word, value)) and all(map(_is_words, value.values()))
    return _is_words(value)


_OR_NONE = " | None"
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "str": ("a string", _is_word),
    "tuple[float, float]": ("two numbers", _is_pair),
    "Sequence[str]": ("a list of strings", _is_words),
    "Sequence[str] | Mapping[str, Sequence[str]]": (
        "a list of strings, or a dict of such lists",
        _is_words_by_name,
    ),
    "str | Callable[[], Observer]": (
        "a string or a function",
        lambda value: isinstance(value, str) or callable(value),
    ),
}
