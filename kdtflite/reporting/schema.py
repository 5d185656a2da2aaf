"""The shape of a report: what a run writes to `report.json`, and all that is read from it.

A run builds its report through `Report`, and the page, the table and the verdict read it through
`Report`, so a key that only one side knows is an error in the tests instead of a section that
silently stays empty. A key that is not required may be missing: the page then leaves that section
out. A number that could not be measured is None (or NaN) and is shown as "–".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdtflite.errors import DataError

__all__ = [
    "REPORT_VERSION",
    "Artifact",
    "Choice",
    "Dataset",
    "Interface",
    "LatencyMs",
    "Machine",
    "ModelEntry",
    "Operator",
    "PairedComparison",
    "Parity",
    "PerClass",
    "Prediction",
    "Proof",
    "QuantizedLayer",
    "Report",
    "Reproduce",
    "Sample",
    "SelectableFile",
    "Selection",
    "SplitSize",
    "TimedThreads",
    "TrainingStage",
    "Trial",
    "read_report",
    "write_report",
]

REPORT_VERSION = 1

# A count that could not be measured may be NaN.
Number = int | float | None


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=()
    )


class LatencyMs(_Part):
    """Time of one inference on the machine that made the report, in milliseconds."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    threads: int | None = None
    delegate: str | None = None


class TimedThreads(_Part):
    """All timings with one number of threads, as `evaluation.Latency.to_dict` gives them."""

    threads: int
    invokes: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    delegate: str
    delegated_operators: int
    operators: int


class ModelEntry(_Part):
    """One model file and its measurements; accuracies are shares of the test split.

    A tie is a sample for which several classes share the highest output. Ties are frequent with
    int8 probabilities, and argmax then takes the first of these classes.
    """

    key: str
    label: str = ""
    format: str = ""
    file: str | None = None
    sha256: str | None = None
    bytes: Number = None
    parameters: Number = None
    macs: Number = None
    accuracy: float | None = None
    accuracy_if_ties_lost: float | None = None
    accuracy_if_ties_won: float | None = None
    ties: Number = None
    macro_f1: float | None = None
    log_loss: float | None = None
    latency_ms: LatencyMs | None = None
    latencies: list[TimedThreads] | None = None
    arena_bytes: Number = None

    @property
    def p50(self) -> float | None:
        """The median latency."""
        return None if self.latency_ms is None else self.latency_ms.p50


class SplitSize(_Part):
    """The number of samples in a split."""

    samples: int
    samples_per_class: list[int] | None = None


class Dataset(_Part):
    """The data, as `data.Dataset.to_dict` describes them."""

    name: str
    description: str | None = None
    license: str | None = None
    class_names: list[str] = []
    sample_shape: list[int] | None = None
    dtype: str | None = None
    input_range: list[float] | None = None
    splits: dict[str, SplitSize] = {}


class Machine(_Part):
    """The machine of the run, as `evaluation.describe_machine` describes it."""

    cpu: str | None = None
    architecture: str | None = None
    cores: int | None = None
    os: str | None = None
    litert: str | None = None


class TrainingStage(_Part):
    """One stage's curves: one value per epoch for every key of the Keras history.

    A key that ends in "loss" is a loss term; "val_" marks validation; "learning_rate" stands
    alone; everything else is a metric. `kept_epoch` is the epoch whose weights early stopping kept.
    """

    history: dict[str, list[float | None]] = {}
    epochs: list[int] | None = None
    kept_epoch: int | None = None


class Trial(_Part):
    """A short run of one candidate, judged on the validation split."""

    candidate: str
    rung: int
    steps: int
    epochs: float
    accuracy: float | None = None
    log_loss: float | None = None
    samples: float | None = None


class Choice(_Part):
    """How `losses: auto` chose: `steps` of the training, and `trial_steps` for choosing.

    `baseline` names the candidate without distillation.
    """

    chosen: str
    why: str = ""
    trials: list[Trial] = []
    steps: int | None = None
    trial_steps: int | None = None
    baseline: str | None = None


class Paired(_Part):
    """A difference of two accuracies on the same samples, with its 95 % interval."""

    difference: float
    standard_error: float | None = None
    low: float
    high: float
    samples: int


class PairedComparison(Paired):
    """The accuracy of the model `first` less that of `second`, on the test samples."""

    first: str
    second: str


