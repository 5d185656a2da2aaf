"""How values flow from layer to layer, and what the converter may fuse into one operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdtflite.evaluation.layers.trace import Call, Trace

__all__ = ["Flow"]

# Operations that start an operator of their own: they are never fused into an earlier one.
_BEGINNING = frozenset(
    {
        *("Conv1D", "Conv2D", "Conv3D", "Conv2DBackpropInput", "Conv3DBackpropInputV2"),
        *("DepthwiseConv2dNative", "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum"),
        *("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D", "Mean", "Sum", "Max", "Min", "Prod"),
        *("ConcatV2", "Pad", "PadV2", "MirrorPad", "GatherV2", "ResourceGather", "Softmax"),
        *("ResizeBilinear", "ResizeNearestNeighbor", "Transpose", "While", "StatelessWhile"),
    }
)
# Operations that add, multiply or divide; an activation that only clips has none of them.
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
            # Operations that round weights (a transpose, a maximum) are not part of the operator.
            if unit is not None and operation.name in trace.computed:
                self._kinds.setdefault(id(unit), set()).add(operation.type)
        self.order = {op.name: place for place, op in enumerate(trace.graph.get_operations())}

    def find_follower(self, tensor: str) -> str | None:
        """Returns the output of the layer that may be fused into what computes `tensor`.

        That is the only layer that takes `tensor`, if it takes nothing else, keeps the shape, and
        does not start an operator of its own (as a convolution or a pooling does).
        """
        takers = self._iterate_consumers(self._trace.graph.get_tensor_by_name(tensor))
        units = set(takers)
        if len(units) != 1 or (unit := units.pop()) is None or len(unit.outputs) != 1:
            return None
        if self._kinds.get(id(unit), set()) & _BEGINNING or self.list_inputs(unit) != {tensor}:
            return None
        given = unit.outputs[0]
        same = self._trace.shape(given) == self._trace.shape(tensor)
        return given if same and given != tensor else None

    def find_followed(self, tensor: str) -> str | None:
        """Returns the tensor of which `tensor` is the follower."""
        unit = self._trace.find_unit(tensor)
        taken = self.list_inputs(unit) if unit is not None else set()
        before = taken.pop() if len(taken) == 1 else None
        return before if before is not None and self.find_follower(before) == tensor else None

    def find_root(self, tensor: str) -> tuple[str, int]:
        """Returns where a fused operator that may contain `tensor` starts, and how far back."""
        back = 0
        while (before := self.find_followed(tensor)) is not None:
            tensor, back = before, back + 1
        return tensor, back

    def is_calculating(self, tensor: str) -> bool:
        """Whether the layer that outputs `tensor` may add or multiply."""
        unit = self._trace.find_unit(tensor)
        if unit is None:
            return True
        kinds = self._kinds.get(id(unit), set())
        return bool(kinds & (_CALCULATING | _BEGINNING))

    def list_inputs(self, unit: Call) -> set[str]:
        """Returns the inputs of a layer without its weights."""
        computed = self._trace.computed
        return {name for name in unit.inputs if name.partition(":")[0] in computed}

    def _iterate_consumers(self, tensor: Any) -> Iterator[Call | None]:
        for operation in tensor.consumers():
            if operation.type == "Identity":
                yield from self._iterate_consumers(operation.outputs[0])
            elif operation.type != "Shape":
                yield self._trace.operations.get(operation.name)
