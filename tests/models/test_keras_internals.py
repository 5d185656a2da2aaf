"""Only one file of the package knows what tf_keras keeps to itself."""

import ast
from pathlib import Path

import tf_keras as keras

import kdtflite

PACKAGE = Path(kdtflite.__file__).parent
# Keras 3 has a room of its own; nothing in it is called for a tf_keras model.
ALLOWED = (PACKAGE / "models" / "keras_internals.py", PACKAGE / "models" / "keras3")


def _private_names():
    inputs = keras.Input((4, 8))
    attention = keras.layers.MultiHeadAttention(2, 4)
    model = keras.Model(inputs, attention(inputs, inputs))
    model.compile("adam", keras.losses.MeanSquaredError())
    objects = [model, attention, inputs, model.optimizer, model.loss, keras.Sequential()]
    names = {name for obj in objects for name in (*dir(obj), *vars(obj))}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _accesses(path):
    """Yields (name, line) of what a file reads or sets on objects other than `self`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and not isinstance(node.value, ast.Call):
                yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "hasattr", "setattr"):
                yield getattr(node.args[1], "value", ""), node.lineno
        elif isinstance(node, ast.ImportFrom) and "keras.src" in (node.module or ""):
            yield "_import", node.lineno


def test_no_other_file_reads_private_attributes_of_tf_keras():
    private = _private_names() | {"_import"}
    assert {"_keras_history", "_nested_inputs", "_nodes_by_depth", "_query_dense"} <= private
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any(path.is_relative_to(allowed) for allowed in ALLOWED)
        for name, line in _accesses(path)
        if name in private
    ]
    assert found == []
