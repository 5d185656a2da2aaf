"""Checks what users pass against the annotations of public functions, before anything runs."""

from __future__ import annotations

import functools
import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from kdtflite.errors import ConfigurationError

__all__ = ["ChecksArguments", "check_arguments", "check_construction"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C")
_Fits = Callable[[Any], bool]
_MOST = 2**63  # what TensorFlow and NumPy can count to


def check_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a function refuse arguments of another kind than its annotations promise.

    Only arguments whose annotation `_KINDS` can read are checked: numbers, strings, lists of them,
    functions. Models, files and data are Any, and have functions of their own that take them. A
    class of ours is told by its name, so that nothing is imported for it. NumPy's numbers become
    Python's.

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
        name: kinds
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and (kinds := _read_annotation(str(parameter.annotation)))
    }

    @functools.wraps(function)
    def check(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or unknown
        given = bound.arguments
        for name, value in given.items():
            if name not in kinds:
                continue
            if not any(fits(value) for _, fits in kinds[name]):
                expected = [what for what, _ in kinds[name]]
                raise ConfigurationError(
                    f"Expected {name}= to be {_join(expected)}. Received: "
                    f"{' '.join(reprlib.repr(value).split())}, a value of type "
                    f"{type(value).__name__}."
                )
            if hasattr(value, "item") and (isinstance(value, Real) or _is_flag(value)):
                given[name] = value.item()  # JSON files and TensorFlow's options take no other
        return function(*bound.args, **bound.kwargs)

    return check


def check_construction(cls: type[_C]) -> type[_C]:
    """Makes a class check the arguments of its constructor, which a dataclass may have written."""
    cls.__init__ = check_arguments(cls.__init__)  # type: ignore[method-assign]
    return cls


class ChecksArguments:
    """The base of classes whose constructors check their arguments, those of users included."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            check_construction(cls)


def _read_annotation(annotation: str) -> list[tuple[str, _Fits]]:
    """Returns what each alternative is called and takes; an empty list if one is unknown."""
    # A bar inside brackets belongs to a part: "Sequence[float | Schedule] | None".
    parts = re.findall(r"(?:[^|\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])+", annotation)
    kinds = [_find_kind(part.strip()) for part in parts]
    return [kind for kind in kinds if kind] if all(kinds) else []


def _find_kind(part: str) -> tuple[str, _Fits] | None:
    if part in _KINDS:
        return _KINDS[part]
    if part.startswith("Callable["):
        return "a function", callable
    if part in _CLASSES:
        article = "an" if part[0] in "AEIOU" else "a"
        return f"{article} {part}", _find_class(part)
    return None


def _find_class(name: str) -> _Fits:
    return lambda value: any(each.__name__ == name for each in type(value).__mro__)


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < _MOST


def _is_number(value: Any) -> bool:
    # NaN and infinity, too: whoever knows the range says what is expected.
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_") or (_is_whole(value) and value in (0, 1))


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    # An iterator has no length, and could be read only once.
    several = hasattr(value, "__iter__") and hasattr(value, "__len__")
    return several and not isinstance(value, str | bytes | Mapping)


def _is_list_of(fits: _Fits) -> _Fits:
    return lambda value: _is_list(value) and all(map(fits, value))


def _is_pair_of(fits: _Fits) -> _Fits:
    return lambda value: _is_list(value) and len(value) == 2 and all(map(fits, value))


def _is_words_by_name(value: Any) -> bool:
    words = _is_list_of(_is_word)
    return isinstance(value, Mapping) and all(_is_word(k) and words(value[k]) for k in value)


def _are_names(value: Any) -> bool:
    if not hasattr(value, "__iter__") or isinstance(value, str | bytes):
        return False
    return not hasattr(value, "__len__") or all(map(_is_word, value))


def _is_weight(value: Any) -> bool:
    return _is_number(value) or _find_class("Schedule")(value)


_CLASSES = {"Augmentation", "Schedule"}
_KINDS: dict[str, tuple[str, _Fits]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("True or False", _is_flag),
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "str": ("a string", _is_word),
    "os.PathLike[str]": ("a path", lambda value: hasattr(value, "__fspath__")),
    "tuple[int, int]": ("two whole numbers", _is_pair_of(_is_whole)),
    "tuple[float, float]": ("two numbers", _is_pair_of(_is_number)),
    "Sequence[int]": ("a list of whole numbers", _is_list_of(_is_whole)),
    "Sequence[str]": ("a list of strings", _is_list_of(_is_word)),
    "Sequence[float | Schedule]": ("a list of numbers or Schedules", _is_list_of(_is_weight)),
    "Iterable[str]": ("a list of strings", _are_names),
    "Mapping[str, Sequence[str]]": ("a dict of lists of strings", _is_words_by_name),
}
