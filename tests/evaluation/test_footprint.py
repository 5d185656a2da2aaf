import numpy as np
import pytest

from kdtflite.errors import UnsupportedModelError
from kdtflite.evaluation import macs, parameters
from kdtflite.evaluation.multiply_accumulates import count_einsum_macs


def _layers(*names_and_settings):
    import tf_keras as keras

    return [getattr(keras.layers, name)(*args, **kw) for name, args, kw in names_and_settings]


CASES = [
    # 8 x 8 x 3 without padding: 6 x 6 outputs of 4 channels, each over 3 x 3 x 3 values
    ("Conv2D", (4, 3), {}, (8, 8, 3), 6 * 6 * 4 * 27),
    ("Conv2D", (4, 3), {"strides": 2, "padding": "same"}, (8, 8, 3), 4 * 4 * 4 * 27),
    ("Conv2D", (4, 3), {"dilation_rate": 2}, (8, 8, 3), 4 * 4 * 4 * 27),
    # two groups: each output sees 3 of the 6 channels
    ("Conv2D", (4, 3), {"groups": 2}, (8, 8, 6), 6 * 6 * 4 * 27),
    ("DepthwiseConv2D", (3,), {"depth_multiplier": 2}, (8, 8, 3), 6 * 6 * 6 * 9),
    ("SeparableConv2D", (5, 3), {}, (8, 8, 3), 6 * 6 * (3 * 9 + 3 * 5)),
    ("SeparableConv1D", (5, 3), {}, (8, 3), 6 * (3 * 3 + 3 * 5)),
    ("Conv1D", (4, 3), {}, (8, 3), 6 * 4 * 9),
    ("DepthwiseConv1D", (3,), {}, (8, 3), 6 * 3 * 3),
    # every one of the 8 x 8 x 3 inputs meets 3 x 3 weights for each of 4 outputs
    ("Conv2DTranspose", (4, 3), {"strides": 2}, (8, 8, 3), 8 * 8 * 3 * 9 * 4),
    ("Conv1DTranspose", (4, 3), {"strides": 2}, (8, 3), 8 * 3 * 3 * 4),
    ("Conv3D", (4, 3), {}, (5, 5, 5, 2), 27 * 4 * 54),
    ("Dense", (7,), {}, (3,), 21),
    ("Dense", (7,), {}, (5, 3), 5 * 21),
    ("LSTM", (6,), {"unroll": True}, (5, 4), 5 * 4 * (4 * 6 + 6 * 6)),
    ("MaxPool2D", (), {}, (8, 8, 3), 0),
]


@pytest.mark.parametrize(("name", "args", "settings", "shape", "expected"), CASES)
def test_macs_of_a_layer(name, args, settings, shape, expected):
    import tf_keras as keras

    assert (
        macs(keras.Sequential([keras.Input(shape), *_layers((name, args, settings))])) == expected
    )


@pytest.mark.parametrize(
    ("name", "args", "settings", "shape", "expected"),
    [case for case in CASES if case[0] not in ("LSTM", "Conv3D") and "groups" not in case[2]],
)
def test_the_file_of_a_layer_has_the_same_macs(
    convert_plainly, name, args, settings, shape, expected
):
    import tf_keras as keras

    model = keras.Sequential([keras.Input(shape), *_layers((name, args, settings))])
    assert macs(convert_plainly(model)) == expected


def test_attention_counts_its_projections_and_its_products(convert_plainly):
    import tf_keras as keras

    x = keras.Input((5, 4))
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 3)(x, x))
    # q, k, v: 5 x 4 into 6; scores and mixing: 5 x 5 x 6 each; output: 5 x 6 into 4
    expected = 3 * 5 * 4 * 6 + 2 * 5 * 5 * 6 + 5 * 6 * 4
    assert macs(model) == expected
    assert macs(convert_plainly(model)) == expected


def test_shared_layers_count_a_call_and_nested_models_what_they_hold():
    import tf_keras as keras

    dense = keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    both = keras.layers.Concatenate()([dense(a), dense(inner(b)[:, :4])])
    model = keras.Model([a, b], both)
    assert macs(model) == 2 * 16 + 20
    assert parameters(model) == (16 + 4) + (20 + 5)


def test_parameters_and_macs_do_not_see_the_quantization_wrappers(student):
    from kdtflite.runtime import import_tfmot

    tfmot = import_tfmot()
    quantized = tfmot.quantization.keras.quantize_model(student)
    # Conv2D 9·4 + 4, DepthwiseConv2D 9·4 + 4, Dense 64·4 + 4
    assert parameters(student) == 40 + 40 + 260
    assert parameters(quantized) == parameters(student) < quantized.count_params()
    assert macs(quantized) == macs(student) == 36 * 4 * 9 + 16 * 4 * 9 + 256
    pruned = tfmot.sparsity.keras.prune_low_magnitude(student)
    assert parameters(pruned) == parameters(student)


def test_a_file_counts_weights_and_biases_only(float_file, int8_file, student):
    assert parameters(float_file) == parameters(int8_file) == parameters(student)
    assert macs(int8_file) == macs(float_file) == macs(student)


def test_the_reference_models(shared_data):
    folder = shared_data / "reference_models"
    # MLPerf Tiny states 12.5 million and 2.7 million multiply-accumulates.
    assert macs(folder / "pretrainedResnet_quant.tflite") == 12_501_632
    assert macs(folder / "kws_ref_model.tflite") == 2_656_768
    assert parameters(folder / "pretrainedResnet.tflite") == 77_706
    assert parameters(folder / "pretrainedResnet_quant.tflite") == 77_706


def test_models_without_fixed_work_are_refused():
    import tf_keras as keras

    loop = keras.Sequential([keras.Input((5, 4)), keras.layers.LSTM(6)])
    with pytest.raises(UnsupportedModelError, match="unroll=True"):
        macs(loop)
    free = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(UnsupportedModelError, match="fixed input sizes"):
        macs(free)
    with pytest.raises(UnsupportedModelError, match=r"keras\.Input"):
        macs(keras.Sequential([keras.layers.Dense(3)]))


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ab,bc->ac", [(2, 3), (3, 5)], 30),
        ("...ab,bc->...ac", [(7, 2, 3), (3, 5)], 210),
        ("...a,...a->...", [(7, 1, 3), (2, 3)], 42),
        ("abc->a", [(2, 3, 4)], 0),
    ],
)
def test_macs_of_an_einsum(equation, shapes, expected):
    assert count_einsum_macs(equation, shapes) == expected
    np.einsum(equation, *(np.ones(s) for s in shapes))  # the case itself is sound
