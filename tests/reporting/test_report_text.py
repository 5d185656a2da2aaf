import io

import pytest
from report_example import example_report
from rich.console import Console

from kdtflite.errors import DataError
from kdtflite.reporting import render_table


def printed(report, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_table(report))
    return console.file.getvalue().replace("\u00a0", " ")


def test_the_table_shows_each_model_in_80_columns():
    lines = printed(example_report()).splitlines()
    assert max(map(len, lines)) <= 80
    (shipped,) = [line for line in lines if "★" in line and "the file to ship" not in line]
    for value in ("97.11 %", "4,906", "11.4 kB", "0.0186 ms"):
        assert value in shipped
    assert any("107× smaller" in line and "22× faster" in line for line in lines)


def test_the_chosen_losses_stand_below_the_table():
    report = example_report()
    told = "Losses: soft targets, T=1, no hard labels, chosen by 5 trials on the validation split"
    assert told in " ".join(printed(report).split())
    assert max(map(len, printed(report).splitlines())) <= 80
    report["choice"]["trials"] = []
    assert "Losses: soft targets, T=1, no hard labels, without trials" in printed(report)
    del report["choice"]
    assert "Losses" not in printed(report)


def test_the_reason_of_the_choice_stands_below_and_a_useless_student_is_not_recommended():
    report = example_report()
    assert "It is the most accurate file on 269 validation samples." in printed(report)
    report["selection"]["recommended"] = False
    assert "★ the file chosen, not recommended" in printed(report)
    del report["selection"]
    assert "★" not in printed(report)


def test_markup_in_a_name_is_shown_as_it_is():
    report = example_report()
    report["models"][0]["label"] = "[red]Teacher"
    report["name"] = "[bold]digits"
    text = printed(report)
    assert "[red]Teacher" in text
    assert "[bold]digits" in text


def test_missing_numbers_are_dashes_and_no_models_give_an_empty_table():
    report = example_report()
    report["models"][1].update(accuracy=None, bytes=float("nan"))
    assert printed(report).count("–") == 2
    del report["models"]
    assert render_table(report).row_count == 0


@pytest.mark.parametrize("report", [None, [], {"version": 2, "name": "x"}, {"version": 1}])
def test_what_is_no_report_is_refused(report):
    with pytest.raises(DataError, match="report"):
        render_table(report)


def test_the_best_is_marked_without_color_and_names_stay_on_one_line():
    report = example_report()
    names = ["hard labels (float)", "distilled (float)", "hard labels, PTQ int8"]
    names += ["distilled, QAT int8", "distilled, PTQ int8"]
    for model, name in zip(report["models"][1:], names, strict=True):
        model["label"] = f"Student, {name}"
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "✓ 11.2 kB" in text
    assert "✓ the best of its column" in text
    assert "green" not in text
    for name in names:
        assert f" {name[0].upper()}{name[1:]} " in text
