"""Every result of a public function speaks one protocol."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reporting.report_example import example_report
from rich.table import Table

import kdtflite
from kdtflite.results import Result


@pytest.fixture(scope="module")
def results():
    """One example of each kind of result, by the name of its class."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)]
    )
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    y = np.arange(32) % 3
    aware = kdtflite.quantize_aware(model, x)
    lite = kdtflite.convert(aware, x)
    corrected = kdtflite.quantize_post_training(model, x, equalize=True, correct_biases=True)
    from kdtflite.conversion.mixed_result import MixedPrecision, MixedStep
    from kdtflite.conversion.target_proof import prove_target
    from kdtflite.distillation.search.auto import Choice, Trial
    from kdtflite.evaluation.latency import MINIMUM_INVOKES
    from kdtflite.pipeline.run_result import RunResult
    from kdtflite.pipeline.until_accurate import Round, UntilAccurate
    from kdtflite.tasks.base import Answers
    from kdtflite.tasks.segmentation import Segmentation

    steps = (MixedStep("", 0, 900, 0.1), MixedStep("y", 1, 990, 0.0))
    trials = (Trial("soft targets", 1, 9, 1.0, 0.5, 0.7),)
    found = (
        kdtflite.evaluate(lite, (x, y), progress=False),
        kdtflite.evaluate(lite, (x, x[:, :3]), task="regression", progress=False),
        kdtflite.evaluate(lite, (x, x[:, :3] > 0), task="multilabel", progress=False),
        Segmentation().measure(
            Answers(np.eye(3, dtype="float32")[y.reshape(4, 8)], y.reshape(4, 8), "")
        ),
        kdtflite.benchmark(lite, threads=[1], invokes=MINIMUM_INVOKES, progress=False),
        kdtflite.compare(aware, lite, x),
        kdtflite.layer_errors(aware, lite, x, progress=False),
        kdtflite.first_difference(aware, lite, x, progress=False),
        kdtflite.golden_vectors(lite, x, samples=2),
        aware.quantization,
        corrected.equalization,
        corrected.bias_correction,
        kdtflite.quantization.choose_calibration(model, x, (x, y)),
        kdtflite.quantization.measure_sensitivity(aware, x, progress=False),
        kdtflite.prove_fully_integer(lite),
        prove_target(lite, "int8"),
        lite.size_account(),
        MixedPrecision(lite, steps, "int16", {}, {}),
        Choice("soft targets", "It was better.", trials, 90, 9),
        RunResult(Path("runs/digits"), example_report()),
        UntilAccurate(lite, aware, (Round(0, 0.5, 900), Round(1, 0.75, 900)), 0.7),
    )
    return {type(result).__name__: result for result in found}


def subclasses(kind):
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_every_class_of_results_has_an_example(results):
    import importlib
    import pkgutil

    for module in pkgutil.walk_packages(kdtflite.__path__, "kdtflite."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert set(results) == {kind.__name__ for kind in subclasses(Result) - {Result}}


def test_a_result_is_plain_values_a_table_text_and_a_drawing(results):
    for name, result in results.items():
        json.dumps(result.to_dict())
        assert isinstance(result.to_table(), Table), name
        assert result.to_table().row_count > 0, name
        text = str(result)
        assert text.endswith(result.summary()), name
        assert len(text.splitlines()) > len(result.summary().splitlines()), name
        assert result._repr_html_().startswith("<pre>"), name


def test_a_plot_is_drawn_on_the_axes_given_or_on_a_new_figure(results):
    for name, result in results.items():
        axes = result.plot()
        assert isinstance(axes, Axes), name
        assert axes.has_data(), name
        given = Figure().add_subplot()
        assert result.plot(given) is given, name
        assert given.has_data(), name
        given.figure.canvas.draw()
