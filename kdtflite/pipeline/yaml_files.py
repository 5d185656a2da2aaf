"""Reads untrusted YAML: bounded in size, depth and repetition before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdtflite.errors import PARSER_FAULTS, ConfigurationError, to_line

__all__ = ["abbreviate", "find_absurd_value", "parse_yaml", "read_yaml"]

# A recipe has some hundred values, four levels deep.
_MOST_BYTES = 1 << 18
_MOST_VALUES = 10_000
_MOST_LEVELS = 24
_LARGEST_NUMBER = 2**63
_LONGEST_TEXT = 10_000
# What PyYAML raises beside its own errors, for example on `!!int ""` or a date that does not exist.
_FAULTS = (yaml.YAMLError, *PARSER_FAULTS)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that occurs twice instead of keeping the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # Before `<<` is resolved: a key may override one that it brings.
        seen: set[Any] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {abbreviate(key.value)} occurs twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Raises:
        ConfigurationError: There is no such file, it is too large, or it is not YAML that
            `parse_yaml` takes.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no recipe file {path}. Expected a .yaml file.")
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigurationError(
            f"Expected a recipe of at most {_MOST_BYTES:,} bytes. Received: {path} of "
            f"{path.stat().st_size:,} bytes."
        )
    return parse_yaml(path.read_bytes(), str(path))


def parse_yaml(content: bytes, source: str) -> Any:
    """Returns the values of a YAML document.

    Args:
        content: The document, UTF-8.
        source: Where it comes from, for messages.

    Raises:
        ConfigurationError: It is not YAML, a key occurs twice, or it is too large, too deep or
            repeats itself too often (aliases) to be a recipe.
    """
    try:
        text = content.decode()
        _check_events(yaml.parse(text, Loader=_Loader), source)
        return yaml.load(text, Loader=_Loader)
    except ConfigurationError:
        raise
    except _FAULTS as error:
        raise ConfigurationError(
            f"{source} is not valid YAML: {to_line(error)[:400] or type(error).__name__}."
        ) from error


def find_absurd_value(values: Any, path: str = "") -> str | None:
    """Returns what is wrong with the first value that no recipe can mean, or None.

    That is a number that is not finite or has more than 64 bits, or a text of more than 10,000
    characters.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            if found := find_absurd_value(value, f"{path}.{abbreviate(key, quoted=False)}"):
                return found
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            if found := find_absurd_value(value, f"{path}.{number}"):
                return found
    elif isinstance(values, float) and not math.isfinite(values):
        return f"{path.strip('.')}: expected a finite number, received {values}"
    elif isinstance(values, int) and not -_LARGEST_NUMBER <= values < _LARGEST_NUMBER:
        return f"{path.strip('.')}: expected a number of at most 64 bits, received a larger one"
    elif isinstance(values, str) and len(values) > _LONGEST_TEXT:
        return f"{path.strip('.')}: expected a text of at most {_LONGEST_TEXT:,} characters"
    return None


def abbreviate(value: Any, *, quoted: bool = True) -> str:
    """Returns a value for a message, at most 100 characters, whatever it is."""
    try:
        text = repr(value) if quoted else str(value)
    except (ValueError, RecursionError):  # Python refuses to print a number of 5,000 digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_events(events: Iterator[Any], source: str) -> None:
    """Raises if a document is too deep, or its aliases make it too large; builds nothing."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    total = 0

    def close(anchor: str | None, size: int) -> None:
        nonlocal total
        total += size
        if anchor is not None:
            sizes[anchor] = size
        if open_:
            open_[-1] = (open_[-1][0], open_[-1][1] + size)
        if max(total, size) > _MOST_VALUES:
            raise ConfigurationError(
                f"Expected at most {_MOST_VALUES:,} values in {source}. Received: more, with the "
                "repetitions by aliases (*name)."
            )

    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) > _MOST_LEVELS:
                raise ConfigurationError(
                    f"Expected at most {_MOST_LEVELS} levels in {source}. Received: more."
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            total -= size - 1  # its values were counted as they came
            close(anchor, size)
        elif isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if any(anchor == name for anchor, _ in open_):
                raise ConfigurationError(
                    f"{source} contains itself: *{name[:60]} lies within &{name[:60]}."
                )
            close(None, sizes.get(name, 1))
        elif isinstance(event, yaml.ScalarEvent):
            close(event.anchor, 1)
