import math
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from report_example import EPOCHS, example_report

from kdtflite.errors import DataError
from kdtflite.reporting.plots import (
    plot_accuracy_versus_latency,
    plot_accuracy_versus_size,
    plot_confusion_matrix,
    plot_training_curves,
)
from kdtflite.reporting.svg import inline_svg
from kdtflite.reporting.trial_plot import plot_trial_curves
from kdtflite.reporting.variants import VARIANTS


@pytest.fixture
def models():
    return example_report()["models"]


def list_points(axes):
    return {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}


def test_every_model_stands_at_its_size_and_accuracy(models):
    axes = plot_accuracy_versus_size(models)
    assert list_points(axes) == {m["label"]: (m["bytes"], m["accuracy"]) for m in models}
    assert axes.get_xscale() == "log"


def test_every_model_stands_at_its_median_latency_and_accuracy(models):
    axes = plot_accuracy_versus_latency(models)
    assert list_points(axes) == {
        m["label"]: (m["latency_ms"]["p50"], m["accuracy"]) for m in models
    }


def test_int8_markers_are_filled_and_float_ones_hollow(models):
    lines = plot_accuracy_versus_size(models).lines
    filled = [to_rgba(line.get_markerfacecolor())[3] == 1 for line in lines]
    assert filled == [False, False, False, True, True, True]


def test_every_model_of_a_run_looks_different():
    models = [
        {"key": one.key, "bytes": 1000 + place, "accuracy": 0.9, "format": "int8"}
        for place, one in enumerate(VARIANTS)
    ]
    lines = plot_accuracy_versus_size(models).lines
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(VARIANTS)


def test_models_without_a_number_are_left_out(models):
    models[0]["bytes"] = None
    models[1]["accuracy"] = math.nan
    assert len(plot_accuracy_versus_size(models).lines) == 4
    models[2]["latency_ms"] = None
    assert len(plot_accuracy_versus_latency(models).lines) == 4


def test_samples_draw_the_wilson_interval():
    perfect = {"label": "a", "bytes": 1000, "accuracy": 1.0, "format": "int8"}
    (bar,) = plot_accuracy_versus_size([perfect], samples=100).collections
    # Wilson for 100 of 100: 1 / (1 + 1.96² / 100) = 0.9630 to 1
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [0.9630, 1.0], atol=1e-4)


def test_training_curves_carry_every_term_of_the_history():
    stage = example_report()["training"]["distilled"]
    loss, accuracy, rate = plot_training_curves(stage["history"], epochs=stage["epochs"]).axes
    drawn = {line.get_label(): line for line in loss.lines}
    assert set(drawn) == {
        "Total", "Total, validation", "Hard labels", "Soft targets", "Regularization",
    }  # fmt: skip
    np.testing.assert_array_equal(
        drawn["Soft targets"].get_ydata(), stage["history"]["soft_targets_loss"]
    )
    np.testing.assert_array_equal(drawn["Total"].get_xdata(), range(1, EPOCHS + 1))
    assert drawn["Total, validation"].get_linestyle() == "--"
    assert drawn["Total, validation"].get_color() == drawn["Total"].get_color()
    np.testing.assert_array_equal(accuracy.lines[1].get_ydata(), stage["history"]["val_accuracy"])
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), stage["history"]["learning_rate"])


def test_a_loss_that_was_not_a_number_leaves_a_gap():
    figure = plot_training_curves({"loss": [1.0, None, math.inf, 0.5]})
    np.testing.assert_array_equal(
        figure.axes[0].lines[0].get_ydata(), [1.0, math.nan, math.nan, 0.5]
    )


@pytest.mark.parametrize("history", [{}, {"loss": [1.0, 2.0], "accuracy": [0.5]}])
def test_a_history_that_is_empty_or_uneven_is_refused(history):
    with pytest.raises(DataError, match="one value per epoch"):
        plot_training_curves(history)


def test_the_confusion_matrix_shades_shares_and_writes_counts():
    axes = plot_confusion_matrix([[3, 1], [0, 0]], ["$cat$", "<b>"])
    # Of four cats three were seen as cats; the second class has no sample at all.
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert [text.get_text() for text in axes.texts] == ["3", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$cat$", "<b>"]


def test_a_hundred_classes_get_neither_counts_nor_a_hundred_ticks():
    axes = plot_confusion_matrix(np.eye(100, dtype=int) * 9)
    assert not axes.texts
    assert len(axes.get_xticklabels()) <= 34


@pytest.mark.parametrize("matrix", [[[1, 2]], [], [1, 2], [[[1]]]])
def test_a_matrix_that_is_not_square_is_refused(matrix):
    with pytest.raises(DataError, match="one row and one column per class"):
        plot_confusion_matrix(matrix)


def test_too_few_class_names_are_refused():
    with pytest.raises(DataError, match="Received: 1 names"):
        plot_confusion_matrix([[1, 0], [0, 1]], ["cat"])


def test_svg_keeps_text_escaped_and_refers_only_to_itself():
    svg = inline_svg(plot_confusion_matrix([[1]], ['<b>"&']), name="plot", description='a "b" <c>')
    assert svg.startswith("<svg ")
    assert '&lt;b&gt;"&amp;' in svg
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    assert "http" not in svg
    assert "<style" not in svg
    assert "var(--plot-ink)" in svg


def test_two_svgs_share_no_id():
    svgs = [
        inline_svg(plot_training_curves({"loss": [2.0, 1.0]}), name=n, description="") for n in "ab"
    ]
    first, second = (set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs)
    assert first
    assert not first & second
    for svg, ids in zip(svgs, (first, second), strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= ids


def test_each_candidate_has_its_line_as_far_as_it_came_and_the_chosen_one_stands_out():
    choice = example_report()["choice"]
    choice["trials"][0]["accuracy"] = math.nan
    axes = plot_trial_curves(choice["trials"], chosen=choice["chosen"])
    lines = {line.get_label(): line for line in axes.lines}
    chosen = lines[f"{choice['chosen']} (chosen)"]
    assert list(chosen.get_ydata()) == [0.751, 0.903]
    assert list(lines["soft targets, T=4, hard labels 0.1"].get_xdata()) == [1]
    assert list(lines["hard labels alone"].get_ydata()) == [0.886]
    assert chosen.get_linewidth() > lines["hard labels alone"].get_linewidth()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1\n0.66", "2\n1.0"]
