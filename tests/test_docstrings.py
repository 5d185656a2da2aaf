"""Every example in a docstring of the package runs as it stands."""

import doctest
import importlib
from pathlib import Path

import pytest
import tf_keras

import kdtflite

ROOT = Path(kdtflite.__file__).parent


def modules_with_examples():
    for path in sorted(ROOT.rglob("*.py")):
        if ">>> " in path.read_text("utf-8"):
            yield ".".join(("kdtflite", *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_run_as_they_stand(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "kdtflite.conversion.mixed":
        pytest.importorskip("litert_quantizer")
    module = importlib.import_module(name.removesuffix(".__init__"))
    tf_keras.backend.clear_session()  # as in a fresh session, the first Dense is "dense"
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
