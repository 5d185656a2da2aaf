"""Images of every depth and kind: read right, or refused; never clipped without a word."""

import os
import struct

import numpy as np
import pytest
from PIL import Image

from kdtflite.data import load_image_folder, load_user_dataset
from kdtflite.errors import DataError

# Eight pixels from black to white, on a scale of 16 bits.
RAMP = np.linspace(0, 65535, 8).reshape(2, 4)
SHARES = (RAMP.astype(np.uint16) / 65535).astype(np.float32)


def read(folder, channels=1):
    x, _, _ = load_image_folder(folder, (2, 4), channels)
    assert x.dtype == np.float32
    return x[0, ..., 0] if channels == 1 else x[0]


@pytest.fixture
def image(tmp_path):
    (tmp_path / "a").mkdir()
    return tmp_path / "a" / "1.png"


def write_tiff(path, pixels, *, order="<", bits, kind=1, white_is_zero=False):
    """Writes an uncompressed gray TIFF: Pillow cannot write all of these."""
    data, (height, width) = pixels.tobytes(), pixels.shape
    tags = [
        *((256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1)),
        *((262, 3, 0 if white_is_zero else 1), (273, 4, 8), (277, 3, 1), (278, 3, height)),
        *((279, 4, len(data)), (339, 3, kind)),
    ]
    directory = struct.pack(f"{order}H", len(tags))
    for tag, size, value in tags:
        words = "HH" if size == 3 else "I"
        directory += struct.pack(f"{order}HHI", tag, size, 1)
        directory += struct.pack(order + words, *((value, 0) if size == 3 else (value,)))
    start = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(start + struct.pack(f"{order}I", 8 + len(data)) + data + directory + bytes(4))


def test_sixteen_bits_are_scaled_and_said(image, capfd):
    Image.fromarray(RAMP.astype(np.uint16)).save(image)
    np.testing.assert_allclose(read(image.parents[1]), SHARES, atol=1e-7)
    said = " ".join(capfd.readouterr().err.split())
    assert "1 of 1 have 16-bit pixels, which are scaled from 0..65535 to 0..1" in said
    rgb = read(image.parents[1], channels=3)
    assert (rgb == rgb[..., :1]).all()


def test_sixteen_bits_of_a_tiff_in_either_byte_order_are_scaled(image):
    path = image.with_suffix(".tif")
    for order in "<>":
        write_tiff(path, RAMP.astype(f"{order}u2"), order=order, bits=16)
        np.testing.assert_allclose(read(image.parents[1]), SHARES, atol=1e-7)
    write_tiff(path, RAMP.astype("<u2"), bits=16, white_is_zero=True)
    np.testing.assert_allclose(read(image.parents[1]), 1 - SHARES, atol=1e-7)


def test_sixteen_bits_that_lie_on_their_side_are_turned(image):
    exif = Image.Exif()
    exif[0x0112] = 3  # "rotate by 180 degrees to show"
    Image.fromarray(RAMP.astype(np.uint16)).save(image, exif=exif)
    np.testing.assert_allclose(read(image.parents[1]), SHARES[::-1, ::-1], atol=1e-7)


def test_floats_from_0_to_1_are_taken_as_they_are_and_others_refused(image, capfd):
    path = image.with_suffix(".tiff")
    Image.fromarray(SHARES).save(path)
    np.testing.assert_array_equal(read(image.parents[1]), SHARES)
    assert "floating-point pixels, which are used as they are" in " ".join(
        capfd.readouterr().err.split()
    )
    spoilt = SHARES.copy()
    spoilt[0, 0] = np.nan
    for pixels in (SHARES * 255, SHARES - 0.5, spoilt):
        Image.fromarray(pixels).save(path)
        with pytest.raises(DataError, match=r"1\.tiff has floating-point pixels from .* 0 to 1"):
            read(image.parents[1])


@pytest.mark.parametrize(
    ("dtype", "bits", "kind"), [("<i4", 32, 2), ("<u4", 32, 1), ("<i2", 16, 2)]
)
def test_pixels_without_a_known_range_are_refused(image, dtype, bits, kind):
    write_tiff(image.with_suffix(".tif"), (RAMP / 3).astype(dtype), bits=bits, kind=kind)
    with pytest.raises(DataError, match="whose range is not known"):
        read(image.parents[1])
    with pytest.raises(DataError, match="whose range is not known"):
        load_user_dataset(image.parents[1], quiet=True)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_other_kinds_of_eight_bits_keep_black_and_white(image, mode):
    pixels = np.array([[0, 255, 0, 255]] * 2, np.uint8)
    path = image.with_suffix(".tif")
    Image.fromarray(pixels).convert("RGB").convert(mode).save(path)
    for channels in (1, 3):
        x, _, _ = load_image_folder(image.parents[1], (2, 4), channels, quiet=True)
        np.testing.assert_array_equal(x[0, ..., 0], pixels / 255)


def test_transparent_and_moving_images_are_said(image, capfd):
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    clear.save(image)
    first, second = (Image.new("L", (4, 2), value) for value in (255, 0))
    first.save(image.with_suffix(".gif"), save_all=True, append_images=[second])
    x, _, _ = load_image_folder(image.parents[1], (2, 4))
    np.testing.assert_array_equal(x[0], np.ones((2, 4, 3)))  # the first frame
    np.testing.assert_array_equal(x[1], np.broadcast_to([1, 0, 0], (2, 4, 3)))
    said = " ".join(capfd.readouterr().err.split())
    assert "1 of 2 have several frames, of which the first is used, for example a/1.gif" in said
    assert "1 of 2 have transparent pixels, whose stored color is used, for example a/1.png" in said


def test_damaged_images_are_refused_by_name(image):
    Image.fromarray((RAMP / 257).astype(np.uint8)).save(image)
    whole = image.read_bytes()
    for length in range(8, len(whole) - 30, 7):
        image.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"1\.png cannot be read"):
            read(image.parents[1])


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path):
    for name in (b"cat", b"caf\xe9"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        Image.new("L", (4, 2)).save(folder / "1.png")
    with pytest.raises(DataError, match=r"UTF-8.*caf\\xe9"):
        load_image_folder(tmp_path, (2, 4), 1, quiet=True)


def test_folders_named_by_numbers_are_in_the_order_of_the_numbers(tmp_path):
    for number in (0, 1, 2, 10):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        Image.new("L", (4, 2), number).save(tmp_path / "data" / str(number) / "1.png")
    x, y, names = load_image_folder(tmp_path / "data", (2, 4), 1, quiet=True)
    assert names == ("0", "1", "2", "10")
    np.testing.assert_allclose(x[:, 0, 0, 0] * 255, [0, 1, 2, 10], atol=1e-5)
    np.testing.assert_array_equal(y, [0, 1, 2, 3])
    (tmp_path / "data" / "02").mkdir()
    with pytest.raises(DataError, match="several for class 2"):
        load_image_folder(tmp_path / "data", (2, 4), 1, quiet=True)
