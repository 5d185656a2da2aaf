import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.parity import compare


def make_scaler(score: float) -> keras.Model:
    """A model that gives boxes in hundreds of pixels beside a score of about one."""
    inputs = keras.Input((4,))
    boxes = keras.layers.Rescaling(300.0, name="boxes")(inputs)
    scores = keras.layers.Rescaling(score, name="score")(inputs)
    return keras.Model(inputs, [boxes, scores])


x = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)


def test_a_small_output_beside_a_large_one_counts_as_much():
    # 0.01 of 1 is a hundred times too much, and yet 3e-5 of the 300 beside it.
    with pytest.raises(UnsupportedModelError, match=r"output 'score' differs by up to 0\.01"):
        compare("It was rewritten", make_scaler(1.0), make_scaler(1.01), x, "Leave it.")
    parity = compare("It was rewritten", make_scaler(1.0), make_scaler(1.0), x, "Leave it.")
    assert parity.difference == 0
    assert parity.largest == 300


def test_an_output_of_zeros_takes_no_other_value():
    with pytest.raises(UnsupportedModelError, match="'score'"):
        compare("It was rewritten", make_scaler(0.0), make_scaler(1e-6), x, "Leave it.")
    assert compare("It was rewritten", make_scaler(0.0), make_scaler(0.0), x, "").difference == 0
