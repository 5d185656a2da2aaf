"""Every public function refuses a value of another kind by the name of its argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import kdtflite
from kdtflite.arguments import check_arguments
from kdtflite.distillation.search.auto import Auto
from kdtflite.errors import ConfigurationError
from kdtflite.quantization.calibration import get_calibration

DIGITS = Path(__file__).parents[1] / "android_demo" / "models" / "digits.tflite"
NAMESPACES = (kdtflite, kdtflite.data, kdtflite.models, kdtflite.quantization)
FUNCTIONS = {
    f"{namespace.__name__}.{name}": getattr(namespace, name)
    for namespace in NAMESPACES
    for name in namespace.__all__
    if inspect.isfunction(getattr(namespace, name))
}
FUNCTIONS["kdtflite.Distiller"] = kdtflite.Distiller
# Values that no annotation with these words takes.
OTHERS = {
    "int": ("3", [3], 2.5, float("nan"), True, 10**30, {}, object()),
    "float": ("3", [3.0], True, {}, object(), 1j),
    "str": (3, b"int8", ["int8"], object(), 2.5),
    "bool": ("yes", 2, [True], 0.0, object()),
    "tuple[float, float]": (3, "01", (0, "1"), (0, 1, 2), {}),
    "tuple[int, int]": (3, "01", (0, "1"), (0, 1, 2), (0.5, 1)),
    "Sequence[int]": ("3", 3, [0.5], iter([3])),
    "Sequence[str]": ("zero", 3, [0, 1], iter(["zero"])),
    "Iterable[str]": ("zero", 3, [0]),
    "Sequence[str] | Mapping[str, Sequence[str]]": ("zero", 3, [0], {"a": "zero"}, {0: ["zero"]}),
    "Sequence[float | Schedule]": (0.5, "a", ["a"], [True]),
    "float | Schedule": ("0.5", [0.5], True),
    "Callable[[Any], Any]": (3, "gray", [1]),
    "Augmentation | Callable[[Any, Any], Any]": (3, "flip", {"flip": True}),
}
FITTING = {
    "int": 3,
    "float": 0.5,
    "str": "a",
    "Sequence[int]": [3],
    "str | os.PathLike[str]": "a",
    "int | tuple[int, int]": 3,
    "float | int": 3,
}
CASES = [
    (function, parameter.name, kind)
    for function, its in FUNCTIONS.items()
    for parameter in inspect.signature(its).parameters.values()
    if (kind := str(parameter.annotation).removesuffix(" | None")) in OTHERS
]


def test_most_public_arguments_are_tried():
    assert len(CASES) > 120
    assert {kind for _, _, kind in CASES} == set(OTHERS)


@pytest.mark.parametrize(("function", "name", "kind"), CASES)
def test_a_value_of_another_kind_is_refused_before_anything_runs(function, name, kind):
    parameters = inspect.signature(FUNCTIONS[function]).parameters
    required = [each.name for each in parameters.values() if each.default is each.empty]
    given = {other: FITTING.get(str(parameters[other].annotation), object()) for other in required}
    for value in OTHERS[kind]:
        with pytest.raises(ConfigurationError, match=rf"^Expected {name}= to be .* Received: "):
            FUNCTIONS[function](**{**given, name: value})


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
    assert type(describe(np.uint8(3))[0]) is int
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


def test_a_layer_is_a_function_like_any_other():
    import tf_keras as keras

    @check_arguments
    def apply(function: Callable[[float], float], inverse: bool = False) -> tuple:
        return function, inverse

    layer = keras.layers.Rescaling(2.0)
    assert apply(layer, np.True_) == (layer, True)
    assert type(apply(layer, np.True_)[1]) is bool


def test_the_constructor_of_every_loss_is_checked_also_of_one_of_the_users_own():
    class Mine(kdtflite.losses.LogitsLoss):
        def __init__(self, power: float = 2.0) -> None:
            super().__init__()
            self.power = power

        def __call__(self, student_logits, teacher_logits, mask=None):
            return abs(student_logits - teacher_logits) ** self.power

    assert Mine(np.float32(3)).power == 3
    for made, name in (
        (lambda value: Mine(value), "power"),
        (lambda value: kdtflite.losses.SoftTargets(value), "temperature"),
        (lambda value: kdtflite.losses.DecoupledKD(beta=value), "beta"),
    ):
        for value in ("2", [2.0], {}, None, True):
            with pytest.raises(ConfigurationError, match=f"^Expected {name}= to be a number"):
                made(value)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kdtflite.schedules.Linear("4", 1.0), "start"),
        (lambda: get_calibration("percentile", percentile="99"), "percentile"),
        (lambda: get_calibration("mse", symmetric="yes"), "symmetric"),
        (lambda: kdtflite.data.Augmentation(shift="a"), "shift"),
        (lambda: kdtflite.data.Augmentation(flip="yes"), "flip"),
        (lambda: kdtflite.teachers.EnsembleTeacher([None], temperature="4"), "temperature"),
        (lambda: kdtflite.teachers.LiteTeacher(DIGITS, workers="2"), "workers"),
        (lambda: kdtflite.teachers.OnnxTeacher("a.onnx", unsafe="no"), "unsafe"),
        (lambda: Auto(min_steps="30"), "min_steps"),
        (lambda: kdtflite.LiteModel.load(DIGITS).save(3), "path"),
        (lambda: kdtflite.quantization.QuantizationSchedule(start_rounding="3"), "start_rounding"),
    ],
)
def test_constructors_of_every_kind_are_checked(make, argument):
    with pytest.raises(ConfigurationError, match=f"^Expected {argument}= to be "):
        make()
