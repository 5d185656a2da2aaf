"""An output whose columns have ranges too unlike for one scale: said at the conversion."""

import numpy as np
import pytest
import tf_keras as keras

from kdtflite.conversion import convert

L = keras.layers
X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


def network(head):
    keras.utils.set_random_seed(0)
    x = keras.Input((3,), name="x")
    return keras.Model(x, head(x))


def boxes_and_score(x):
    score = L.Dense(1, activation="sigmoid")(x)
    return L.Concatenate(name="found")([L.Rescaling(800.0)(L.Dense(4)(x)), score])


def test_a_score_beside_boxes_in_pixels_is_named_with_its_column(capsys):
    model = network(boxes_and_score)
    lite = convert(model, X, progress=False)
    said = " ".join(capsys.readouterr().err.split())
    levels = len(np.unique(lite.predict(X)[:, 4]))
    assert levels == 1
    assert "Column 4 of the output 'found' keeps 1 level of the file's codes" in said
    assert f"here {lite.outputs[0].scale:.3g}, and this one spans at most 0." in said
    assert "Give it an output of its own, or scale all columns alike." in said


def test_an_output_of_its_own_is_the_remedy(capsys):
    def head(x):
        score = L.Dense(1, activation="sigmoid", name="score")(x)
        return [L.Rescaling(800.0, name="boxes")(L.Dense(4)(x)), score]

    lite = convert(network(head), X, progress=False)
    assert len(np.unique(lite.predict(X)["score"])) > 20
    assert "levels" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "head",
    [
        lambda x: L.Dense(6)(x),
        lambda x: L.Softmax()(L.Rescaling(20.0)(L.Dense(6)(x))),  # rare classes stay near 0
        lambda x: L.Dense(6, kernel_initializer="zeros")(x),
        lambda x: L.Reshape((2, 3))(L.Dense(6)(x)),
    ],
)
def test_logits_probabilities_and_constants_pass_silently(head, capsys):
    convert(network(head), X, progress=False)
    assert "level" not in capsys.readouterr().err
