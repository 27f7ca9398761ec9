"""Data that other packages hold in memory, recognised by its shape and never by an import."""

import logging

import numpy as np

from micjax.io.fields import (
    Field,
    FieldAxis,
    image_axes,
    rows_first,
    unit_in_brackets,
    unpacked,
    with_pixel,
)

log = logging.getLogger(__name__)


def as_field(obj) -> Field:
    """A `Field` from a hyperspy signal, a sidpy dataset, an xarray, or an image and its pixel size.

    **Arguments:**

    - `obj`: a `Field` (returned as it is), a hyperspy `BaseSignal`, a `sidpy.Dataset`, an
      `xarray.DataArray`, or `(image, pixel_nm)` with an image `[iy, ix]` in nm.

    **Returns:** the field, lazy data computed, y before x.

    **Raises:** TypeError for anything else.
    """
    if isinstance(obj, Field):
        return obj
    if isinstance(obj, tuple) and len(obj) == 2:
        image, pixel_nm = np.asanyarray(obj[0]), obj[1]
        return with_pixel(Field(image, image_axes(image.shape), "nm", "image"), pixel_nm)
    if hasattr(obj, "axes_manager") and hasattr(obj, "metadata"):
        return rows_first(_from_hyperspy(obj))
    if hasattr(obj, "_axes") and hasattr(obj, "quantity"):
        return rows_first(_from_sidpy(obj))
    if hasattr(obj, "dims") and hasattr(obj, "coords"):
        return rows_first(_from_xarray(obj))
    raise TypeError(
        f"{type(obj).__name__} is no Field, hyperspy signal, sidpy dataset, xarray.DataArray "
        "or (image, pixel_nm)"
    )


def _string(value) -> str:
    return value if isinstance(value, str) else ""  # hyperspy has an object for "undefined"


def _from_hyperspy(signal) -> Field:
    axes = tuple(
        FieldAxis(_string(a.name) or f"axis{i}", np.asarray(a.axis), _string(a.units))
        for i, a in enumerate(signal.axes_manager._axes)
    )
    notes = signal.metadata.as_dictionary()
    title = notes.get("General", {}).get("title", "")
    quantity = notes.get("Signal", {}).get("quantity", "")  # "Height (nm)" by their convention
    return Field(signal.data, axes, unit_in_brackets(quantity), title, notes)


def _from_sidpy(dataset) -> Field:
    axes = tuple(
        FieldAxis(str(a.name), np.asarray(a.values), str(a.units))
        for a in (dataset._axes[i] for i in range(dataset.ndim))
    )
    notes = dict(getattr(dataset, "original_metadata", {}))
    return Field(np.asarray(dataset), axes, str(dataset.units), str(dataset.quantity), notes)


def _from_xarray(array) -> Field:
    def axis(name) -> FieldAxis:
        if name not in array.coords:
            return FieldAxis(str(name), np.arange(array.sizes[name]), "px")
        coordinate = array.coords[name]
        return FieldAxis(str(name), np.asarray(coordinate), str(coordinate.attrs.get("units", "")))

    axes = tuple(axis(name) for name in array.dims)
    unit, name = str(array.attrs.get("units", "")), str(array.name or "")
    if others := [str(n) for n in array.coords if n not in array.dims]:
        log.warning("%s: coordinates that are no axes are not used: %s", name, ", ".join(others))
    values = unpacked(np.asarray(array), array.attrs, name)
    return Field(values, axes, unit, name, dict(array.attrs))
