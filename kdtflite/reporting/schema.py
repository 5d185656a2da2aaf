"""The shape of a report: what `report.json` holds and `report.html` shows.

A report is a plain dict, so that it survives JSON; these types document it and let mypy
check who builds one. A key that is not required may be missing: the page then leaves that
section out. A number that could not be measured is None (or NaN) and is shown as "–".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from kdtflite.errors import DataError

__all__ = [
    "MODEL_KEYS",
    "REPORT_VERSION",
    "SHIPPED_KEYS",
    "Artefact",
    "Choice",
    "Dataset",
    "Interface",
    "LatencyMs",
    "Machine",
    "ModelEntry",
    "Operator",
    "Parity",
    "PerClass",
    "Prediction",
    "Proof",
    "QuantizedLayer",
    "Report",
    "Reproduce",
    "Sample",
    "TrainingStage",
    "Trial",
    "check",
]

REPORT_VERSION = 1

MODEL_KEYS = ("teacher", "hard_labels", "distilled", "ptq_int8", "distilled_int8")
"""The models of a full run, in the order in which a report lists them."""

SHIPPED_KEYS = ("distilled_int8", "ptq_int8", "distilled", "hard_labels")
"""Which model a report recommends: the first of these that it holds."""


class LatencyMs(TypedDict):
    """Time of one inference on the machine that made the report, in milliseconds."""

    p50: float | None
    p90: NotRequired[float | None]
    p99: NotRequired[float | None]
    threads: NotRequired[int]
    delegate: NotRequired[str | None]


class ModelEntry(TypedDict):
    """One model file and what was measured on it; accuracies are shares of the test split.

    A tie is a sample for which several classes share the highest output: frequent with int8
    probabilities, and worth knowing, since the argmax then goes by the order of the classes.
    """

    key: str
    label: str
    format: Literal["float32", "int8"] | str
    file: NotRequired[str]
    sha256: NotRequired[str]
    bytes: NotRequired[int | None]
    parameters: NotRequired[int | None]
    macs: NotRequired[int | None]
    accuracy: NotRequired[float | None]
    accuracy_if_ties_lost: NotRequired[float | None]
    accuracy_if_ties_won: NotRequired[float | None]
    ties: NotRequired[int | None]
    macro_f1: NotRequired[float | None]
    log_loss: NotRequired[float | None]
    latency_ms: NotRequired[LatencyMs | None]
    arena_bytes: NotRequired[int | None]


class Dataset(TypedDict):
    """The data; `samples` counts each split."""

    name: str
    description: NotRequired[str]
    licence: NotRequired[str]
    class_names: NotRequired[list[str]]
    samples: NotRequired[dict[str, int]]
    input_shape: NotRequired[list[int]]


class Machine(TypedDict):
    """Where the run took place."""

    cpu: NotRequired[str]
    cores: NotRequired[int]
    system: NotRequired[str]


class TrainingStage(TypedDict):
    """One stage's curves: a value an epoch for every key of the Keras history.

    A key that ends in "loss" is a loss term; "val_" marks validation; "learning_rate" stands
    alone; everything else is a metric. `kept_epoch` is the one whose weights early stopping kept.
    """

    history: dict[str, list[float | None]]
    epochs: NotRequired[list[int]]
    kept_epoch: NotRequired[int]


class Trial(TypedDict):
    """A short run of one candidate, judged on the validation split."""

    candidate: str
    rung: int
    steps: int
    epochs: float
    accuracy: float | None
    log_loss: float | None
    samples: NotRequired[float | None]


class Choice(TypedDict):
    """How `losses: auto` chose: `steps` of the training it was for, `trial_steps` for choosing.

    `baseline` names the candidate without distillation.
    """

    chosen: str
    why: str
    trials: list[Trial]
    steps: NotRequired[int]
    trial_steps: NotRequired[int]
    baseline: NotRequired[str]


class PerClass(TypedDict):
    """One value a class, in the order of the class names."""

    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]
    support: list[int]


Prediction = TypedDict("Prediction", {"class": int, "confidence": NotRequired[float | None]})
"""The class that a model chose, and the share of its output that this class got."""


class Sample(TypedDict):
    """A test sample and what the models made of it; the image holds values from 0 to 1.

    An image is H×W, H×W×1 (grey) or H×W×3 (RGB), as nested lists; anything else has no picture.
    """

    index: int
    predictions: dict[str, Prediction]
    label: NotRequired[int]
    image: NotRequired[Any]


class Operator(TypedDict):
    """One operator of the shipped file, with the dtypes of its tensors."""

    index: int
    name: str
    inputs: list[str]
    outputs: list[str]
    layer: NotRequired[str]


class Interface(TypedDict):
    """An input or output tensor: real value = scale × (q - zero point)."""

    name: str
    dtype: str
    scale: NotRequired[float | None]
    zero_point: NotRequired[int | None]
    shape: NotRequired[list[int]]


class Proof(TypedDict):
    """Evidence that the shipped file computes in integers only."""

    fully_integer: bool
    operators: NotRequired[list[Operator]]
    tensor_dtypes: NotRequired[dict[str, int]]
    input: NotRequired[Interface]
    output: NotRequired[Interface]
    invoked_with: NotRequired[str]
    float_tensors: NotRequired[int]


QuantizedLayer = TypedDict(
    "QuantizedLayer",
    {"layer": str, "class": str, "how": str, "why": NotRequired[str]},
)
"""How a layer came to its ranges: "trained", "calibrated" or "folded", and why if it matters."""


class Parity(TypedDict):
    """Keras model against file; differences are counted in steps of the output's scale."""

    samples: int
    argmax_agreement: NotRequired[float | None]
    largest_difference_steps: NotRequired[float | None]
    mean_difference_steps: NotRequired[float | None]
    kernels: NotRequired[str]


class Artefact(TypedDict):
    """A file of the run folder."""

    file: str
    sha256: NotRequired[str]
    bytes: NotRequired[int | None]


class Reproduce(TypedDict):
    """How to get the same files again."""

    command: NotRequired[str]
    artefacts: NotRequired[list[Artefact]]


class Report(TypedDict):
    """Everything that a run found out."""

    version: int
    name: str
    models: NotRequired[list[ModelEntry]]
    created: NotRequired[str]
    seed: NotRequired[int]
    recipe: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[Machine]
    seconds: NotRequired[dict[str, float]]
    dataset: NotRequired[Dataset]
    training: NotRequired[dict[str, TrainingStage]]
    choice: NotRequired[Choice]
    confusion: NotRequired[dict[str, list[list[int]]]]
    per_class: NotRequired[dict[str, PerClass]]
    samples: NotRequired[list[Sample]]
    proof: NotRequired[Proof]
    quantization: NotRequired[list[QuantizedLayer]]
    parity: NotRequired[Parity]
    reproduce: NotRequired[Reproduce]


def check(report: Mapping[str, Any]) -> None:
    """Raises unless `report` is a report of a version that this kdtflite can show.

    Raises:
        DataError: It is no mapping, lacks a name or has another version.
    """
    if not isinstance(report, Mapping):
        raise DataError(
            "A report is a dict, as json.load() reads it from report.json. "
            f"Received: {type(report).__name__}."
        )
    version = report.get("version")
    if version != REPORT_VERSION:
        raise DataError(
            f"This kdtflite shows reports of version {REPORT_VERSION}. "
            f"Received: version={version!r}. Use the kdtflite that wrote the report."
        )
    if not report.get("name"):
        raise DataError("A report needs the key 'name' (the recipe's name). Received: none.")
