"""Representative data in every form are the same samples, and are checked before use."""

import numpy as np
import pytest
import tensorflow as tf

from kdtflite.data.representative import InputSpec, take_samples
from kdtflite.data.splits import Split
from kdtflite.errors import DataError

X = np.random.default_rng(0).normal(0, 1, (40, 3, 2)).astype(np.float32)
Y = np.zeros(40, int)
ONE = [InputSpec("image", (3, 2))]
TWO = [InputSpec("b", (2, 3)), InputSpec("a", (4,))]
A = np.random.default_rng(1).normal(0, 1, (40, 4)).astype(np.float32)
B = np.random.default_rng(2).normal(0, 1, (40, 2, 3)).astype(np.float32)


def batches(*, labels=False, wrap=lambda x: x, size=7):
    for start in range(0, 40, size):
        x = X[start : start + size]
        yield (wrap(x), Y[start : start + size]) if labels else wrap(x)


FORMS = {
    "array": lambda: X,
    "float64": lambda: X.astype(np.float64),
    "list": lambda: list(X),
    "tensor": lambda: tf.constant(X),
    "dict": lambda: {"image": X},
    "pair": lambda: (X, Y),
    "triple": lambda: (X, Y, np.ones(40)),
    "split": lambda: Split(X, Y),
    "batched dataset": lambda: tf.data.Dataset.from_tensor_slices(X).batch(7),
    "dataset of samples": lambda: tf.data.Dataset.from_tensor_slices(X),
    "labeled dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(7),
    "dataset of labeled samples": lambda: tf.data.Dataset.from_tensor_slices((X, Y)),
    "dataset of dicts": lambda: tf.data.Dataset.from_tensor_slices({"image": X}).batch(7),
    "generator": batches,
    "labeled generator": lambda: batches(labels=True),
    "function": lambda: batches,
    "TensorFlow Lite's function": lambda: lambda: batches(wrap=lambda x: [x], size=1),
    "function of dicts": lambda: lambda: batches(wrap=lambda x: {"image": x}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_samples(form):
    data = take_samples(FORMS[form](), ONE)
    assert len(data) == 40
    assert list(data.samples) == ["image"]
    assert data.samples["image"].dtype == np.float32
    np.testing.assert_array_equal(data.samples["image"], X)


@pytest.mark.parametrize("form", FORMS)
def test_no_more_samples_than_the_limit(form):
    data = take_samples(FORMS[form](), ONE, limit=10)
    assert len(data) == 10
    iterated = "dataset" in form or "generator" in form or "function" in form
    rows = np.arange(10) if iterated else np.linspace(0, 39, 10).astype(int)
    np.testing.assert_array_equal(data.samples["image"], X[rows])


@pytest.mark.parametrize(
    "data",
    [
        {"a": A, "b": B},
        ({"b": B, "a": A}, Y),
        tf.data.Dataset.from_tensor_slices({"a": A, "b": B}),
        tf.data.Dataset.from_tensor_slices({"a": A, "b": B}).batch(7),
        tf.data.Dataset.from_tensor_slices(({"a": A, "b": B}, Y)).batch(7),
        lambda: iter([{"a": A[:30], "b": B[:30]}, {"b": B[30:], "a": A[30:]}]),
    ],
)
def test_several_inputs_are_told_by_name(data):
    samples = take_samples(data, TWO).samples
    assert list(samples) == ["b", "a"]  # the model's order
    np.testing.assert_array_equal(samples["a"], A)
    np.testing.assert_array_equal(samples["b"], B)


def test_batches_are_dicts_that_cover_every_sample():
    parts = list(take_samples({"a": A, "b": B}, TWO).batches(16))
    assert [len(part["a"]) for part in parts] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate([part["b"] for part in parts]), B)


def nan_at(*samples):
    bad = X.copy()
    bad[list(samples), 0, 1] = np.nan
    return bad


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        (None, ONE, "Expected representative data: a few hundred samples.*Received: None"),
        (X[:0], ONE, "Expected at least one sample of .* input image"),
        (iter(()), ONE, "Received: none"),
        (X[:, :2], ONE, r"of shape \('samples', 3, 2\)\. Received: \(40, 2, 2\)"),
        (X[0], ONE, r"Received: \(3, 2\)"),
        (np.float32(3), ONE, "at least one sample"),
        (nan_at(5, 9), ONE, "NaN or infinite values in 2 of 40 samples, the first at 5"),
        (np.where(X > 2, np.inf, X), ONE, "NaN or infinite"),
        (np.full((40, 3, 2), "x"), ONE, "to be numbers"),
        ([X[:1], X[:2]], ONE, "as one array"),
        ({"picture": X}, ONE, "for the inputs image. Received: picture"),
        ({"a": A}, TWO, "for the inputs b, a. Received: a"),
        (A, TWO, "2 inputs. Expected a dict with the keys b, a. Received: ndarray"),
        (lambda: iter([A]), TWO, "Expected batches as dicts with the keys b, a"),
        ({"a": A, "b": B[:39]}, TWO, "as many samples for every input"),
        (lambda: iter([X[:2], X[:2, :, :1]]), ONE, "in samples of one shape"),
        (lambda: iter([{}]), ONE, "samples along the first axis. Received: none"),
        (lambda: iter([1.0]), ONE, "samples along the first axis"),
        (lambda: None, ONE, "iterable of batches. Received: NoneType"),
        (X, [InputSpec("image", (3, 2), "int32")], "whole numbers"),
        (X.astype(np.float64) * 1e60, ONE, "NaN or infinite values in 40 of 40"),
    ],
)
def test_what_does_not_fit_is_said(data, inputs, message):
    with pytest.raises(DataError, match=message):
        take_samples(data, inputs)


