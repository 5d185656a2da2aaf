from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def text_of(notebook) -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "\n".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    # The tests draw without a display; the notebook is to show its plots.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # In a folder of its own: what it writes is not the project's.
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = text_of(notebook)
    assert "Fully integer" in text
    assert "from layer 'my_conv'" in text
    accuracy = float(text.split("distilled QAT int8")[1].split("accuracy")[1].split()[0])
    assert accuracy > 0.95
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 4


def test_there_are_notebooks():
    assert NOTEBOOKS
