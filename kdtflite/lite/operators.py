"""Facts about TensorFlow Lite's operators and dtypes that several stages need, as data."""

from __future__ import annotations

__all__ = [
    "ABORT_WITHOUT_SCALE",
    "BIAS_POSITION",
    "CONTROL_FLOW",
    "CONVOLUTIONS",
    "ELEMENTWISE_ARITHMETIC",
    "FUSED_RECURRENT",
    "INTEGER_DTYPES",
    "KEEP_DTYPE",
    "KEEP_ELEMENTS",
    "KEEP_SCALE",
    "KEEP_VALUES",
    "LEAST_INPUTS",
    "PROBABILITIES",
    "QUANTIZING",
    "REQUIRED_OPTIONS",
    "WEIGHT_POSITION",
    "WEIGHT_RANK",
]

WEIGHT_POSITION = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "EMBEDDING_LOOKUP": 1,
    "FULLY_CONNECTED": 1,
    "GATHER": 0,
    "TRANSPOSE_CONV": 1,
}
"""Which input of an operator is its weights."""

BIAS_POSITION = {
    "CONV_2D": 2,
    "CONV_3D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}
"""Which input of an operator is its bias, if it has one."""

WEIGHT_RANK = {
    "CONV_2D": 4,
    "CONV_3D": 5,
    "DEPTHWISE_CONV_2D": 4,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 4,
}
"""Number of dimensions of an operator's weights."""

LEAST_INPUTS = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "CAST", "CONCATENATION", "DEQUANTIZE"), 1),
    **dict.fromkeys(("ELU", "EXP", "HARD_SWISH", "L2_NORMALIZATION", "L2_POOL_2D"), 1),
    **dict.fromkeys(("LEAKY_RELU", "LOGISTIC", "LOG_SOFTMAX", "MAX_POOL_2D", "PACK"), 1),
    **dict.fromkeys(("QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RSQRT"), 1),
    **dict.fromkeys(("SOFTMAX", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SQUEEZE", "TANH"), 1),
    **dict.fromkeys(("UNPACK", "ABS", "NEG", "SQRT", "SQUARE", "IF"), 1),
    **dict.fromkeys(("ADD", "ARG_MAX", "ARG_MIN", "BATCH_MATMUL", "CONV_2D", "CONV_3D"), 2),
    **dict.fromkeys(("DEPTHWISE_CONV_2D", "DIV", "EMBEDDING_LOOKUP", "EXPAND_DIMS"), 2),
    **dict.fromkeys(("FULLY_CONNECTED", "GATHER", "GATHER_ND", "MAXIMUM", "MEAN"), 2),
    **dict.fromkeys(("MINIMUM", "MIRROR_PAD", "MUL", "PAD", "PRELU", "REDUCE_MAX"), 2),
    **dict.fromkeys(("REDUCE_MIN", "REDUCE_PROD", "RESIZE_BILINEAR", "SPLIT"), 2),
    **dict.fromkeys(("RESIZE_NEAREST_NEIGHBOR", "SQUARED_DIFFERENCE", "SUB", "SUM"), 2),
    **dict.fromkeys(("TILE", "TOPK_V2", "TRANSPOSE"), 2),
    **dict.fromkeys(("PADV2", "SELECT", "SELECT_V2", "SLICE", "SPLIT_V"), 3),
    **dict.fromkeys(("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "TRANSPOSE_CONV"), 3),
    "STRIDED_SLICE": 4,
}
"""How many inputs an operator has at least; these are not optional."""

REQUIRED_OPTIONS = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "L2_POOL_2D", "MAX_POOL_2D"), "Pool2DOptions"),
    "CONV_2D": "Conv2DOptions",
    "CONV_3D": "Conv3DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "IF": "IfOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "SPLIT": "SplitOptions",
    "SPLIT_V": "SplitVOptions",
    "SVDF": "SVDFOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "WHILE": "WhileOptions",
}
"""Without these options a kernel divides by zero."""

CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})
"""Convolutions over images."""

QUANTIZING = frozenset({"DEQUANTIZE", "QUANTIZE"})
"""These write a tensor in another code; they are allowed to touch float tensors."""

KEEP_VALUES = QUANTIZING | {"CAST", "EXPAND_DIMS", "RESHAPE", "SQUEEZE"}
"""These reshape or re-encode: every output value is the input value at the same place."""

KEEP_SCALE = frozenset(
    {
        "AVERAGE_POOL_2D",
        "EXPAND_DIMS",
        "GATHER",
        "MAX_POOL_2D",
        "MIRROR_PAD",
        "PAD",
        "PADV2",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SQUEEZE",
        "STRIDED_SLICE",
        "TILE",
        "TRANSPOSE",
        "UNPACK",
    }
)
"""Input and output share one scale and zero point, and so one width."""

KEEP_ELEMENTS = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE"})
"""These copy the bytes of their first input."""

KEEP_DTYPE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("ABS", "AVERAGE_POOL_2D", "BATCH_TO_SPACE_ND", "BROADCAST_TO"), (0,)),
    **dict.fromkeys(("CEIL", "COS", "CUMSUM", "DEPTH_TO_SPACE", "ELU", "EXP"), (0,)),
    **dict.fromkeys(("EXPAND_DIMS", "FLOOR", "GATHER", "GATHER_ND", "GELU"), (0,)),
    **dict.fromkeys(("HARD_SWISH", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU"), (0,)),
    **dict.fromkeys(("LOG", "LOGISTIC", "LOG_SOFTMAX", "MAX_POOL_2D", "MEAN"), (0,)),
    **dict.fromkeys(("MIRROR_PAD", "NEG", "PAD", "PRELU", "REDUCE_MAX"), (0,)),
    **dict.fromkeys(("REDUCE_MIN", "REDUCE_PROD", "RELU", "RELU6", "RELU_N1_TO_1"), (0,)),
    **dict.fromkeys(("RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), (0,)),
    **dict.fromkeys(("REVERSE_SEQUENCE", "REVERSE_V2", "ROUND", "RSQRT", "SIN"), (0,)),
    **dict.fromkeys(("SLICE", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT_V"), (0,)),
    **dict.fromkeys(("SQRT", "SQUARE", "SQUEEZE", "STRIDED_SLICE", "SUM", "TANH"), (0,)),
    **dict.fromkeys(("TILE", "TOPK_V2", "TRANSPOSE", "UNPACK", "ZEROS_LIKE"), (0,)),
    "SPLIT": (1,),
    "PADV2": (0, 2),
    **dict.fromkeys(("SELECT", "SELECT_V2"), (1, 2)),
    **dict.fromkeys(("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SUB"), (0, 1)),
    **dict.fromkeys(("FLOOR_DIV", "FLOOR_MOD", "POW", "SQUARED_DIFFERENCE"), (0, 1)),
    **dict.fromkeys(("CONCATENATION", "PACK"), ()),
}
"""Which inputs have the dtype of the output; of an empty entry all."""

ABORT_WITHOUT_SCALE = frozenset(
    {"ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SOFTMAX"}
)
"""Kernels that abort the process if an int8 tensor has no scale."""

ELEMENTWISE_ARITHMETIC = frozenset({"ADD", "DIV", "MUL", "SUB"})
"""A normalization becomes a MUL and an ADD with constants."""

PROBABILITIES = frozenset({"LOGISTIC", "SOFTMAX"})
"""Outputs of these are probabilities."""

CONTROL_FLOW = frozenset({"CALL_ONCE", "IF", "WHILE"})
"""These run other subgraphs, an unknown number of times."""

FUSED_RECURRENT = frozenset(
    {"LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN"}
)
"""Whole recurrent layers as one operator."""

INTEGER_DTYPES = frozenset(
    {
        "bool",
        "int2",
        "int4",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint4",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    }
)
"""Dtypes of tensors that a fully integer file may have."""
