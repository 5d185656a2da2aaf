"""The optimizers that recipes name, step by step."""

import numpy as np
import pytest
import tensorflow as tf
from pipeline_data import student

from kdtflite.pipeline.optimizers import NesterovSGD, make_optimizer, make_schedule
from kdtflite.pipeline.recipe import TrainingRecipe


def recipe(**keys):
    return TrainingRecipe(epochs=10, batch_size=16, learning_rate=0.1, **keys)


@pytest.mark.parametrize(
    ("keys", "rates"),
    [
        # 10 epochs of 10 steps. A rise of 10 steps from 1 %, then down to 1 %.
        ({}, {0: 0.001, 5: 0.0505, 10: 0.1, 55: 0.0505, 100: 0.001}),
        # A rise of 30 steps from 1/25, then down to 1/250,000.
        ({"schedule": "one_cycle"}, {0: 0.004, 15: 0.052, 30: 0.1, 65: 0.0500002, 100: 4e-7}),
        ({"schedule": "one_cycle", "warmup_epochs": 1}, {0: 0.004, 5: 0.052, 10: 0.1, 100: 4e-7}),
        ({"schedule": "constant"}, {0: 0.001, 5: 0.0505, 10: 0.1, 55: 0.1, 100: 0.1}),
        ({"schedule": "constant", "warmup_epochs": 0}, {0: 0.1, 50: 0.1, 100: 0.1}),
    ],
)
def test_the_learning_rate_of_every_schedule(keys, rates):
    schedule = make_schedule(recipe(**keys), 10)
    got = [float(schedule(step)) for step in rates]
    np.testing.assert_allclose(got, list(rates.values()), rtol=1e-4)


def test_sgd_has_nesterov_momentum_and_l2_on_kernels_alone():
    kernel, bias = tf.Variable([[2.0]]), tf.Variable([2.0])
    values = recipe(
        optimizer="sgd", schedule="constant", warmup_epochs=0, weight_decay=0.5, clip_norm=None
    )
    optimizer = make_optimizer(values, 10, [kernel, bias])
    assert isinstance(optimizer, NesterovSGD)
    one = [(tf.constant([[1.0]]), kernel), (tf.constant([1.0]), bias)]
    # Kernel: g = 1 + 0.5 · 2 = 2, v = -0.2, w = 2 - 0.2 + 0.9 · -0.2 = 1.62. Bias: g = 1.
    optimizer.apply_gradients(one)
    np.testing.assert_allclose([kernel.numpy().item(), bias.numpy().item()], [1.62, 1.81], 1e-6)
    # g = 1 + 0.81 = 1.81, v = -0.18 - 0.181 = -0.361, w = 1.62 - 0.181 - 0.3249.
    # Bias: v = -0.09 - 0.1 = -0.19, w = 1.81 - 0.1 - 0.171.
    optimizer.apply_gradients(one)
    np.testing.assert_allclose([kernel.numpy().item(), bias.numpy().item()], [1.1141, 1.539], 1e-6)
    copy = type(optimizer).from_config(optimizer.get_config())
    assert (copy.l2, copy.momentum, copy.nesterov) == (0.5, 0.9, True)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_kernels_decay_and_biases_and_normalizations_do_not(optimizer):
    model = student()
    values = recipe(weight_decay=0.1, warmup_epochs=0, optimizer=optimizer)
    made = make_optimizer(values, 6, model.trainable_variables)
    made.build(model.trainable_variables)
    before = [variable.numpy() for variable in model.trainable_variables]
    zeros = [tf.zeros_like(variable) for variable in model.trainable_variables]
    made.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    for variable, value in zip(model.trainable_variables, before, strict=True):
        decayed = value * (1 - 0.1 * 0.1) if value.ndim > 1 else value
        np.testing.assert_allclose(variable.numpy(), decayed, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_clipping_bounds_the_norm_of_all_gradients_together(optimizer):
    one, two = tf.Variable([0.0, 0.0]), tf.Variable([0.0])
    made = make_optimizer(recipe(clip_norm=1.3, optimizer=optimizer), 6, [one, two])
    clipped = made._clip_gradients([tf.constant([3.0, 4.0]), tf.constant([12.0])])
    np.testing.assert_allclose(np.concatenate(clipped), np.array([3, 4, 12]) * 1.3 / 13, rtol=1e-6)
