"""Checks the graphs of a SavedModel before TensorFlow loads it.

Loading runs parts of the graph, and a graph can read and write files. So each of its operators is
looked up in a list of those that only compute.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from kdtflite.errors import ModelFileError, to_line
from kdtflite.models.trust.allowed_operators import CHECKPOINT_OPERATORS, OPERATORS
from kdtflite.models.trust.sizes import refuse_larger

__all__ = ["check_saved_model"]

_MOST_FILES = 10_000
_VARIABLES = "variables/variables"
# What stands between the name that the caller gives and the operator that takes it.
_NAME_STEPS = frozenset({"Identity", "PlaceholderWithDefault"})
# A checkpoint is written in parts, whose names begin with it.
_PART_STEPS = frozenset({"ExpandDims", "Pack", "ShardedFilename", "StringJoin"})


def check_saved_model(folder: str | os.PathLike[str], *, unsafe: bool = False) -> int:
    """Raises if a SavedModel's graph reaches beyond itself, or declares more than its files hold.

    Args:
        folder: The SavedModel.
        unsafe: Allow all of this.

    Returns:
        The bytes of its variables in memory.

    Raises:
        ModelFileError: It is damaged; it uses an operator that reads or writes files, runs Python
            or is unknown; a file in it is a link to another place; or its variables or constants
            are larger than its files.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    folder = Path(folder)
    graph_file = folder / "saved_model.pb"
    if not graph_file.is_file():
        raise ModelFileError(
            f"Expected a SavedModel folder. Received: {folder}, without saved_model.pb."
        )
    if not unsafe:
        _check_files(folder)
    content = graph_file.read_bytes()
    try:
        saved = SavedModel.FromString(content)
    except DecodeError as error:
        raise ModelFileError(
            f"{folder} could not be loaded: {graph_file.name} is damaged ({error}). "
            "Save or copy the model again."
        ) from error
    for meta in saved.meta_graphs:
        if not unsafe:
            _check_operators(folder, meta)
            _check_assets(folder, meta)
        declared = sum(_list_constants(_list_nodes(meta)))
        refuse_larger(declared, len(content), path=graph_file, what="its constants", unsafe=unsafe)
    return _check_variables(folder, unsafe=unsafe)


def _check_files(folder: Path) -> None:
    root = folder.resolve()
    for count, path in enumerate(folder.rglob("*")):
        if count >= _MOST_FILES:
            raise ModelFileError(
                f"{folder} has more than {_MOST_FILES:,} files. Expected a SavedModel folder."
            )
        if not path.resolve().is_relative_to(root):
            raise ModelFileError(
                f"{path} is a link to {path.resolve()}, outside of the model's folder. Copy the "
                "folder with its contents (cp -rL), or pass unsafe=True / --unsafe if you trust it."
            )
        if not (path.is_file() or path.is_dir()):
            raise ModelFileError(f"{path} is neither a file nor a folder. Copy the model again.")


def _check_operators(folder: Path, meta: Any) -> None:
    """Raises for an operator that is not known to be harmless, and names where it is."""
    functions = {function.signature.name: function for function in meta.graph_def.library.function}
    saving_functions, saving_nodes = _find_savers(meta, functions)
    places = [(None, node) for node in meta.graph_def.node]
    places += [(name, node) for name, function in functions.items() for node in function.node_def]
    for function, node in places:
        known = node.op in OPERATORS or node.op in functions
        if not known and node.op in CHECKPOINT_OPERATORS:
            known = function in saving_functions if function else node.name in saving_nodes
        if not known:
            where = f"function {function[:100]!r}" if function else "its main graph"
            raise ModelFileError(
                f"{folder} carries code: it uses {repr(node.op[:60])[1:-1]} (node "
                f"{node.name[:100]!r} of {where}), an operator that reaches files or Python, or "
                "is unknown. Pass "
                "unsafe=True / --unsafe if you trust the model: it then runs with your rights."
            )


