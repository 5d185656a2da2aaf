"""The documentation names every loss and teacher, and the weights that they have."""

import re
from pathlib import Path

import pytest

from kdtflite import losses, teachers

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "distillation.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]
BASES = {"DistillationLoss", "FeatureLoss", "LogitsLoss", "HardLabels", "Teacher"}


@pytest.mark.parametrize("package", [losses, teachers], ids=["losses", "teachers"])
def test_every_public_name_stands_in_a_table(package):
    named = {name for row in ROWS for name in re.findall(r"`(\w+)", row[0])}
    assert set(dir(package)) - BASES <= named


def test_the_default_weights_are_those_of_the_code():
    weighed = {}
    for row in ROWS:
        loss = getattr(losses, re.findall(r"`(\w+)", row[0])[0], None)
        if loss is not None and loss.default_weight is not None:
            weighed[loss.__name__] = float(row[-1].split()[0])
            assert loss.default_weight == pytest.approx(weighed[loss.__name__], rel=0.01), row[0]
    assert len(weighed) == 16
