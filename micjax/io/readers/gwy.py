"""Gwyddion's own files, by the description of the format in its user guide.

file = "GWYP" object          object = name NUL, size (uint32), components
component = name NUL, letter of its type, value          array = count (uint32), values
"""

import logging
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from micjax.io.fields import Field, by_name, image_axes

log = logging.getLogger(__name__)

_NUMBERS = {"b": "?", "c": "S1", "i": "<i4", "q": "<i8", "d": "<f8"}
_MOST_NESTED = 30


@dataclass(frozen=True)
class _Object:
    kind: str
    items: dict[str, Any]


class _Bytes:
    """Bytes that are read one after the other, and never beyond their end."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.content):
            missing = self.at + size - len(self.content)
            raise ValueError(f"{missing} bytes are missing, the file is cut short or damaged")
        self.at += size
        return self.content[self.at - size : self.at]

    def text(self) -> str:
        end = self.content.find(b"\0", self.at)
        raw = self.take((end if end >= 0 else len(self.content)) - self.at)
        self.take(1)
        return raw.decode("utf-8", "replace")

    def count(self) -> int:
        return struct.unpack("<I", self.take(4))[0]

    def numbers(self, kind: str, count: int) -> np.ndarray:
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize * count), dtype)


def _object(source: _Bytes, depth: int = 0) -> _Object:
    if depth > _MOST_NESTED:
        raise ValueError(f"objects within objects, more than {_MOST_NESTED} deep")
    kind = source.text()
    inside, items = _Bytes(source.take(source.count())), {}
    while inside.at < len(inside.content):
        name, letter = inside.text(), inside.take(1).decode("latin-1")
        items[name] = _value(inside, letter, depth)
    return _Object(kind, items)


def _value(source: _Bytes, letter: str, depth: int) -> Any:
    kind = letter.lower()
    if kind in _NUMBERS:
        values = source.numbers(_NUMBERS[kind], 1 if kind == letter else source.count())
        return values[0].item() if kind == letter else values
    if kind not in "so":
        raise ValueError(f"a component of the unknown type {letter!r}")
    if kind == letter:
        return source.text() if kind == "s" else _object(source, depth + 1)
    return [_value(source, kind, depth) for _ in range(source.count())]


def read_gwy(path: Path) -> dict[str, Field]:
    """Every data field of a Gwyddion file, of any unit."""
    source = _Bytes(path.read_bytes())
    if source.take(4) != b"GWYP":
        raise ValueError("it does not begin with GWYP")
    items = _object(source).items
    matches = (re.match(r"/(\d+)/data$", name) for name in items)
    numbers = sorted(int(match.group(1)) for match in matches if match)
    fields = [_field(items, f"/{number}") for number in numbers]
    known = re.compile(r"/\d+/(data|meta|select/.*)$")
    if others := [n for n, o in items.items() if isinstance(o, _Object) and not known.match(n)]:
        log.warning("%s: not read: %s", path, ", ".join(f"{n} ({items[n].kind})" for n in others))
    return by_name(fields)


def _field(items: dict[str, Any], where: str) -> Field:
    image = items[f"{where}/data"]
    if not isinstance(image, _Object) or image.kind != "GwyDataField":
        raise ValueError(f"{where}/data is no data field")
    content = image.items
    if missing := [k for k in ("xres", "yres", "xreal", "yreal", "data") if k not in content]:
        raise ValueError(f"{where}/data says nothing of {', '.join(missing)}")
    shape = (int(content["yres"]), int(content["xres"]))
    data = np.asarray(content["data"])
    if min(shape) < 1 or data.shape != (shape[0] * shape[1],):
        raise ValueError(f"{where}/data: {data.size} values for {shape[0]} x {shape[1]} pixels")
    pixel = (float(content["yreal"]) / shape[0], float(content["xreal"]) / shape[1])
    origin = (float(content.get("yoff", 0.0)), float(content.get("xoff", 0.0)))
    axes = image_axes(shape, pixel, _unit(content, "si_unit_xy"), origin)
    title = items.get(f"{where}/data/title", f"Channel {where[1:]}")
    meta = items.get(f"{where}/meta")
    notes = dict(meta.items) if isinstance(meta, _Object) else {}
    return Field(data.reshape(shape), axes, _unit(content, "si_unit_z"), str(title), notes)


def _unit(content: dict[str, Any], name: str) -> str:
    unit = content.get(name)
    return str(unit.items.get("unitstr", "")) if isinstance(unit, _Object) else ""
