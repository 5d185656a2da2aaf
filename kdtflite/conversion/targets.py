"""What a target promises: dtypes of weights and activations, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from kdtflite.errors import ConfigurationError, choose

__all__ = ["TARGETS", "Target", "get_target"]

_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})
_WITH_WEIGHTS = _CONVOLUTIONS | {"FULLY_CONNECTED"}


@dataclass(frozen=True)
class Target:
    """A kind of .tflite file.

    Attributes:
        name: What users write.
        description: One sentence for `--help` and documentation.
        weights: Dtype of the weights.
        activations: Dtype of what the operators compute.
        biases: Dtype of the biases.
        io_dtypes: Dtypes that float inputs and outputs may become, the default first.
        held: Operators whose every weight must have the dtype; what the others keep is listed
            in the proof.
        least_elements: Weights of fewer elements may stay float32.
        block_size: Consecutive weights of a row that share a scale; 0 for one a channel.
    """

    name: str
    description: str
    weights: str
    activations: str
    biases: str
    io_dtypes: tuple[str, ...]
    held: frozenset[str] = _WITH_WEIGHTS
    least_elements: int = 0
    block_size: int = 0

    @property
    def fully_integer(self) -> bool:
        """Every tensor and operator must be integer; proven, or no file."""
        return self.activations != "float32"

    def choose_io(self, dtype: str | None) -> str:
        """Returns the dtype for inputs and outputs, the default for None.

        Raises:
            ConfigurationError: The target has no such inputs and outputs.
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
            activations="float32",
            biases="float32",
            io_dtypes=("float32",),
            held=_WITH_WEIGHTS | {"CONV_3D", "EMBEDDING_LOOKUP", "GATHER"},
        ),
        Target(
            "dynamic",
            "int8 weights where there are 1,024 or more, a quarter of the bytes; float32 "
            "activations, inputs and outputs",
            weights="int8",
            activations="float32",
            biases="float32",
            io_dtypes=("float32",),
            held=_WITH_WEIGHTS | {"EMBEDDING_LOOKUP", "GATHER"},
            # What TensorFlow Lite's converter takes for worth its while.
            least_elements=1024,
        ),
        Target(
            "int4",
            "int4 weights a channel in Conv2D and Dense, int8 in other convolutions; float32 "
            "activations, inputs and outputs",
            weights="int4",
            activations="float32",
            biases="float32",
            io_dtypes=("float32",),
            held=frozenset({"CONV_2D", "FULLY_CONNECTED"}),
        ),
        Target(
            "int4_blockwise",
            "as int4, with a scale for every 32 weights of Dense layers without activation",
            weights="int4",
            activations="float32",
            biases="float32",
            io_dtypes=("float32",),
            held=frozenset({"CONV_2D", "FULLY_CONNECTED"}),
            block_size=32,
        ),
        Target(
            "float32",
            "no quantization: the yardstick that another file is compared with",
            weights="float32",
            activations="float32",
            biases="float32",
            io_dtypes=("float32",),
            held=_WITH_WEIGHTS | {"CONV_3D", "EMBEDDING_LOOKUP", "GATHER"},
        ),
    )
}


def get_target(name: str) -> Target:
    """Returns the target called `name`; an unknown one raises with the names there are."""
    return TARGETS[choose(name, TARGETS, what="target")]
