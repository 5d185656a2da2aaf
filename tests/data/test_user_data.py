import numpy as np
import pytest
from PIL import Image

from kdtflite.data import load, load_arrays, load_image_folder, load_user_dataset
from kdtflite.errors import ConfigurationError, DataError


def _save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_x_and_y_are_read_as_they_are(tmp_path):
    path = _save(tmp_path / "a.npz", x=np.arange(6, dtype=np.uint8).reshape(3, 2), y=[0, 1, 1])
    x, y, names = load_arrays(path)
    assert x.dtype == np.uint8
    assert names == ("x",)
    np.testing.assert_array_equal(y, [0, 1, 1])


def test_a_part_of_a_file_with_splits_is_read(tmp_path):
    path = _save(
        tmp_path / "a.npz",
        x_train=np.zeros((4, 2)),
        y_train=[0, 1, 0, 1],
        x_val=np.ones((2, 2)),
        y_val=[1, 0],
    )
    assert len(load_arrays(path).x) == 4
    np.testing.assert_array_equal(load_arrays(path, part="validation").y, [1, 0])
    with pytest.raises(DataError, match="Expected x_test"):
        load_arrays(path, part="test")


def test_arrays_named_by_input_serve_several_inputs(tmp_path):
    path = _save(tmp_path / "a.npz", left=np.zeros((3, 2)), right=np.ones((3, 5)))
    x, y, names = load_arrays(path)
    assert (names, y) == (("left", "right"), None)
    assert x["right"].shape == (3, 5)
    path = _save(tmp_path / "b.npz", left=np.zeros((3, 2)), right=np.ones((4, 5)))
    with pytest.raises(DataError, match=r"'right' as in 'left'.*4 and 3"):
        load_arrays(path)


