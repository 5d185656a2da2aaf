import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kdtflite.evaluation.accuracy as accuracy_module
from kdtflite.data.splits import Split
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError, UnsupportedModelError
from kdtflite.evaluation import evaluate
from kdtflite.evaluation.scores import decide, guess_kind, rank_true_classes, to_log_probabilities


def _returns(rows):
    """A Keras model that gives row i of `rows` for the sample [i]."""
    import tf_keras as keras

    rows = np.asarray(rows, np.float32)
    table = keras.layers.Embedding(*rows.shape, weights=[rows], input_length=1)
    return keras.Sequential([keras.Input((1,)), table, keras.layers.Flatten()])


def _run(rows, y, **options):
    samples = np.arange(len(rows))[:, None]
    return evaluate(_returns(rows), (samples, y), progress=False, **options)


def test_the_numbers_of_a_case_worked_by_hand():
    logits = [[3, 1, 0], [0, 2, 1], [0, 0, 5], [1, 4, 0]]
    result = _run(logits, [0, 1, 2, 2], labels=["a", "b", "c"], top_k=(1, 2, 5))
    # predicted 0, 1, 2, 1: the last is wrong; its true class 2 has the lowest score
    assert result.accuracy == 0.75
    assert result.top_k == {1: 0.75, 2: 0.75}
    np.testing.assert_array_equal(result.confusion, [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    a, b, c = result.per_class
    assert (a.precision, a.recall, a.f1, a.support) == (1.0, 1.0, 1.0, 1)
    assert (b.precision, b.recall) == (0.5, 1.0)
    assert (c.precision, c.recall, c.support) == (1.0, 0.5, 2)
    assert result.macro_precision == pytest.approx(5 / 6)
    assert result.macro_f1 == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    # -log softmax of the true class
    worked = [
        np.log(np.exp(row).sum()) - row[label]
        for row, label in zip(np.array(logits), [0, 1, 2, 2], strict=True)
    ]
    assert result.log_loss == pytest.approx(np.mean(worked))
    assert (result.outputs, result.ties, result.notes) == ("logits", 0, ())


def test_ties_are_counted_and_bound_the_accuracy():
    # Sample by sample: tie won by the first; tie lost by the second; tie of the two wrong ones;
    # no tie, right.
    scores = [[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8]]
    result = _run(scores, [0, 1, 2, 2])
    assert result.ties == 3
    assert result.accuracy == 2 / 4
    assert result.accuracy_if_ties_lost == 1 / 4
    assert result.accuracy_if_ties_won == 3 / 4
    assert "3 samples tie" in str(result)
    assert "25.00% if every tie were lost, 75.00% if won" in str(result)


def test_probabilities_are_recognized_and_renormalized():
    result = _run([[0.5, 0.5, 0.0005], [0.2, 0.2, 0.6]], [0, 2])
    assert result.outputs == "probabilities"
    assert result.log_loss == pytest.approx(-np.log([0.5 / 1.0005, 0.6]).mean(), rel=1e-5)


def test_a_probability_of_zero_costs_the_floor_and_not_infinity():
    result = _run([[1.0, 0.0], [1.0, 0.0]], [1, 0])
    assert result.log_loss_floor == 1e-7
    assert result.log_loss == pytest.approx(-np.log(1e-7) / 2)


@pytest.mark.parametrize(("kind", "values"), [("auto", [0.9, 0.5, 0.2]), ("logits", [2, 0, -1])])
def test_a_single_output_is_the_score_of_class_1(kind, values):
    result = _run([[v] for v in values], [1, 0, 1], outputs=kind, labels=["no", "yes"])
    # 0.5 (or the logit 0) is a tie: the first class, 0.
    np.testing.assert_array_equal(result.predictions, [1, 0, 0])
    assert result.ties == 1
    p = np.array(values) if kind == "auto" else 1 / (1 + np.exp(-np.array(values, float)))
    assert result.log_loss == pytest.approx(-np.log([p[0], 1 - p[1], p[2]]).mean(), rel=1e-5)


def test_the_last_layer_says_what_the_outputs_are():
    import tf_keras as keras

    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    for activation, kind in (("softmax", "probabilities"), (None, "logits")):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activation=activation)])
        result = evaluate(model, Split(x, y), progress=False)
        assert result.outputs == kind
        assert result.outputs_from.startswith("the last layer")


def test_scikit_learn_agrees_where_there_are_no_ties():
    from sklearn import metrics

    random = np.random.default_rng(1)
    logits, y = random.normal(size=(200, 7)), random.integers(0, 7, 200)
    result = _run(logits, y, top_k=(2, 3))
    logits = logits.astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert result.log_loss == pytest.approx(metrics.log_loss(y, p), rel=1e-5)
    for k, share in result.top_k.items():
        assert share == pytest.approx(metrics.top_k_accuracy_score(y, logits, k=k))
    report = metrics.classification_report(y, logits.argmax(1), output_dict=True)
    assert result.macro_f1 == pytest.approx(report["macro avg"]["f1-score"])
    assert result.per_class[3].precision == pytest.approx(report["3"]["precision"])


