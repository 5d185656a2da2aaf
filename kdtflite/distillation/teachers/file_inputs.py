"""The named inputs and outputs of a teacher's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kdtflite.errors import ConfigurationError, choose

__all__ = ["choose_output", "name_inputs"]


def name_inputs(x: Any, names: Sequence[str], order: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the tensors of a batch by the names of a file's inputs.

    Args:
        x: A batch: a tensor, or a tuple or dict of them.
        names: The file's input names.
        order: The student's input names, in the order of a tuple.

    Raises:
        ConfigurationError: The names do not match.
    """
    if isinstance(x, Mapping) and set(x) == set(names):
        return {name: x[name] for name in names}
    tensors = tf.nest.flatten(x)
    if len(tensors) == len(names) == 1:
        return {names[0]: tensors[0]}
    if not isinstance(x, Mapping) and len(tensors) == len(order) and set(order) == set(names):
        given = dict(zip(order, tensors, strict=True))
        return {name: given[name] for name in names}
    received = ", ".join(x) if isinstance(x, Mapping) else f"{len(tensors)} without names"
    if order and not isinstance(x, Mapping):
        received = f"{len(tensors)} (the student's: {', '.join(order)})"
    example = ", ".join(f'"{name}": x[{i}]' for i, name in enumerate(names))
    raise ConfigurationError(
        f"The teacher's inputs are named {', '.join(names)}. Expected a dict of these. Received: "
        f"{received}. Pass a preprocessing function that makes one, for example "
        f"lambda x: {{{example}}}."
    )


def choose_output(output: str | None, names: Sequence[str], *, name: str) -> str:
    """Returns the name of the output of a file that teaches.

    Args:
        output: The user's choice, or None for the only one.
        names: The outputs there are.
        name: Name of the teacher, for messages.

    Raises:
        ConfigurationError: There is no such output, or there are several and none was chosen.
    """
    if output is not None:
        return choose(output, names, what=f"output of the teacher {name!r}")
    if len(names) != 1:
        raise ConfigurationError(
            f"The teacher {name!r} has {len(names)} outputs. Expected output= to name the one "
            f"that teaches, one of: {', '.join(names)}."
        )
    return names[0]
