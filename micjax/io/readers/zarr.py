"""Zarr: arrays in folders, as xarray (`to_zarr`) and others write them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from micjax.core.foreign.limits import check_size
from micjax.io.fields import PIXELS, Field, FieldAxis, by_name, cut_rows, rows_first, unpacked
from micjax.io.packages import third_party

log = logging.getLogger(__name__)


def read_zarr(path: Path, rows: slice | None = None) -> dict[str, Field]:
    """Every array of two or more axes is a channel; of maps only these rows.

    An axis is called as the array says (`dimension_names`, or xarray's `_ARRAY_DIMENSIONS`); the
    array beside it that is called so has its coordinates, and `units`.
    """
    with third_party("zarr", ".zarr", "zarr") as zarr:
        stored = zarr.open(str(path), mode="r")
        single = isinstance(stored, zarr.Array)
        arrays = {path.stem: stored} if single else dict(sorted(stored.arrays()))
    numbers = {n: a for n, a in arrays.items() if a.dtype.kind in "biufc"}
    fields = [
        _field(name, array, {} if single else numbers, path, rows)
        for name, array in numbers.items()
        if array.ndim > 1
    ]
    if others := sorted(set(arrays) - {f.name for f in fields} - _axes_of(fields)):
        log.warning("%s: not used: %s", path, ", ".join(others))
    return by_name(fields)


def _axes_of(fields: list[Field]) -> set[str]:
    return {axis.name for field in fields for axis in field.axes}


def _field(
    name: str, array: Any, beside: Mapping[str, Any], path: Path, rows: slice | None
) -> Field:
    attrs = dict(array.attrs)
    names = getattr(array.metadata, "dimension_names", None) or attrs.get("_ARRAY_DIMENSIONS")
    names = list(names or ())
    names += [f"axis{i}" for i in range(len(names), array.ndim)]
    axes = [_axis(n, size, beside.get(n)) for n, size in zip(names, array.shape, strict=True)]
    part, axes, told = cut_rows(axes, rows)
    if not part:
        check_size(path, 8 * array.size)
    data = unpacked(np.asarray(array[part]), attrs, name)
    unit = str(attrs.get("units") or attrs.get("unit") or "")
    return rows_first(Field(data, axes, unit, name, {"stored": array.dtype} | told))


def _axis(name: str, size: int, coordinates: Any) -> FieldAxis:
    """With its coordinates; by pixels where there are none."""
    if coordinates is None or coordinates.shape != (size,):
        return FieldAxis(name, np.arange(size), PIXELS if name in ("x", "y") else "")
    attrs = dict(coordinates.attrs)
    values = unpacked(np.asarray(coordinates[:]), attrs, name)
    return FieldAxis(name, values, str(attrs.get("units") or attrs.get("unit") or ""))
