"""Files of electron microscopes, which rosettasciio reads."""

import importlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from micjax.core.foreign.hdf5 import opened
from micjax.core.foreign.limits import check_size
from micjax.io.fields import PIXELS, Field, FieldAxis, by_name, cut_rows, rows_first
from micjax.io.packages import third_party

log = logging.getLogger(__name__)

READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".hspy": "hspy",
    ".mrc": "mrc",
    ".ser": "tia",
    ".zspy": "zspy",
}
_HDF5 = (".emd", ".hspy")


def read_electron(path: Path, extension: str, rows: slice | None = None) -> dict[str, Field]:
    """Every signal of a file, by its title, in the order of the file; of maps only these rows.

    Lengths, energies and angles keep their units; an axis without one that is called x or y is in
    pixels.
    """
    if extension in _HDF5:
        _check_hdf5(path)
    with third_party("rsciio", extension, "io"):
        reader = importlib.import_module(f"rsciio.{READERS[extension]}")
        signals = reader.file_reader(str(path), lazy=rows is not None)
        return by_name([_field(signal, path.stem, rows) for signal in signals])


def _check_hdf5(path: Path) -> None:
    """What is in the file, and not too large; the other formats are not packed.

    **Raises:** `ValueError` where values or links lie in another file.
    """
    with opened(path) as file:
        every = list(file.nodes())
        check_size(path, sum(8 * math.prod(node.shape or (0,)) for node in every))
        for node in every:
            if node.elsewhere:
                raise ValueError(f"{node.path} is {node.elsewhere}: other files are not opened")
            if node.links and None in node.links.values():
                raise ValueError(f"{node.path}: a link out of the file, which is refused")


def _field(signal: dict[str, Any], stem: str, rows: slice | None) -> Field:
    stored, notes = signal["data"], signal.get("metadata", {})
    axes = [_axis(axis, i, stored.shape) for i, axis in enumerate(signal["axes"])]
    part, axes, told = cut_rows(axes, rows)
    data = np.asarray(stored[part])
    quantity = str(notes.get("Signal", {}).get("quantity", ""))
    unit = quantity.rpartition("(")[2].rstrip(")") if quantity.endswith(")") else ""
    name = str(notes.get("General", {}).get("title", "")) or stem
    return rows_first(Field(data, axes, unit, name, {"stored": data.dtype, **notes} | told))


def _axis(axis: dict[str, Any], i: int, shape: tuple[int, ...]) -> FieldAxis:
    name = str(axis.get("name") or "") or ({1: "x", 2: "y"}.get(len(shape) - i) or f"axis{i}")
    unit = str(axis.get("units") or "").replace("<undefined>", "")
    if not unit and name in ("x", "y"):
        return FieldAxis(name, np.arange(shape[i]), PIXELS)
    if "axis" in axis:
        return FieldAxis(name, np.asarray(axis["axis"], float), unit)
    step, start = float(axis.get("scale", 1.0)), float(axis.get("offset", 0.0))
    return FieldAxis(name, start + step * np.arange(shape[i]), unit)
