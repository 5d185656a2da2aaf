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
    said = json.loads(result.stdout)
    assert said["accuracy"] == accuracy
    assert said["samples"] == 64
    assert np.trace(said["confusion"]) == 64 * accuracy


def test_an_image_folder_is_read_in_the_size_of_the_model(invoke, workshop, tmp_path):
    from PIL import Image

    # Classes in the order of their names; each image is light in one corner.
    for number, name in enumerate(("a", "b", "c", "d")):
        (tmp_path / "test" / name).mkdir(parents=True)
        pixels = np.zeros(4, np.uint8)
        pixels[number] = 250
        # Enlarged to 2 × 2 blocks, which bilinear reduction averages back.
        image = np.kron(pixels.reshape(2, 2), np.ones((8, 8), np.uint8))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "test" / name / "1.png")
    picture = tmp_path / "confusion.png"
    result = invoke(
        "evaluate", workshop / "model.tflite", "--data", tmp_path, "--plot", picture, "--workers", 2
    )
    assert result.exit_code == 0, result.stderr
    size = (workshop / "model.tflite").stat().st_size
    assert result.stdout.startswith(
        f"{workshop / 'model.tflite'} ({size:,} bytes, LiteRT, default kernels): "
        "accuracy 100.00% on 4 samples"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


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
    assert "an array y or y_test. Received: none." in result.stderr