def _find_savers(meta: Any, functions: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Finds what saves and restores variables, in files that the caller names, and does no more.

    Returns:
        The names of the functions, and those of the nodes of the main graph.
    """
    nodes = {node.name: node for node in meta.graph_def.node}
    saver = meta.saver_def
    ends = {saver.restore_op_name, saver.save_tensor_name.split(":")[0]} & set(nodes)
    given = saver.filename_tensor_name.split(":")[0]
    # What an output or an initializer depends on runs without a name from the caller.
    tensors = [
        tensor.name
        for signature in meta.signature_def.values()
        for tensor in (*signature.inputs.values(), *signature.outputs.values())
    ]
    tensors += [name for one in meta.collection_def.values() for name in one.node_list.value]
    run = _list_before((name.split(":")[0] for name in tensors), nodes)
    saving = _list_before(ends, nodes) - run
    called = _list_called([node for name, node in nodes.items() if name not in saving], functions)
    called |= _expand_calls(meta.object_graph_def.concrete_functions, functions)
    # Their first argument is the name.
    callers = [
        (callee, next(iter(nodes[name].input), "").split(":")[0])
        for name in saving
        for callee in _list_callees(nodes[name])
    ]
    misnamed = {callee for callee, first in callers if first != given}
    saving_functions = {
        callee
        for callee in {callee for callee, _ in callers} & set(functions) - called - misnamed
        if _takes_file_name(functions[callee])
    }
    # Old files keep the nodes of former savers, which nothing runs.
    dead_or_named = {
        name
        for name in set(nodes) - run
        if name not in saving or _is_named_by(nodes[name], {given}, nodes)
    }
    return saving_functions, dead_or_named


def _list_before(ends: Iterable[str], nodes: dict[str, Any]) -> set[str]:
    """Returns the names of the nodes `ends`, and of those that they depend on."""
    waiting = [name for name in ends if name in nodes]
    seen = set(waiting)
    while waiting:
        for tensor in nodes[waiting.pop()].input:
            name = tensor.lstrip("^").split(":")[0]
            if name in nodes and name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def _list_called(callers: Iterable[Any], functions: dict[str, Any]) -> set[str]:
    """Returns the names of the functions that nodes call, and that those call."""
    return _expand_calls((name for node in callers for name in _list_callees(node)), functions)


def _expand_calls(names: Iterable[str], functions: dict[str, Any]) -> set[str]:
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name in functions:
            seen.add(name)
            waiting += [one for node in functions[name].node_def for one in _list_callees(node)]
    return seen


def _list_callees(node: Any) -> Iterator[str]:
    yield node.op  # a function can be called as if it were an operator
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _takes_file_name(function: Any) -> bool:
    """Says whether the first argument of a function names all checkpoints in it."""
    first = {argument.name for argument in function.signature.input_arg[:1]}
    nodes = {node.name: node for node in function.node_def}
    return all(_is_named_by(node, first, nodes) for node in function.node_def)


def _is_named_by(node: Any, sources: set[str], nodes: dict[str, Any]) -> bool:
    """Says whether the files of a checkpoint operator have names made from one of `sources`."""
    if node.op not in CHECKPOINT_OPERATORS:
        return True
    steps = _NAME_STEPS if node.op == "RestoreV2" else _NAME_STEPS | _PART_STEPS
    for tensor in node.input[: 2 if node.op == "MergeV2Checkpoints" else 1]:
        name, passed = tensor.split(":")[0], set[str]()
        while name not in sources | passed and name in nodes and nodes[name].op in steps:
            passed.add(name)  # a damaged graph may go in circles
            name = next(iter(nodes[name].input), "").split(":")[0]
        if name not in sources:
            return False
    return True


def _check_assets(folder: Path, meta: Any) -> None:
    for asset in meta.asset_file_def:
        if asset.filename.startswith("/") or ".." in PurePosixPath(asset.filename).parts:
            raise ModelFileError(
                f"{folder} names the file {asset.filename[:200]!r}, outside of its folder. Pass "
                "unsafe=True / --unsafe if you trust the model."
            )


def _list_nodes(meta: Any) -> Iterator[Any]:
    yield from meta.graph_def.node
    for function in meta.graph_def.library.function:
        yield from function.node_def


def _list_constants(nodes: Iterable[Any]) -> Iterator[int]:
    """Yields the size in memory of each constant; one that repeats a value is stored as one."""
    import tensorflow as tf

    for node in nodes:
        for value in node.attr.values():
            for tensor in (value.tensor, *value.list.tensor):
                if not tensor.dtype:
                    continue
                try:
                    width = max(tf.as_dtype(tensor.dtype).size, 1)
                except TypeError:
                    width = 1
                yield prod(max(dim.size, 0) for dim in tensor.tensor_shape.dim) * width


def _check_variables(folder: Path, *, unsafe: bool) -> int:
    """Returns how many bytes the variables take in memory, 0 without variables."""
    import tensorflow as tf

    files = [*folder.glob(f"{_VARIABLES}.data-*"), *folder.glob(f"{_VARIABLES}.index")]
    if not (folder / f"{_VARIABLES}.index").is_file():
        return 0
    try:
        reader = tf.train.load_checkpoint(str(folder / _VARIABLES))
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise ModelFileError(
            f"{folder} could not be loaded: its variables cannot be read "
            f"({to_line(error)[:200]}). Save or copy the model again."
        ) from error
    total = sum(prod(shape) * max(types[name].size, 1) for name, shape in shapes.items())
    stored = sum(file.stat().st_size for file in files)
    refuse_larger(total, stored, path=folder, what="its variables", unsafe=unsafe)
    return total
