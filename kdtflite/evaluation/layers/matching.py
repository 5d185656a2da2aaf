"""Which tensor of a file is the output of which Keras layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdtflite.errors import ShapeMismatchError
from kdtflite.evaluation.layers.flow import Flow
from kdtflite.evaluation.layers.names import Named, Names, layer_name
from kdtflite.evaluation.layers.trace import Trace
from kdtflite.flatbuffer import FileTensor
from kdtflite.litemodel import LiteModel, TensorSpec

__all__ = ["FileValue", "Match", "inputs_by_name", "match"]

# Operators of one value with constants: a normalization is taken apart into a MUL and an ADD.
_ARITHMETIC = frozenset({"ADD", "SUB", "MUL", "DIV"})
# These only write a tensor in another code.
_COPYING = frozenset({"QUANTIZE", "DEQUANTIZE"})


@dataclass(frozen=True)
class FileValue:
    """A tensor that the file computes or takes.

    Attributes:
        tensor: The tensor.
        operator: What computes it, "CONV_2D"; "" for an input.
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

    What a name leads to is the operation where a tensor begins; what the converter fused behind
    it (a bias, a normalization, an activation) is not in the name for certain. The candidates are
    that operation and all that may have been fused, in the order of computation; which of them it
    is, the values tell.

    Attributes:
        values: The tensor, and its copies in other codes (QUANTIZE), in execution order.
        candidates: Names of the Keras model's tensors; the last is the most that can be fused.
        before: What the layers give that may be fused with all of the candidates, before them.
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
    groups = _groups(lite)
    anchors = _ends(groups, trace, lite)
    for number, group in enumerate(groups):
        if number not in anchors and (found := _anchor(group, names, flow)) is not None:
            anchors[number] = found
    for number in _half_done(groups, anchors, lite, flow):
        if anchors[number].trust < _END:
            del anchors[number]
    # Of several tensors that a layer names the last is its output, the others are inside it.
    owners: dict[str, int] = {}
    for number, anchor in sorted(anchors.items(), key=lambda item: (item[1].trust, item[0])):
        if _fits(groups[number], anchor.tensor, trace):
            owners[anchor.tensor] = number
    return [
        Match(
            values=groups[number],
            candidates=_candidates(groups[number], anchors[number], owners, flow, trace),
            before=_before(anchors[number].tensor, flow),
            sure=anchors[number].trust > _WEAK,
        )
        for number in sorted(owners.values())
    ]


def inputs_by_name(trace: Trace, lite: LiteModel) -> dict[str, TensorSpec]:
    """Returns the file's input for each input of the model, by the model's names.

    Raises:
        ShapeMismatchError: It cannot be told which is which, or there are more of one than of
            the other.
    """
    found = _paired(lite.inputs, trace.inputs, trace)
    if len(found) != len(trace.inputs) or len(found) != len(lite.inputs):
        raise ShapeMismatchError(
            "The file does not take what the Keras model takes. Expected inputs "
            f"{_told(trace.inputs, trace)}. Received: "
            f"{', '.join(f'{spec.name} {spec.shape}' for spec in lite.inputs)}. "
            "Was the file converted from this model?"
        )
    return found


def _groups(lite: LiteModel) -> list[tuple[FileValue, ...]]:
    """Returns the tensors that a file takes and computes, each with its copies."""
    tensors = {tensor.index: tensor for tensor in lite.tensors if tensor.subgraph == 0}
    groups = [[FileValue(tensors[spec.index], "", -1)] for spec in lite.inputs]
    member = {spec.index: group for spec, group in zip(lite.inputs, groups, strict=True)}
    # What nothing takes (a part of a SPLIT) gets no memory.
    used = {spec.index for spec in lite.outputs}
    used.update(index for operator in lite.operators for index in operator.inputs)
    for operator in lite.operators:
        if operator.subgraph != 0:
            continue  # the body of a loop
        copied = member.get(operator.inputs[0]) if operator.name in _COPYING else None
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


def _ends(groups: list[tuple[FileValue, ...]], trace: Trace, lite: LiteModel) -> dict[int, _Anchor]:
    """Returns what the file takes and gives, which are known without searching."""
    anchors: dict[int, _Anchor] = {}
    outputs = _paired(lite.outputs, trace.outputs, trace)
    given = [(trace.inputs[name], spec) for name, spec in inputs_by_name(trace, lite).items()]
    given += [(trace.outputs[name], spec) for name, spec in outputs.items()]
    for tensor, spec in given:
        for number, group in enumerate(groups):
            if any(value.tensor.index == spec.index for value in group):
                if not _fits(group, tensor, trace):
                    raise ShapeMismatchError(
                        f"The Keras model and the file differ at {spec.name!r}. Expected shape "
                        f"{trace.shape(tensor)}. Received: {spec.shape} in the file. Was the "
                        "file converted from this model?"
                    )
                anchors.setdefault(number, _Anchor(tensor, _END))
    return anchors


