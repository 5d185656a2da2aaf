"""The Python examples of README.md and of the pages run as written."""

import pytest
from test_docs import PAGES, name_of, python_blocks


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_examples_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(python_blocks(page), 1):
        if "mixed_precision" in block:
            pytest.importorskip("litert_quantizer")
        exec(compile(block, f"{name_of(page)}, example {number}", "exec"), namespace)
