"""`kdtflite evaluate` on data whose accuracy is known."""

from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.mark.parametrize(("data", "accuracy"), [("data", 1.0), ("bytes", 1.0), ("wrong", 0.75)])
def test_accuracy_is_what_the_labels_make_it(invoke, workshop, data, accuracy):
    result = invoke(
        "evaluate", workshop / "model.tflite", "--data", workshop / f"{data}.npz", "--json"
    )
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["accuracy"] == accuracy
    assert printed["samples"] == 64
    assert np.trace(printed["confusion"]) == 64 * accuracy


def draw(folder, classes):
    """Writes one image per class, light in the corner of its output, as `classes` maps them."""
    from PIL import Image

    for name, corner in classes.items():
        (folder / name).mkdir(parents=True)
        pixels = np.zeros(4, np.uint8)
        pixels[corner] = 250
        # Enlarged to 2 × 2 blocks, which bilinear reduction averages back.
        image = np.kron(pixels.reshape(2, 2), np.ones((8, 8), np.uint8))
        Image.fromarray(image.astype(np.uint8)).save(folder / name / "1.png")
    return folder


def label(workshop, tmp_path, names):
    """Returns the path of the model with labels in its metadata."""
    import kdtflite

    lite = kdtflite.add_metadata(workshop / "model.tflite", labels=names)
    return lite.save(tmp_path / "labeled.tflite")


def test_an_image_folder_is_read_in_the_size_of_the_model(invoke, workshop, tmp_path):
    draw(tmp_path / "test", {"a": 0, "b": 1, "c": 2, "d": 3})
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    picture = tmp_path / "confusion.png"
    result = invoke(
        *("evaluate", workshop / "model.tflite", "--data", tmp_path, "--plot", picture),
        *("--workers", 2, "--labels", tmp_path / "labels.txt"),
    )
    assert result.exit_code == 0, result.stderr
    size = (workshop / "model.tflite").stat().st_size
    assert (
        f"{workshop / 'model.tflite'} ({size:,} bytes, LiteRT, default kernels): "
        "accuracy 100.00% on 4 samples"
    ) in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        # Sorted, the folders are in another order than the outputs, and one is missing.
        (["wren", "owl", "crow", "kite"], {"owl": 1, "kite": 3, "wren": 0}),
        (["5", "6", "7", "8"], {"6": 1, "8": 3}),
        (None, {"1": 1, "3": 3}),
        (["wren", "owl", "crow", "kite"], {"1": 1, "3": 3}),
    ],
)
def test_folders_are_matched_by_name_or_number(invoke, workshop, tmp_path, labels, classes):
    model = workshop / "model.tflite" if labels is None else label(workshop, tmp_path, labels)
    data = draw(tmp_path / "data", classes)
    result = invoke("evaluate", model, "--data", data, "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["accuracy"] == 1.0
    names = [scores["name"] for scores in printed["per_class"]]
    assert names == (labels or ["0", "1", "2", "3"])
    assert [s["support"] for s in printed["per_class"]] == [
        int(corner in classes.values()) for corner in range(4)
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["0", "1", "2", "3"], {"zero": 0, "one": 1}, "Received: 'one', 'zero'"),
        (None, {"zero": 0, "one": 1, "two": 2, "three": 3}, "has no labels. Pass --labels"),
        (None, {"1": 0, "2": 1, "3": 2, "4": 3}, "as numbers from 0 to 3"),
        (["a", "b", "c", "d"], {"a": 0, "b": 1, "e": 2}, "Received: 'e'"),
    ],
)
def test_folders_that_cannot_be_matched_are_refused(
    invoke, workshop, tmp_path, labels, classes, message
):
    model = workshop / "model.tflite" if labels is None else label(workshop, tmp_path, labels)
    result = invoke("evaluate", model, "--data", draw(tmp_path / "data", classes))
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_npz_file_is_matched_by_its_class_names(invoke, workshop, tmp_path):
    model = label(workshop, tmp_path, ["a", "b", "c", "d"])
    with np.load(workshop / "data.npz") as file:
        x, y = file["x"], file["y"]
    # The same samples under another numbering, in which the classes have the same names.
    reverse, data = 3 - y, tmp_path / "data.npz"
    np.savez(data, x_test=x, y_test=reverse, class_names=["d", "c", "b", "a"])
    result = invoke("evaluate", model, "--data", data, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"] == 1.0
    np.savez(data, x_test=x, y_test=reverse, class_names=["d", "c", "b", "e"])
    result = invoke("evaluate", model, "--data", data)
    assert result.exit_code == 2
    assert "Received: 'e', and" in result.stderr
    # Without names, numbers are the outputs' own.
    np.savez(data, x_test=x, y_test=y)
    result = invoke("evaluate", model, "--data", data, "--json")
    assert json.loads(result.stdout)["accuracy"] == 1.0


def test_labels_of_another_number_are_refused(invoke, workshop, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\n")
    result = invoke(
        *("evaluate", workshop / "model.tflite", "--data", workshop / "data.npz"),
        *("--labels", tmp_path / "labels.txt"),
    )
    assert result.exit_code == 2
    assert "Expected 4 names in --labels, one per output" in result.stderr


def test_samples_of_another_scaling_are_refused(invoke, workshop, tmp_path):
    np.savez(tmp_path / "raw.npz", x=np.full((4, 2, 2, 1), 255.0) * np.eye(4).reshape(4, 2, 2, 1),
             y=np.arange(4))  # fmt: skip
    result = invoke("evaluate", workshop / "model.tflite", "--data", tmp_path / "raw.npz")
    assert result.exit_code == 2
    assert "Error: Expected samples scaled as in training" in result.stderr
    assert "Received: values from 0 to 255" in result.stderr


def test_a_picture_in_the_way_is_refused_before_the_work(invoke, tmp_path):
    picture = tmp_path / "confusion.png"
    picture.write_text("mine")
    result = invoke("evaluate", "no.tflite", "--data", "no.npz", "--plot", picture)
    assert result.exit_code == 2
    assert result.stderr == f"Error: {picture} exists already. Pass --force to replace it.\n"


def test_data_without_labels_are_refused(invoke, workshop, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 2, 2, 1), np.float32))
    result = invoke("evaluate", workshop / "model.tflite", "--data", tmp_path / "x.npz")
    assert result.exit_code == 2
    assert "an array y or y_test. Received: no labels." in result.stderr
