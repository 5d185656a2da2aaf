"""Untrusted `.npz` files: an error in a sentence, before memory is taken."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from kdtflite.data import Split, as_labels, load_arrays, load_user_dataset
from kdtflite.data.files import read_class_names
from kdtflite.data.npz import read_npz
from kdtflite.errors import DataError


def pack(array):
    """Returns an array as the bytes of an .npy file."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def write(path, members, *, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_header(text, values=b"", version=1):
    """Returns an .npy file whose header says `text`."""
    header = text.encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + values


def describe(shape, dtype="'<f4'"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "content",
    [
        with_header(describe("(1000000000000,)"), bytes(16)),
        with_header(describe("(2, 2)"), bytes(12)),
        with_header(describe("(2, 2)"), bytes(20)),
        with_header(describe("(-1, 4)"), bytes(16)),
        with_header(describe("(True, 4)"), bytes(16)),
        with_header(describe("(4.0,)"), bytes(16)),
        with_header(describe(f"({'9' * 4000},)"), bytes(16)),
        with_header(describe(f"({'9' * 5000},)"), bytes(16)),
        with_header(describe("(" * 300 + ")" * 300), bytes(16)),
        with_header("{" * 9000, bytes(16)),
        with_header(describe("(4,)") + " " * 20_000, bytes(16)),
        with_header(describe("(4,)"), bytes(16), version=3),
        with_header(describe("(4,)", "'<V0'")),
        with_header(describe("(1000000000000,)", "'<U0'")),
        with_header("not a header", bytes(16)),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, content):
    path = write(tmp_path / "a.npz", {"x.npy": content})
    tracemalloc.start()
    with pytest.raises(DataError, match="'x'"):
        read_npz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, 2], "timedelta64[s]"), "of dtype timedelta64"),
        (np.array(["2020-01-01"], "datetime64[D]"), "of dtype datetime64"),
        (np.array([1 + 2j]), "of dtype complex128"),
        (np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f4")]), "of dtype"),
        (np.array([None, "a"], object), "holds Python objects"),
        (np.array([b"ab"], "V2"), "of dtype"),
    ],
)
def test_arrays_of_no_use_are_refused_by_name_and_dtype(tmp_path, array, message):
    path = write(tmp_path / "a.npz", {"x.npy": pack(array), "y.npy": pack(np.zeros(1, int))})
    with pytest.raises(DataError, match=f"'x'.*{message}|{message}"):
        load_arrays(path)


def test_a_bomb_is_refused_unpacked_by_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("kdtflite.data.npz._ALWAYS_ALLOWED_BYTES", 1 << 20)
    zeros = np.zeros(1 << 20, np.float32)  # 4 MiB in 4 kB
    path = write(tmp_path / "a.npz", {"x.npy": pack(zeros)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"would unpack to 4,194,\d+. Expected at most 200 times"):
        read_npz(path)
    np.savez(tmp_path / "b.npz", x=zeros)
    assert read_npz(tmp_path / "b.npz")["x"].shape == zeros.shape


def change_entry(path, offset, value):
    """Changes two bytes of the first member, in its own header and in the archive's list."""
    content = bytearray(path.read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    for place in (local + 2 + offset, central + 4 + offset):
        content[place : place + 2] = struct.pack("<H", value)
    path.write_bytes(content)


def test_encryption_and_unknown_compression_are_refused(tmp_path):
    path = write(tmp_path / "a.npz", {"x.npy": pack(np.zeros(4))})
    change_entry(path, 4, 1)  # the flag of an encrypted member
    with pytest.raises(DataError, match=r"'x' in .* is encrypted"):
        read_npz(path)
    path = write(tmp_path / "b.npz", {"x.npy": pack(np.zeros(4))})
    change_entry(path, 6, 99)  # the method of compression
    with pytest.raises(DataError, match="'x' cannot be read"):
        read_npz(path)


def test_two_arrays_of_one_name_and_files_that_are_no_arrays_are_refused(tmp_path):
    path = write(tmp_path / "a.npz", {"x.npy": pack(np.zeros(4)), "x": pack(np.ones(4))})
    with pytest.raises(DataError, match="one array 'x'"):
        read_npz(path)
    path = write(tmp_path / "b.npz", {"notes.txt": b"hello"})
    with pytest.raises(DataError, match=r"a file 'notes\.txt'"):
        read_npz(path)


def test_a_value_that_changed_in_the_archive_is_found(tmp_path):
    path = write(tmp_path / "a.npz", {"x.npy": pack(np.full(64, 7, np.uint8))})
    content = bytearray(path.read_bytes())
    content[content.index(b"\x07" * 64) + 10] = 8
    path.write_bytes(content)
    with pytest.raises(DataError, match="'x' cannot be read"):
        read_npz(path)


def test_sound_files_of_any_byte_order_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6, dtype=">f4").reshape(2, 3), t=np.array("text"))
    np.savez_compressed(tmp_path / "b.npz", x=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    for name in "ab":
        x = read_npz(tmp_path / f"{name}.npz")["x"]
        np.testing.assert_array_equal(x, [[0, 1, 2], [3, 4, 5]])
        assert x.dtype.isnative


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1, 2**40], r"1099511627776 at sample 2"),
        (np.array([0, 1, 2**64 - 1], np.uint64), "at sample 2"),
        ([0, 1, -(2**40)], "at sample 2"),
        ([0.0, 1.0, 1e300], "1e\\+300 at sample 2"),
        ([0.0, 1.0, np.nan], "nan at sample 2"),
        ([0.0, 1.0, np.inf], "inf at sample 2"),
        ([0.0, 0.5, 1.0], "0.5 at sample 1"),
        (["a", "b", "c"], "dtype <U1"),
        (np.array([0, 1, 2], "timedelta64[s]"), "timedelta64"),
        ([0, 1], "2 and 3"),
        (5, r"shape \(\)"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path, y, message):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4), np.float32), y=y)
    for read in (load_arrays, load_user_dataset):
        with pytest.raises(DataError, match=message):
            read(tmp_path / "a.npz")


