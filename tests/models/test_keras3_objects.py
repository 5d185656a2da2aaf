"""Optimizers, losses, metrics and callbacks of Keras 3: the same numbers in tf_keras."""

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import ConfigurationError
from kdtflite.models import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)

S = keras3.optimizers.schedules
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")
START = [RNG.normal(size=(3, 2)).astype("float32"), RNG.normal(size=2).astype("float32")]


def _trained(package, optimizer, steps=4):
    model = package.Sequential([package.Input((3,)), package.layers.Dense(2)])
    model.set_weights(START)
    model.compile(optimizer, "mse")
    model.fit(X, Y, batch_size=16, epochs=steps, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras3.optimizers.SGD(0.1),
        lambda: keras3.optimizers.SGD(0.1, momentum=0.9, nesterov=True, clipnorm=0.5),
        lambda: keras3.optimizers.SGD(S.CosineDecay(0.1, 3)),
        lambda: keras3.optimizers.Adam(0.05, beta_1=0.7, epsilon=1e-4, amsgrad=True),
        lambda: keras3.optimizers.AdamW(0.05, weight_decay=0.1),
        lambda: keras3.optimizers.Adamax(0.05),
        lambda: keras3.optimizers.Adamax(0.05, global_clipnorm=0.1, clipvalue=None),
        lambda: keras3.optimizers.RMSprop(0.05, momentum=0.5, centered=True),
        lambda: keras3.optimizers.Adagrad(0.05),
        lambda: keras3.optimizers.Adadelta(1.0),
        lambda: keras3.optimizers.Ftrl(0.05, l1_regularization_strength=0.01),
        lambda: keras3.optimizers.Lion(0.01),
    ],
)
def test_training_steps_give_the_same_weights(make):
    converted = to_tf_keras_optimizer(make())
    assert isinstance(converted, keras.optimizers.Optimizer)
    expected, received = _trained(keras3, make()), _trained(keras, converted)
    assert np.abs(expected[0] - START[0]).max() > 1e-4
    for one, other in zip(expected, received, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        S.CosineDecay(0.1, 10, alpha=0.1, warmup_target=0.5, warmup_steps=3),
        S.ExponentialDecay(0.1, 5, 0.5, staircase=True),
        S.PiecewiseConstantDecay([2, 7], [0.3, 0.2, 0.1]),
        S.PolynomialDecay(0.1, 10, power=2.0, cycle=True),
        S.InverseTimeDecay(0.1, 2, 0.5),
        S.CosineDecayRestarts(0.1, 4),
    ],
)
def test_learning_rate_schedules_give_the_same_values(schedule):
    converted = to_tf_keras_optimizer(keras3.optimizers.SGD(schedule))._learning_rate
    assert type(converted).__module__.startswith("tf_keras.")
    for step in (0, 1, 2, 3, 5, 7, 12):
        np.testing.assert_allclose(converted(step), np.array(schedule(step)), rtol=1e-6)


def test_exclusions_from_weight_decay_are_kept():
    optimizer = keras3.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    kernel, bias = _trained(keras, to_tf_keras_optimizer(optimizer), steps=1)
    plain_kernel, plain_bias = _trained(keras, keras.optimizers.SGD(0.1), steps=1)
    np.testing.assert_allclose(bias, plain_bias, rtol=1e-6)
    # decay before the step: 0.1 * 0.5 of the starting kernel
    np.testing.assert_allclose(kernel, plain_kernel - 0.05 * START[0], rtol=1e-4, atol=1e-6)


def test_a_used_optimizer_starts_afresh_and_says_so(capsys):
    used = keras3.optimizers.Adam(0.1)
    _trained(keras3, used, steps=3)
    received = _trained(keras, to_tf_keras_optimizer(used), steps=1)
    np.testing.assert_allclose(
        received[0], _trained(keras3, keras3.optimizers.Adam(0.1), 1)[0], rtol=1e-5
    )
    assert "has already made 3 steps; it starts afresh" in capsys.readouterr().err


def test_a_moving_average_of_weights_is_kept_and_its_start_told(capsys):
    used = keras3.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    config = to_tf_keras_optimizer(used).get_config()
    assert (config["use_ema"], config["ema_momentum"]) == (True, 0.5)
    assert config["ema_overwrite_frequency"] == 3
    assert "starts the moving average at the initial weights" in capsys.readouterr().err