class SelectableFile(_Part):
    """A file to choose from; `behind` is its difference from the most accurate one."""

    key: str
    label: str = ""
    accuracy: float
    bytes: int
    behind: Paired


class Selection(_Part):
    """The file to ship; `majority` is the accuracy of always answering the most frequent class."""

    chosen: str
    recommended: bool = True
    why: str = ""
    majority: float | None = None
    samples: int | None = None
    files: list[SelectableFile] = []


class PerClass(_Part):
    """One value per class, in the order of the class names."""

    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]
    support: list[int]


class Prediction(_Part):
    """The class that a model predicted, and the probability that it gave this class."""

    number: int = Field(alias="class")
    confidence: float | None = None


class Sample(_Part):
    """A test sample and the models' predictions; the image holds values from 0 to 1.

    An image is H×W, H×W×1 (gray) or H×W×3 (RGB), as nested lists; other samples have no picture.
    """

    index: int
    predictions: dict[str, Prediction]
    label: int | None = None
    image: Any = None


class Operator(_Part):
    """One operator of the shipped file, with the dtypes of its tensors."""

    index: int | None = None
    name: str
    inputs: list[str] = []
    outputs: list[str] = []
    layer: str | None = None


class Interface(_Part):
    """An input or output tensor: real value = scale × (q - zero point)."""

    name: str | None = None
    dtype: str | None = None
    scale: float | None = None
    zero_point: int | None = None
    shape: list[int] | None = None


class Proof(_Part):
    """Evidence that the shipped file computes in integers only."""

    fully_integer: bool
    operators: list[Operator] | None = None
    tensor_dtypes: dict[str, int] = {}
    input: Interface | None = None
    output: Interface | None = None
    invoked_with: str | None = None
    float_tensors: int | None = None
    bytes: int | None = None


class QuantizedLayer(_Part):
    """How a layer becomes integer: trained, folded, calibrated or (not at all) float, and why."""

    layer: str
    kind: str | None = Field(None, alias="class")
    how: str
    why: str | None = None


class Parity(_Part):
    """The Keras model against the file; steps are those of the output's scale."""

    samples: int
    argmax_agreement: float | None = None
    argmax_equal: float | None = None
    largest_difference: float | None = None
    mean_difference: float | None = None
    step: float | None = None
    largest_difference_steps: float | None = None
    mean_difference_steps: float | None = None
    histogram: dict[str, int] | None = None
    kernels: str | None = None


class Artifact(_Part):
    """A file of the run folder."""

    file: str
    sha256: str | None = None
    bytes: int | None = None


class Reproduce(_Part):
    """How to get the same files again."""

    command: str | None = None
    artifacts: list[Artifact] = []


class Report(_Part):
    """All results of a run."""

    version: int
    name: str = Field(min_length=1)
    created: str | None = None
    seed: int | None = None
    recipe: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    machine: Machine | None = None
    seconds: dict[str, float] | None = None
    dataset: Dataset | None = None
    models: list[ModelEntry] | None = None
    training: dict[str, TrainingStage] | None = None
    choice: Choice | None = None
    selection: Selection | None = None
    comparisons: list[PairedComparison] | None = None
    confusion: dict[str, list[list[int]]] | None = None
    per_class: dict[str, PerClass] | None = None
    samples: list[Sample] | None = None
    proof: Proof | None = None
    quantization: list[QuantizedLayer] | None = None
    parity: Parity | None = None
    reproduce: Reproduce | None = None

    @property
    def test_samples(self) -> int:
        """The number of test samples; 0 if the report does not say."""
        split = None if self.dataset is None else self.dataset.splits.get("test")
        return 0 if split is None else split.samples


def read_report(report: Mapping[str, Any] | Report) -> Report:
    """Returns a report with every key checked.

    Args:
        report: The content of `report.json`, or what this function returned.

    Raises:
        DataError: It is not a report of a version that this kdtflite can show, or a key is
            unknown, missing or holds something else.
    """
    if isinstance(report, Report):
        return report
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
    try:
        return Report.model_validate(report)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise DataError(
            f"The report has a fault at {where!r}: {str(fault['msg']).lower()}. Expected a report "
            f"as kdtflite's version {REPORT_VERSION} writes it. Received also: "
            f"{error.error_count() - 1} other faults."
        ) from error


def write_report(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of `report.json`: `values`, every key checked.

    Raises:
        DataError: As for `read_report`.
    """
    written: dict[str, Any] = read_report(values).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    return written
