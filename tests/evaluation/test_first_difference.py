"""The fake-quantized model and its file, code by code."""

import json

import numpy as np
import pytest

import kdtflite
from kdtflite.errors import ConfigurationError, UnsupportedModelError


def found(student, lite, x, **options):
    return kdtflite.first_difference(student, lite, x, progress=False, **options)


@pytest.fixture(scope="module")
def other_file(aware, samples):
    """The file of a student that differs from `aware` in one weight of the depthwise kernel."""
    import tf_keras as keras

    other = kdtflite.quantize_aware(kdtflite.quantization.strip(aware), samples)
    other.set_weights(aware.get_weights())
    layer = other.get_layer("quant_depthwise").layer
    assert isinstance(layer, keras.layers.DepthwiseConv2D)
    kernel, *others = layer.get_weights()
    kernel[0, 0, 3, 0] = np.abs(kernel[:, :, 3]).max()
    layer.set_weights([kernel, *others])
    return kdtflite.convert(other, samples, progress=False)


def test_a_student_and_its_own_file_are_a_few_steps_apart_at_most(aware, aware_file, samples):
    differences = found(aware, aware_file, samples)
    assert [tensor.layer for tensor in differences.tensors] == [
        *("image", "relu", "depthwise", "flat", "logits")
    ]
    image, relu, *_ = differences.tensors
    assert (image.steps, image.equal) == (0, 1.0)
    assert abs(relu.steps) <= 1
    for tensor in differences.tensors:
        assert abs(tensor.steps) <= 4
        assert tensor.equal > 0.9
        shares = tensor.equal + tensor.by_one + tensor.by_two + tensor.by_more
        assert shares == pytest.approx(1)
    largest = max(abs(tensor.steps) for tensor in differences.tensors)
    none = found(aware, aware_file, samples, steps=largest)
    assert none.first is None
    assert f"No tensor differs by more than {largest} step" in str(none)


def test_the_file_of_another_student_differs_first_where_its_weight_does(
    aware, aware_file, other_file, samples
):
    own = max(abs(tensor.steps) for tensor in found(aware, aware_file, samples).tensors)
    differences = found(aware, other_file, samples, steps=own)
    first = differences.first
    assert (first.layer, first.operator, first.is_output) == (
        "depthwise",
        "DEPTHWISE_CONV_2D",
        True,
    )
    assert abs(first.steps) > own
    assert first.index[2] == 3  # the channel
    # The element named is really so far off, in that sample, in both.
    assert (first.file - first.keras) / first.scale == pytest.approx(first.steps, abs=0.51)
    import tf_keras as keras

    inside = keras.Model(aware.input, aware.get_layer("quant_depthwise").output)
    value = inside.predict(samples, verbose=0)[(first.sample, *first.index)]
    assert value == pytest.approx(first.keras, abs=first.scale)
    assert "First to differ by more than" in str(differences)
    assert f"in sample {first.sample} at index {list(first.index)}" in str(differences)
    plain = json.loads(json.dumps(differences.to_dict()))
    assert plain["first"]["layer"] == "depthwise"
    assert plain["first"]["steps"] == first.steps


def test_a_range_that_moved_since_conversion_shows_at_its_tensor(aware, aware_file, samples):
    moved = kdtflite.quantize_aware(kdtflite.quantization.strip(aware), samples)
    moved.set_weights(aware.get_weights())
    layer = moved.get_layer("quant_image")
    layer.quantizer.set_range(layer.range, 0.0, 0.5)
    first = found(moved, aware_file, samples).first
    assert (first.layer, first.operator) == ("image", "")
    # The student clips at 0.5 what the file holds up to 1.0: half of the codes.
    assert first.steps == pytest.approx(127, abs=2)
    assert first.by_more == pytest.approx(0.5, abs=0.05)


def test_sequences_are_compared_part_by_part(sequence_student):
    student, lite, samples, _ = sequence_student
    differences = found(student, lite, samples)
    by_name = {tensor.layer: tensor for tensor in differences.tensors}
    assert {"relu", "inner/deep", "layer_norm (centred)", "logits"} <= set(by_name)
    assert abs(by_name["inner/deep"].steps) <= 3
    assert by_name["inner/deep"].equal > 0.9


def test_what_cannot_be_compared_code_by_code_is_refused(
    aware, trained, aware_file, float_file, student, samples
):
    with pytest.raises(UnsupportedModelError, match="a float model, which the file cannot equal"):
        found(trained, aware_file, samples)
    with pytest.raises(ConfigurationError, match="steps from 0 up"):
        found(aware, aware_file, samples, steps=-1)
    with pytest.raises(UnsupportedModelError, match="without a quantized tensor"):
        found(aware, float_file, samples)
