"""The links of README.md and of the pages lead somewhere."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from readme_example import python_blocks  # noqa: E402

REPOSITORY = "https://github.com/kdtflite/kdtflite/blob/main/"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "android_demo" / "README.md"]


def name_of(page):
    return str(page.relative_to(ROOT))


def test_readme_begins_with_a_complete_script():
    first, *_ = python_blocks(ROOT / "README.md")
    assert "import kdtflite" in first
    assert ".save(" in first


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(REPOSITORY):
            target = ROOT / link.removeprefix(REPOSITORY)
        elif "://" in link:
            continue
        else:
            target = page.parent / link if not link.startswith("#") else Path(f"{page}{link}")
        path, _, anchor = str(target).partition("#")
        assert Path(path).exists(), link
        assert not anchor or anchor in anchors(Path(path)), link


def test_readme_has_only_absolute_links():
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert links
    assert all(link.startswith("https://") for link in links)
