"""Damaged .tflite files: refused by a sentence, whatever is wrong, and the process lives."""

import random
import struct
import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from kdtflite.errors import KdtfliteError, ModelFileError, UnsupportedModelError
from kdtflite.lite import LiteModel, trial
from kdtflite.lite.flatbuffer import read_file

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 6, 6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def content():
    """An int8 file: a convolution, a pooling, a Dense layer and a softmax."""
    kernel = tf.constant(RNG.normal(size=(3, 3, 2, 4)).astype(np.float32))
    weights = tf.constant(RNG.normal(size=(16, 5)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, 6, 6, 2), tf.float32, name="x")])
    def model(x):
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID"))
        x = tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), (-1, 16))
        return tf.nn.softmax(x @ weights)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in X)
    return converter.convert()


def edit(content, change):
    """Returns the file after `change(model, main subgraph)`, well-formed whatever it did."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def find(model, graph, name):
    """Returns the first operator of a kind."""
    code = getattr(schema.BuiltinOperator, name)
    return next(
        o for o in graph.operators if model.operatorCodes[o.opcodeIndex].builtinCode == code
    )


def set_option(name, **values):
    def change(model, graph):
        for key, value in values.items():
            setattr(find(model, graph, name).builtinOptions, key, value)

    return change


def weights_of(model, graph, name="CONV_2D"):
    return graph.tensors[find(model, graph, name).inputs[1]]


def set_weights(**values):
    def change(model, graph):
        for key, value in values.items():
            setattr(weights_of(model, graph), key, value)

    return change


def set_quantization(**values):
    def change(model, graph):
        for key, value in values.items():
            setattr(weights_of(model, graph).quantization, key, value)

    return change


def set_signature(tensor=0, subgraph=0):
    def change(model, graph):
        entry = schema.TensorMapT(name="in", tensorIndex=tensor)
        signature = schema.SignatureDefT(inputs=[entry], outputs=[], signatureKey="serve")
        signature.subgraphIndex = subgraph
        model.signatureDefs = [signature]

    return change


def read_before_written(model, graph):
    operator = find(model, graph, "CONV_2D")
    operator.inputs = [find(model, graph, "SOFTMAX").outputs[0], *operator.inputs[1:]]


def drop_options(model, graph):
    operator = find(model, graph, "MAX_POOL_2D")
    operator.builtinOptions, operator.builtinOptionsType = None, 0


def drop_inputs(model, graph):
    find(model, graph, "CONV_2D").inputs = []


def overwrite_the_input(model, graph):
    find(model, graph, "SOFTMAX").outputs = list(graph.inputs)


def recurse(model, graph):
    operator = find(model, graph, "SOFTMAX")
    code = schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.CALL_ONCE, version=1)
    code.deprecatedBuiltinCode = 127
    operator.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    operator.builtinOptionsType = schema.BuiltinOptions.CallOnceOptions
    operator.builtinOptions = schema.CallOnceOptionsT(initSubgraphIndex=0)


def sparse(model, graph):
    segments = schema.Int32VectorT(values=[0, 10**6])
    weights_of(model, graph).sparsity = schema.SparsityParametersT(
        traversalOrder=[0, 1, 2, 3],
        dimMetadata=[
            schema.DimensionMetadataT(
                format=1,
                arraySegmentsType=1,
                arraySegments=segments,
                arrayIndicesType=1,
                arrayIndices=segments,
            )
        ]
        * 4,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, g: setattr(m, "version", 9), "schema has version 9"),
        (lambda m, g: setattr(m, "subgraphs", []), "no subgraph"),
        (lambda m, g: setattr(g, "outputs", []), "no outputs"),
        (lambda m, g: setattr(g, "inputs", [-1]), r"input or output -1 that does not exist"),
        (lambda m, g: setattr(g, "outputs", [999]), "input or output 999"),
        (lambda m, g: setattr(m.operatorCodes[0], "builtinCode", 9999), "code 9999 is unknown"),
        (lambda m, g: setattr(g.operators[0], "opcodeIndex", 77), "operator 0 .* has no kind"),
        (lambda m, g: setattr(g.operators[0], "outputs", [-1]), "a tensor that does not exist"),
        (lambda m, g: setattr(g.operators[0], "intermediates", [50]), "does not exist"),
        (lambda m, g: setattr(g.tensors[1], "buffer", 500), "a buffer that does not exist"),
        (lambda m, g: setattr(g.tensors[1], "type", 99), "unknown dtype"),
        (lambda m, g: setattr(g.tensors[0], "shape", [1, -6, 6, 2]), r"shape \(1, -6, 6, 2\)"),
        (lambda m, g: setattr(g.tensors[0], "shape", [2**30, 6, 6, 2]), "too large to run"),
        (lambda m, g: setattr(g.tensors[0], "shapeSignature", [1]), "a signature of 1"),
        (lambda m, g: setattr(g.tensors[0], "name", b"\xff\xfe"), "utf-8"),
        (lambda m, g: setattr(m.metadata[0], "buffer", 10**6), "metadata entry 0"),
        (set_signature(tensor=3), "names a tensor 'in' not in its graph"),
        (set_signature(subgraph=3), "signature 0 refers"),
        (
            lambda m, g: setattr(m, "externalBufferGroups", [schema.ExternalBufferGroupT()]),
            "weights in other files, which are never read",
        ),
        (set_weights(shape=[400, 3, 3, 2]), "7,200 int8 elements has only 72 bytes"),
        (set_weights(shape=[2, 3, 3, 2]), "36 int8 elements has 72 bytes"),
        (set_quantization(scale=[float("nan")] * 4), "negative or no number"),
        (set_quantization(scale=[-1.0] * 4), "negative or no number"),
        (set_quantization(zeroPoint=[0, 0]), "4 scales and 2 zero points"),
        (set_quantization(zeroPoint=[2**40] * 4), "a zero point that is no int8"),
        (set_quantization(quantizedDimension=7), "4 scales along dimension 7"),
        (set_option("CONV_2D", strideW=0), "StrideW = 0"),
        (set_option("CONV_2D", dilationHFactor=-1), "DilationHFactor = -1"),
        (set_option("CONV_2D", fusedActivationFunction=99), "unknown activation"),
        (set_option("MAX_POOL_2D", filterWidth=0), "FilterWidth = 0"),
        (drop_options, "MAX_POOL_2D has no options in place of Pool2DOptions"),
        (drop_inputs, "CONV_2D lacks an input"),
        (read_before_written, "which nothing computes before"),
        (overwrite_the_input, "overwrites tensor 0"),
        (recurse, "subgraph 0 runs itself"),
        (sparse, "sparse with indices that do not fit"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused_before_native_code(
    content, change, message, monkeypatch
):
    monkeypatch.setattr(trial, "_server", None)  # nothing may be run
    with pytest.raises(ModelFileError, match=f"(?s)damaged or cut off.*{message}"):
        LiteModel(edit(content, change))


def test_the_undamaged_file_repacked_is_accepted_and_runs(content):
    repacked = LiteModel(edit(content, lambda m, g: None))
    np.testing.assert_array_equal(repacked.predict(X), LiteModel(content).predict(X))


def test_inputs_and_outputs_read_from_the_file_equal_the_interpreters(content):
    lite = LiteModel(content)
    interpreter = lite.interpreter(xnnpack=False)
    details = (*interpreter.get_input_details(), *interpreter.get_output_details())
    for spec, detail in zip((*lite.inputs, *lite.outputs), details, strict=True):
        assert (spec.index, spec.shape) == (detail["index"], tuple(detail["shape"]))
        assert spec.shape_signature == tuple(detail["shape_signature"])
        assert spec.dtype == np.dtype(detail["dtype"]).name
        quantization = detail["quantization_parameters"]
        assert spec.scale is None or spec.scale == quantization["scales"][0]
        assert spec.zero_point is None or spec.zero_point == quantization["zero_points"][0]


def test_two_outputs_of_one_name_stay_two(content):
    def change(model, graph):
        inner = find(model, graph, "SOFTMAX").inputs[0]
        graph.outputs = [*graph.outputs, inner]
        graph.tensors[inner].name = graph.tensors[graph.outputs[0]].name
        model.signatureDefs = []

    outputs = LiteModel(edit(content, change)).predict(X)
    assert len(outputs) == 2
    assert all(value.shape == (9, 5) for value in outputs.values())


@pytest.mark.parametrize("dtype", ["STRING", "RESOURCE", "INT4", "BFLOAT16"])
def test_outputs_that_are_no_numbers_are_refused_before_a_run(content, dtype):
    def change(model, graph):
        graph.tensors[graph.outputs[0]].type = getattr(schema.TensorType, dtype)

    with pytest.raises(UnsupportedModelError, match=f"of numbers. Received: .*{dtype.lower()}"):
        LiteModel(edit(content, change)).predict(X)


def test_tables_that_refer_to_each_other_without_end_are_refused_at_once():
    # 3,000 subgraphs in one vector, all the same, with 3,000 tensors, all the same: 9 million.
    builder = flatbuffers.Builder()
    schema.TensorStart(builder)
    tensor = schema.TensorEnd(builder)

    def repeat(start, item):
        start(builder, 3000)
        for _ in range(3000):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    tensors = repeat(schema.SubGraphStartTensorsVector, tensor)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    graphs = repeat(schema.ModelStartSubgraphsVector, graph)
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(ModelFileError, match="refer to each other too often"):
        read_file(bytes(builder.Output()))


def test_bytes_changed_anywhere_are_read_or_refused(content):
    draw = random.Random(0)
    refused = 0
    for number in range(400):
        data = bytearray(content)
        for _ in range(draw.choice((1, 2, 8))):
            place = draw.randrange(len(data) // 4)
            if number % 3 == 0:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            elif number % 3 == 1:
                value = draw.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
                struct.pack_into("<I", data, 4 * place, value)
            else:
                shifted = draw.randrange(2, len(data) // 4)
                data[4 * place : 4 * place + 4] = data[4 * shifted : 4 * shifted + 4]
        try:
            lite = LiteModel(bytes(data))
            _ = lite.summary(), repr(lite), lite.metadata
        except KdtfliteError:
            refused += 1
    assert 50 < refused < 400


def drop_bias(model, graph):
    operator = find(model, graph, "CONV_2D")
    operator.inputs = list(operator.inputs)[:2]


def set_tiny_scale(model, graph):
    output = find(model, graph, "CONV_2D").outputs[0]
    graph.tensors[output].quantization.scale = [1e-38]


@pytest.mark.parametrize("change", [drop_bias, set_tiny_scale, lambda m, g: None])
def test_a_file_that_no_check_refuses_may_end_a_child_and_not_the_caller(content, change, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(edit(content, change))
    program = (
        "import numpy as np; from kdtflite.errors import KdtfliteError; "
        "from kdtflite.lite import LiteModel\n"
        f"try: LiteModel.load({str(path)!r}).predict(np.ones((9, 6, 6, 2), np.float32))\n"
        "except KdtfliteError as error: print(error)\n"
        "print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stderr


def one_operator(name, shape, output, *constants, dtypes=("FLOAT32", "FLOAT32"), extra=0):
    """Returns a file of one operator whose further inputs are constants of int32.

    Args:
        name: The operator's kind.
        shape: Shape of its input.
        output: Shape of its output.
        *constants: Values of its further inputs.
        dtypes: Of the input and the output.
        extra: Bytes stored beyond what the last constant's shape needs.
    """
    types = [getattr(schema.TensorType, dtype) for dtype in dtypes]
    values = [np.array(constant, np.int32) for constant in constants]
    data = [value.tobytes() for value in values]
    if extra:
        data[-1] += bytes(extra)
    tensors = [
        schema.TensorT(shape=list(shape), type=types[0], name="x"),
        schema.TensorT(shape=list(output), type=types[1], name="y"),
        *(
            schema.TensorT(
                shape=list(value.shape), type=schema.TensorType.INT32, buffer=i, name=f"c{i}"
            )
            for i, value in enumerate(values, start=1)
        ),
    ]
    code = getattr(schema.BuiltinOperator, name)
    operator = schema.OperatorT(opcodeIndex=0, inputs=[0, *range(2, 2 + len(values))], outputs=[1])
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[1], operators=[operator])
    model = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1)
        ],
        subgraphs=[graph],
        buffers=[schema.BufferT(), *(schema.BufferT(data=list(each)) for each in data)],
    )
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


SLICE = ("SLICE", (2, 4), (1, 3), [0, 1], [1, 3])


@pytest.mark.parametrize(
    "arguments",
    [SLICE, ("SLICE", (2, 4), (2, 3), [0, 1], [-1, 3]), ("TILE", (2, 4), (4, 4), [2, 1]),
     ("RESHAPE", (2, 4), (8,), [8])],
)  # fmt: skip
def test_one_sound_operator_runs(arguments):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    name, _, output, *constants = arguments
    if name == "SLICE":
        expected = x[: output[0], 1:4]
    else:
        expected = np.tile(x, constants[0]) if name == "TILE" else x.reshape(output)
    interpreter = LiteModel(one_operator(*arguments)).interpreter(xnnpack=False)
    interpreter.set_tensor(0, x)
    interpreter.invoke()
    np.testing.assert_array_equal(interpreter.get_tensor(1), expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        # Kernels copy as many bytes as a constant has, or as their input has.
        (SLICE, {"extra": 8}, r"2 int32 elements has 16 bytes"),
        (SLICE, {"dtypes": ("FLOAT32", "INT8")}, "inputs and outputs of float32 and int8"),
        (("RESHAPE", (2, 4), (8,), [8]), {"dtypes": ("FLOAT32", "INT8")}, "of float32 and int8"),
        (("RESHAPE", (2, 4), (2, 2), [2, 2]), {}, r"shape \(2, 4\) and an output of \(2, 2\)"),
        # SLICE writes what it reads into the declared shape of its output.
        (("SLICE", (2, 4), (1, 2), [0, 1], [1, 3]), {}, r"takes \(1, 3\) from \(0, 1\)"),
        (("SLICE", (2, 4), (1, 3), [0, 2], [1, 3]), {}, r"takes \(1, 3\) from \(0, 2\)"),
        (("SLICE", (2, 4), (1, 3), [0, -1], [1, 3]), {}, r"takes \(1, 3\) from \(0, -1\)"),
        (("SLICE", (2, 4), (1, 3), [0], [1]), {}, r"takes \(1,\) from \(0,\)"),
        # The number of elements overflows 32 bits.
        (("TILE", (65537, 1), (65536, 1), [65536, 1]), {}, r"\(65537, 1\) \(65536, 1\) times"),
        (("TILE", (2, 4), (4, 4), [-2, 1]), {}, r"\(2, 4\) \(-2, 1\) times"),
        (("BATCH_MATMUL", (2, 4), (2,), [1] * 4), {}, r"input of shape \(4,\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused_before_native_code(
    arguments, options, message, monkeypatch
):
    monkeypatch.setattr(trial, "_server", None)  # nothing may be run
    with pytest.raises(ModelFileError, match=f"(?s)damaged or cut off.*{message}"):
        LiteModel(one_operator(*arguments, **options))
