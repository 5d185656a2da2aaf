"""Prints the first Python example of README.md, which is a complete script.

python tools/readme_example.py | python
"""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks(page: Path) -> list[str]:
    """Returns the Python examples of a Markdown page, in order."""
    pattern = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return pattern.findall(page.read_text("utf-8"))


if __name__ == "__main__":
    print(python_blocks(README)[0])
