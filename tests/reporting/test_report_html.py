import copy
import math
import re
import subprocess
import sys

import pytest
from report_example import example_report, many_classes_report
from report_page import read_page

from kdtflite.errors import DataError, OutputExistsError
from kdtflite.reporting import write_html


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The whole example as a page, made once: most of the time goes into its plots."""
    return read_page(write_html(example_report(), tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def report():
    """The example without its training curves, to change at will."""
    report = example_report()
    del report["training"]
    return report


@pytest.fixture
def render(tmp_path):
    def rendered(report):
        return read_page(write_html(report, tmp_path / "report.html", overwrite=True))

    return rendered


def test_the_head_of_the_page_says_what_to_ship(page):
    text = page.text
    assert "distilled_int8.tflite" in text
    assert "✓ proven fully integer" in text
    assert "Test accuracy 97.11 % File size 11.4 kB Latency (p50) 0.0186 ms" in text
    assert "107× smaller, 22× faster and 2.00 points less accurate" in text


def test_the_comparison_has_each_value_in_its_cell(page):
    rows = page.rows("comparison")
    assert rows[0] == [
        "Model", "Accuracy", "Macro F1", "Log loss", "Parameters", "File size", "MACs",
        "Latency p50", "Latency p90", "Arena",
    ]  # fmt: skip
    assert rows[1][1:] == [
        "99.11 % (best)", "0.990 (best)", "0.039 (best)", "302,154", "1.21 MB", "4.13 M",
        "0.412 ms", "0.445 ms p99 0.581 ms", "42.0 kB",
    ]  # fmt: skip
    assert rows[5] == [
        "Student, distilled, QAT (int8) ship this int8",
        "97.11 % −2.00 points", "0.970", "0.081", "4,906 (best)", "11.4 kB 107× smaller",
        "98.4 k (best)", "0.0186 ms (best) 22× faster", "0.0201 ms (best) p99 0.0262 ms",
        "10.8 kB (best)",
    ]  # fmt: skip


def test_operators_interface_and_quantization_stand_in_their_tables(page):
    assert page.rows("operators")[1] == ["0", "CONV_2D", "int8, int8, int32", "int8", "conv2d"]
    assert page.rows("ends")[1:] == [
        ["Input", "serving_default_image:0", "int8", "0.00392156886", "-128", "1 × 8 × 8 × 1"],
        ["Output", "StatefulPartitionedCall:0", "int8", "0.14725", "7", "1 × 10"],
    ]
    assert page.rows("layers")[2] == [
        "batch_normalization", "BatchNormalization", "folded", "into conv2d",
    ]  # fmt: skip


def test_each_class_has_its_scores_and_the_lowest_is_marked(page):
    rows = page.rows("per-class")
    # Class 8: 44 right, 5 taken for 1, 3 others taken for it: 44/47, 44/49, 88/96.
    assert rows[9] == ["8", "0.936", "0.898", "0.917 (lowest)", "49"]
    assert sum("lowest" in row[3] for row in rows) == 1
    assert "8 predicted as 1 (5×), 3 predicted as 8 (3×), 9 predicted as 3 (2×)." in page.text


def test_how_the_file_was_chosen_stands_in_a_table(page):
    rows = page.rows("selection")
    assert rows[2] == [
        "Student, distilled, QAT (int8) chosen", "98.14 %", "±0 points", "±0 points to ±0 points",
        "±0 points", "11.4 kB",
    ]  # fmt: skip
    assert rows[1][1:] == [
        "95.91 %", "−2.23 points", "−4.46 points to ±0 points", "1.11 points", "11.2 kB",
    ]  # fmt: skip
    assert "Always answering the most frequent class: 10.04 %." in page.text  # 27 / 269


def test_a_student_no_better_than_the_majority_class_is_a_candidate(render, report):
    report["selection"].update(recommended=False, why="It is no better than the majority.")
    text = render(report).text
    assert "Candidate, not ready to ship" in text
    assert "✗ no better than the most frequent class" in text
    assert "ship this" not in text


def test_how_the_losses_were_chosen_is_told_in_a_table_and_a_plot(page):
    rows = page.rows("trials")
    assert rows[0] == ["Candidate", "Rung", "Epochs", "Validation accuracy", "Log loss"]
    assert rows[4] == ["hard labels alone", "2", "1.00", "88.60 %", "0.402"]
    assert rows[5] == [
        "soft targets, T=1, no hard labels chosen", "2", "1.00", "90.30 %", "0.377",
    ]  # fmt: skip
    assert sum("chosen" in row[0] for row in rows) == 1
    assert "trained with soft targets, T=1, no hard labels. It was more accurate." in page.text
    assert "took 33 % of the training's steps" in page.text
    assert "In the last rung: hard labels alone: 88.60 %; soft targets" in page.plots[6]


def test_a_choice_without_trials_says_why_and_shows_no_table(render, report):
    report["choice"].update(trials=[], chosen="hard labels alone", why="It was too short.")
    page = render(report)
    assert "trained with hard labels alone. It was too short." in page.text
    assert len(page.plots) == 2 + 1


def test_the_epoch_that_early_stopping_kept_is_said(render, report):
    report["training"] = {
        "teacher": {"history": {"loss": [2.0, 1.0]}, "epochs": [1, 2], "kept_epoch": 2}
    }
    assert "Weights of epoch 2 kept." in render(report).text


def test_parity_and_the_way_to_reproduce_are_told(page, report):
    assert "the file ran with the XNNPACK kernels" in page.text
    assert "Same class chosen 99.78 % Largest difference 2.00 steps" in page.text
    assert "kdtflite run digits --seed 1" in page.text
    assert "temperature: 4.0" in page.text
    assert page.rows("artifacts")[5] == [
        "distilled_int8.tflite", "11,384", report["models"][4]["sha256"],
    ]  # fmt: skip


def test_disagreements_come_first_and_are_marked(page):
    assert [alt for _, alt in page.images] == [
        f"Test sample {index}, labeled {label}"
        for index, label in ((12, 8), (97, 3), (311, 3), (204, 8), (340, 3), (401, 8))
    ]
    assert page.text.count("models disagree Predictions for test sample") == 2
    assert "starting with the 2 on which the models disagree" in page.text


def test_the_page_refers_to_nothing_outside(tmp_path):
    html = write_html(example_report(), tmp_path / "report.html").read_text()
    references = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)|url\(\s*["']?([^"')]+)""", html)
    assert references
    for reference in map("".join, references):
        assert reference.startswith(("#", "data:image/png;base64,")), reference
    assert not re.search(r"""https?://|["'(]//|@import|<script|<link|<iframe""", html)


