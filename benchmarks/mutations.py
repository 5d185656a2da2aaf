"""Damaged copies of .tflite files, each from a random generator and the name of a kind."""

from __future__ import annotations

import random
import struct
from typing import Any

__all__ = ["KINDS", "mutate"]

EXTREMES = (0, 1, 2, 3, 7, 127, 128, 255, 2**15, 2**16, 2**20, 2**24, 2**30, 2**31 - 1, -1, -2)
EXTREMES += (-(2**31), -128, 4, 8)
FLOATS = (0.0, -1.0, 1e-45, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"), 1.0, 1e-9)


def mutate(content: bytes, draw: random.Random, kind: str) -> bytes:
    """Returns a damaged copy of a file."""
    if kind in _EDITS:
        return _edit(content, draw, kind)
    data = bytearray(content)
    if kind == "bytes":
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "words":
        for _ in range(draw.choice((1, 1, 2, 4))):
            place = 4 * draw.randrange(len(data) // 4)
            struct.pack_into("<I", data, place, draw.choice(EXTREMES) % 2**32)
    elif kind == "offsets":
        # Small numbers are mostly offsets, lengths and indices, not weights.
        words = struct.unpack_from(f"<{len(data) // 4}I", data)
        small = [i for i, word in enumerate(words) if 0 < word < len(data)]
        for _ in range(draw.choice((1, 1, 2))):
            change = draw.choice((1, 2, 4, 8, 64, 4096, 2**20, -1, -2, -4, -8, -64))
            place = draw.choice(small)
            struct.pack_into("<I", data, 4 * place, (words[place] + change) % 2**32)
    elif kind == "truncated":
        del data[draw.randrange(8, len(data)) :]
    elif kind == "swapped":
        size = draw.choice((4, 16, 64, 1024))
        one, other = (4 * draw.randrange(2, (len(data) - size) // 4) for _ in range(2))
        data[one : one + size], data[other : other + size] = (
            data[other : other + size],
            data[one : one + size],
        )
    else:  # shifted
        place, size = draw.randrange(8, len(data)), draw.choice((1, 2, 4, 16))
        if draw.random() < 0.5:
            del data[place : place + size]
        else:
            data[place:place] = draw.randbytes(size)
    return bytes(data)


def _edit(content: bytes, draw: random.Random, kind: str) -> bytes:
    """Returns a well-formed file in which one value is wrong."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for _ in range(draw.randrange(2, 7) if kind == "several" else draw.choice((1, 1, 1, 2))):
        change = draw.choice([e for e in _EDITS.values() if e]) if kind == "several" else None
        (change or _EDITS[kind])(model, model.subgraphs[0], draw)
    builder = flatbuffers.Builder(len(content))
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    except (TypeError, ValueError, OverflowError, struct.error, AttributeError):
        return b""  # the schema itself does not allow the value
    return bytes(builder.Output())


def _spoil(values: Any, draw: random.Random, choices: tuple[Any, ...]) -> Any:
    """Returns a list with one entry replaced, added or removed."""
    values = [] if values is None else list(values)
    place = draw.randrange(len(values)) if values else 0
    what = draw.random()
    if values and what < 0.7:
        values[place] = draw.choice(choices)
    elif values and what < 0.85:
        del values[place]
    else:
        values.insert(place, draw.choice(choices))
    return values


def _edit_shape(model: Any, graph: Any, draw: random.Random) -> None:
    tensor = draw.choice(graph.tensors)
    field = draw.choice(("shape", "shape", "shapeSignature"))
    setattr(tensor, field, _spoil(getattr(tensor, field), draw, EXTREMES))


def _edit_quantization(model: Any, graph: Any, draw: random.Random) -> None:
    tensors = [t for t in graph.tensors if t.quantization is not None] or graph.tensors
    tensor = draw.choice(tensors)
    quantization = tensor.quantization
    if quantization is None or draw.random() < 0.1:
        tensor.quantization = None
        return
    what = draw.random()
    if what < 0.4:
        quantization.scale = _spoil(quantization.scale, draw, FLOATS)
    elif what < 0.8:
        quantization.zeroPoint = _spoil(quantization.zeroPoint, draw, (*EXTREMES, 2**40, -(2**60)))
    else:
        quantization.quantizedDimension = draw.choice(EXTREMES)


def _edit_tensor(model: Any, graph: Any, draw: random.Random) -> None:
    tensor = draw.choice(graph.tensors)
    what = draw.randrange(4)
    if what == 0:
        tensor.type = draw.randrange(-1, 23)
    elif what == 1:
        tensor.buffer = draw.choice((draw.randrange(len(model.buffers)), 2**31 - 1, 10**4))
    elif what == 2:
        tensor.isVariable = not tensor.isVariable
    elif tensor.buffer < len(model.buffers):  # an edit before may have moved it
        buffer = model.buffers[tensor.buffer]
        buffer.data = None if buffer.data is None else buffer.data[: draw.randrange(64)]


def _edit_opcode(model: Any, graph: Any, draw: random.Random) -> None:
    code = draw.choice(model.operatorCodes)
    if draw.random() < 0.7:
        value = draw.choice((draw.randrange(210), draw.randrange(60), draw.choice(EXTREMES)))
        code.builtinCode = value
        code.deprecatedBuiltinCode = min(value, 127) if value >= -128 else 0
    elif draw.random() < 0.5:
        code.version = draw.choice((0, 2, 3, 5, 11, 127, -1, 2**30))
    else:
        draw.choice(graph.operators).opcodeIndex = draw.choice(
            (draw.randrange(len(model.operatorCodes)), 10**6)
        )


def _edit_options(model: Any, graph: Any, draw: random.Random) -> None:
    operators = [o for o in graph.operators if o.builtinOptions is not None] or graph.operators
    operator = draw.choice(operators)
    options = operator.builtinOptions
    if options is None or not vars(options) or draw.random() < 0.15:
        if draw.random() < 0.5:
            operator.builtinOptions, operator.builtinOptionsType = None, 0
        else:
            other = draw.choice(operators)
            operator.builtinOptions = other.builtinOptions
            operator.builtinOptionsType = other.builtinOptionsType
        return
    field = draw.choice(sorted(vars(options)))
    value = getattr(options, field)
    if isinstance(value, float):
        setattr(options, field, draw.choice(FLOATS))
    elif isinstance(value, (int, bool)):
        setattr(options, field, draw.choice(EXTREMES))
    else:
        setattr(options, field, _spoil(value, draw, EXTREMES))


def _edit_links(model: Any, graph: Any, draw: random.Random) -> None:
    holder = draw.choice((*graph.operators, *graph.operators, graph))
    field = draw.choice(("inputs", "outputs"))
    near = tuple(range(len(graph.tensors)))
    setattr(holder, field, _spoil(getattr(holder, field), draw, (*near, *EXTREMES)))


def _edit_operands(model: Any, graph: Any, draw: random.Random) -> None:
    """Gives an operator its inputs in another order, or any others."""
    operator = draw.choice(graph.operators)
    inputs = list(operator.inputs)
    if draw.random() < 0.5:
        draw.shuffle(inputs)
    else:
        inputs = [draw.randrange(len(graph.tensors)) for _ in inputs]
    operator.inputs = inputs


def _edit_lists(model: Any, graph: Any, draw: random.Random) -> None:
    names = ("operatorCodes", "buffers", "subgraphs", "metadata", "signatureDefs")
    holder, name = draw.choice(
        [(model, name) for name in names] + [(graph, "tensors"), (graph, "operators")] * 3
    )
    values = list(getattr(holder, name) or [])
    if not values:
        return
    one, other = draw.randrange(len(values)), draw.randrange(len(values))
    what = draw.randrange(3)
    if what == 0 and not (holder is model and name == "subgraphs"):
        del values[one]
    elif what == 1:
        values[one], values[other] = values[other], values[one]
    else:
        values.append(values[one])
    setattr(holder, name, values)


def _edit_constants(model: Any, graph: Any, draw: random.Random) -> None:
    """Shapes, axes and paddings are constants of 32-bit integers."""
    places = [t.buffer for t in graph.tensors if t.type == 2 and 0 < t.buffer < len(model.buffers)]
    stored = [i for i in places if model.buffers[i].data is not None]
    if not stored:
        return
    buffer = model.buffers[draw.choice(stored)]
    data = bytearray(bytes(bytearray(buffer.data)))
    if len(data) >= 4:
        place = 4 * draw.randrange(len(data) // 4)
        struct.pack_into("<i", data, place, draw.choice(EXTREMES))
    buffer.data = list(data)


_EDITS: dict[str, Any] = {
    "shape": _edit_shape,
    "quantization": _edit_quantization,
    "tensor": _edit_tensor,
    "opcode": _edit_opcode,
    "options": _edit_options,
    "links": _edit_links,
    "lists": _edit_lists,
    "constants": _edit_constants,
    "operands": _edit_operands,
    "several": None,
}

KINDS = ("bytes", "words", "offsets", "truncated", "swapped", "shifted", *_EDITS)
