"""The targets of a conversion, and the dtypes that each promises."""

from __future__ import annotations

from dataclasses import dataclass

from kdtflite.errors import ConfigurationError, choose
from kdtflite.lite.operators import CONVOLUTIONS

__all__ = ["TARGETS", "Target", "get_target"]

_WITH_WEIGHTS = CONVOLUTIONS | {"FULLY_CONNECTED"}


@dataclass(frozen=True)
class Target:
    """A kind of .tflite file that `convert` can make.

    Attributes:
        name: What users write.
        description: One sentence for `--help` and documentation.
        weights: Dtype of the weights.
        activations: Dtype in which the operators compute.
        biases: Dtype of the biases.
        io_dtypes: Dtypes that float inputs and outputs may become; the first is the default.
        checked: Operators whose every weight must have that dtype; the proof lists the weights
            of other operators that keep another one.
        min_elements: Weights of fewer elements may stay float32.
        block_size: How many consecutive weights of a row share a scale; 0 for one scale per
            channel.
        runtimes: What is known about the programs that run such a file, where not all do.
    """

    name: str
    description: str
    weights: str
    activations: str = "float32"
    biases: str = "float32"
    io_dtypes: tuple[str, ...] = ("float32",)
    checked: frozenset[str] = _WITH_WEIGHTS
    min_elements: int = 0
    block_size: int = 0
    runtimes: str = ""

    @property
    def keeps_trained_ranges(self) -> bool:
        """Whether the file uses the ranges that a quantization-aware model was trained with."""
        return self.activations == "int8"

    @property
    def fully_integer(self) -> bool:
        """Whether every tensor and operator is proven to be integer."""
        return self.activations != "float32"

    def choose_io(self, dtype: str | None) -> str:
        """Returns the dtype of inputs and outputs; the default for None.

        Raises:
            ConfigurationError: The target does not offer this dtype.
        """
        if dtype is None:
            return self.io_dtypes[0]
        if dtype not in self.io_dtypes:
            raise ConfigurationError(
                f"Target {self.name!r} cannot have {dtype} inputs and outputs. "
                f"Expected io_dtype to be one of: {', '.join(self.io_dtypes)}."
            )
        return dtype


TARGETS = {
    target.name: target
    for target in (
        Target(
            "int8",
            "int8 weights and activations, int32 biases, integer inputs and outputs; proven",
            weights="int8",
            activations="int8",
            biases="int32",
            io_dtypes=("int8", "uint8"),
        ),
        Target(
            "int8x4",
            "int4 weights in Conv2D and Dense, int8 in other layers; int8 activations, int32 "
            "biases, integer inputs and outputs; proven",
            weights="int4",
            activations="int8",
            biases="int32",
            io_dtypes=("int8", "uint8"),
            checked=frozenset({"CONV_2D", "FULLY_CONNECTED"}),
            runtimes="LiteRT 2.3, TensorFlow Lite 2.16.1 (Android) and tflite-micro run such "
            "files; LiteRT's XNNPACK leaves int4 convolutions to the built-in kernels.",
        ),
        Target(
            "int16x8",
            "int8 weights, int16 activations, int64 biases, int16 inputs and outputs; proven",
            weights="int8",
            activations="int16",
            biases="int64",
            io_dtypes=("int16",),
        ),
        Target(
            "float16",
            "float16 weights, half the bytes; float32 arithmetic, inputs and outputs",
            weights="float16",
            checked=_WITH_WEIGHTS | {"CONV_3D", "EMBEDDING_LOOKUP", "GATHER"},
        ),
        Target(
            "dynamic",
            "int8 weights where there are 1,024 or more, a quarter of the bytes; float32 "
            "activations, inputs and outputs",
            weights="int8",
            checked=_WITH_WEIGHTS | {"EMBEDDING_LOOKUP", "GATHER"},
            # TensorFlow Lite's converter leaves smaller weights as they are.
            min_elements=1024,
        ),
        Target(
            "int4",
            "int4 weights in Conv2D and Dense, int8 in other convolutions; float32 "
            "activations, inputs and outputs",
            weights="int4",
            checked=frozenset({"CONV_2D", "FULLY_CONNECTED"}),
        ),
        Target(
            "int4_blockwise",
            "as int4, with one scale per 32 weights in Dense layers without activation",
            weights="int4",
            checked=frozenset({"CONV_2D", "FULLY_CONNECTED"}),
            block_size=32,
        ),
        Target(
            "float32",
            "no quantization: the reference that other files are compared with",
            weights="float32",
            checked=_WITH_WEIGHTS | {"CONV_3D", "EMBEDDING_LOOKUP", "GATHER"},
        ),
    )
}


def get_target(name: str) -> Target:
    """Returns the target called `name`.

    Raises:
        ConfigurationError: No target has this name; lists the valid ones.
    """
    return TARGETS[choose(name, TARGETS, what="target")]