def test_ids_are_unique_and_links_lead_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    assert set(page.links) <= set(page.ids)
    assert page.links[1:] == [
        "models", "selection", "training", "choice", "classes", "samples", "proof",
        "quantization", "parity", "reproduce",
    ]  # fmt: skip


def test_every_picture_and_plot_says_what_it_shows(page):
    assert len(page.plots) == 2 + 4 + 1 + 1
    assert all(page.plots)
    assert "Teacher (float): 99.11 % at 1.21 MB" in page.plots[0]
    assert "soft_targets_loss from" in page.plots[4]


def test_what_users_write_is_shown_and_never_run(render, report):
    nasty = """<b>"&'"""
    report["dataset"]["class_names"][8] = nasty
    report["name"] = "<script>alert(1)</script>"
    report["models"][4]["label"] = "<i>QAT"
    report["quantization"][0]["why"] = "<img src=x>"
    report["recipe"]["note"] = "</code><script>"
    page = render(report)
    assert page.rows("per-class")[9][0] == nasty
    assert not {"script", "i", "b"} & page.tags
    assert len(page.images) == 6
    assert page.rows("comparison")[5][0].startswith("<i>QAT")
    assert "</code><script>" in page.text
    assert nasty in page.text
    assert f"labeled {nasty}" in page.images[0][1]


HOSTILE = (
    "</td></table></svg><script>alert(1)</script><img src=x onerror=alert(1)>'\">"
    "<a href=x onload=1> \x00\x1b[2J\u202etac {{ 7*7 }} {% raw %} &lt; $\\frac{"
)


