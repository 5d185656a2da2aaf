import io

import numpy as np
import pytest
from PIL import Image

from kdtflite.data import load, load_dataset
from kdtflite.data.named import decode_jpegs
from kdtflite.errors import ConfigurationError, DataError


def test_digits_are_embedded_scaled_and_stratified():
    digits = load_dataset("digits")
    sizes = {part: len(split) for part, split in digits.splits.items()}
    # 1797 / 4 = 449.25 for test; 15 % of the other 1348 for validation
    assert sizes == {"train": 1146, "validation": 202, "test": 449}
    assert digits.train.x.shape == (1146, 8, 8, 1)
    assert (digits.train.x.min(), digits.train.x.max()) == (0.0, 1.0)
    # The gray levels are sixteenths.
    np.testing.assert_array_equal(digits.test.x * 16, np.round(digits.test.x * 16))
    for split in digits.splits.values():
        assert np.ptp(np.bincount(split.y)) <= 5 + len(split) // 100


def test_a_seed_moves_the_validation_samples_and_never_the_test_samples():
    first, again, other = (load_dataset("digits", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.validation.x, again.validation.x)
    assert not np.array_equal(first.validation.y, other.validation.y)
    np.testing.assert_array_equal(first.test.x, other.test.x)


def test_the_splits_of_digits_share_no_sample_position():
    digits = load_dataset("digits", validation_fraction=0.3)
    assert sum(len(split) for split in digits.splits.values()) == 1797
    assert len(digits.validation) == round(0.3 * 1348)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ConfigurationError, match="Did you mean 'mnist'"):
        load_dataset("mnits")
    with pytest.raises(ConfigurationError, match="cifar10, digits"):
        load("mnits")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        load_dataset("digits", validation_fraction=fraction)


def test_digits_take_no_path(tmp_path):
    with pytest.raises(ConfigurationError, match="part of scikit-learn"):
        load_dataset("digits", tmp_path)


def _mnist(samples=40, **changes):
    x = np.random.default_rng(0).integers(0, 256, (samples, 28, 28), np.uint8)
    y = (np.arange(samples) % 10).astype(np.uint8)
    return {"x_train": x, "y_train": y, "x_test": x[:10], "y_test": y[:10], **changes}


def test_mnist_is_read_from_a_file_or_its_folder(tmp_path):
    arrays = _mnist()
    np.savez(tmp_path / "mnist.npz", **arrays)
    for path in (tmp_path, tmp_path / "mnist.npz"):
        data = load_dataset("mnist", path, validation_fraction=0.25)
        assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 10)
        np.testing.assert_allclose(data.test.x[..., 0] * 255, arrays["x_test"], atol=1e-4)
        np.testing.assert_array_equal(np.bincount(data.validation.y), [1] * 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((40, 32, 32), np.uint8)}, "another data set's file"),
        ({"x_train": np.zeros((40, 28, 28), np.float32)}, "as uint8 for mnist"),
        ({"y_train": np.full(40, 11)}, r"Labels out of range.*Received: 11"),
    ],
)
def test_another_files_arrays_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "mnist.npz", **_mnist(**changes))
    with pytest.raises(DataError, match=message):
        load_dataset("mnist", tmp_path, validation_fraction=0.25)


def test_missing_arrays_and_files_are_named(tmp_path):
    np.savez(tmp_path / "mnist.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"x_train, y_train.*Received: x\."):
        load_dataset("mnist", tmp_path)
    with pytest.raises(DataError, match=r"fashion_mnist\.npz.*Received: mnist\.npz"):
        load_dataset("fashion_mnist", tmp_path)


def test_without_a_network_the_message_says_how_to_pass_a_file(monkeypatch):
    import tf_keras as keras

    def no_network():
        raise Exception("URL fetch failure on https://...: None -- name resolution")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_network)
    with pytest.raises(DataError, match=r"URL fetch failure.*path=`fashion_mnist\.npz`"):
        load_dataset("fashion_mnist")


def test_a_download_goes_through_keras(monkeypatch):
    import tf_keras as keras

    a = _mnist()
    parts = ((a["x_train"], a["y_train"]), (a["x_test"], a["y_test"]))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: parts)
    assert len(load_dataset("mnist", validation_fraction=0.25).train) == 30


def _jpegs(images):
    files = []
    for pixels in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), np.uint8), offsets


def test_cifar10_is_read_from_jpeg_bytes_and_from_plain_arrays(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    y = (np.arange(40) % 10).astype(np.uint8)
    blob, offsets = _jpegs(x)
    jpeg = {
        f"{p}_{k}": v
        for p in ("train", "test")
        for k, v in (("blob", blob), ("offsets", offsets), ("labels", y))
    }
    np.savez(tmp_path / "cifar10_jpeg.npz", **jpeg)
    data = load_dataset("cifar10", tmp_path, validation_fraction=0.25, quiet=True)
    with Image.open(io.BytesIO(blob[offsets[3] : offsets[4]].tobytes())) as image:
        np.testing.assert_array_equal(np.round(data.test.x[3] * 255), np.asarray(image))
    assert "not comparable" in data.description
    assert data.class_names[0] == "airplane"

    # Keras gives CIFAR-10's labels as a column.
    plain = {"x_train": x, "y_train": y[:, None], "x_test": x, "y_test": y[:, None]}
    np.savez(tmp_path / "plain.npz", **plain)
    data = load_dataset("cifar10", tmp_path / "plain.npz", validation_fraction=0.25)
    np.testing.assert_array_equal(np.round(data.test.x * 255), x)


def test_a_jpeg_that_cannot_be_decoded_is_named():
    blob, offsets = _jpegs(np.zeros((3, 8, 8, 3), np.uint8))
    blob = blob.copy()
    blob[offsets[1] : offsets[1] + 4] = 0
    with pytest.raises(DataError, match="JPEG image 1 cannot be decoded"):
        decode_jpegs(blob, offsets, quiet=True)


def test_the_shared_mnist_file_gives_the_official_splits(shared_data):
    data = load("mnist", shared_data, seed=3)
    assert [len(s) for s in data.splits.values()] == [55_000, 5_000, 10_000]
    # The first labels of the official test set.
    np.testing.assert_array_equal(data.test.y[:5], [7, 2, 1, 0, 4])
