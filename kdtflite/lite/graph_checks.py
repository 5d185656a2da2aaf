"""What must hold for the operators of a .tflite file before native code sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, prod
from typing import TYPE_CHECKING, Any

from kdtflite.lite.operators import (
    ABORT_WITHOUT_SCALE,
    BIAS_POSITION,
    LEAST_INPUTS,
    REQUIRED_OPTIONS,
    WEIGHT_POSITION,
    WEIGHT_RANK,
)

if TYPE_CHECKING:
    from kdtflite.lite.flatbuffer import FileTensor, Operator

__all__ = ["check_calls", "check_operator", "check_order", "check_scales"]

# Kernels divide by these, or step by them.
_POSITIVE = {
    "Conv2DOptions": ("StrideW", "StrideH", "DilationWFactor", "DilationHFactor"),
    "DepthwiseConv2DOptions": ("StrideW", "StrideH", "DilationWFactor", "DilationHFactor"),
    "Conv3DOptions": (
        *("StrideD", "StrideW", "StrideH"),
        *("DilationDFactor", "DilationWFactor", "DilationHFactor"),
    ),
    "DepthToSpaceOptions": ("BlockSize",),
    "Pool2DOptions": ("StrideW", "StrideH", "FilterWidth", "FilterHeight"),
    "SpaceToDepthOptions": ("BlockSize",),
    "SplitOptions": ("NumSplits",),
    "SplitVOptions": ("NumSplits",),
    "SVDFOptions": ("Rank",),
    "TransposeConvOptions": ("StrideW", "StrideH"),
}
_MAX_STEP = 2**20
_CALLS = {
    "CallOnceOptions": ("InitSubgraphIndex",),
    "CallOptions": ("Subgraph",),
    "IfOptions": ("ThenSubgraphIndex", "ElseSubgraphIndex"),
    "WhileOptions": ("CondSubgraphIndex", "BodySubgraphIndex"),
    "StableHLOCompositeOptions": ("DecompositionSubgraphIndex",),
}


def check_operator(
    schema: Any,
    operator: Any,
    index: int,
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    tensors: Sequence[FileTensor],
) -> tuple[str, tuple[int, ...]]:
    """Checks an operator's options, the number of its tensors, and its weights.

    Args:
        schema: The generated schema module.
        operator: The operator's table.
        index: Its index.
        name: Its kind.
        inputs: Indices of the tensors it reads, all in range.
        outputs: Indices of the tensors it writes, all in range.
        tensors: The tensors of its subgraph.

    Returns:
        The fused activation ("" if the options have none), and the subgraphs it runs.

    Raises:
        ValueError: Says what is wrong.
    """
    least = LEAST_INPUTS.get(name, 0)
    if len(inputs) < least or any(i < 0 for i in inputs[:least]) or (least and not outputs):
        raise ValueError(f"operator {index} {name} lacks an input or output")
    activation, called = "", []
    received = ""
    for union in ("BuiltinOptions", "BuiltinOptions2"):
        options_name, options = _open_options(schema, operator, union)
        if options is None:
            continue
        received = options_name
        for field in _POSITIVE.get(options_name, ()):
            if not 1 <= getattr(options, field)() <= _MAX_STEP:
                raise ValueError(
                    f"operator {index} {name} has {field} = {getattr(options, field)()}"
                )
        called += [getattr(options, field)() for field in _CALLS.get(options_name, ())]
        if hasattr(options, "FusedActivationFunction"):
            activation = _find_name(
                schema.ActivationFunctionType, options.FusedActivationFunction()
            )
            if not activation:
                raise ValueError(f"operator {index} {name} has an unknown activation")
    if REQUIRED_OPTIONS.get(name, received) != received:
        raise ValueError(
            f"operator {index} {name} has {received or 'no options'} in place of "
            f"{REQUIRED_OPTIONS[name]}"
        )
    _check_weights(index, name, inputs, outputs, tensors)
    return activation, tuple(called)


def check_order(
    tensors: Sequence[FileTensor],
    operators: Sequence[Operator],
    inputs: Sequence[int],
    outputs: Sequence[int],
    variables: Iterable[int],
) -> None:
    """Checks that each tensor of a subgraph is computed once, and before it is read.

    Kernels read a tensor that nothing computes at address 0.

    Raises:
        ValueError: Names the operator and the tensor.
    """
    stored = {t.index for t in tensors if t.is_constant}
    fixed = stored | set(inputs)
    # Empty tensors have no bytes to store or to compute.
    known = fixed | set(variables) | {t.index for t in tensors if 0 in t.shape}
    written: set[int] = set()
    for operator in operators:
        for index in operator.inputs:
            if index >= 0 and index not in known:
                raise ValueError(
                    f"operator {operator.index} {operator.name} reads tensor {index}, which "
                    "nothing computes before"
                )
        for index in operator.outputs:
            if index in fixed or index in written:
                raise ValueError(
                    f"operator {operator.index} {operator.name} overwrites tensor {index}"
                )
            written.add(index)
            known.add(index)
    missing = sorted(set(outputs) - known)
    if missing:
        raise ValueError(f"its output, tensor {missing[0]}, is computed by nothing")


def check_scales(tensors: Sequence[FileTensor], operators: Sequence[Operator]) -> None:
    """Raises for an operator that lacks a scale which its kernel aborts the process without.

    Raises:
        ValueError: Names the operator.
    """
    without_scale = {
        tensor.index
        for tensor in tensors
        if tensor.dtype in ("int8", "uint8")
        and not (tensor.scales and all(0 < scale < inf for scale in tensor.scales))
    }
    for operator in operators:
        if operator.name in ABORT_WITHOUT_SCALE and any(
            index in without_scale for index in (*operator.inputs, *operator.outputs)
        ):
            raise ValueError(f"operator {operator.index} {operator.name} has no scale")


def check_calls(calls: Sequence[tuple[int, int]], subgraphs: int) -> None:
    """Checks that operators run subgraphs that exist, and none that ends up running itself.

    Args:
        calls: Pairs: the subgraph of the operator, the subgraph it runs.
        subgraphs: The number of subgraphs.

    Raises:
        ValueError: Says which does not.
    """
    # A composite without a decomposition says -1.
    left = {(caller, called) for caller, called in calls if called >= 0}
    for _, called in left:
        if called >= subgraphs:
            raise ValueError(f"an operator runs subgraph {called}, which does not exist")
    while left:
        callers = {caller for caller, _ in left}
        ending = {call for call in left if call[1] not in callers}
        if not ending:
            raise ValueError(f"subgraph {min(callers)} runs itself")
        left -= ending


def _open_options(schema: Any, operator: Any, union: str) -> tuple[str, Any]:
    """Returns the name of an operator's options and their table, or "" and None."""
    name = _find_name(getattr(schema, union), getattr(operator, f"{union}Type")())
    table = getattr(operator, union)()
    kind = getattr(schema, name, None)
    if table is None or kind is None or not hasattr(kind, "Init"):
        return "", None
    options = kind()
    options.Init(table.Bytes, table.Pos)
    return name, options


def _find_name(enumeration: Any, value: int) -> str:
    return next(
        (n for n, v in vars(enumeration).items() if v == value and not n.startswith("_")), ""
    )


def _check_weights(
    index: int,
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    tensors: Sequence[FileTensor],
) -> None:
    if name not in WEIGHT_RANK:
        return
    weights = tensors[inputs[WEIGHT_POSITION[name]]]
    if len(weights.shape) != WEIGHT_RANK[name] or 0 in weights.shape:
        raise ValueError(f"operator {index} {name} has weights of shape {weights.shape}")
    channels = weights.shape[-1] if name in ("CONV_3D", "DEPTHWISE_CONV_2D") else weights.shape[0]
    output = tensors[outputs[0]].shape
    # 1 is also how a size is stored that is known at run time only.
    if len(output) == WEIGHT_RANK[name] and output[-1] not in (1, channels):
        raise ValueError(
            f"operator {index} {name} has {channels} channels and an output of shape {output}"
        )
    position = BIAS_POSITION[name]
    if len(inputs) <= position or inputs[position] < 0:
        return
    bias = prod(tensors[inputs[position]].shape)
    if bias != channels:
        raise ValueError(f"operator {index} {name} has {channels} channels and {bias} biases")
