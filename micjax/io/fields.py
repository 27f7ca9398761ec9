"""Named data with units: what every reader gives back and what result files are made of."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from micjax.core.ranges import check_ranges

log = logging.getLogger(__name__)

Pixel = float | int | Sequence[float | int]  # one size for both directions, or (dy, dx)

ROWS = "rows"  # how many the file has, in the metadata of a field that holds some of them
PIXELS = "px"  # the unit of an image axis whose physical size is not known

# the ampere is "A" in these files, so the ångström is never abbreviated by it
_NM = {"pm": 1e-3, "Å": 0.1, "nm": 1.0, "um": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9}
LENGTHS = tuple(_NM)
_SPELT_OUT = {
    "angstrom": "Å",
    "picometer": "pm",
    "nanometer": "nm",
    "micrometer": "um",
    "micron": "um",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}


def nm_per(unit: str) -> float | None:
    """How many nanometres a unit is; None for a unit which is not a length.

    Case counts in a symbol (mm is no Mm, nm no Nm) and not in a word (Nanometers, micron).
    """
    # three characters are in use for the angstrom sign and the micro sign
    plain = unit.strip().replace("\u212b", "Å").replace("\u00b5", "u").replace("\u03bc", "u")
    word = plain.lower().replace("metre", "meter").removesuffix("s")
    return _NM.get(_SPELT_OUT.get(word, plain))


def _numbers(values, what: str, kinds: str) -> np.ndarray:
    """An array of one of the kinds, what is masked in it NaN.

    **Raises:** ValueError for another kind: dates, texts, objects, complex coordinates.
    """
    if np.ma.is_masked(values):
        values = np.ma.filled(values.astype(np.result_type(values.dtype, np.float32)), np.nan)
    array = np.asarray(values)
    if array.dtype.kind not in kinds:
        raise ValueError(f"{what}: values of kind {array.dtype}, which are no numbers for it")
    return array


def unpacked(values: np.ndarray, attrs: Mapping[str, Any], name: str) -> np.ndarray:
    """Packed numbers as netCDF's conventions (CF) have it: scaled, moved, what is missing NaN."""
    missing = [attrs[key] for key in ("_FillValue", "missing_value") if key in attrs]
    scale, offset = (attrs.get(key) for key in ("scale_factor", "add_offset"))
    if not missing and scale is None and offset is None:
        return values
    log.info("%s: packed numbers, unpacked as the file says", name)
    numbers = np.asarray(values, np.float64)
    gaps = np.isin(values, np.ravel(missing))
    numbers = numbers * (1.0 if scale is None else scale) + (0.0 if offset is None else offset)
    return np.where(gaps, np.nan, numbers)


@dataclass(frozen=True, eq=False)
class FieldAxis:
    """One named axis of a `Field`.

    **Arguments:**

    - `name`: what runs along it, such as `x`, `y`, `bias`.
    - `values`: coordinates, shape `(n,)`, in `unit`; they need not be evenly spaced or ascending.
    - `unit`: unit of the coordinates, `px` where only the index is known, `""` for a plain number.

    **Raises:** ValueError where the values are no real numbers or not one-dimensional.
    """

    name: str
    values: np.ndarray
    unit: str

    def __post_init__(self):
        values = _numbers(self.values, f"axis {self.name}", "biuf")
        object.__setattr__(self, "values", values.astype(np.float64, copy=False))
        if self.values.ndim != 1:
            raise ValueError(f"axis {self.name}: values of shape {self.values.shape}, not (n,)")

    @property
    def step(self) -> float:
        """Mean spacing in `unit`, with its sign; nan for a single value."""
        v = self.values
        return float((v[-1] - v[0]) / (v.size - 1)) if v.size > 1 else float("nan")