@given(
    scores=hnp.arrays(np.int8, st.tuples(st.integers(1, 20), st.integers(2, 6))),
    data=st.data(),
)
def test_bounds_hold_for_any_codes(scores, data):
    y = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, scores.shape[1] - 1)))
    decision, place = decide(scores), rank_true_classes(scores, y)
    right = decision.predicted == y
    np.testing.assert_array_equal(place == 0, right)
    lost = right & ~decision.tied
    won = np.take_along_axis(decision.best, y[:, None], 1)[:, 0]
    assert (lost <= right).all()
    assert (right <= won).all()
    # Sorting stably by descending score is what ranks count.
    order = np.argsort(-scores.astype(int), axis=1, kind="stable")
    np.testing.assert_array_equal(np.argwhere(order == y[:, None])[:, 1], place)


@given(hnp.arrays(np.float64, (5, 4), elements=st.floats(-1e4, 1e4)))
def test_log_softmax_is_normalized_at_any_magnitude(logits):
    logs = to_log_probabilities(logits, "logits", 0.0)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0, rtol=1e-9)


def test_quantized_probabilities_need_not_sum_to_one_exactly():
    p = np.round(np.random.default_rng(0).dirichlet(np.ones(10), 100) * 256) / 256
    p = np.minimum(p, 255 / 256)
    assert guess_kind(p, 1 / 256) == "probabilities"
    assert guess_kind(p + 0.1, 1 / 256) == "logits"
    assert guess_kind(np.array([[0.2], [1.2]]), None) == "logits"


def test_classes_without_samples_or_predictions_are_said():
    result = _run([[5, 0, 0], [5, 0, 0]], [0, 1], labels=["a", "b", "c"])
    assert result.per_class[2].f1 == 0.0
    assert any("without samples" in note and "c" in note for note in result.notes)
    assert any("never predicted" in note and "b, c" in note for note in result.notes)


def test_the_result_is_plain_json_a_table_and_a_plot():
    result = _run([[5, 0], [0, 5]], [0, 1], labels=["cat", "dog"])
    assert json.loads(json.dumps(result.to_dict()))["confusion"] == [[1, 0], [0, 1]]
    assert "cat" in str(result)
    assert "macro mean" in str(result)
    ax = result.plot()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cat", "dog"]
    assert result.plot(ax, normalize=False) is ax


def test_all_kinds_of_data_give_the_same_result(student, samples):
    import tensorflow as tf

    y = np.arange(len(samples)) % 4
    expected = evaluate(student, Split(samples, y), progress=False)
    batches = tf.data.Dataset.from_tensor_slices((samples, y)).batch(10)
    for data in ((samples, y), (samples, np.eye(4)[y]), batches):
        result = evaluate(student, data, progress=False)
        assert result.accuracy == expected.accuracy
        np.testing.assert_array_equal(result.confusion, expected.confusion)


def test_a_file_is_evaluated_from_memory_or_its_path(int8_file, student, samples, tmp_path):
    y = student.predict(samples, verbose=0).argmax(axis=1)
    path = int8_file.save(tmp_path / "a.tflite")
    in_memory, from_path = (
        evaluate(m, (samples, y), workers=w, progress=False)
        for m, w in ((int8_file, 2), (str(path), 1))
    )
    assert in_memory.accuracy == from_path.accuracy > 0.9
    assert in_memory.outputs_from == "the file's last operator, FULLY_CONNECTED"


def test_a_keras_3_model_is_evaluated():
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.layers[0].set_weights([np.eye(3), np.zeros(3)])
    result = evaluate(model, (np.eye(3, dtype=np.float32), [0, 1, 2]), progress=False)
    assert result.accuracy == 1.0


@pytest.mark.parametrize(
    ("rows", "y", "options", "error", "said"),
    [
        ([[1, 0]], [2], {}, DataError, "expected 0 to 1.*Received: 2 at sample 0"),
        ([[1, 0]], [-1], {}, DataError, "Received: -1"),
        ([[1, 0]], [0, 1], {}, DataError, r"\[1\] samples and 2 labels"),
        ([[np.nan, 0]], [0], {}, DataError, "first for sample 0"),
        ([[1, 0]], [0.5], {}, DataError, r"0\.5"),
        ([[1, 0]], [0], {"labels": ["a"]}, ShapeMismatchError, "2 class names"),
        ([[1, 0]], [0], {"labels": "ab"}, ConfigurationError, "labels= to be a list of strings"),
        ([[1, 0]], [0], {"top_k": (0,)}, ConfigurationError, "from 1 up"),
        ([[1, 0]], [0], {"outputs": "softmax"}, ConfigurationError, "kind of outputs"),
        ([[3, 0]], [0], {"outputs": "probabilities"}, DataError, "from 0 to 3"),
    ],
)
def test_what_cannot_be_evaluated_says_why(rows, y, options, error, said):
    with pytest.raises(error, match=said):
        _run(rows, y, **options)


