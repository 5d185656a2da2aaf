"""An image is moved by its own numbers, whatever batch it stands in."""

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation

X = np.random.default_rng(0).uniform(0, 1, (9, 6, 6, 2)).astype(np.float32)
MOVED = Augmentation(shift=2.0, rotation=15.0, zoom=0.1, flip=True)


def test_a_call_moves_by_the_stateless_numbers_of_the_seed():
    u = tf.random.stateless_uniform((5, 9), (3, 4), minval=-1.0, maxval=1.0)
    np.testing.assert_array_equal(MOVED(X, (3, 4)), MOVED.move(X, u))


def test_an_image_is_moved_alike_alone_and_in_a_batch():
    x = np.tile(X, (20, 1, 1, 1))[:171]
    u = np.random.default_rng(1).uniform(-1, 1, (5, 171))
    moved = Augmentation(shift=2.0, rotation=180.0, zoom=0.3, flip=True).move
    whole = moved(x, u).numpy()
    for batch in (np.arange(37, 50), np.random.default_rng(2).permutation(171)[:100]):
        np.testing.assert_array_equal(moved(x[batch], u[:, batch]), whole[batch])
    for i in range(171):
        np.testing.assert_array_equal(moved(x[i : i + 1], u[:, i : i + 1])[0], whole[i])


def test_whole_pixels_to_the_left_and_up():
    u = np.zeros((5, 1), np.float32)
    u[2], u[3] = 0.5, 0.25  # of a largest shift of 4: two to the left, one up
    moved = Augmentation(shift=4.0).move(X[:1], u).numpy()[0]
    np.testing.assert_allclose(moved[:5, :4], X[0, 1:, 2:], atol=1e-5)
    np.testing.assert_array_equal(moved[5], 0)
    np.testing.assert_array_equal(moved[:, 4:], 0)
