"""Text from files of others is shown, not obeyed."""

import io
import json

import numpy as np
import pytest

from kdtflite.errors import ModelFileError
from kdtflite.evaluation.result import ClassScores, Evaluation
from kdtflite.lite.metadata import Metadata, TensorMetadata
from kdtflite.progress import console, log_to, say
from kdtflite.results import make_table
from kdtflite.tables import as_text
from kdtflite.text import escape_controls, escape_line

# Clears the screen, rings the bell, sets the window's title, C1's CSI, turns the line around.
NASTY = "cat\x1b[2J\x07\x1b]0;owned\x07\x9b31m\u202etac"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Käse 日本 🐈‍⬛ می‌خواهم", "Käse 日本 🐈‍⬛ می‌خواهم"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\r\x00\x7f\x9b", r"\r\x00\x7f\x9b"),
        ("\u202e\u2066\u2028\ufeff", r"\u202e\u2066\u2028\ufeff"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_shown_as_python_writes_them(text, shown):
    assert escape_controls(text) == shown


def test_a_name_stays_on_one_line():
    assert escape_line("cat\nError: all is lost") == r"cat\nError: all is lost"


def assert_harmless(text):
    assert "cat" in text
    assert not set(text) & set("\x1b\x07\x9b\u202e\r")
    assert r"\x1b[2J" in text


def test_errors_progress_and_logs_show_them(tmp_path, capsys):
    assert_harmless(str(ModelFileError(f"layer {NASTY} failed")))
    with log_to(tmp_path / "log.txt"):
        say(f"label {NASTY}")
    assert_harmless(capsys.readouterr().err)
    assert_harmless((tmp_path / "log.txt").read_text())
    assert console.stderr


def test_tables_show_them_and_read_no_markup():
    text = as_text(
        make_table([(NASTY, "[bold]no[/bold] [link=http://x]y[/link]")], text=("a", "b"))
    )
    assert_harmless(text)
    assert "[bold]no[/bold]" in text.replace("\n", "")


def test_metadata_shows_them():
    metadata = Metadata(
        name=NASTY,
        description=f"{NASTY}",
        inputs=(TensorMetadata(name=NASTY, mean=(0.0,), std=(1.0,)),),
        outputs=(TensorMetadata(name="cat\nfake: line", labels=(NASTY, "b\nc")),),
        details={NASTY: {"cat": NASTY}},
    )
    assert_harmless(str(metadata))
    assert r"cat\nfake: line" in str(metadata)
    assert r"b\nc" in str(metadata)


def test_an_evaluation_shows_them_in_text_picture_and_notebook():
    scores = tuple(ClassScores(name, 0.0, 0.0, 0.0, 1) for name in (NASTY, "$\\frac{"))
    result = Evaluation(
        model=NASTY,
        samples=2,
        accuracy=0.5,
        ties=0,
        accuracy_if_ties_lost=0.5,
        accuracy_if_ties_won=0.5,
        top_k={},
        log_loss=1.0,
        log_loss_floor=0.0,
        outputs="logits",
        outputs_from="the last layer",
        macro_precision=0.0,
        macro_recall=0.0,
        macro_f1=0.0,
        per_class=scores,
        confusion=np.eye(2, dtype=np.int64),
        predictions=np.zeros(2, np.int64),
    )
    assert_harmless(str(result))
    assert_harmless(result._repr_html_())
    picture = io.StringIO()
    result.plot().figure.savefig(picture, format="svg")  # an unclosed formula is no formula
    assert NASTY in json.loads(json.dumps(result.to_dict()))["per_class"][0]["name"]


def test_a_picture_of_such_names_is_well_formed(tmp_path):
    from xml.etree import ElementTree

    from kdtflite.pictures import save_picture
    from kdtflite.reporting.svg import inline_svg
    from kdtflite.results import plot_bars

    axes = plot_bars([(NASTY.replace("\u202e", ""), 1.0)], "share")
    path = save_picture(axes, tmp_path / "bars.svg", overwrite=False)
    assert ElementTree.fromstring(path.read_bytes()) is not None
    assert "\x1b" not in inline_svg(axes, name="bars", description="bars")
