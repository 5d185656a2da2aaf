"""Types of a recipe's values, with bounds far beyond any use.

What lies outside is a slip of the keyboard, which would show only after hours of training.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from kdtflite.errors import ConfigurationError, choose

__all__ = [
    "ARCHITECTURES",
    "MOST_PIXELS",
    "Architecture",
    "Real",
    "Seed",
    "Threads",
    "Whole",
    "Width",
]

# As in `models.builders`, which imports TensorFlow: reading a recipe should take no seconds.
ARCHITECTURES = ("convnet", "depthwise", "resnet")
"""The names of the architectures that a recipe can build."""
MOST_PIXELS = 16_384
"""The largest height or width of an image."""


def _refuse_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not yes or no")
    return value


def _choose_architecture(name: str) -> str:
    try:
        return choose(name, ARCHITECTURES, what="architecture")
    except ConfigurationError as error:
        raise ValueError(str(error).rstrip(".")) from error


_number = BeforeValidator(_refuse_truth)
Whole = Annotated[int, _number, Field(le=10_000_000)]
Real = Annotated[float, _number, Field(allow_inf_nan=False)]
Seed = Annotated[int, _number, Field(ge=0, lt=2**31)]
Width = Annotated[int, _number, Field(ge=1, le=65_536)]
Threads = Annotated[int, _number, Field(ge=1, le=1024)]
Architecture = Annotated[str, AfterValidator(_choose_architecture)]
