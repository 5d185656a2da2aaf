"""Training samples without a label: hidden by a share, or the user's own."""

import numpy as np
import pytest
from PIL import Image

from kdtflite.data import Dataset, Split, load_user_dataset
from kdtflite.data.unlabeled import hide_labels
from kdtflite.errors import ConfigurationError, DataError


def numbered(samples, first=0):
    """Samples that hold their own number."""
    return np.arange(first, first + samples, dtype=np.float32).reshape(samples, 1) / 1000


def dataset(**more):
    parts = {
        "train": Split(numbered(40), np.repeat([0, 1, 2], [20, 12, 8])),
        "validation": Split(numbered(3, 100), np.arange(3)),
        "test": Split(numbered(3, 200), np.arange(3)),
    }
    return Dataset("numbers", **parts, class_names=("a", "b", "c"), input_range=(0, 1), **more)


def test_every_class_keeps_its_share_of_labels_and_every_sample_is_still_there():
    whole = dataset()
    few = hide_labels(whole, 0.25, seed=3)
    assert np.bincount(few.train.y).tolist() == [5, 3, 2]
    np.testing.assert_array_equal(
        few.train.y, whole.train.y[(few.train.x[:, 0] * 1000).round().astype(int)]
    )
    together = np.concatenate([few.train.x, few.unlabeled])
    np.testing.assert_array_equal(np.sort(together, axis=0), whole.train.x)
    assert few.validation.y.tolist() == few.test.y.tolist() == [0, 1, 2]
    assert few.to_dict()["splits"]["unlabeled"] == {"samples": 30}
    again, other = (hide_labels(whole, 0.25, seed=seed).train.x for seed in (3, 4))
    np.testing.assert_array_equal(again, few.train.x)
    assert not np.array_equal(other, few.train.x)


def test_samples_that_had_no_label_before_stay_with_the_others():
    few = hide_labels(dataset(unlabeled=numbered(7, 500)), 0.5, seed=0)
    assert len(few.unlabeled) == 20 + 7
    np.testing.assert_array_equal(few.unlabeled[-7:], numbered(7, 500))


def test_a_share_that_leaves_a_class_without_label_is_refused():
    with pytest.raises(DataError, match=r"labeled sample of every class\. Received: none of 'c'"):
        hide_labels(dataset(), 0.05, seed=0)
    with pytest.raises(ConfigurationError, match="at least 1 and fewer"):
        hide_labels(dataset(), 0.001, seed=0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((4, 2), np.float32), "in unlabeled. Resize"),
        (np.full((4, 1), 3.0), "0 to 1 in unlabeled"),
        (np.full((4, 1), np.nan), "finite samples"),
        (np.zeros((0, 1)), "at least one sample"),
    ],
)
def test_unlabeled_samples_are_checked_as_those_of_a_split(samples, message):
    with pytest.raises(DataError, match=message):
        dataset(unlabeled=samples)


@pytest.mark.parametrize("word", ["unlabeled", "unlabelled"])
def test_a_file_may_hold_samples_without_labels(tmp_path, word):
    x, y = np.zeros((40, 4, 4, 1), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, **{f"x_{word}": x[:5] + 51})
    loaded = load_user_dataset(tmp_path / "a.npz", quiet=True)
    np.testing.assert_allclose(loaded.unlabeled, np.full((5, 4, 4, 1), 0.2), rtol=1e-6)
    assert sum(map(len, loaded.splits.values())) == 40
    assert "unlabeled" in loaded.description


@pytest.mark.parametrize("place", [".", "train"])
def test_a_folder_unlabeled_is_no_class(tmp_path, place):
    for name, count in (("cat", 12), ("dog", 12)):
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "unlabelled" / "from_the_web").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "unlabelled/from_the_web/a.png")
    loaded = load_user_dataset(tmp_path, channels=1, quiet=True)
    assert loaded.class_names == ("cat", "dog")
    np.testing.assert_array_equal(loaded.unlabeled, np.ones((1, 4, 4, 1)))
