"""A drawing's way into 28 by 28 pixels, by hand and against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from kdtflite.data import to_image
from kdtflite.errors import ConfigurationError, DataError


def blank(height=28, width=28):
    return np.zeros((height, width), np.uint8)


def test_a_single_pixel_fills_the_box_in_the_middle():
    canvas, expected = blank(50, 40), blank()
    canvas[49, 3] = 200
    # One pixel is enlarged to 20 × 20; its center 10 goes to 14: offset 4.
    expected[4:24, 4:24] = 200
    np.testing.assert_array_equal(to_image(canvas), expected)


def test_the_aspect_ratio_is_kept():
    canvas, expected = blank(30, 60), blank()
    canvas[5:15, 10:50] = 255  # 10 high, 40 wide: 5 × 20
    # Centers 2.5 and 10 go to 14: ceil(14 - 2.5) = 12 and 4.
    expected[12:17, 4:24] = 255
    np.testing.assert_array_equal(to_image(canvas), expected)
    np.testing.assert_array_equal(to_image(canvas.T), expected.T)


@pytest.mark.parametrize(("short", "height"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_halves_of_a_side_are_rounded_up_and_no_side_vanishes(short, height):
    # short · 20 / 40: 0.5, 1, 1.5, 2 and 2.5.
    rows = to_image(np.full((short, 40), 255, np.uint8)).any(axis=1)
    assert rows.sum() == height
    assert to_image(np.full((1, 1000), 255, np.uint8)).any(axis=1).sum() == 1


def test_a_pixel_is_the_mean_of_its_area_with_halves_up():
    # 40 × 40 to 20 × 20: each new pixel is the mean of four, here of 255, 0, 255, 0: 127.5.
    canvas = np.tile(np.array([255, 0], np.uint8), (40, 20))
    canvas[:, -1] = 255  # so that the bounding box is the whole; the last column is 255
    image = to_image(canvas)
    inked = image[image > 0].reshape(20, 20)
    assert set(inked[:, :-1].ravel().tolist()) == {128}
    assert set(inked[:, -1].tolist()) == {255}


def test_a_pixel_covered_in_part_counts_in_part():
    # 30 columns to 20: a new pixel covers one and a half of the old. 60, 0, 0 | 60, 0, 0 | ...
    canvas = np.tile(np.array([60, 0, 0], np.uint8), (30, 10))
    canvas[:, -1] = 30
    image = to_image(canvas)
    row = np.trim_zeros(image[image.any(axis=1)][0])
    # (60 + 0/2) / 1.5 = 40, then (0/2 + 0) / 1.5 = 0, ...; the last (0/2 + 30) / 1.5 = 20.
    assert row.tolist() == [40, 0] * 9 + [40, 20]


def test_the_center_of_mass_is_in_the_middle_and_the_drawing_inside():
    # Left half heavy: columns 0..9 of 250, 10..19 of 50.
    canvas, expected = blank(20, 20), blank()
    canvas[:, :10], canvas[:, 10:] = 250, 50
    # (250·5 + 50·15) / 300 = 6.67: ceil(14 - 6.67) = 8.
    expected[4:24, 8:18], expected[4:24, 18:28] = 250, 50
    np.testing.assert_array_equal(to_image(canvas), expected)
    # A column of 255 and nineteen of 1: the center lies at 1.13, and ceil(12.87) = 13 would push
    # the drawing over the edge: 8 is the most.
    canvas[:, 0], canvas[:, 1:] = 255, 1
    columns = np.flatnonzero(to_image(canvas).any(axis=0))
    assert (columns[0], columns[-1]) == (8, 27)
    columns = np.flatnonzero(to_image(canvas[:, ::-1]).any(axis=0))
    assert (columns[0], columns[-1]) == (0, 19)


def test_a_center_between_two_pixels_goes_to_the_further():
    # 20 × 5: the center 2.5 asks for 11.5 and gets 12.
    columns = np.flatnonzero(to_image(np.full((20, 5), 9, np.uint8)).any(axis=0))
    assert (columns[0], columns[-1]) == (12, 16)


def test_nothing_drawn_gives_nothing():
    assert not to_image(blank(100, 60)).any()
    # Two specks of 1 in 90 × 90 pixels: the mean of every area rounds to 0.
    faint = blank(90, 90)
    faint[0, 0] = faint[-1, -1] = 1
    assert not to_image(faint).any()


@pytest.mark.parametrize(("size", "box"), [(28, 20), (8, 6), (56, 40), (9, 6), (1, 1), (2, 1)])
def test_other_sizes_keep_the_proportions(size, box):
    # size · 20 / 28, halves up: 8 → 5.7, 9 → 6.4, 1 → 0.7, 2 → 1.4.
    image = to_image(np.full((100, 100), 255, np.uint8), size)
    assert image.shape == (size, size)
    assert (image == 255).sum() == box * box
    rows = np.flatnonzero(image.any(axis=1))
    # ceil(size / 2 - box / 2)
    assert rows[0] == (size - box + 1) // 2


def exact(canvas, size=28):
    """The same by fractions, pixel by pixel."""
    ys, xs = np.nonzero(canvas)
    image = np.zeros((size, size), int)
    if len(ys) == 0:
        return image
    drawing = canvas[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(int)
    box = floor(Fraction(size * 20, 28) + Fraction(1, 2))
    scale = Fraction(box, max(drawing.shape))
    height, width = (max(1, floor(side * scale + Fraction(1, 2))) for side in drawing.shape)

    def cover(new, i, old, j):
        low = max(Fraction(i, new), Fraction(j, old))
        return max(min(Fraction(i + 1, new), Fraction(j + 1, old)) - low, Fraction(0)) * new

    small = np.zeros((height, width), int)
    for i, k in np.ndindex(height, width):
        rows = [cover(height, i, drawing.shape[0], y) for y in range(drawing.shape[0])]
        columns = [cover(width, k, drawing.shape[1], x) for x in range(drawing.shape[1])]
        mean = sum(
            int(drawing[y, x]) * rows[y] * columns[x]
            for y in range(len(rows)) if rows[y]
            for x in range(len(columns)) if columns[x]
        )  # fmt: skip
        small[i, k] = floor(mean + Fraction(1, 2))
    offsets = []
    for axis, side in ((1, height), (0, width)):
        mass = small.sum(axis=axis)
        center = sum(Fraction(2 * n + 1, 2) * int(m) for n, m in enumerate(mass)) / int(mass.sum())
        offset = ceil(Fraction(size, 2) - center)
        offsets.append(min(max(offset, 0), size - side))
    top, left = offsets
    image[top : top + height, left : left + width] = small
    return image


@pytest.mark.parametrize("seed", range(8))
def test_random_drawings_are_those_of_exact_fractions(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 34, 2)
    canvas = rng.integers(0, 256, (height, width)) * (rng.random((height, width)) < 0.3)
    canvas = canvas.astype(np.uint8)
    canvas[0, 0] = 255
    np.testing.assert_array_equal(to_image(canvas), exact(canvas))
    np.testing.assert_array_equal(to_image(canvas, 13), exact(canvas, 13))


def test_mnists_own_images_come_back_byte_by_byte(shared_data):
    with np.load(shared_data / "mnist.npz") as arrays:
        images = arrays["x_test"][:1000]
    for image in images:
        np.testing.assert_array_equal(to_image(np.kron(image, np.ones((3, 3), np.uint8))), image)


def test_what_is_no_drawing_is_refused():
    with pytest.raises(DataError, match=r"bytes \(uint8\) of shape .* float64, shape \(3, 3\)"):
        to_image(np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"Received: uint8, shape \(3, 3, 1\)"):
        to_image(np.zeros((3, 3, 1), np.uint8))
    with pytest.raises(DataError, match=r"shape \(0, 5\)"):
        to_image(np.zeros((0, 5), np.uint8))
    with pytest.raises(ConfigurationError, match="size from 1 pixel up"):
        to_image(blank(), 0)


def test_a_box_of_the_image_leaves_no_margin():
    image = to_image(np.full((50, 50), 255, np.uint8), 8, 8)
    np.testing.assert_array_equal(image, np.full((8, 8), 255, np.uint8))
    # 4 × 2 of ink in a box of 6: 6 × 3, its center in the middle of 8: from row 1, column 3
    image = to_image(np.full((4, 2), 9, np.uint8), 8, 6)
    expected = np.zeros((8, 8), np.uint8)
    expected[1:7, 3:6] = 9
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("box", [0, 9, -1])
def test_a_box_beyond_the_image_is_refused(box):
    with pytest.raises(ConfigurationError, match=f"from 1 to 8 pixels. Received: {box}"):
        to_image(blank(), 8, box)