def spoil(value, key=""):
    """Returns a part of a report with something hostile at the end of every text."""
    if isinstance(value, dict):
        return {name: spoil(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [spoil(inner, key) for inner in value]
    # These are what kdtflite itself looks up.
    keys = ("chosen", "created", "first", "format", "how", "key", "second")
    return value + HOSTILE if isinstance(value, str) and key not in keys else value


def test_no_text_of_a_report_becomes_a_part_of_the_page(page, tmp_path):
    report = spoil(example_report())
    history = report["training"]["distilled"]["history"]
    history[HOSTILE] = history["loss"]
    report["training"] = {"distilled": report["training"]["distilled"]}
    path = write_html(report, tmp_path / "report.html")
    spoiled = read_page(path)
    assert (spoiled.tags, spoiled.attributes) == (page.tags, page.attributes)
    assert len(spoiled.images) == len(page.images)
    shown = HOSTILE.replace("\x00\x1b", r"\x00\x1b").replace("\u202e", r"\u202e")
    for row in spoiled.rows("per-class")[1:]:
        assert row[0].endswith(shown)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("models", "models"), ("training", "training"), ("samples", "samples"), ("proof", "proof"),
        ("choice", "choice"), ("selection", "selection"), ("comparisons", None),
        ("quantization", "quantization"), ("parity", "parity"), ("dataset", None),
        ("machine", None), ("seconds", None), ("versions", None), ("recipe", None),
        ("created", None), ("seed", None), ("reproduce", None), ("confusion", None),
        ("per_class", None),
    ],
)  # fmt: skip
def test_a_missing_key_takes_its_section_away_and_nothing_else(page, render, report, key, section):
    if key != "training":
        del report[key]
    after = render(report)
    gone = {"training", section or "training"}
    if key in ("models", "selection"):
        gone.add("classes")  # Which model's classes would they be?
    assert set(page.links) - set(after.links) == gone
    assert "None" not in after.text
    assert "Undefined" not in after.text


def test_a_report_of_a_name_alone_is_still_a_page(render):
    page = render({"version": 1, "name": "empty"})
    assert page.links == ["main"]
    assert "empty" in page.text


def test_numbers_that_were_not_measured_are_dashes(render, report):
    model = report["models"][1]
    model.update(accuracy=math.nan, bytes=None, macro_f1=None, arena_bytes=math.inf)
    model["latency_ms"]["p50"] = None
    report["parity"]["mean_difference_steps"] = math.nan
    report["proof"]["input"]["scale"] = None
    report["per_class"]["distilled_int8"]["precision"][0] = math.nan
    report["samples"][1]["predictions"]["teacher"]["confidence"] = None
    report["training"] = {"teacher": {"history": {"loss": [None, 1.0]}}}
    page = render(report)
    row = page.rows("comparison")[2]
    assert (row[1], row[2], row[5], row[7], row[9]) == ("–",) * 5
    assert "Mean difference – steps" in page.text
    assert page.rows("ends")[1][3] == "–"
    assert page.rows("per-class")[1][1] == "–"
    assert not re.search(r"\b(nan|inf|None)\b", page.text)


@pytest.mark.parametrize("classes", [1, 2, 100])
def test_any_number_of_classes_has_a_table_and_a_matrix(render, classes):
    page = render(many_classes_report(classes))
    assert len(page.rows("per-class")) == classes + 1
    assert f"Confusion matrix of {classes} classes" in page.plots[-1]


def test_a_hundred_classes_keep_the_page_small(tmp_path):
    page = write_html(many_classes_report(100), tmp_path / "report.html")
    assert page.stat().st_size < 500_000


def test_color_pictures_and_signals_without_a_picture(render, report):
    report["samples"] = report["samples"][:2]
    report["samples"][0]["image"] = [[[1.0, 0.0, 0.0]] * 4] * 4
    report["samples"][1]["image"] = [0.1, 0.2]
    page = render(report)
    assert [alt for _, alt in page.images] == ["Test sample 311, labeled 3"]
    assert "#12" in page.text


def test_a_file_with_floats_is_not_called_integer(render, report):
    report["proof"].update(fully_integer=False, float_tensors=1)
    report["proof"]["operators"][3]["outputs"] = ["float32"]
    text = render(report).text
    assert "proven fully integer" not in text
    assert "Candidate, not ready to ship" in text
    assert "ship this" not in text
    assert text.count("✗ not fully integer") == 2
    assert "Float tensors: 1." in text


def test_the_same_report_gives_the_same_page(tmp_path, report):
    pages = [write_html(copy.deepcopy(report), tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_page_in_the_way_is_kept(tmp_path, report):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        write_html(report, path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("broken", [[], {"version": 2, "name": "x"}, {"version": 1}])
def test_what_is_no_report_is_refused_and_nothing_written(tmp_path, broken):
    with pytest.raises(DataError, match="report"):
        write_html(broken, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_importing_the_package_loads_neither_matplotlib_nor_tensorflow():
    check = (
        "import sys, kdtflite.reporting as r; dir(r);"
        "sys.exit(bool({'matplotlib', 'tensorflow', 'jinja2', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_head_names_the_copy_at_the_top_of_a_run_and_no_license_unless_stated(render, report):
    report["models"][4]["file"] = "files/distilled_int8.tflite"
    report["dataset"]["license"] = "not stated"
    head = render(report).text.split("Models side")[0]
    assert "student.tflite" in head
    assert "not stated" not in head
