"""Reads a page back with the standard library: its text, tables, links and pictures."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """What a reader of the page would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.plots: list[str] = []
        self._tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self._text: list[str] = []

    @property
    def text(self) -> str:
        """Everything there is to read, with single spaces."""
        return _joined(self._text)

    def rows(self, table: str) -> list[list[str]]:
        """Returns the cells of the table of this CSS class, row by row, headings included."""
        return self._tables[table]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.attributes |= set(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"].removeprefix("#"))
        elif tag == "img":
            self.images.append((attributes["src"], attributes["alt"]))
        elif tag == "svg":
            self.plots.append(_joined([attributes["aria-label"]]))
        elif tag == "table":
            self._rows = self._tables.setdefault(attributes.get("class", ""), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self._rows[-1].append(_joined(self._cell))
            self._cell = None
        # A block ends a word, and so does a span here; these do not.
        if tag not in ("code", "strong", "abbr", "time"):
            self._text.append(" ")
            if self._cell is not None:
                self._cell.append(" ")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            return
        self._text.append(data)
        if self._cell is not None:
            self._cell.append(data)


def read_page(path: Path) -> Page:
    """Returns the parsed page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def _joined(pieces: list[str]) -> str:
    return " ".join("".join(pieces).split()).replace(" ,", ",")
