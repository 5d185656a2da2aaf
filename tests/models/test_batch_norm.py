"""Statistics of batch normalization are the means over the batches they are estimated from."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.batch_norm import find_norms, reestimate_statistics

L = keras.layers


def test_statistics_are_the_means_over_the_batches_and_nothing_else_changes():
    model = keras.Sequential([keras.Input((1,)), L.BatchNormalization(), L.Dense(1)])
    dense = [weight.copy() for weight in model.layers[1].get_weights()]
    # Of (1, 3) the mean is 2 and the variance 1, of (5, 9) they are 7 and 4.
    x = np.array([[1], [3], [5], [9], [50], [60]], np.float32)
    batches = tf.data.Dataset.from_tensor_slices((x, np.zeros(6))).batch(2)
    reestimate_statistics(model, batches, 2)
    norm = model.layers[0]
    np.testing.assert_allclose(norm.moving_mean, [4.5], rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, [2.5], rtol=1e-5)
    assert norm.momentum == 0.99
    np.testing.assert_array_equal(norm.gamma, [1.0])
    for now, then in zip(model.layers[1].get_weights(), dense, strict=True):
        np.testing.assert_array_equal(now, then)
    reestimate_statistics(model, batches.skip(1).map(lambda x, _: x), 1)
    np.testing.assert_allclose(norm.moving_mean, [7.0], rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, [4.0], rtol=1e-5)


def test_a_model_without_such_layers_needs_no_batches():
    model = keras.Sequential([keras.Input((1,)), L.Dense(1)])
    assert find_norms(model) == []
    reestimate_statistics(model, None, 3)