@dataclass(frozen=True, eq=False)
class Field:
    """An array with named axes and units.

    **Arguments:**

    - `data`: the values in `unit`, one dimension per axis; images are `[iy, ix]`, y down the rows.
      Kept as float64, complex128 or bool; what is masked is NaN.
    - `axes`: one `FieldAxis` per dimension, so `(y, x)` for an image.
    - `unit`: unit of the values.
    - `name`: the channel.
    - `metadata`: whatever else the file says.

    **Raises:** ValueError where the data are no numbers, the axes do not fit them, or two axes
    share a name.
    """

    data: np.ndarray
    axes: tuple[FieldAxis, ...]
    unit: str
    name: str
    metadata: dict = field(default_factory=dict)

    def __post_init__(self):
        data = _numbers(self.data, self.name, "biufc")
        kind = {"b": bool, "c": np.complex128}.get(data.dtype.kind, np.float64)
        object.__setattr__(self, "data", data.astype(kind, copy=False))
        object.__setattr__(self, "axes", tuple(self.axes))
        sizes = tuple(a.values.size for a in self.axes)
        if sizes != data.shape:
            named = ", ".join(f"{a.name}: {a.values.size}" for a in self.axes)
            raise ValueError(f"{self.name}: data of shape {data.shape} but axes ({named})")
        names = [a.name for a in self.axes]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: two axes share a name: {', '.join(names)}")

    @property
    def pixel_nm(self) -> tuple[float, float]:
        """Pixel size `(dy, dx)` in nm, both positive.

        **Raises:** ValueError without axes y and x, a length unit on them, or even spacing.
        """
        return _pixel_of(self, "y"), _pixel_of(self, "x")

    def to_nm(self) -> np.ndarray:
        """The values in nm, for a height or any other length.

        **Raises:** ValueError where the values are not real numbers, or their unit is not a length.
        """
        if self.data.dtype.kind != "f":
            raise ValueError(f"{self.name}: {self.data.dtype} values are not a length")
        scale = nm_per(self.unit)
        if scale is None:
            raise ValueError(f"{self.name}: values in {self.unit or 'no unit'!r} are not a length")
        return self.data * scale


def known_pixel_nm(image: Field) -> tuple[float, float] | None:
    """Spacings (dy, dx) of the last two axes in nm, None where the field does not say both."""
    sizes = []
    for axis in image.axes[-2:]:
        scale, step = nm_per(axis.unit), abs(axis.step)
        if scale is None or not step > 0:
            return None
        sizes.append(scale * step)
    return sizes[0], sizes[1]


def _pixel_of(image: Field, name: str) -> float:
    axis = next((a for a in image.axes if a.name == name), None)
    if axis is None:
        named = ", ".join(a.name for a in image.axes)
        raise ValueError(f"{image.name}: no axis {name}, so no pixel size; its axes are ({named})")
    if axis.unit == PIXELS:
        raise ValueError(f"{image.name}: no pixel size in the file, give --set pixel_nm=...")
    scale = nm_per(axis.unit)
    if scale is None:
        raise ValueError(
            f"{image.name}: no pixel size: axis {name} is in {axis.unit or 'no unit'!r}, "
            "which is not a length"
        )
    if axis.values.size < 2:
        raise ValueError(
            f"{image.name}: no pixel size: axis {name} has {axis.values.size} points of 2 at "
            f"least; the shape is {image.data.shape}"
        )
    step = abs(axis.step)
    if not (step > 0 and np.allclose(np.abs(np.diff(axis.values)), step, rtol=1e-3, atol=0)):
        raise ValueError(f"{image.name}: no pixel size: axis {name} is not evenly spaced")
    return step * scale


def image_axes(
    shape: tuple[int, ...],
    pixel: tuple[float, float] = (1.0, 1.0),
    unit: str = PIXELS,
    origin: tuple[float, float] = (0.0, 0.0),
) -> tuple[FieldAxis, ...]:
    """Axes of an image, or of a stack of images, whose last two dimensions are y and x.

    **Arguments:**

    - `shape`: shape of the data; of a single dimension, it is called `axis0`.
    - `pixel`: spacing `(dy, dx)` in `unit`.
    - `unit`: unit of y and x; pixels if not given.
    - `origin`: coordinates `(y, x)` of the first pixel in `unit`.

    **Returns:** one axis per dimension.
    """
    rest = shape if len(shape) < 2 else shape[:-2]
    stack = tuple(FieldAxis(f"axis{i}", np.arange(n), "") for i, n in enumerate(rest))
    along = zip("yx", shape[-2:], pixel, origin, strict=True) if len(shape) > 1 else ()
    return stack + tuple(
        FieldAxis(name, at + step * np.arange(n), unit) for name, n, step, at in along
    )