def test_whole_floats_are_taken_for_integers():
    tokens = np.arange(120.0).reshape(40, 3)
    given = take_samples(tokens, [InputSpec("tokens", (3,), "int32")]).samples["tokens"]
    assert given.dtype == np.int32
    np.testing.assert_array_equal(given, tokens)


@pytest.mark.parametrize(
    ("trained", "scale", "fits"),
    [
        ((0.0, 1.0), 1.0, True),
        ((0.0, 1.0), 255.0, False),
        ((0.0, 255.0), 1.0, False),
        ((0.0, 255.0), 255.0, True),
        ((-1.0, 1.0), 1.0, True),
    ],
)
def test_another_scaling_than_in_training_is_refused(trained, scale, fits):
    inputs = [InputSpec("image", (3, 2), "float32", trained)]
    data = np.random.default_rng(0).uniform(0, scale, (40, 3, 2))
    if fits:
        assert len(take_samples(data, inputs)) == 40
        return
    with pytest.raises(DataError, match="scaled as in training"):
        take_samples(data, inputs)


def test_bytes_for_a_float_model_and_few_samples_are_remarked_on(capsys):
    take_samples(np.arange(12, dtype=np.uint8).reshape(2, 3, 2), ONE)
    message = capsys.readouterr().err
    assert "are uint8 from 0 to 11; the model takes float32" in message
    assert "Only 2 representative samples" in message


def test_open_sizes_take_any():
    inputs = [InputSpec("image", (None, 2))]
    assert take_samples(X, inputs).samples["image"].shape == (40, 3, 2)


@pytest.mark.parametrize(
    ("low", "high", "fits"),
    [
        (-1.0, 1.0, False),  # another scaling, though only twice as wide
        (0.0, 1.6, False),
        (-0.2, 1.2, True),
        (0.4, 0.6, True),
    ],
)
def test_data_beside_the_trained_range_are_refused_though_not_much_wider(low, high, fits):
    inputs = [InputSpec("image", (3, 2), "float32", (0.0, 1.0))]
    data = np.random.default_rng(0).uniform(low, high, (400, 3, 2))
    if fits:
        assert len(take_samples(data, inputs)) == 400
        return
    with pytest.raises(DataError, match=r"from 0 to 1\. Received values from"):
        take_samples(data, inputs)


def test_a_few_outliers_are_no_other_scaling():
    data = np.random.default_rng(0).uniform(0, 1, (400, 3, 2))
    data[:2, 0, 0] = (-1.5, 2.4)  # 2 of 2400 values
    assert len(take_samples(data, [InputSpec("image", (3, 2), "float32", (0.0, 1.0))])) == 400
