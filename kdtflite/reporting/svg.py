"""A matplotlib Figure as SVG that stands inside a page and follows its theme."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdtflite.reporting.palette import CSS_NAMES
from kdtflite.text import escape_controls

__all__ = ["inline_svg"]

_XLINK = "{http://www.w3.org/1999/xlink}href"
_COLORS = re.compile("|".join(CSS_NAMES), re.IGNORECASE)
_FONT = re.compile(r"(font: [^;']*?px )[^;]*")
_FONT_FAMILY = re.compile(r"font-family: [^;]*")


def inline_svg(drawing: Figure | Axes, *, name: str, description: str) -> Markup:
    """Returns a figure as one `<svg>` element without a reference to anything outside.

    Text stays text, in the page's font; the palette's colors become CSS variables.

    Args:
        drawing: A figure, or axes in one.
        name: Unique in the page; every id starts with it.
        description: What the plot shows, for those who cannot see it.
    """
    figure = drawing if isinstance(drawing, Figure) else drawing.figure
    assert isinstance(figure, Figure)  # not a part of one
    buffer = io.BytesIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Only measured with matplotlib's font; the browser draws it and has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Names that leave no room are drawn over the axes.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    # matplotlib writes control characters of names as they are, which XML does not allow.
    drawn = ElementTree.fromstring(escape_controls(buffer.getvalue().decode()).encode())
    root = ElementTree.Element(
        "svg",
        {
            "viewBox": drawn.attrib["viewBox"],
            "role": "img",
            "aria-label": escape_controls(description),
            "style": f"max-width: {1.15 * figure.get_figwidth():.2f}in",
            "class": "plot",
        },
    )
    root.extend(_adopt(child, name) for child in drawn if _tag(child) != "metadata")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adopt(element: ElementTree.Element, name: str) -> ElementTree.Element:
    """Returns a copy without namespaces, with ids of its own and with the page's colors."""
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            value = f"{name}-{value}"
        elif key in (_XLINK, "href") and value.startswith("#"):
            key, value = "href", f"#{name}-{value[1:]}"
        elif key == _XLINK:
            key = "href"
        elif key == "style":
            value = _FONT.sub(r"\1var(--font)", value)
            value = _FONT_FAMILY.sub("font-family: var(--font)", value)
            value = _COLORS.sub(lambda found: f"var({CSS_NAMES[found[0].lower()]})", value)
        else:
            value = value.replace("url(#", f"url(#{name}-")
        attributes[key] = value
    copy = ElementTree.Element(_tag(element), attributes)
    copy.text, copy.tail = element.text, element.tail
    # A <style> inside the SVG would apply to the whole page.
    copy.extend(_adopt(child, name) for child in element if _tag(child) != "style")
    return copy


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