def test_other_data_and_models_are_refused(student, samples):
    import tensorflow as tf

    with pytest.raises(DataError, match="pass one split"):
        evaluate(student, samples, progress=False)
    with pytest.raises(DataError, match="at least one sample"):
        evaluate(student, (samples[:0], []), progress=False)
    with pytest.raises(DataError, match="batches"):
        evaluate(student, tf.data.Dataset.from_tensor_slices((samples, [0] * 64)), progress=False)
    with pytest.raises(DataError, match="empty Dataset"):
        evaluate(student, tf.data.Dataset.from_tensor_slices((samples, [0] * 64)).take(0))
    with pytest.raises(UnsupportedModelError):
        evaluate(3.0, (samples, [0] * 64), progress=False)


def test_outputs_of_other_shapes_are_refused(monkeypatch, student, samples):
    for shape in ((64, 8, 8, 4), (32, 4), (64, 0)):
        monkeypatch.setattr(accuracy_module, "predict", lambda *a, s=shape, **k: np.zeros(s))
        with pytest.raises(ShapeMismatchError, match="one score per class"):
            evaluate(student, (samples, [0] * 64), progress=False)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pretrainedResnet", 0.7600),
        ("pretrainedResnet_quant", 0.7588),
        ("pretrainedResnet_large_int8", 0.8184),
    ],
)
def test_the_reference_models_reach_their_measured_accuracy(shared_data, file, expected):
    from kdtflite.data.named import decode_jpegs

    with np.load(shared_data / "cifar10_jpeg.npz") as data:
        x = decode_jpegs(data["test_blob"], data["test_offsets"], quiet=True)
        y = data["test_labels"]
    path = shared_data / "reference_models" / f"{file}.tflite"
    # Raw pixels as real values: with scale 1 and zero point -128 the file sees pixel - 128.
    result = evaluate(path, (x.astype(np.float32), y), progress=False)
    assert result.accuracy == pytest.approx(expected, abs=0.001)
    assert result.outputs == "probabilities"
    # An int8 softmax has 256 levels: some images tie for the top class.
    assert (result.ties > 0) == (file != "pretrainedResnet")
    assert result.accuracy_if_ties_lost <= result.accuracy <= result.accuracy_if_ties_won


def test_samples_of_another_scaling_are_refused_for_a_file(int8_file, samples):
    y = np.arange(64) % 4
    with pytest.raises(DataError, match=r"Received: values from .* to 25\d"):
        evaluate(int8_file, (samples * 255, y), progress=False)
    evaluate(int8_file, (samples, y), progress=False)


def test_the_classes_of_a_data_set_are_found_by_the_names_in_the_file(int8_file, samples):
    import kdtflite
    from kdtflite.data import Dataset, Split

    named = kdtflite.add_metadata(int8_file, labels=["a", "b", "c", "d"])
    y = named.predict(samples).argmax(axis=1)
    # The same samples, whose classes another data set numbers the other way round.
    split = Split(samples, 3 - y)
    low, high = float(samples.min()), float(samples.max())
    data = Dataset("x", split, split, split, ("d", "c", "b", "a"), (low, high + 1.0))
    assert split.class_names == ()
    assert evaluate(named, data.test, progress=False).accuracy == 1.0
    labels = ["a", "b", "c", "d"]
    assert evaluate(int8_file, data.test, labels=labels, progress=False).accuracy == 1.0
    # By number where the file has no names, or the samples none.
    numbers = evaluate(int8_file, (samples, y), progress=False)
    assert numbers.accuracy == 1.0
    other = Dataset("x", split, split, split, ("d", "c", "b", "e"), (low, high + 1.0))
    with pytest.raises(DataError, match="Received: 'e', and the file has no such label"):
        evaluate(named, other.test, progress=False)
    with pytest.raises(DataError, match="in the order of the outputs"):
        evaluate(named, (samples, y), labels=["b", "a", "c", "d"], progress=False)


def test_data_that_never_end_are_refused(int8_file, samples):
    import tensorflow as tf

    endless = tf.data.Dataset.from_tensor_slices((samples, np.zeros(len(samples), int)))
    with pytest.raises(DataError, match="repeats for ever"):
        evaluate(int8_file, endless.batch(8).repeat(), progress=False)
