"""Numbers and tables as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def cell(value: Any) -> str:
    """A table cell: four digits of a number, yes or no, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    array = np.asarray(value) if not isinstance(value, str) else None
    if array is not None and array.ndim == 0 and array.dtype.kind in "fiu":
        return number(float(array))
    return str(value)


def number(value: float | np.floating, digits: int = 4) -> str:
    if not np.isfinite(value):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), "nan")
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:.0f}"


def number_beside(value: float | np.floating, sd: float | np.floating) -> str:
    """A value with the digits its standard deviation leaves: 0.6123 beside 0.0217."""
    if not np.isfinite(sd) or sd <= 0 or not np.isfinite(value) or not 1e-3 <= abs(value) < 1e5:
        return number(value)
    decimals = int(np.clip(1 - np.floor(np.log10(sd)), 0, 8))
    return f"{value:.{decimals}f}"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every column of the rows, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def plain_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text; numbers to the right."""
    heads = columns(rows)
    cells = [[cell(row.get(h)) for h in heads] for row in rows]
    widths = [max(len(h), *(len(line[i]) for line in cells)) for i, h in enumerate(heads)]
    right = [all(is_number(row.get(h)) for row in rows) for h in heads]

    def line(parts: Sequence[str]) -> str:
        padded = [
            p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), line(["-" * w for w in widths]), *map(line, cells)])


def is_number(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    if isinstance(value, str):
        return bool(value) and value.lstrip("-−+")[:1].isdigit() and " " not in value
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"
