"""The figures of each task: by hand, and against scikit-learn on random predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.tasks.base import Answers
from kdtflite.tasks.multilabel import MultiLabel
from kdtflite.tasks.regression import Regression
from kdtflite.tasks.segmentation import Segmentation

RANDOM = np.random.default_rng(0)


def measure(task, outputs, y, **more):
    labels = task.read_labels(y)
    return task.measure(Answers(np.asarray(outputs, np.float32), labels, "model", **more))


def check_protocol(result):
    """Every result prints, draws and becomes JSON."""
    assert str(result).count("\n") > 3
    assert result.plot().figure is not None
    assert json.loads(json.dumps(result.to_dict()))["samples"] == result.samples


# --- regression


def test_errors_of_regression_by_hand():
    result = measure(Regression(), [[1.0, 0.0], [2.0, 0.0], [6.0, 4.0]], [[1, 0], [3, 0], [5, 1]])
    first, second = result.per_value
    assert first.mean_absolute_error == pytest.approx(2 / 3)
    assert first.root_mean_squared_error == pytest.approx((2 / 3) ** 0.5)
    assert first.r2 == pytest.approx(1 - 2 / 8)  # labels 1, 3, 5 are 4 + 0 + 4 around 3
    assert (first.largest_error, second.largest_error) == (1.0, 3.0)
    assert second.r2 == pytest.approx(1 - 9 / (2 / 3))
    assert result.mean_absolute_error == pytest.approx((2 + 3) / 6)
    assert result.root_mean_squared_error == pytest.approx(((2 + 9) / 6) ** 0.5)
    assert result.worst == (2, 1, 0)
    check_protocol(result)


def test_a_perfect_and_a_constant_regressor():
    y = RANDOM.normal(size=(50, 3))
    perfect = measure(Regression(), y.astype(np.float32), y.astype(np.float32))
    assert (perfect.mean_absolute_error, perfect.r2) == (0.0, 1.0)
    constant = measure(Regression(), np.tile(y.mean(axis=0), (50, 1)), y)
    assert constant.r2 == pytest.approx(0.0, abs=1e-6)


def test_one_value_may_lack_its_axis_and_maps_are_values():
    y = np.arange(6.0)
    assert measure(Regression(), y[:, None], y).mean_absolute_error == 0
    assert measure(Regression(), y, y[:, None]).mean_absolute_error == 0
    maps = RANDOM.random((4, 3, 3, 1))
    assert measure(Regression(), maps[..., 0], maps).r2 == pytest.approx(1)
    with pytest.raises(ShapeMismatchError, match=r"\(4, 3, 3, 1\), labels of shape \(4, 3, 2, 1\)"):
        measure(Regression(), maps, maps[:, :, :2])


def test_what_int8_does_to_numbers_is_said():
    outputs = np.array([[-1.0], [0.5], [1.0], [1.0]])
    result = measure(Regression(), outputs, outputs, step=0.5, limits=(-2.0, 1.0), names=["angle"])
    assert result.per_value[0].saturated == 0.5
    lower = measure(Regression(), outputs, outputs, step=0.5, limits=(-1.0, 1.5))
    assert lower.per_value[0].saturated == 0.25
    notes = " ".join(result.notes)
    assert "steps of 0.5; rounding to them alone is a root mean squared error of 0.1443" in notes
    assert "at the end of what the file can express: angle" in notes


def test_labels_that_never_change_and_a_single_sample_are_noted():
    result = measure(Regression(), [[1.0], [2.0]], [[1.0], [1.0]], names=["level"])
    assert result.r2 == 0.0
    assert "all the same, so that R² says little: level" in result.notes[0]
    assert "R² needs two samples" in measure(Regression(), [[1.0]], [[2.0]]).notes[0]


# --- several labels


def test_scores_of_labels_by_hand():
    outputs = [[2.0, -1.0], [0.0, 3.0], [-1.0, 1.0], [1.0, -2.0]]
    y = [[1, 0], [1, 1], [0, 0], [0, 0]]
    result = measure(MultiLabel(), outputs, y, kind="logits", kind_from="the layer")
    first, second = result.per_label
    # Said: the first label for samples 0 and 3, the second for 1 and 2; 0 itself is no.
    assert (first.precision, first.recall, first.f1) == (0.5, 0.5, 0.5)
    assert (second.precision, second.recall) == (0.5, 1.0)
    assert first.auc == pytest.approx(3 / 4)  # of four pairs only (0.0, 1.0) is in the wrong order
    assert first.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (second.auc, second.average_precision) == (1.0, 1.0)
    assert (result.exact_match, result.wrong_labels) == (0.25, 3 / 8)
    assert result.undecided == 1
    assert (first.support, second.support) == (2, 1)
    check_protocol(result)


@pytest.mark.parametrize("labels", [1, 2, 7])
def test_scores_of_random_answers_are_those_of_scikit_learn(labels):
    outputs = RANDOM.random((200, labels)).astype(np.float32)
    y = (outputs + RANDOM.normal(size=outputs.shape) > 0.8).astype(int)
    result = measure(MultiLabel(), outputs, y)
    said = outputs > 0.5
    assert result.outputs == "probabilities"
    assert result.macro_f1 == pytest.approx(
        np.mean([metrics.f1_score(y[:, i], said[:, i]) for i in range(labels)])
    )
    assert result.micro_f1 == pytest.approx(metrics.f1_score(y.ravel(), said.ravel()))
    assert result.mean_average_precision == pytest.approx(
        metrics.average_precision_score(y, outputs, average="macro")
    )
    assert result.mean_auc == pytest.approx(metrics.roc_auc_score(y, outputs, average="macro"))


def test_labels_that_none_or_all_samples_have_have_no_auc():
    y = [[1, 0, 1], [1, 0, 0]]
    result = measure(MultiLabel(), [[1.0, 2.0, 3.0], [1.0, 2.0, -3.0]], y, names=["a", "b", "c"])
    assert [each.auc for each in result.per_label] == [None, None, 1.0]
    assert [each.average_precision for each in result.per_label] == [1.0, None, 1.0]
    assert result.mean_auc == 1.0
    assert "no sample has, left out of the means of average precision and AUC: b" in result.notes[0]
    assert "all samples have, left out of the mean AUC: a" in result.notes[1]
    assert "–" in str(result)
    none = measure(MultiLabel(), [[1.0], [2.0]], [[0], [0]])
    assert (none.mean_average_precision, none.mean_auc) == (None, None)
    check_protocol(none)


@pytest.mark.parametrize("y", [[[0, 2]], [[0.5, 1]], [[[0, 1]]], [["a", "b"]], [[np.nan, 1]]])
def test_labels_other_than_0_and_1_are_refused(y):
    with pytest.raises(DataError, match=r"Expected (labels of 0 and 1|finite labels)"):
        MultiLabel().read_labels(y)


# --- segmentation


def test_overlaps_by_hand_with_ignored_pixels():
    y = np.array([[[0, 0, 1], [1, 255, 1]]])
    answer = np.array([[[0, 1, 1], [1, 0, 0]]])
    result = measure(Segmentation(255), np.eye(3)[answer], y, names=["sky", "road", "car"])
    sky, road, car = result.per_class
    assert result.pixels == 5
    assert result.accuracy == 3 / 5
    assert (sky.iou, road.iou, car.iou) == (1 / 3, 2 / 4, None)
    assert (sky.dice, road.dice, car.dice) == (2 / 4, 4 / 6, None)
    assert result.mean_dice == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.mean_sample_dice == pytest.approx(result.mean_dice)  # there is one sample
    assert (sky.pixels, road.pixels) == (2, 3)
    np.testing.assert_array_equal(result.confusion, [[1, 1, 0], [1, 2, 0], [0, 0, 0]])
    assert "neither the labels nor the answers, left out of the means: car" in result.notes[0]
    check_protocol(result)


def test_overlaps_of_random_maps_are_those_of_scikit_learn():
    y = RANDOM.integers(0, 4, (6, 9, 7))
    scores = RANDOM.normal(size=(6, 9, 7, 4)) + 2 * np.eye(4)[y] * RANDOM.random((6, 9, 7, 1))
    result = measure(Segmentation(), scores, y[..., None])
    said = scores.argmax(axis=-1)
    wanted = metrics.jaccard_score(y.ravel(), said.ravel(), average=None)
    np.testing.assert_allclose([each.iou for each in result.per_class], wanted)
    wanted = metrics.f1_score(y.ravel(), said.ravel(), average=None)
    np.testing.assert_allclose([each.dice for each in result.per_class], wanted)
    by_sample = [
        metrics.f1_score(one.ravel(), other.ravel(), average="macro")
        for one, other in zip(y, said, strict=True)
    ]
    assert result.mean_sample_dice == pytest.approx(np.mean(by_sample))
    assert result.worst[0] == int(np.argmin(by_sample))


@pytest.mark.parametrize(("kind", "threshold"), [("probabilities", 0.5), ("logits", 0.0)])
def test_a_single_channel_is_the_score_of_class_1(kind, threshold):
    y = np.array([[[0, 1, 1, 0]]])
    outputs = threshold + np.array([[[-0.1, 0.1, 0.0, 0.2]]])[..., None]
    result = measure(Segmentation(), outputs, y, kind=kind)
    np.testing.assert_array_equal(result.predictions, [[[0, 1, 0, 1]]])
    assert (result.ties, result.accuracy) == (1, 0.5)
    assert (result.per_class[1].iou, result.per_class[1].dice) == (1 / 3, 1 / 2)


def test_a_perfect_and_a_constant_segmenter():
    y = RANDOM.integers(0, 2, (5, 8, 8))
    perfect = measure(Segmentation(), np.eye(2)[y], y)
    assert (perfect.accuracy, perfect.mean_iou, perfect.mean_dice) == (1.0, 1.0, 1.0)
    constant = measure(Segmentation(), np.zeros((5, 8, 8, 2)), y)
    share = (y == 0).mean()
    assert constant.ties == y.size
    assert constant.accuracy == pytest.approx(share)
    assert [each.iou for each in constant.per_class] == [pytest.approx(share), 0.0]


def test_a_position_of_a_sequence_is_a_pixel():
    y = np.array([[0, 1, 2], [2, 2, 0]])
    assert measure(Segmentation(), np.eye(3)[y], y).mean_iou == 1.0


def test_masks_that_do_not_fit_are_refused():
    scores = np.zeros((2, 4, 4, 3))
    with pytest.raises(ShapeMismatchError, match=r"Labels must have the size of the outputs"):
        measure(Segmentation(), scores, np.zeros((2, 8, 8)))
    with pytest.raises(DataError, match=r"from 0 to 2.*255 in sample 1, and 16 such.*ignore_class"):
        measure(Segmentation(), scores, np.stack([np.zeros((4, 4)), np.full((4, 4), 255)]))
    with pytest.raises(DataError, match="labels of the ignored class"):
        measure(Segmentation(7), scores, np.full((2, 4, 4), 7))
    with pytest.raises(DataError, match="whole numbers of shape"):
        Segmentation().read_labels(np.full((2, 4, 4), 0.5))


@pytest.mark.parametrize("task", [Regression(), MultiLabel(), Segmentation()])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 4, 4)])
def test_no_labels_at_all_are_refused(task, shape):
    with pytest.raises(DataError, match=r"Received: dtype float64, shape \(0,"):
        task.read_labels(np.zeros(shape))
