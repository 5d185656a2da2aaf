"""Training batches and augmentation are functions of the seed and the epoch alone."""

import numpy as np
import pytest
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.data.batches import steps_per_epoch, training_batches
from kdtflite.data.splits import Split
from kdtflite.errors import ConfigurationError, DataError

X = np.random.default_rng(0).uniform(0, 1, (22, 6, 6, 2)).astype(np.float32)
SPLIT = Split(X, np.arange(22))
MOVED = Augmentation(shift=2.0, rotation=15.0, zoom=0.1, flip=True)


def stream(epochs, first_epoch=0, seed=3, augmentation=None):
    batches = training_batches(
        SPLIT,
        batch_size=4,
        epochs=epochs,
        seed=seed,
        first_epoch=first_epoch,
        augmentation=augmentation,
    )
    return [(x.numpy(), y.numpy()) for x, y in batches]


@pytest.mark.parametrize("augmentation", [None, MOVED])
def test_a_stream_begun_later_is_the_tail_of_the_whole(augmentation):
    whole, resumed = (
        stream(4, 0, augmentation=augmentation),
        stream(4, 2, augmentation=augmentation),
    )
    assert len(whole) == 20
    assert len(resumed) == 10
    for (x, y), (expected_x, expected_y) in zip(resumed, whole[10:], strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_an_epoch_has_every_image_once_with_its_own_label():
    assert steps_per_epoch(SPLIT, 4) == 5
    for epoch in range(2):
        part = stream(2)[5 * epoch : 5 * epoch + 5]
        labels = np.concatenate([y for _, y in part])
        assert len(set(labels)) == 20  # 22 samples: two wait for another epoch
        np.testing.assert_array_equal(np.concatenate([x for x, _ in part]), X[labels])


def test_epochs_and_seeds_have_their_own_order():
    def order(seed, epoch):
        return tuple(np.concatenate([y for _, y in stream(3, seed=seed)[5 * epoch :][:5]]))

    orders = {order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9
    assert order(1, 1) == order(1, 1)


def test_an_image_is_moved_another_way_each_epoch_and_step():
    split = Split(np.ones((8, 6, 6, 1), np.float32), np.zeros(8, int))
    batches = training_batches(
        split, batch_size=4, epochs=2, seed=0, augmentation=Augmentation(rotation=30.0)
    )
    images = np.concatenate([x for x, _ in batches])
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16


def test_less_than_a_batch_is_refused():
    with pytest.raises(DataError, match=r"at least batch_size=23 .*Received: 22"):
        steps_per_epoch(SPLIT, 23)


def test_the_same_seed_moves_images_the_same_way():
    once, again, other = (MOVED(X, seed).numpy() for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    assert not np.array_equal(once, X)


def test_augmentation_that_is_off_changes_nothing():
    assert not Augmentation().active
    np.testing.assert_array_equal(Augmentation()(X, (1, 2)), X)


def shifted(image, down, right):
    """Moves an image by whole pixels; zeros come in."""
    out = np.zeros_like(image)
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                out[i, j] = image[i - down, j - right]
    return out


def constant_uniform(monkeypatch, values):
    """Makes the random numbers (angle, zoom, x, y, mirror) these for every image."""

    def uniform(shape, seed, minval, maxval):
        assert (minval, maxval) == (-1.0, 1.0)
        return tf.tile(tf.constant(values, tf.float32)[:, None], [1, shape[1]])

    monkeypatch.setattr(tf.random, "stateless_uniform", uniform)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-1, 0), (0, 3), (-2, -1), (3, 2)])
def test_a_shift_by_whole_pixels_moves_pixels_and_brings_zeros(monkeypatch, right, down):
    # The transform says where an output pixel comes from: a shift to the right by 2 reads x - 2.
    constant_uniform(monkeypatch, [0.0, 0.0, -right / 4, -down / 4, 1.0])
    moved = Augmentation(shift=4.0)(X, (0, 0)).numpy()
    expected = np.stack([shifted(image, down, right) for image in X])
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_a_flip_mirrors_left_and_right(monkeypatch):
    constant_uniform(monkeypatch, [0.0, 0.0, 0.0, 0.0, -0.5])
    np.testing.assert_allclose(Augmentation(flip=True)(X, (0, 0)), X[:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(Augmentation(shift=1.0)(X, (0, 0)), X, atol=1e-5)


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (180.0, 2)])
def test_a_rotation_turns_about_the_center(monkeypatch, degrees, turns):
    constant_uniform(monkeypatch, [1.0, 0.0, 0.0, 0.0, 1.0])
    turned = Augmentation(rotation=degrees)(X, (0, 0)).numpy()
    either = [np.rot90(X, k, axes=(1, 2)) for k in (turns, -turns)]
    assert min(np.abs(turned - one).max() for one in either) < 1e-4


def test_a_zoom_of_two_shows_the_middle_half(monkeypatch):
    constant_uniform(monkeypatch, [0.0, 1.0, 0.0, 0.0, 1.0])
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32)[None, None, :, None], (1, 6, 6, 1))
    zoomed = Augmentation(zoom=1.0)(ramp, (0, 0)).numpy()
    # About the center 2.5, at half the slope.
    np.testing.assert_allclose(zoomed[0, 3, :, 0], 2.5 + (np.arange(6) - 2.5) / 2, atol=1e-4)


def test_shifts_stay_within_their_limit_and_flips_take_about_half():
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[None, None, :, None], (400, 9, 64, 1))
    moved = Augmentation(shift=3.0)(ramp, (5, 6)).numpy()[:, 4, 32, 0] - 32
    assert np.abs(moved).max() <= 3
    assert moved.min() < -2.5
    assert moved.max() > 2.5
    mirrored = Augmentation(flip=True)(ramp, (5, 6)).numpy()[:, 4, 0, 0] > 32
    assert 0.4 < mirrored.mean() < 0.6


def test_an_epoch_of_several_passes_has_every_sample_as_often_in_one_order():
    assert steps_per_epoch(SPLIT, 4, passes=2) == 11
    batches = training_batches(SPLIT, batch_size=4, epochs=1, seed=3, passes=2)
    labels = np.concatenate([y.numpy() for _, y in batches])
    assert np.bincount(labels).tolist() == [2] * 22
    assert len(set(labels[:22])) < 22


def test_a_crop_moves_by_whole_pixels_from_end_to_end_and_copies_them():
    images = np.tile(X[:1], (300, 1, 1, 1))
    moved = Augmentation(crop=2, flip=True)(images, (4, 5)).numpy()
    padded = np.pad(X[0], ((2, 2), (2, 2), (0, 0)))
    parts = {
        part.tobytes(): (top, left, mirrored)
        for top in range(5)
        for left in range(5)
        for mirrored in (False, True)
        for part in [padded[top : top + 6, left : left + 6][:, :: -1 if mirrored else 1]]
    }
    seen = {parts[image.tobytes()] for image in moved}  # each is one of them, to the bit
    assert {(top, left) for top, left, _ in seen} == {(t, c) for t in range(5) for c in range(5)}
    assert {mirrored for _, _, mirrored in seen} == {False, True}


@pytest.mark.parametrize("options", [{"crop": 2, "shift": 1.0}, {"crop": 1.5}, {"crop": -1}])
def test_a_crop_is_of_whole_pixels_and_in_place_of_a_shift(options):
    with pytest.raises(ConfigurationError, match=r"crop(= to be a whole number| of whole pixels)"):
        Augmentation(**options)