def test_a_loss_scale_optimizer_gives_its_inner_one_and_says_so(capsys):
    converted = to_tf_keras_optimizer(
        keras3.optimizers.LossScaleOptimizer(keras3.optimizers.Adam(0.25))
    )
    assert isinstance(converted, keras.optimizers.Adam)
    np.testing.assert_allclose(converted.learning_rate, 0.25)
    assert "LossScaleOptimizer is replaced by its inner optimizer Adam" in capsys.readouterr().err


class MyOptimizer(keras3.optimizers.SGD):
    pass


class MySchedule(S.LearningRateSchedule):
    def __call__(self, step):
        return 0.1

    def get_config(self):
        return {}


def _excluding_a_variable():
    optimizer = keras3.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_list=[keras3.Variable([1.0])])
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: keras3.optimizers.Adam(gradient_accumulation_steps=4),
            r"Adam .*gradient_accumulation_steps=4",
        ),
        (
            lambda: keras3.optimizers.SGD(loss_scale_factor=8.0),
            r"SGD .*loss_scale_factor=8\.0 has no equal",
        ),
        (lambda: keras3.optimizers.Nadam(), r"Nadam .*makes other steps.*AdamW"),
        (lambda: keras3.optimizers.Lamb(), r"Lamb .*no such optimizer.*AdamW"),
        (lambda: MyOptimizer(), r"MyOptimizer .*your own subclass.*Subclass tf_keras'"),
        (
            lambda: keras3.optimizers.SGD(MySchedule()),
            r"MySchedule .*your own subclass .*schedule",
        ),
        (lambda: keras3.optimizers.SGD(lambda: 0.1), r"a function as learning rate"),
        (_excluding_a_variable, r"AdamW .*var_list.*var_names"),
        (lambda: 3, r"Expected an optimizer. Received: int"),
        (lambda: keras3.optimizers.SGD, r"Expected an optimizer. Received: the class SGD"),
    ],
)
def test_optimizers_that_cannot_be_carried_over_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=f"(?s){message}"):
        to_tf_keras_optimizer(make())


@pytest.mark.parametrize(
    "value", [None, "adam", keras.optimizers.SGD(), keras.optimizers.legacy.SGD()]
)
def test_what_tf_keras_takes_passes_through(value):
    assert to_tf_keras_optimizer(value) is value


LABELS = np.array([0, 2, 1, 1], "int32")
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
LOGITS = np.array([[1, 0, -1], [0.5, 0.2, 3], [0, 0, 0], [-2, 1, 1]], "float32")
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
A, B = keras3.losses, keras3.metrics


@pytest.mark.parametrize(
    ("loss", "y", "p"),
    [
        (A.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1), LABELS, LOGITS),
        (A.SparseCategoricalCrossentropy(), LABELS, PROBABILITIES),
        (A.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2), ONE_HOT, LOGITS),
        (A.CategoricalFocalCrossentropy(gamma=3.0), ONE_HOT, PROBABILITIES),
        (A.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), ONE_HOT, LOGITS),
        (A.Huber(delta=0.3), ONE_HOT, LOGITS),
        (A.MeanSquaredError(reduction="sum"), ONE_HOT, LOGITS),
        (A.MeanAbsoluteError(reduction=None), ONE_HOT, LOGITS),
        (A.KLDivergence(reduction="mean"), ONE_HOT, PROBABILITIES),
        (A.CosineSimilarity(axis=0), ONE_HOT[:3], LOGITS[:3]),
        (A.LogCosh(), ONE_HOT, LOGITS),
    ],
)
def test_losses_give_the_same_values(loss, y, p):
    converted = to_tf_keras_loss(loss)
    assert isinstance(converted, keras.losses.Loss)
    np.testing.assert_allclose(converted(y, p), np.array(loss(y, p)), rtol=1e-5, atol=1e-7)
    weights = np.array([1, 0, 2, 3], "float32")[: len(y)]
    np.testing.assert_allclose(
        converted(y, p, sample_weight=weights),
        np.array(loss(y, p, sample_weight=weights)),
        **{"rtol": 1e-5, "atol": 1e-7},
    )


