"""The layout of the tables in a .tflite file and in its metadata, as data.

The generated schema classes read a field wherever its offset points; they do not know how far.
Each table maps a field's slot to its kind: 1, 2, 4 or 8 are the bytes of a scalar; "text" is a
string; "bytes×4" a vector of values of four bytes; "Tensor" a table; "Tensor[]" a vector of tables;
"union 3" a table whose type slot 3 holds, listed in `UNIONS`.
"""

from __future__ import annotations

__all__ = ["LAYOUT", "UNIONS"]

LAYOUT: dict[str, dict[int, int | str]] = {
    "Model": {
        0: 4,
        1: "OperatorCode[]",
        2: "SubGraph[]",
        3: "text",
        4: "Buffer[]",
        5: "bytes×4",
        6: "Metadata[]",
        7: "SignatureDef[]",
    },
    "OperatorCode": {0: 1, 1: "text", 2: 4, 3: 4},
    "Buffer": {0: "bytes×1", 1: 8, 2: 8},
    "Metadata": {0: "text", 1: 4},
    "SignatureDef": {0: "TensorMap[]", 1: "TensorMap[]", 2: "text", 4: 4},
    "TensorMap": {0: "text", 1: 4},
    "SubGraph": {0: "Tensor[]", 1: "bytes×4", 2: "bytes×4", 3: "Operator[]", 4: "text", 5: 4},
    "Tensor": {
        0: "bytes×4",
        1: 1,
        2: 4,
        3: "text",
        4: "QuantizationParameters",
        5: 1,
        6: "SparsityParameters",
        7: "bytes×4",
        8: 1,
        9: "VariantSubType[]",
        10: 4,
    },
    "VariantSubType": {0: "bytes×4", 1: 1, 2: 1},
    "QuantizationParameters": {
        0: "bytes×4",
        1: "bytes×4",
        2: "bytes×4",
        3: "bytes×8",
        4: 1,
        5: "union 4",
        6: 4,
    },
    "CustomQuantization": {0: "bytes×1"},
    "BlockwiseQuantization": {0: 4, 1: 4, 2: 4, 3: "bytes×4"},
    "MultiAxisQuantization": {0: 4, 1: 4, 2: 4, 3: "bytes×4"},
    "SparsityParameters": {0: "bytes×4", 1: "bytes×4", 2: "DimensionMetadata[]"},
    "DimensionMetadata": {0: 1, 1: 4, 2: 1, 3: "union 2", 4: 1, 5: "union 4"},
    "Int32Vector": {0: "bytes×4"},
    "Uint16Vector": {0: "bytes×2"},
    "Uint8Vector": {0: "bytes×1"},
    "Operator": {
        0: 4,
        1: "bytes×4",
        2: "bytes×4",
        3: 1,
        4: "union 3",
        5: "bytes×1",
        6: 1,
        7: "bytes×1",
        8: "bytes×4",
        9: 8,
        10: 8,
        11: 1,
        12: "union 11",
        13: 4,
    },
    # Options that hold more than scalars.
    "BucketizeOptions": {0: "bytes×4"},
    "ConcatEmbeddingsOptions": {0: 4, 1: "bytes×4", 2: "bytes×4"},
    "FullyConnectedOptions": {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: "bytes×1"},
    "ReshapeOptions": {0: "bytes×4"},
    "SqueezeOptions": {0: "bytes×4"},
    "StableHLOCompositeOptions": {0: "text", 1: 4, 2: "bytes×1", 3: 1, 4: 4},
    "StablehloBroadcastInDimOptions": {0: "bytes×8"},
    "StablehloCaseOptions": {0: "bytes×4"},
    "StablehloConvolutionOptions": {
        **dict.fromkeys((0, 1, 2, 3, 7, 10, 13), "bytes×8"),
        4: "bytes×1",
        16: "bytes×4",
    },
    "StablehloCustomCallOptions": {0: "text", 1: 1, 2: "text", 3: 4, 4: "bytes×4", 5: "bytes×1"},
    "StablehloDotGeneralOptions": {**dict.fromkeys(range(4), "bytes×8"), 4: "bytes×4"},
    "StablehloDynamicSliceOptions": {0: "bytes×8"},
    "StablehloGatherOptions": dict.fromkeys((0, 1, 2, 4), "bytes×8"),
    "StablehloPadOptions": dict.fromkeys(range(3), "bytes×8"),
    "StablehloReduceOptions": {0: "bytes×8", 1: 4},
    "StablehloReduceWindowOptions": {**dict.fromkeys(range(5), "bytes×8"), 5: 4},
    "StablehloScatterOptions": {**dict.fromkeys((1, 2, 3), "bytes×8"), 0: 1, 4: 8, 5: 1, 6: 4},
    "StablehloSliceOptions": dict.fromkeys(range(3), "bytes×8"),
    "StablehloTransposeOptions": {0: "bytes×8"},
    "VarHandleOptions": {0: "text", 1: "text"},
    # The metadata's own flatbuffer.
    "ModelMetadata": {
        **dict.fromkeys((0, 1, 2, 4, 5, 7), "text"),
        3: "SubGraphMetadata[]",
        6: "AssociatedFile[]",
    },
    "SubGraphMetadata": {
        **dict.fromkeys((0, 1), "text"),
        2: "TensorMetadata[]",
        3: "TensorMetadata[]",
        4: "AssociatedFile[]",
    },
    "TensorMetadata": {
        **dict.fromkeys((0, 1), "text"),
        3: "Content",
        4: "ProcessUnit[]",
        6: "AssociatedFile[]",
    },
    "AssociatedFile": {0: "text", 1: "text", 2: 1},
    "Content": {0: 1},
    "ProcessUnit": {0: 1, 1: "union 0"},
    "NormalizationOptions": {0: "bytes×4", 1: "bytes×4"},
}

UNIONS: dict[tuple[str, int], str] = {
    ("QuantizationParameters", 5): "QuantizationDetails",
    ("DimensionMetadata", 3): "SparseIndexVector",
    ("DimensionMetadata", 5): "SparseIndexVector",
    ("Operator", 4): "BuiltinOptions",
    ("Operator", 12): "BuiltinOptions2",
    ("ProcessUnit", 1): "ProcessUnitOptions",
}
"""The enumeration of each union's types, by its table and slot."""
