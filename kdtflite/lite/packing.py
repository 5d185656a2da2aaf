"""pack: the same model in fewer bytes, without those that no kernel reads."""

from __future__ import annotations

import copy
import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, ModelFileError, to_line
from kdtflite.lite.flatbuffer_tree import Table, Tables, TreeReader, Vector
from kdtflite.lite.flatbuffer_writing import write_tree
from kdtflite.lite.kernel_sets import require_equal_outputs
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.lite.trial import share_trust

__all__ = ["NAMES", "check_names", "pack"]

NAMES = ("all", "layers", "none")
"""What `pack` keeps of the names of inner tensors."""

# Slots of the tables, as `flatbuffer_layout` lists them.
_SUBGRAPHS, _BUFFERS, _SIGNATURES = 2, 4, 7
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3
_NAME, _QUANTIZATION = 3, 4
_MIN, _MAX, _SCALE = 0, 1, 2
_MAX_ARCHIVE = 1 << 26


@check_arguments
def pack(lite: Any, names: str = "layers") -> LiteModel:
    """Returns the same model in fewer bytes, if every kernel set computes the same with it.

    Equal vectors, tables and texts are written once: most of a small file are zero points that are
    all 0. The ranges that the scales were computed from, which only converters read, are left out,
    and so are bytes that nothing refers to. Weights stay aligned to 16 bytes. Inputs and outputs
    with their names, signatures, the dynamic batch, metadata and associated files stay as they
    are. Packing a packed file again gives the same bytes.

    What the packed file says is compared with the original part by part. Then XNNPACK, the
    built-in and the reference kernels run both files in another process, on zeros and on random
    values, and every output must be equal to the bit. A kernel set that cannot run the original,
    or takes over 20 seconds for it, is left out; a sentence says so.

    Args:
        lite: A LiteModel, the bytes of a .tflite file, or its path.
        names: What to keep of the names of inner tensors, which no kernel reads: "all", "layers"
            (the layers in the name, without the operations: "conv" for "model/conv/Conv2D"), or
            "none". The returned LiteModel still knows them all (`tensor_names`), so that
            `layer_errors` and the proofs can name layers; a file that is saved does not.

    Raises:
        ConfigurationError: There is no such choice of names.
        ModelFileError: There is no sound file, its format is newer than LiteRT 2.3's, it has
            weights behind the model, or a kernel set computes something else with the packed file.
        UnsupportedModelError: `lite` is not a .tflite file.

    Example:
        >>> import kdtflite, tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> lite = kdtflite.convert(model, target="float32", pack=False, progress=False)
        >>> packed = kdtflite.pack(lite, names="none")
        >>> len(packed.content) < len(lite.content), packed.inputs == lite.inputs
        (True, True)
    """
    lite = as_lite_model(lite)
    check_names(names)
    from ai_edge_litert import schema_py_generated as schema

    try:
        reader = TreeReader(lite.content, schema)
        tree = reader.read("Model")
        _require_inside(tree)
    except ValueError as error:
        raise ModelFileError(
            f"This file cannot be packed: {error}. Expected a file in LiteRT 2.3's format, with "
            "its weights inside the model."
        ) from error
    wanted = _simplify(tree, names)
    content = write_tree(wanted, b"TFL3")
    if TreeReader(content, schema).read("Model") != wanted:  # a fault of kdtflite
        raise ModelFileError("This file cannot be packed: what was written differs. Keep it as is.")
    content = _copy_archive(lite.content, max(span.stop for span in reader.spans), content)
    known = tuple(tensor.name for tensor in lite.tensors)
    packed = LiteModel(content, tensor_names=known if names != "all" else lite.tensor_names)
    require_equal_outputs(lite.content, packed.content)
    share_trust(lite.content, packed.content)
    return packed


def check_names(names: str) -> None:
    """Checks what can be checked without a file.

    Raises:
        ConfigurationError: There is no such choice of names.
    """
    if names not in NAMES:
        raise ConfigurationError(f"Expected names as one of {', '.join(NAMES)}. Received: {names}.")