@pytest.mark.parametrize(
    ("make", "y", "p"),
    [
        (lambda: B.SparseCategoricalAccuracy(), LABELS, PROBABILITIES),
        (lambda: B.SparseTopKCategoricalAccuracy(k=2), LABELS, PROBABILITIES),
        (lambda: B.CategoricalCrossentropy(from_logits=True), ONE_HOT, LOGITS),
        (lambda: B.AUC(num_thresholds=7, curve="PR"), ONE_HOT, PROBABILITIES),
        (lambda: B.Precision(thresholds=0.3, class_id=1), ONE_HOT, PROBABILITIES),
        (lambda: B.Recall(top_k=1), ONE_HOT, PROBABILITIES),
        (lambda: B.F1Score(average="macro"), ONE_HOT, PROBABILITIES),
        (lambda: B.MeanIoU(3), LABELS, LABELS[::-1].copy()),
        (lambda: B.BinaryAccuracy(threshold=0.7), ONE_HOT, PROBABILITIES),
        (lambda: B.MeanAbsoluteError(name="mine"), ONE_HOT, LOGITS),
    ],
)
def test_metrics_give_the_same_values(make, y, p):
    metric = make()
    converted = to_tf_keras_metric(metric)
    assert isinstance(converted, keras.metrics.Metric)
    assert converted.name == metric.name
    metric.update_state(y, p)
    converted.update_state(y, p)
    np.testing.assert_allclose(converted.result(), np.array(metric.result()), rtol=1e-5)


def _my_loss(y, p):
    return p


def test_functions_and_nests_are_mapped():
    assert to_tf_keras_loss(A.sparse_categorical_crossentropy) is (
        keras.losses.sparse_categorical_crossentropy
    )
    assert to_tf_keras_metric(B.categorical_accuracy) is keras.metrics.categorical_accuracy
    for value in (None, "mse", _my_loss, keras.losses.mse, keras.losses.MeanSquaredError()):
        assert to_tf_keras_loss(value) is value
    for value in (None, "acc", _my_loss, keras.metrics.Mean()):
        assert to_tf_keras_metric(value) is value
    nest = to_tf_keras_metric({"a": [B.AUC(), "acc"], "b": (B.Recall(),)})
    assert isinstance(nest["a"][0], keras.metrics.AUC)
    assert nest["a"][1] == "acc"
    assert isinstance(nest["b"][0], keras.metrics.Recall)
    assert isinstance(to_tf_keras_loss([A.Huber(), None])[0], keras.losses.Huber)


class MyLoss(A.Loss):
    def call(self, y, p):
        return p


class MyMetric(B.Metric):
    def result(self):
        return 0


@pytest.mark.parametrize(
    ("convert", "value", "message"),
    [
        (to_tf_keras_loss, MyLoss(), r"MyLoss .*your own subclass.*keras\.losses"),
        (to_tf_keras_loss, A.Dice(), r"Dice .*no such loss"),
        (to_tf_keras_loss, A.dice, r"no loss function like Keras 3's dice"),
        (
            to_tf_keras_loss,
            A.MeanSquaredError(reduction="mean_with_sample_weight"),
            r"MeanSquaredError .*reduction='mean_with_sample_weight'.*sum_over_batch_size",
        ),
        (to_tf_keras_loss, A.SparseCategoricalCrossentropy(axis=1), r"argument axis=1 has no"),
        (to_tf_keras_loss, {"a": [MyLoss()]}, r"MyLoss"),
        (to_tf_keras_loss, 3, r"Expected a loss\. Received: int"),
        (to_tf_keras_loss, A.Huber, r"Expected a loss\. Received: the class Huber"),
        (to_tf_keras_metric, MyMetric(), r"MyMetric .*your own subclass.*keras\.metrics"),
        (to_tf_keras_metric, B.MeanMetricWrapper(_my_loss), r"MeanMetricWrapper .*plain function"),
        (to_tf_keras_metric, B.PearsonCorrelation(), r"PearsonCorrelation .*no such metric"),
        (to_tf_keras_metric, [3], r"Expected a metric\. Received: int"),
    ],
)
def test_losses_and_metrics_that_cannot_be_carried_over_are_refused(convert, value, message):
    with pytest.raises(ConfigurationError, match=f"(?s){message}"):
        convert(value)