def test_a_label_beyond_the_samples_needs_names_for_all_classes(tmp_path):
    x, y = np.zeros((30, 4), np.float32), np.arange(30) % 3
    y[4] = 5000
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"the label 5000, so 5,001 classes for 30 samples"):
        load_user_dataset(tmp_path / "a.npz", quiet=True)
    with pytest.raises(DataError, match="labels below"):
        Split(x, np.full(30, 1 << 20))
    with pytest.raises(DataError, match="dtype complex128"):
        as_labels([1j])


def test_numbers_that_float32_and_int32_do_not_hold_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([[0.0], [1e60]]), y=[0, 1])
    with pytest.raises(DataError, match="beyond float32, first in sample 1"):
        load_arrays(tmp_path / "a.npz")
    with pytest.raises(DataError, match="NaN or infinity"):
        Split(np.array([[0.0], [1e60]]), np.array([0, 1]))
    with pytest.raises(DataError, match="int64 from 0 to 4294967296"):
        Split(np.array([[0], [2**32]]), np.array([0, 1]))


def test_a_test_split_alone_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", x_test=np.ones((3, 2)), y_test=[2, 0, 1])
    x, y, _ = load_arrays(tmp_path / "a.npz", part="test")
    assert x.shape == (3, 2)
    np.testing.assert_array_equal(y, [2, 0, 1])
    for read in (load_arrays, load_user_dataset):
        with pytest.raises(DataError, match="Expected x_train"):
            read(tmp_path / "a.npz")


def test_x_beside_a_test_split_is_the_training_split(tmp_path):
    x, test = np.zeros((4, 2)), np.ones((2, 2))
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1, 0, 1], x_test=test, y_test=[1, 1])
    assert len(load_arrays(tmp_path / "a.npz").y) == 4
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.npz", part="test").x, test)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1, 0, 1], x_train=test, y_train=[1, 1])
    with pytest.raises(DataError, match="either x or x_train"):
        load_arrays(tmp_path / "a.npz")


def test_names_of_classes_are_texts_or_numbers(tmp_path):
    for names, read in (
        (["cat", "käfer"], ("cat", "käfer")),
        ([b"cat", b"dog"], ("cat", "dog")),
        ([3, 7], ("3", "7")),
    ):
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=[0, 1], class_names=names)
        assert read_class_names(tmp_path / "a.npz") == read
    for names in ("cat", [["cat", "dog"]], [0.5, 1.5]):
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=[0, 1], class_names=names)
        with pytest.raises(DataError, match=r"'class_names' in .* as a list of texts"):
            read_class_names(tmp_path / "a.npz")


def test_sixteen_bit_images_are_scaled(tmp_path, capfd):
    x = np.linspace(0, 65535, 20 * 16).astype(np.uint16).reshape(20, 4, 4)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    data = load_user_dataset(tmp_path / "a.npz")
    assert data.input_range == (0.0, 1.0)
    assert data.sample_shape == (4, 4, 1)
    assert max(float(split.x.max()) for split in data.splits.values()) == 1.0
    assert "16-bit pixels scaled from 0..65535 to 0..1" in capfd.readouterr().err
