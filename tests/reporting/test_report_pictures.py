import base64
import io
import math

import numpy as np
import pytest
from PIL import Image
from report_example import gray_image

from kdtflite.reporting.sections import encode_picture


def opened(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_small_gray_picture_grows_without_smoothing():
    drawn = opened(encode_picture(gray_image()))
    assert (drawn.mode, drawn.size) == ("L", (112, 112))  # 8 pixels, 14 times
    expected = np.rint(np.array(gray_image()) * 255).repeat(14, axis=0).repeat(14, axis=1)
    np.testing.assert_array_equal(np.asarray(drawn), expected)


def test_a_color_picture_keeps_its_colors():
    image = np.zeros((32, 16, 3))
    image[:, :8] = (1.0, 0.5, 0.0)
    drawn = opened(encode_picture(image.tolist()))
    assert (drawn.mode, drawn.size) == ("RGB", (48, 96))
    assert drawn.getpixel((0, 0)) == (255, 128, 0)
    assert drawn.getpixel((47, 95)) == (0, 0, 0)


def test_one_channel_is_gray_and_values_outside_are_clipped():
    drawn = opened(encode_picture([[[-1.0], [2.0]], [[math.nan], [1.0]]]))
    assert drawn.mode == "L"
    assert np.asarray(drawn)[::56, ::56].tolist() == [[0, 255], [0, 255]]


def test_a_large_picture_shrinks():
    assert opened(encode_picture(np.ones((500, 1000)))).size == (224, 112)


@pytest.mark.parametrize(
    "image", [None, [0.1, 0.2], [[[0.1, 0.2]]], "text", [[0.1], [0.1, 0.2]], [[]]]
)
def test_what_is_no_picture_gives_none(image):
    assert encode_picture(image) is None
