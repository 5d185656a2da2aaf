"""Which tensor of a file is the output of which Keras layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdtflite.errors import ShapeMismatchError
from kdtflite.evaluation.layers.flow import Flow
from kdtflite.evaluation.layers.names import Named, Names
from kdtflite.evaluation.layers.trace import Trace
from kdtflite.lite.flatbuffer import FileTensor
from kdtflite.lite.model import LiteModel
from kdtflite.lite.operators import ELEMENTWISE_ARITHMETIC, QUANTIZING
from kdtflite.lite.tensors import TensorSpec
from kdtflite.models.layer_names import strip_prefix

__all__ = ["FileValue", "Match", "match", "match_inputs"]


@dataclass(frozen=True)
class FileValue:
    """A tensor that the file computes, or an input.

    Attributes:
        tensor: The tensor.
        operator: The operator that computes it ("CONV_2D"); "" for an input.
        place: Index of that operator; -1 for an input.
        part: Which of the operator's outputs it is, and of how many.
    """

    tensor: FileTensor
    operator: str
    place: int
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Match:
    """A tensor of the file and the tensors of the Keras model that it may be.

    A name leads to the operation where a tensor's computation starts. What the converter fused
    after it (a bias, a normalization, an activation) need not be in the name. The candidates are
    that operation and all that may have been fused, in order of computation; the values decide
    between them.

    Attributes:
        values: The tensor, and its copies in other codes (QUANTIZE), in execution order.
        candidates: Names of the Keras model's tensors; the last is the most that can be fused.
        before: Outputs of layers that may be fused with the candidates, before them.
        sure: Whether the name of the tensor, rather than its beginning alone, leads there.
    """

    values: tuple[FileValue, ...]
    candidates: tuple[str, ...]
    before: tuple[str, ...]
    sure: bool


@dataclass(frozen=True)
class _Anchor:
    """Where a tensor begins, how it is known, and what its name's last operation gives."""

    tensor: str
    trust: int
    named: str | None = None


_WEAK, _SURE, _END = range(3)


def match(trace: Trace, lite: LiteModel) -> list[Match]:
    """Matches a file's tensors with a Keras model's by name, graph and shape, in execution order.

    Raises:
        ShapeMismatchError: Inputs or outputs of the two do not fit each other.
    """
    flow, names = Flow(trace), Names(trace)
    groups = _group_tensors(lite)
    anchors = _anchor_inputs_and_outputs(groups, trace, lite)
    for number, group in enumerate(groups):
        if number not in anchors and (found := _find_anchor(group, names, flow)) is not None:
            anchors[number] = found
    for number in _find_halves(groups, anchors, lite, flow):
        if anchors[number].trust < _END:
            del anchors[number]
    # Of several tensors that a layer names the last is its output, the others are inside it.
    owners: dict[str, int] = {}
    for number, anchor in sorted(anchors.items(), key=lambda item: (item[1].trust, item[0])):
        if _is_fitting(groups[number], anchor.tensor, trace):
            owners[anchor.tensor] = number
    return [
        Match(
            values=groups[number],
            candidates=_list_candidates(groups[number], anchors[number], owners, flow, trace),
            before=_list_before(anchors[number].tensor, flow),
            sure=anchors[number].trust > _WEAK,
        )
        for number in sorted(owners.values())
    ]


def match_inputs(trace: Trace, lite: LiteModel) -> dict[str, TensorSpec]:
    """Returns the file's input for each input of the model, by the model's names.

    Raises:
        ShapeMismatchError: It is unclear which is which, or the numbers of inputs differ.
    """
    found = _pair(lite.inputs, trace.inputs, trace)
    if len(found) != len(trace.inputs) or len(found) != len(lite.inputs):
        raise ShapeMismatchError(
            "The file's inputs differ from the Keras model's. Expected inputs "
            f"{_describe_tensors(trace.inputs, trace)}. Received: "
            f"{', '.join(f'{spec.name} {spec.shape}' for spec in lite.inputs)}. "
            "Was the file converted from this model?"
        )
    return found


def _group_tensors(lite: LiteModel) -> list[tuple[FileValue, ...]]:
    """Returns the inputs and computed tensors of a file, each with its copies."""
    tensors = {tensor.index: tensor for tensor in lite.tensors if tensor.subgraph == 0}
    groups = [[FileValue(tensors[spec.index], "", -1)] for spec in lite.inputs]
    member = {spec.index: group for spec, group in zip(lite.inputs, groups, strict=True)}
    # An output that nothing uses (a part of a SPLIT) gets no memory.
    used = {spec.index for spec in lite.outputs}
    used.update(index for operator in lite.operators for index in operator.inputs)
    for operator in lite.operators:
        if operator.subgraph != 0:
            continue  # the body of a loop
        copied = member.get(operator.inputs[0]) if operator.name in QUANTIZING else None
        for number, index in enumerate(operator.outputs):
            if index not in used:
                continue
            group = copied
            if group is None:
                group = []
                groups.append(group)
            part = (number, len(operator.outputs))
            group.append(FileValue(tensors[index], operator.name, operator.index, part))
            member[index] = group
    return [tuple(group) for group in groups]


