"""Labels of a model's layers in tables, and the layers that have no tensor in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdtflite.evaluation.layers.names import find_layer_class
from kdtflite.evaluation.layers.trace import Call, Trace
from kdtflite.models.layer_names import strip_prefix

__all__ = ["Labels", "WithoutTensor"]


@dataclass(frozen=True)
class WithoutTensor:
    """A layer whose output is no tensor of the file.

    Attributes:
        layer: Its label.
        kind: Its class.
        why: What happened to it.
    """

    layer: str
    kind: str
    why: str


class Labels:
    """Labels of a model's layers, and an account of which of them were found in a file.

    A label is the layer's path without "quant_", such as "backbone/conv", with the number of the
    call if the layer is called several times.

    Args:
        trace: The model.
        user_labels: The user's names of the layers, by name, where they differ.
    """

    def __init__(self, trace: Trace, user_labels: Mapping[str, str]) -> None:
        self._trace = trace
        self._user_labels = user_labels
        self._calls = Counter(call.path for call in trace.units)
        self._inputs = {tensor: name for name, tensor in trace.inputs.items()}
        self._found: set[str] = set()
        self._fused: dict[str, str] = {}
        self._folded: set[str] = set()

    def label(self, tensor: str) -> str:
        """Returns the label of the layer, or the name of the input, that a tensor comes from."""
        if tensor in self._inputs:
            return self._inputs[tensor]
        call = self._trace.find_unit(tensor)
        if call is None:
            return tensor
        return self._label_call(call)

    def find_kind(self, tensor: str) -> str:
        """Returns the class of that layer."""
        call = self._trace.find_unit(tensor)
        if call is None or tensor in self._inputs:
            return "InputLayer"
        return find_layer_class(call.layer)

    def is_output(self, tensor: str) -> bool:
        """Whether a tensor is its layer's output, rather than something inside the layer."""
        call = self._trace.find_unit(tensor)
        return call is None or tensor in self._inputs or tensor in call.outputs

    def note(self, candidates: Sequence[str], chosen: int) -> None:
        """Records which candidate a tensor of the file is."""
        if not self.is_output(candidates[chosen]):
            return
        self._found.add(candidates[chosen])
        for tensor in candidates[:chosen]:
            self._fused.setdefault(tensor, self.label(candidates[chosen]))
        self._folded.update(candidates[chosen + 1 :])

    def list_fused(self, candidates: Sequence[str], chosen: int) -> tuple[str, ...]:
        """Returns the layers without a tensor of their own that are fused before a candidate."""
        labels: list[str] = []
        for tensor in reversed(candidates[:chosen]):
            if tensor in self._found:
                break
            if self.is_output(tensor):
                labels.insert(0, self.label(tensor))
        last = self.label(candidates[chosen])
        return tuple(label for label in labels if label != last)

    def list_without_tensor(self) -> tuple[WithoutTensor, ...]:
        """Returns the layers of which no tensor was found, in the order of the model.

        For a layer that was decomposed, it is enough that a part of that name was found; if the
        part only passes on another layer's output, that the other layer was found.
        """
        found = {self.label(tensor) for tensor in self._found}
        taken_apart = {label.partition(" (")[0] for label in found}
        missing = {
            label: WithoutTensor(label, find_layer_class(call.layer), self._explain(call))
            for call in self._trace.units
            if call.outputs and self._is_missing(call)
            if (label := self._label_call(call)) not in found
            and not (self._is_passed_on(call) and label in taken_apart)
        }
        return tuple(missing.values())

    def _is_missing(self, call: Call) -> bool:
        return self._is_passed_on(call) or not set(call.outputs) <= self._found

    def _explain(self, call: Call) -> str:
        missing = [tensor for tensor in call.outputs if tensor not in self._found]
        if self._is_passed_on(call):
            return "changes nothing outside training"
        if missing[0] in self._fused:
            return f"fused into {self._fused[missing[0]]}"
        if missing[0] in self._folded:
            return "folded into the layers after it"
        return "no tensor of the file matches it"

    def _is_passed_on(self, call: Call) -> bool:
        return set(call.outputs) <= set(call.inputs)

    def _label_call(self, call: Call) -> str:
        name = strip_prefix(call.path)
        name = self._user_labels.get(name, name)
        return f"{name} (call {call.number + 1})" if self._calls[call.path] > 1 else name
