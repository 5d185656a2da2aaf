"""How values flow from layer to layer, and what a converter may fuse into one operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdtflite.evaluation.layers.trace import Call, Trace

__all__ = ["Flow"]

# Operations that begin an operator of their own: nothing fuses them into what is before them.
_BEGINNING = frozenset(
    {
        *("Conv1D", "Conv2D", "Conv3D", "Conv2DBackpropInput", "Conv3DBackpropInputV2"),
        *("DepthwiseConv2dNative", "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum"),
        *("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D", "Mean", "Sum", "Max", "Min", "Prod"),
        *("ConcatV2", "Pad", "PadV2", "MirrorPad", "GatherV2", "ResourceGather", "Softmax"),
        *("ResizeBilinear", "ResizeNearestNeighbor", "Transpose", "While", "StatelessWhile"),
    }
)
# Operations that add, multiply or divide; an activation that is a mere limit has none of them.
_CALCULATING = frozenset(
    {
        *("Add", "AddN", "AddV2", "BiasAdd", "Sub", "Neg", "Mul", "Div", "RealDiv", "DivNoNan"),
        *("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "SquaredDifference"),
    }
)


class Flow:
    """The flow of values between the layers of a traced model.

    Args:
        trace: The model.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._kinds: dict[int, set[str]] = {}
        for operation in trace.graph.get_operations():
            unit = trace.operations.get(operation.name)
            # What rounds weights (a transposition, a maximum) is no part of the operator.
            if unit is not None and operation.name in trace.computed:
                self._kinds.setdefault(id(unit), set()).add(operation.type)
        self.order = {op.name: place for place, op in enumerate(trace.graph.get_operations())}

    def follower(self, tensor: str) -> str | None:
        """Returns the output of the layer that may be fused into what computes `tensor`.

        That is the only layer that takes `tensor`, if it takes nothing else, keeps the shape, and
        is none that begins an operator of its own (a convolution, a pooling).
        """
        takers = self._takers(self._trace.graph.get_tensor_by_name(tensor))
        units = set(takers)
        if len(units) != 1 or (unit := units.pop()) is None or len(unit.outputs) != 1:
            return None
        if self._kinds.get(id(unit), set()) & _BEGINNING or self.taken_by(unit) != {tensor}:
            return None
        given = unit.outputs[0]
        same = self._trace.shape(given) == self._trace.shape(tensor)
        return given if same and given != tensor else None

    def followed(self, tensor: str) -> str | None:
        """Returns what `tensor` is the follower of."""
        unit = self._trace.made_by(tensor)
        taken = self.taken_by(unit) if unit is not None else set()
        before = taken.pop() if len(taken) == 1 else None
        return before if before is not None and self.follower(before) == tensor else None

    def root(self, tensor: str) -> tuple[str, int]:
        """Returns where the fusing that `tensor` may be part of begins, and how far back."""
        back = 0
        while (before := self.followed(tensor)) is not None:
            tensor, back = before, back + 1
        return tensor, back

    def calculates(self, tensor: str) -> bool:
        """Whether the layer that gives `tensor` may be the one to add or multiply."""
        unit = self._trace.made_by(tensor)
        if unit is None:
            return True
        kinds = self._kinds.get(id(unit), set())
        return bool(kinds & (_CALCULATING | _BEGINNING))

    def taken_by(self, unit: Call) -> set[str]:
        """Returns what a layer takes, its weights left out."""
        computed = self._trace.computed
        return {name for name in unit.inputs if name.partition(":")[0] in computed}

    def _takers(self, tensor: Any) -> Iterator[Call | None]:
        for operation in tensor.consumers():
            if operation.type == "Identity":
                yield from self._takers(operation.outputs[0])
            elif operation.type != "Shape":
                yield self._trace.operations.get(operation.name)