def _anchor_inputs_and_outputs(
    groups: list[tuple[FileValue, ...]], trace: Trace, lite: LiteModel
) -> dict[int, _Anchor]:
    """Returns the anchors of inputs and outputs, which are known without a search."""
    anchors: dict[int, _Anchor] = {}
    outputs = _pair(lite.outputs, trace.outputs, trace)
    given = [(trace.inputs[name], spec) for name, spec in match_inputs(trace, lite).items()]
    given += [(trace.outputs[name], spec) for name, spec in outputs.items()]
    for tensor, spec in given:
        for number, group in enumerate(groups):
            if any(value.tensor.index == spec.index for value in group):
                if not _is_fitting(group, tensor, trace):
                    raise ShapeMismatchError(
                        f"The Keras model and the file differ at {spec.name!r}. Expected shape "
                        f"{trace.shape(tensor)}. Received: {spec.shape} in the file. Was the "
                        "file converted from this model?"
                    )
                anchors.setdefault(number, _Anchor(tensor, _END))
    return anchors


def _pair(
    specs: Sequence[TensorSpec], known: Mapping[str, str], trace: Trace
) -> dict[str, TensorSpec]:
    """Returns the file's input or output of each of the model's names, where that is certain."""
    if len(specs) == len(known) == 1:
        return {next(iter(known)): specs[0]}
    found = {}
    for name, tensor in known.items():
        by_name = [spec for spec in specs if _to_identifier(spec.name) == _to_identifier(name)]
        by_shape = [spec for spec in specs if _has_same_shape(spec.shape, trace.shape(tensor))]
        alike = [t for t in known.values() if trace.shape(t) == trace.shape(tensor)]
        if len(by_name) == 1:
            found[name] = by_name[0]
        elif len(by_shape) == len(alike) == 1:
            found[name] = by_shape[0]
    return found


def _to_identifier(name: str) -> str:
    # As conversion names them in the signature.
    return re.sub(r"\W", "_", strip_prefix(name)).strip("_")


def _describe_tensors(known: Mapping[str, str], trace: Trace) -> str:
    return ", ".join(f"{name} {trace.shape(tensor)}" for name, tensor in known.items())


def _find_anchor(group: tuple[FileValue, ...], names: Names, flow: Flow) -> _Anchor | None:
    """Returns where a tensor starts: at the last relevant layer in its name.

    Some layers are in the name only because of a shared constant. Relevant are those that are
    fused with most of the others; of equal groups the one named first.
    """
    found: dict[str, list[tuple[int, int, str, Named]]] = {}
    for named in names.find(group[0].tensor.name, group[0].part):
        outputs = named.call.outputs
        given = outputs[0] if len(outputs) == 1 else named.tensor
        if given is not None and given in outputs:
            root, back = flow.find_root(given)
            place = flow.order[named.tensor.partition(":")[0]] if named.tensor else -1
            found.setdefault(root, []).append((back, place, given, named))
    if not found:
        return None
    # max() takes the first of equals, and a dict keeps its order.
    most = max(found.values(), key=lambda fused: len(fused))
    _, _, given, last = max(most, key=lambda each: each[:2])
    inner = last.tensor if last.tensor != given else None
    return _Anchor(given, _SURE if last.sure else _WEAK, inner)


def _list_candidates(
    group: tuple[FileValue, ...],
    anchor: _Anchor,
    owners: Mapping[str, int],
    flow: Flow,
    trace: Trace,
) -> tuple[str, ...]:
    found = [anchor.tensor]
    # Outputs are known; an input may be quantized by a layer of its own.
    ends = set(trace.outputs.values())
    while found[-1] not in ends and (after := flow.find_follower(found[-1])) is not None:
        if after in owners:
            break
        found.append(after)
    if anchor.named is not None and _is_fitting(group, anchor.named, trace):
        found.insert(0, anchor.named)
    return tuple(found)


def _list_before(tensor: str, flow: Flow) -> tuple[str, ...]:
    found: list[str] = []
    while (before := flow.find_followed(found[0] if found else tensor)) is not None:
        found.insert(0, before)
    return tuple(found)


def _find_halves(
    groups: list[tuple[FileValue, ...]], anchors: Mapping[int, _Anchor], lite: LiteModel, flow: Flow
) -> set[int]:
    """Returns the tensors that are only half of their layer's computation.

    A batch normalization becomes a MUL, called after it, and an ADD, called after the ReLU that
    is fused into it. A ReLU adds nothing: the addition is the normalization's.
    """
    member = {v.tensor.index: number for number, group in enumerate(groups) for v in group}
    found = set()
    for operator in lite.operators:
        if operator.subgraph != 0 or operator.name not in ELEMENTWISE_ARITHMETIC:
            continue
        taken = [member[index] for index in operator.inputs if index in member]
        given = anchors.get(member[operator.outputs[0]])
        if len(taken) == 1 and given is not None and not flow.is_calculating(given.tensor):
            found.add(taken[0])
    return found


def _is_fitting(group: tuple[FileValue, ...], tensor: str, trace: Trace) -> bool:
    return _has_same_shape(group[0].tensor.shape, trace.shape(tensor))


def _has_same_shape(stored: Sequence[int], shape: Sequence[int | None] | None) -> bool:
    """Whether two shapes agree but for the batch and sizes of 1, as far as they are known."""
    if shape is None:
        return True
    # 2-D kernels compute 1-D layers: (batch, 1, length, channels).
    ours, theirs = ([size for size in sizes[1:] if size != 1] for sizes in (stored, shape))
    if None in theirs and len(stored) != len(shape):
        return False
    if None in theirs:
        ours, theirs = list(stored[1:]), list(shape[1:])
    return len(ours) == len(theirs) and all(
        want in (None, got) for got, want in zip(ours, theirs, strict=True)
    )
