"""What a target promises: dtypes, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from kdtflite.errors import ConfigurationError, choose

__all__ = ["TARGETS", "Target", "get_target"]


@dataclass(frozen=True)
class Target:
    """A kind of .tflite file.

    Attributes:
        name: What users write.
        description: One sentence for `--help` and documentation.
        fully_integer: Every tensor and operator must be integer; proven, or no file.
        io_dtypes: Dtypes that float inputs and outputs may become, the default first.
    """

    name: str
    description: str
    fully_integer: bool
    io_dtypes: tuple[str, ...]

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
            fully_integer=True,
            io_dtypes=("int8", "uint8"),
        ),
        Target(
            "float32",
            "no quantization: the yardstick that an integer file is compared with",
            fully_integer=False,
            io_dtypes=("float32",),
        ),
    )
}


def get_target(name: str) -> Target:
    """Returns the target called `name`; an unknown one raises with the names there are."""
    return TARGETS[choose(name, TARGETS, what="target")]