def as_pixel(pixel_nm: Pixel) -> tuple[float, float]:
    """A stated pixel size as `(dy, dx)` in nm.

    **Raises:** ValueError unless it is one or two positive numbers.
    """
    sizes = np.asarray(pixel_nm, dtype=np.float64).ravel()
    if sizes.size not in (1, 2) or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"pixel_nm is one positive number or (dy, dx), not {pixel_nm}")
    check_ranges("pixel_nm", sizes)
    return float(sizes[0]), float(sizes[-1])


def with_pixel(image: Field, pixel_nm: Pixel) -> Field:
    """The same field with y and x in nm, where they were in pixels (px).

    **Arguments:**

    - `image`: a field.
    - `pixel_nm`: pixel size, one number or `(dy, dx)`.

    **Returns:** a field whose y and x grow by the pixel size.
    """
    steps = dict(zip("yx", as_pixel(pixel_nm), strict=True))
    axes = tuple(
        FieldAxis(a.name, steps[a.name] * a.values, "nm")
        if a.name in steps and a.unit == PIXELS
        else a
        for a in image.axes
    )
    return replace(image, axes=axes)


def rows_first(image: Field) -> Field:
    """The same field with y before x; `X` and `Y` are taken as `x` and `y`."""
    axes, order = _ordered(image.axes)
    return replace(image, data=image.data.transpose(order), axes=tuple(axes[i] for i in order))


def _ordered(axes: Sequence[FieldAxis]) -> tuple[list[FieldAxis], list[int]]:
    """With plain names, and the order in which y comes before x."""
    names = [a.name.lower() if a.name in ("X", "Y") else a.name for a in axes]
    order = list(range(len(axes)))
    if "x" in names and "y" in names and names.index("x") < names.index("y"):
        i, j = names.index("x"), names.index("y")
        order[i], order[j] = j, i
    return [replace(a, name=n) for a, n in zip(axes, names, strict=True)], order


def cut_rows(
    axes: Sequence[FieldAxis], rows: slice | None
) -> tuple[tuple[slice, ...], tuple[FieldAxis, ...], dict[str, Any]]:
    """Of an array of a file with these axes that becomes a field `[y, x, ...]`: the part to read,
    its axes, and what its metadata say of it. Images and curves are read whole."""
    if rows is None or len(axes) < 3:
        return (), tuple(axes), {}
    i = _ordered(axes)[1][0]
    cut = replace(axes[i], values=axes[i].values[rows])
    part = (slice(None),) * i + (rows,)
    return part, (*axes[:i], cut, *axes[i + 1 :]), {ROWS: len(axes[i].values)}


def by_name(fields: Iterable[Field]) -> dict[str, Field]:
    """Fields by name; a name that comes again gets a number: `Height`, `Height #2`."""
    named: dict[str, Field] = {}
    for item in fields:
        name, count = item.name, 1
        while name in named:
            count += 1
            name = f"{item.name} #{count}"
        named[name] = replace(item, name=name)
    return named


def check_image(image: Field) -> Field:
    """Refuse an image from which nothing can be estimated.

    **Arguments:**

    - `image`: a field `[iy, ix]`.

    **Returns:** the same field.

    **Raises:** ValueError unless it is two-dimensional, finite in every pixel, and not constant.
    """
    data = image.data
    if data.ndim != 2:
        raise ValueError(f"{image.name}: an image is wanted, this has shape {data.shape}")
    if data.size == 0:
        raise ValueError(f"{image.name}: the image is empty, shape {data.shape}")
    bad = np.argwhere(~np.isfinite(data))
    if len(bad):
        iy, ix = (int(i) for i in bad[0])
        raise ValueError(
            f"{image.name}: {len(bad)} of {data.size} pixels are not finite (NaN or infinite), "
            f"the first at [iy, ix] = [{iy}, {ix}]"
        )
    if np.all(data == data.flat[0]):
        raise ValueError(f"{image.name}: the image is constant, every pixel is {data.flat[0]}")
    return image


def unit_in_brackets(label: str) -> str:
    """The unit of a label such as `Height (nm)`; empty where there is none."""
    match = re.search(r"\(([^()]*)\)\s*$", label)
    return match.group(1) if match else ""
