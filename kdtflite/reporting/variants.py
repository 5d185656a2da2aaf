"""The models of a run: one table that the pipeline and the report read.

To add a model that is only converted in another way, add one row to `VARIANTS`: with the stage
whose Keras model it is made from and its conversion target. It is then converted, proven,
measured, a candidate for the file to ship, shown in the table and the plots, and written to
`report.json` under its key. A model that is trained in a new way needs a stage in
`pipeline/stages.py` as well, whose name the row gives.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = [
    "DEFAULT",
    "PLAIN",
    "SHIPPABLE",
    "TRAINING_STAGES",
    "VARIANTS",
    "Variant",
    "get_variant",
    "list_pairs",
    "list_stages",
    "list_variants",
    "shorten_label",
]


@dataclass(frozen=True)
class Variant:
    """One model of a run.

    Attributes:
        key: Its name in `report.json`, and of its file, `files/<key>.tflite`.
        label: Its name for people.
        short_label: The same for narrow places.
        stage: The stage that trains its Keras model.
        target: What it is converted to.
        rival: Key of the model that it has to beat to be worth its trouble.
        float_key: Key of the float model that it is quantized from; such a model can be shipped.
    """

    key: str
    label: str
    short_label: str
    stage: str
    target: str = "int8"
    rival: str | None = None
    float_key: str | None = None


_STUDENT = "Student, "

VARIANTS = (
    Variant("teacher", "Teacher (float)", "Teacher", "teacher", "float32"),
    Variant(
        "hard_labels", f"{_STUDENT}hard labels (float)", "Hard labels", "hard_labels", "float32"
    ),
    Variant(
        "distilled",
        f"{_STUDENT}distilled (float)",
        "Distilled",
        "distilled",
        "float32",
        rival="hard_labels",
    ),
    Variant(
        "ptq_int8",
        f"{_STUDENT}hard labels, PTQ int8",
        "Hard labels, PTQ int8",
        "hard_labels",
        float_key="hard_labels",
    ),
    Variant(
        "hard_labels_qat_int8",
        f"{_STUDENT}hard labels, QAT int8",
        "Hard labels, QAT int8",
        "hard_labels_qat",
        rival="ptq_int8",
        float_key="hard_labels",
    ),
    Variant(
        "distilled_ptq_int8",
        f"{_STUDENT}distilled, PTQ int8",
        "Distilled, PTQ int8",
        "distilled",
        rival="ptq_int8",
        float_key="distilled",
    ),
    Variant(
        "distilled_int8",
        f"{_STUDENT}distilled, QAT int8",
        "Distilled, QAT int8",
        "distilled_qat",
        rival="distilled_ptq_int8",
        float_key="distilled",
    ),
    Variant(
        "distilled_int8x4",
        f"{_STUDENT}distilled, QAT int8x4",
        "Distilled, QAT int8x4",
        "distilled_qat_int8x4",
        "int8x4",
        rival="distilled_int8",
        float_key="distilled",
    ),
)
"""In the order in which a run converts them and a report lists them."""

SHIPPABLE = tuple(variant.key for variant in VARIANTS if variant.float_key is not None)
"""The files among which a run can choose."""

DEFAULT = {
    "int8": tuple(v.key for v in VARIANTS if v.key in SHIPPABLE and v.target == "int8"),
    "int8x4": SHIPPABLE,
}
"""The files that a run makes by default, by the recipe's target."""

PLAIN = "ptq_int8"
"""What there is without a teacher and without quantization-aware training."""

TRAINING_STAGES = {
    "teacher": "teacher",
    "hard_labels": "hard_labels",
    "hard_labels_qat": "hard_labels_qat_int8",
    "distilled": "distilled",
    "distilled_qat": "distilled_int8",
    "distilled_qat_int8x4": "distilled_int8x4",
}
"""The stages that train, in order, each with the model that the report names its curves after."""


def list_variants(wanted: Collection[str]) -> tuple[Variant, ...]:
    """Returns the models of a run that makes the wanted files: with them, what they come from."""
    origins = {variant.float_key for variant in VARIANTS if variant.key in wanted}
    kept = {"teacher", *wanted, *origins}
    return tuple(variant for variant in VARIANTS if variant.key in kept)


def list_stages(wanted: Collection[str]) -> tuple[str, ...]:
    """Returns the stages of a run that makes the wanted files, in order."""
    trained = {variant.stage for variant in list_variants(wanted)}
    training = (stage for stage in TRAINING_STAGES if stage in trained)
    return ("data", *training, "files", "selection", "measurements")


def list_pairs(keys: Collection[str], chosen: str) -> tuple[tuple[str, str], ...]:
    """Returns which models a report compares: the chosen one, and each with its rival."""
    pairs = [(chosen, PLAIN), (chosen, "teacher")]
    pairs += [(variant.key, variant.rival) for variant in VARIANTS if variant.rival is not None]
    held = (pair for pair in pairs if set(pair) <= set(keys) and pair[0] != pair[1])
    return tuple(dict.fromkeys(held))


def get_variant(key: str) -> Variant | None:
    """Returns the variant of a key, or None for a model that is not in the table."""
    return next((variant for variant in VARIANTS if variant.key == key), None)


def shorten_label(label: str) -> str:
    """Returns a model's label without the words that all students share."""
    short = label.removeprefix(_STUDENT)
    return short[:1].upper() + short[1:]
