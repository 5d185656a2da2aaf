"""Every public function takes every form of a model that it can use, and refuses all others.

A function gets a result out of a form, or raises a KdtfliteError: never a raw Python error.
"""

import inspect
import re

import numpy as np
import pytest

import kdtflite
from kdtflite.errors import KdtfliteError

KERAS_PATHS = {"str of .keras", "Path of .keras", "str of .h5", "SavedModel folder"}
KERAS = {"Distiller", "tf_keras", "Keras 3"} | KERAS_PATHS
FILES = {"LiteModel", "bytes", "str of .tflite", "Path of .tflite"}
# A teacher may be a file as well.
TEACHERS = KERAS | (FILES - {"bytes"})
# Refused by every function.
OTHERS = {"MutualDistiller", "None", "number", "missing path", "missing .keras"}

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 3


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same small model in every form, and things that are no model, by name."""
    import keras as keras_3
    import tf_keras as keras

    from kdtflite.distillation.ways.mutual import MutualDistiller

    def build():
        return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])

    folder = tmp_path_factory.mktemp("models")
    model = build()
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save(folder / "saved_model", save_format="tf")
    lite = kdtflite.convert(model, X, progress=False)
    lite.save(folder / "model.tflite")
    return {
        "Distiller": kdtflite.Distiller(model, build()),
        "tf_keras": model,
        "Keras 3": keras_3.Sequential([keras_3.Input((4,)), keras_3.layers.Dense(3)]),
        "str of .keras": str(folder / "model.keras"),
        "Path of .keras": folder / "model.keras",
        "str of .h5": str(folder / "model.h5"),
        "SavedModel folder": folder / "saved_model",
        "LiteModel": lite,
        "bytes": lite.content,
        "str of .tflite": str(folder / "model.tflite"),
        "Path of .tflite": folder / "model.tflite",
        "MutualDistiller": MutualDistiller([build(), build()]),
        "None": None,
        "number": 3,
        "missing path": str(folder / "missing"),
        "missing .keras": folder / "missing.keras",
    }


# By the function, or the function and its argument: a call with a form `m`, which forms it takes,
# and for slow functions the error that it ends with as soon as it has taken the form. `f` holds
# all forms, `t` is an empty folder.
ROWS = {
    "Distiller student": (lambda m, f, t: kdtflite.Distiller(m, f["str of .keras"]), KERAS, None),
    "Distiller teacher": (
        lambda m, f, t: kdtflite.Distiller(f["str of .keras"], m),
        TEACHERS,
        None,
    ),
    "cache_teacher": (
        lambda m, f, t: kdtflite.cache_teacher(m, (X, Y), t / "cache", shard_bytes=2**16),
        TEACHERS,
        None,
    ),
    "load_model": (lambda m, f, t: kdtflite.load_model(m), KERAS_PATHS, None),
    "quantize_aware": (lambda m, f, t: kdtflite.quantize_aware(m, X), KERAS, None),
    "quantize_post_training": (
        lambda m, f, t: kdtflite.quantize_post_training(m, X, calibration="none such"),
        KERAS,
        "none such",
    ),
    "convert": (lambda m, f, t: kdtflite.convert(m, X, "none such"), KERAS, "none such"),
    "mixed_precision": (
        lambda m, f, t: kdtflite.mixed_precision(m, X, keep=1, wide="none such"),
        KERAS | FILES,
        "none such",
    ),
    "until_accurate student": (
        lambda m, f, t: kdtflite.until_accurate(
            m, f["tf_keras"], (X, Y), (X, Y), target_accuracy=2
        ),
        KERAS,
        "target_accuracy=2",
    ),
    "run": (lambda m, f, t: kdtflite.run(m, output=t / "run"), set(), None),
    "evaluate": (
        lambda m, f, t: kdtflite.evaluate(m, (X, Y), progress=False),
        KERAS | FILES,
        None,
    ),
    "macs": (lambda m, f, t: kdtflite.evaluation.macs(m), KERAS | FILES, None),
    "parameters": (lambda m, f, t: kdtflite.evaluation.parameters(m), KERAS | FILES, None),
    "compare model": (lambda m, f, t: kdtflite.compare(m, f["LiteModel"], X), KERAS, None),
    "compare lite": (lambda m, f, t: kdtflite.compare(f["tf_keras"], m, X), FILES, None),
    "layer_errors model": (
        lambda m, f, t: kdtflite.layer_errors(m, f["LiteModel"], X, samples=0),
        KERAS,
        "samples from 1 up",
    ),
    "layer_errors lite": (
        lambda m, f, t: kdtflite.layer_errors(f["tf_keras"], m, X, samples=0),
        FILES,
        "samples from 1 up",
    ),
    "first_difference model": (
        lambda m, f, t: kdtflite.first_difference(m, f["LiteModel"], X, progress=False),
        KERAS,
        "a float model, which the file cannot equal",
    ),
    "first_difference lite": (
        lambda m, f, t: kdtflite.first_difference(f["tf_keras"], m, X, progress=False),
        FILES,
        "a float model, which the file cannot equal",
    ),
    "benchmark": (
        lambda m, f, t: kdtflite.benchmark(m, threads=[1], progress=False),
        FILES,
        None,
    ),
    "golden_vectors": (lambda m, f, t: kdtflite.golden_vectors(m, X), FILES, None),
    "prove_fully_integer": (lambda m, f, t: kdtflite.prove_fully_integer(m), FILES, None),
    "pack": (lambda m, f, t: kdtflite.pack(m), FILES, None),
    "add_metadata": (lambda m, f, t: kdtflite.add_metadata(m, name="model"), FILES, None),
}


def test_every_public_function_has_a_row():
    public = {name for name in kdtflite.__all__ if inspect.isfunction(getattr(kdtflite, name))}
    public |= {"Distiller", "macs", "parameters"}
    assert public == {row.partition(" ")[0] for row in ROWS}


@pytest.mark.parametrize("row", ROWS)
def test_a_form_is_taken_or_refused_in_one_sentence(row, forms, tmp_path):
    call, expected, stop = ROWS[row]
    assert set(forms) == KERAS | FILES | OTHERS
    taken, faults = set(), []
    for number, (name, form) in enumerate(forms.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            call(form, forms, folder)
        except KdtfliteError as error:
            if stop is not None and re.search(stop, str(error)):
                taken.add(name)
            elif len(str(error).splitlines()) > 1 or len(str(error)) > 700:
                faults.append(f"{name}: {len(str(error))} characters: {error}")
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            taken.add(name)
    assert not faults, "\n".join(faults)
    assert taken == expected