def _require_inside(tree: Table) -> None:
    """Raises ValueError for a file over 2 GB, which refers to bytes behind its flatbuffer."""
    # 1 is what a writer puts there before it knows the place.
    places = [buffer.get(1) for buffer in _list_tables(tree, _BUFFERS)]
    for graph in _list_tables(tree, _SUBGRAPHS):
        places += [operator.get(9) for operator in _list_tables(graph, _OPERATORS)]
    if any(int.from_bytes(place or b"", "little") > 1 for place in places):
        raise ValueError("it keeps weights or options behind the model")


def _list_tables(table: Table, slot: int) -> tuple[Table, ...]:
    found = table.get(slot)
    return found.tables if isinstance(found, Tables) else ()


def _simplify(tree: Table, names: str) -> Table:
    """Returns the tree without what no kernel reads."""
    graphs = []
    for number, graph in enumerate(_list_tables(tree, _SUBGRAPHS)):
        outer = set(_list_outer(tree, graph, number))
        tensors = [
            _simplify_tensor(tensor, "all" if index in outer else names)
            for index, tensor in enumerate(_list_tables(graph, _TENSORS))
        ]
        graphs.append(graph.replace(_TENSORS, Tables(tuple(tensors))) if tensors else graph)
    return tree.replace(_SUBGRAPHS, Tables(tuple(graphs)))


def _list_outer(tree: Table, graph: Table, number: int) -> Iterator[int]:
    """Yields the tensors of a subgraph that are known outside of it: their names stay."""
    for slot in (_INPUTS, _OUTPUTS):
        indices = graph.get(slot)
        if indices is not None:
            yield from memoryview(indices.data).cast("i")
    for signature in _list_tables(tree, _SIGNATURES):
        if _read_number(signature.get(4)) == number:
            for slot in (0, 1):
                for entry in _list_tables(signature, slot):
                    yield _read_number(entry.get(1))


def _read_number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "little")


def _simplify_tensor(tensor: Table, names: str) -> Table:
    quantization = tensor.get(_QUANTIZATION)
    if quantization is not None and quantization.get(_SCALE) is not None:
        slim = quantization.replace(_MIN, None).replace(_MAX, None)
        tensor = tensor.replace(_QUANTIZATION, slim)
    name = tensor.get(_NAME)
    if names == "all" or name is None:
        return tensor
    cut = _cut_to_layers(name.data.decode()).encode() if names == "layers" else b""
    return tensor.replace(_NAME, Vector(1, cut, name.alignment, is_text=True) if cut else None)


def _cut_to_layers(name: str) -> str:
    """Returns the layers in a tensor's name.

    "model/relu/Relu;model/block/conv/Conv2D" becomes "relu;block/conv": without the model, the
    operation, and what TensorFlow's operations call their own parts ("BiasAdd/ReadVariableOp").
    Names that the converter made up ("tfl.pseudo_qconst3") name no layer.
    """
    layers: list[str] = []
    for path in name.split(";"):
        parts = path.split("/")
        if len(parts) > 2:
            parts = parts[1:-1]
            while len(parts) > 1 and parts[-1][:1].isupper():
                parts.pop()
        elif len(parts) == 1 and set(path) & set(".:"):
            continue
        layers.append("/".join(parts))
    return ";".join(dict.fromkeys(layers))


def _copy_archive(content: bytes, end: int, packed: bytes) -> bytes:
    """Returns the packed model with the archive of associated files that follows the original.

    The archive cannot be copied as it is: its offsets count from the file's start.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if not entries or min(entry.header_offset for entry in entries) < end:
                return packed  # by chance, weights look like an archive's end
            if sum(entry.file_size for entry in entries) > _MAX_ARCHIVE:
                raise ModelFileError(
                    "This file cannot be packed: the associated files behind the model claim over "
                    f"{_MAX_ARCHIVE >> 20} MB."
                )
            file = io.BytesIO()
            file.write(packed)
            with zipfile.ZipFile(file, "w") as copied:
                copied.comment = archive.comment
                for entry in entries:
                    copied.writestr(copy.copy(entry), archive.read(entry))
            return file.getvalue()
    except zipfile.BadZipFile as error:
        # Damaged metadata is not to be lost without a word; plain files have no archive.
        if content[end:].lstrip(b"\0").startswith(b"PK"):
            raise _refuse_archive(error) from error
        return packed
    except (zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise _refuse_archive(error) from error


def _refuse_archive(error: Exception) -> ModelFileError:
    return ModelFileError(
        "This file cannot be packed: the associated files behind its model cannot be read "
        f"({to_line(error)})."
    )
