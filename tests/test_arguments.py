"""Every public function refuses a value of another kind by the name of its argument."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

import kdtflite
from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError

NAMESPACES = (kdtflite, kdtflite.data, kdtflite.models, kdtflite.quantization)
FUNCTIONS = {
    f"{namespace.__name__}.{name}": getattr(namespace, name)
    for namespace in NAMESPACES
    for name in namespace.__all__
    if inspect.isfunction(getattr(namespace, name))
}
OTHERS = {
    "int": ("3", [3], 2.5, float("nan"), True, 10**30, {}, object()),
    "float": ("3", [3.0], float("nan"), True, {}, object(), 1j),
    "str": (3, b"int8", ["int8"], None, object(), 2.5),
    "tuple[float, float]": (3, "01", (0, "1"), (0, 1, 2), {}, (0, float("nan"))),
    "Sequence[str]": ("zero", 3, [0, 1], iter(["zero"])),
    "Sequence[str] | Mapping[str, Sequence[str]]": ("zero", 3, [0], {"a": "zero"}, {0: ["zero"]}),
}
CASES = [
    (function, parameter.name, kind)
    for function, its in FUNCTIONS.items()
    for parameter in inspect.signature(its).parameters.values()
    if (kind := str(parameter.annotation).removesuffix(" | None")) in OTHERS
]


@pytest.mark.parametrize(("function", "name", "kind"), CASES)
def test_a_value_of_another_kind_is_refused_before_anything_runs(function, name, kind):
    parameters = inspect.signature(FUNCTIONS[function]).parameters
    optional = str(parameters[name].annotation).endswith("None")
    given = {
        other.name: object()
        for other in parameters.values()
        if other.default is other.empty
        and other.kind not in (other.VAR_POSITIONAL, other.VAR_KEYWORD)
    }
    for value in OTHERS[kind]:
        if value is None and optional:
            continue
        with pytest.raises(ConfigurationError) as error:
            FUNCTIONS[function](**{**given, name: value})
        # Another argument may be refused first: `given` holds none that fits.
        assert str(error.value).startswith("Expected ")
        if all(str(parameters[other].annotation) not in OTHERS for other in given if other != name):
            assert f"Expected {name}= to be " in str(error.value)
    assert len(CASES) > 60


@check_arguments
def describe(
    count: int,
    share: float | None = None,
    word: str = "a",
    span: tuple[float, float] | None = None,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
) -> tuple:
    """Returns what it was given."""
    return count, share, word, span, names


def test_numbers_of_numpy_and_sequences_of_every_kind_are_taken():
    assert describe(np.int64(3), np.float32(0.5), np.str_("b"), np.array([0, 1.0]))[0] == 3
    assert describe(-(2**63) + 1, 2, span=[0, 1], names=("zero", "one"))[1] == 2
    assert describe(1, names={"a": np.array(["zero"])})[1] is None
    assert describe(1, float("inf"), names={"a": ["zero"]}.keys())[1] == float("inf")


def test_the_sentence_says_what_was_expected_and_received():
    with pytest.raises(ConfigurationError) as error:
        describe(1, "much\nmore")
    assert str(error.value) == (
        "Expected share= to be a number or None. Received: 'much\\nmore', a value of type str."
    )
    with pytest.raises(TypeError, match=r"describe\(\) got an unexpected keyword argument 'size'"):
        describe(1, size=2)
    with pytest.raises(TypeError, match=r"describe\(\) missing 1 required positional argument"):
        describe()