def _paired(
    specs: Sequence[TensorSpec], known: Mapping[str, str], trace: Trace
) -> dict[str, TensorSpec]:
    """Returns the file's input or output of each of the model's names, where that is certain."""
    if len(specs) == len(known) == 1:
        return {next(iter(known)): specs[0]}
    found = {}
    for name, tensor in known.items():
        by_name = [spec for spec in specs if _identifier(spec.name) == _identifier(name)]
        by_shape = [spec for spec in specs if _same_shape(spec.shape, trace.shape(tensor))]
        alike = [t for t in known.values() if trace.shape(t) == trace.shape(tensor)]
        if len(by_name) == 1:
            found[name] = by_name[0]
        elif len(by_shape) == len(alike) == 1:
            found[name] = by_shape[0]
    return found


def _identifier(name: str) -> str:
    # As conversion names them in the signature.
    return re.sub(r"\W", "_", layer_name(name)).strip("_")


def _told(known: Mapping[str, str], trace: Trace) -> str:
    return ", ".join(f"{name} {trace.shape(tensor)}" for name, tensor in known.items())


def _anchor(group: tuple[FileValue, ...], names: Names, flow: Flow) -> _Anchor | None:
    """Returns where a tensor begins, by its name: of the layers named, the last that counts.

    Some may be named for no more than a shared constant: those count that are fused with most of
    the others, and of equally many the ones named first.
    """
    found: dict[str, list[tuple[int, int, str, Named]]] = {}
    for named in names.find(group[0].tensor.name, group[0].part):
        outputs = named.call.outputs
        given = outputs[0] if len(outputs) == 1 else named.tensor
        if given is not None and given in outputs:
            root, back = flow.root(given)
            place = flow.order[named.tensor.partition(":")[0]] if named.tensor else -1
            found.setdefault(root, []).append((back, place, given, named))
    if not found:
        return None
    # max() takes the first of equals, and a dict keeps its order.
    most = max(found.values(), key=lambda fused: len(fused))
    _, _, given, last = max(most, key=lambda each: each[:2])
    inner = last.tensor if last.tensor != given else None
    return _Anchor(given, _SURE if last.sure else _WEAK, inner)


def _candidates(
    group: tuple[FileValue, ...],
    anchor: _Anchor,
    owners: Mapping[str, int],
    flow: Flow,
    trace: Trace,
) -> tuple[str, ...]:
    found = [anchor.tensor]
    # What is given out is known; what is taken in may be quantized by a layer of its own.
    ends = set(trace.outputs.values())
    while found[-1] not in ends and (after := flow.follower(found[-1])) is not None:
        if after in owners:
            break
        found.append(after)
    if anchor.named is not None and _fits(group, anchor.named, trace):
        found.insert(0, anchor.named)
    return tuple(found)


def _before(tensor: str, flow: Flow) -> tuple[str, ...]:
    found: list[str] = []
    while (before := flow.followed(found[0] if found else tensor)) is not None:
        found.insert(0, before)
    return tuple(found)


def _half_done(
    groups: list[tuple[FileValue, ...]], anchors: Mapping[int, _Anchor], lite: LiteModel, flow: Flow
) -> set[int]:
    """Returns which tensors are but the half of what their layer gives.

    A batch normalization becomes a MUL, called after it, and an ADD, called after the ReLU that
    is fused into it. A ReLU adds nothing: the addition is the normalization's.
    """
    member = {v.tensor.index: number for number, group in enumerate(groups) for v in group}
    found = set()
    for operator in lite.operators:
        if operator.subgraph != 0 or operator.name not in _ARITHMETIC:
            continue
        taken = [member[index] for index in operator.inputs if index in member]
        given = anchors.get(member[operator.outputs[0]])
        if len(taken) == 1 and given is not None and not flow.calculates(given.tensor):
            found.add(taken[0])
    return found


def _fits(group: tuple[FileValue, ...], tensor: str, trace: Trace) -> bool:
    return _same_shape(group[0].tensor.shape, trace.shape(tensor))


def _same_shape(stored: Sequence[int], shape: Sequence[int | None] | None) -> bool:
    """Whether two shapes agree but for the batch and sizes of 1, as far as they are known."""
    if shape is None:
        return True
    # Kernels of two dimensions compute what has one: (batch, 1, length, channels).
    ours, theirs = ([size for size in sizes[1:] if size != 1] for sizes in (stored, shape))
    if None in theirs and len(stored) != len(shape):
        return False
    if None in theirs:
        ours, theirs = list(stored[1:]), list(shape[1:])
    return len(ours) == len(theirs) and all(
        want in (None, got) for got, want in zip(ours, theirs, strict=True)
    )
