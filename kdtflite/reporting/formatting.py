"""Numbers as text: one format for the page, the terminal and the plots."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "MISSING",
    "as_number",
    "compare_size",
    "compare_speed",
    "format_count",
    "format_decimal",
    "format_duration",
    "format_milliseconds",
    "format_percent",
    "format_points",
    "format_ratio",
    "format_short_count",
    "format_significant",
    "format_size",
]

MISSING = "–"

# No line break between a number and its unit.
_SPACE = "\u00a0"


def as_number(value: Any) -> float | None:
    """Returns `value` as a finite float, or None if it is missing, not finite or not a number."""
    if value is None or isinstance(value, (bool, str)):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def format_significant(value: Any, digits: int = 3) -> str:
    """Returns `value` with `digits` significant digits, never in exponent notation."""
    found = as_number(value)
    if found is None:
        return MISSING
    if found == 0:
        return "0"
    # Rounding first: 9.996 must become 10.0, not 10.00.
    rounded = float(f"{found:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def format_decimal(value: Any, digits: int = 3) -> str:
    """Returns `value` with a fixed number of decimals."""
    found = as_number(value)
    return MISSING if found is None else f"{found:.{digits}f}"


def format_percent(value: Any, digits: int = 2) -> str:
    """Returns a share as a percentage, 0.9733 as "97.33 %"; the space does not break."""
    found = as_number(value)
    return MISSING if found is None else f"{100 * found:.{digits}f}{_SPACE}%"


def format_points(difference: Any) -> str:
    """Returns a difference of two shares in signed percentage points."""
    found = as_number(difference)
    if found is None:
        return MISSING
    text = f"{100 * abs(found):.2f}"
    if float(text) == 0:
        return f"±0{_SPACE}points"
    return f"{'+' if found > 0 else '−'}{text}{_SPACE}points"


def format_count(value: Any) -> str:
    """Returns an integer with thousands separated."""
    found = as_number(value)
    return MISSING if found is None else f"{round(found):,}"


def format_short_count(value: Any) -> str:
    """Returns a count with an SI prefix: 1234567 is "1.23 M"."""
    found = as_number(value)
    return MISSING if found is None else _format_prefixed(found, "")


def format_size(value: Any) -> str:
    """Returns bytes with an SI prefix: 11240 is "11.2 kB"."""
    found = as_number(value)
    return MISSING if found is None else _format_prefixed(found, "B")


def format_milliseconds(value: Any) -> str:
    """Returns milliseconds with three significant digits and the unit."""
    found = as_number(value)
    return MISSING if found is None else f"{format_significant(found)}{_SPACE}ms"


def format_duration(value: Any) -> str:
    """Returns seconds in a readable unit: "0.4 s", "12 s", "3 min 05 s", "1 h 20 min"."""
    found = as_number(value)
    if found is None:
        return MISSING
    if found < 9.95:
        return f"{found:.1f}{_SPACE}s"
    whole = round(found)
    if whole < 60:
        return f"{whole}{_SPACE}s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(found / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_ratio(ratio: Any) -> str:
    """Returns a ratio: "42×", "4.2×", "1.04×"."""
    found = as_number(ratio)
    if found is None:
        return MISSING
    digits = 0 if found >= 9.95 else 1 if found >= 1.95 else 2
    return f"{found:,.{digits}f}×"


def compare_size(own: Any, reference: Any) -> str:
    """Returns how `own` bytes compare to `reference` ("42× smaller"), or "" if unknown."""
    return _compare(own, reference, "smaller", "larger", "same size")


def compare_speed(own: Any, reference: Any) -> str:
    """Returns how `own` time compares to `reference` ("12× faster"), or "" if unknown."""
    return _compare(own, reference, "faster", "slower", "same speed")


def _compare(own: Any, reference: Any, less: str, more: str, same: str) -> str:
    mine, theirs = as_number(own), as_number(reference)
    if not mine or not theirs or mine < 0 or theirs < 0:
        return ""
    ratio = theirs / mine
    if 0.995 < ratio < 1.005:
        return same
    return f"{format_ratio(ratio)} {less}" if ratio > 1 else f"{format_ratio(1 / ratio)} {more}"


def _format_prefixed(value: float, unit: str) -> str:
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,950 reads "1.00 M", not "1,000 k".
        if abs(value) >= factor * 0.9995:
            return f"{format_significant(value / factor)}{_SPACE}{prefix}{unit}"
    return f"{round(value)}{_SPACE}{unit}" if unit else f"{round(value)}"