def test_one_hot_labels_are_converted_and_said(tmp_path, capfd):
    path = _save(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.eye(3)[[2, 0, 1]])
    np.testing.assert_array_equal(load_arrays(path).y, [2, 0, 1])
    assert "one-hot rows of 3 classes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2)), "y": [0, 1]}, "'y' as in 'x'.*2 and 3"),
        ({"x": np.zeros((2, 2)), "y": [0.5, 1]}, r"'y' in .*0\.5 at sample 0"),
        ({"x": np.array([[0.0], [np.nan]]), "y": [0, 1]}, "'x'.*first in sample 1"),
        ({"x": np.zeros((0, 2)), "y": []}, r"at least one sample in 'x'.*\(0, 2\)"),
        ({"x": np.array(["a", "b"]), "y": [0, 1]}, "token ids"),
        ({"y": [0, 1]}, "Expected samples"),
        ({}, "without any"),
        ({"x": np.array([[1], [1, 2]], object)}, "Python objects"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load_arrays(_save(tmp_path / "a.npz", **arrays))


def test_damaged_files_say_how(tmp_path):
    whole = _save(tmp_path / "a.npz", x=np.random.default_rng(0).random((50, 50)))
    content = bytearray(whole.read_bytes())
    cases = {
        "empty.npz": (b"", "empty"),
        "cut.npz": (bytes(content[: len(content) // 2]), "cut off"),
        "text.npz": (b"hello, world", "which is of another format"),
        "one.npz": (b"\x93NUMPY\x01\x00", "single .npy array"),
    }
    content[300:310] = b"\xff" * 10
    cases["flipped.npz"] = (bytes(content), "'x' cannot be read")
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            load_arrays(tmp_path / name)
    with pytest.raises(DataError, match="does not exist"):
        load_arrays(tmp_path / "missing.npz")
    with pytest.raises(DataError, match="is a folder"):
        load_arrays(tmp_path)


def test_a_users_file_is_split_and_bytes_are_scaled(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (100, 6, 5), np.uint8)
    path = _save(tmp_path / "mine.npz", x=x, y=np.arange(100) % 4, class_names=list("abcd"))
    data = load(path, seed=1)
    assert [len(s) for s in data.splits.values()] == [70, 10, 20]
    assert data.sample_shape == (6, 5, 1)
    assert (data.name, data.class_names) == ("mine", ("a", "b", "c", "d"))
    assert data.input_range == (0.0, 1.0)
    np.testing.assert_array_equal(data.test.x, load(str(path), seed=1).test.x)


def test_splits_of_a_users_file_are_kept_and_float_ranges_measured(tmp_path):
    path = _save(
        tmp_path / "a.npz",
        x_train=np.linspace(-2, 3, 20).reshape(10, 2),
        y_train=[0, 1] * 5,
        x_test=np.zeros((4, 2)),
        y_test=[0, 1, 0, 1],
    )
    data = load_user_dataset(path, validation_fraction=0.2)
    # 20 % of all 14 samples, rounded: 3
    assert [len(s) for s in data.splits.values()] == [7, 3, 4]
    assert data.input_range == (-2.0, 3.0)


def test_a_users_file_without_labels_is_for_calibration_only(tmp_path):
    path = _save(tmp_path / "a.npz", x=np.zeros((10, 2)))
    with pytest.raises(DataError, match="representative data only"):
        load_user_dataset(path)


def _photo(path, color, size=(10, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def test_an_image_folder_gives_a_class_a_sub_folder(tmp_path):
    _photo(tmp_path / "red" / "1.png", (255, 0, 0))
    _photo(tmp_path / "blue" / "deep" / "1.PNG", (0, 0, 255))
    (tmp_path / "blue" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    x, y, names = load_image_folder(tmp_path, (4, 3), quiet=True)
    assert names == ("blue", "red")
    assert x.shape == (2, 4, 3, 3)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(y, [0, 1])
    np.testing.assert_array_equal(x[1, 0, 0], [1.0, 0.0, 0.0])
    assert load_image_folder(tmp_path, 4, 1, quiet=True)[0].shape == (2, 4, 4, 1)


def test_a_photograph_stored_on_its_side_is_turned(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show": left becomes top
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    x, _, _ = load_image_folder(tmp_path, (8, 4), 1, quiet=True)
    assert x[0, :4].min() == 1.0
    assert x[0, 4:].max() == 0.0


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(DataError, match="no subfolders"):
        load_image_folder(tmp_path, 4)
    with pytest.raises(DataError, match="does not exist"):
        load_image_folder(tmp_path / "missing", 4)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="add images to it"):
        load_image_folder(tmp_path, 4)
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
        load_image_folder(tmp_path, 4, quiet=True)
    with pytest.raises(ConfigurationError, match="1 or 3"):
        load_image_folder(tmp_path, 4, 2)
    with pytest.raises(ConfigurationError, match="height, width"):
        load_image_folder(tmp_path, (4, 0))
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
        load_user_dataset(tmp_path)
    (tmp_path / "a" / "broken.jpg").unlink()
    with pytest.raises(DataError, match=r"Received: none\."):
        load_user_dataset(tmp_path)


def test_without_a_size_the_images_keep_the_one_they_share(tmp_path):
    for number in range(10):
        _photo(tmp_path / "a" / f"{number}.png", (number, 0, 0))
        _photo(tmp_path / "b" / f"{number}.png", (0, number, 0))
    lying = Image.Exif()
    lying[0x0112] = 6  # stored as 6 × 10, shown as 10 × 6
    _photo(tmp_path / "b" / "phone.jpg", (0, 0, 0), size=(6, 10), exif=lying)
    assert load_user_dataset(tmp_path, quiet=True).sample_shape == (6, 10, 3)
    _photo(tmp_path / "b" / "small.png", (0, 0, 0), size=(5, 6))
    message = (
        r"a/0\.png is \(6, 10\) .*, b/small\.png is \(6, 5\).*`data\.image_size: \[height, width\]`"
    )
    with pytest.raises(ConfigurationError, match=message):
        load_user_dataset(tmp_path, quiet=True)


def test_split_folders_are_honored(tmp_path):
    for part, count in (("train", 10), ("val", 2), ("test", 3)):
        for label, color in (("no", (0, 0, 0)), ("yes", (255, 255, 255))):
            for number in range(count):
                _photo(tmp_path / part / label / f"{number}.png", color)
    data = load(tmp_path, image_size=4, quiet=True)
    assert [len(s) for s in data.splits.values()] == [20, 4, 6]
    assert data.class_names == ("no", "yes")
    _photo(tmp_path / "test" / "maybe" / "1.png", (9, 9, 9))
    with pytest.raises(DataError, match="Received also: maybe"):
        load(tmp_path, image_size=4, quiet=True)


def test_an_image_folder_without_splits_is_split(tmp_path):
    for label in ("test", "other"):
        for number in range(10):
            _photo(tmp_path / label / f"{number}.png", (number, 0, 0))
    data = load_user_dataset(tmp_path, image_size=4, channels=1, quiet=True)
    assert [len(s) for s in data.splits.values()] == [14, 2, 4]
    assert data.class_names == ("other", "test")
