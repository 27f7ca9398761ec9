"""Spectrum images of files: spectra at the pixels of a map, `[y, x, channel]`."""

import dataclasses
import logging
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from micjax.core.ranges import HUGE
from micjax.io import Field, FieldAxis
from micjax.io.fields import PIXELS, ROWS, nm_per

log = logging.getLogger("micjax")

MANY = 20.0  # counts, above which their noise is near enough to a normal one
SCATTER = 0.5, 1.3  # the variance of whole numbers over their mean, if they are counts

Law = Literal["poisson", "normal"]
NoiseChoice = Literal["auto", "poisson", "normal"]


class SpectrumImage(NamedTuple):
    """Spectra of a map, and where they were measured.

    - `y`: `[ny, nx, n]`; a line of spectra has one row, one spectrum one pixel.
    - `axis`: of the spectra.
    - `pixel_nm`: (dy, dx), if it is known.
    """

    y: Float[np.ndarray, "ny nx n"]
    axis: FieldAxis
    pixel_nm: tuple[float, float] | None

    def options(self) -> dict:
        """Of a problem module."""
        ny, nx = self.y.shape[:2]
        pixel = None if self.pixel_nm is None else list(self.pixel_nm)
        return {"ny": ny, "nx": nx, "pixel_nm": pixel}


def spectrum_image(
    field: Field, low: float | None = None, high: float | None = None
) -> SpectrumImage:
    """Of one spectrum `[channel]`, a line `[x, channel]` or a map `[y, x, channel]`.

    **Arguments:**

    - `low`, `high`: the part of the axis that is taken.

    **Raises:** `ValueError` for other shapes, complex values, no finite value, fewer than two
    channels in the part.
    """
    field = _channels_last(field)
    data, axes = field.data, field.axes
    if data.dtype.kind == "c" or data.ndim not in (1, 2, 3) or data.shape[-1] < 2:
        raise ValueError(
            f"{field.name}: {data.dtype} of shape {data.shape}; spectra [y, x, channel], "
            "[x, channel] or [channel] are needed"
        )
    inside = channels_between(axes[-1], low, high)
    cube = np.asarray(data, np.float64)[..., inside]
    far = np.abs(cube) > HUGE  # what programs fill gaps with
    if far.any():
        log.warning("%s: %d values beyond %g are taken for gaps", field.name, far.sum(), HUGE)
        cube = np.where(far, np.nan, cube)
    if not np.isfinite(cube).any():
        raise ValueError(f"{field.name}: none of its values is finite")
    cube = cube.reshape((1,) * (3 - cube.ndim) + cube.shape)
    axis = FieldAxis(axes[-1].name, axes[-1].values[inside], axes[-1].unit)
    return SpectrumImage(cube, axis, _pixel_nm(axes[:-1]))


def _channels_last(field: Field) -> Field:
    """`[channel, y, x]` as `[y, x, channel]`.

    **Raises:** `ValueError` where it is read by rows, which its first axis has not.
    """
    names = [a.name for a in field.axes]
    if field.data.ndim != 3 or names[1:] != ["y", "x"] or names[0].startswith("axis"):
        return field
    if ROWS in field.metadata:
        raise ValueError(
            f"streamed: {field.name} has axes {', '.join(names)}; y, x, {names[0]} are needed to "
            "read it row by row; streamed: false reads all of it"
        )
    log.info("%s: axes %s are taken as y, x, %s", field.name, ", ".join(names), names[0])
    data = np.moveaxis(field.data, 0, -1)
    return dataclasses.replace(field, data=data, axes=(*field.axes[1:], field.axes[0]))


def channels_between(
    axis: FieldAxis, low: float | None, high: float | None
) -> Bool[np.ndarray, " n"]:
    """**Raises:** `ValueError` for fewer than two."""
    along = np.asarray(axis.values, float)
    inside = np.ones(len(along), bool)
    if low is not None:
        inside &= along >= low
    if high is not None:
        inside &= along <= high
    if inside.sum() < 2:
        raise ValueError(
            f"from {low} to {high}: {inside.sum()} channels of an axis from "
            f"{along.min():.6g} to {along.max():.6g} {axis.unit}"
        )
    return inside


def in_unit(
    axis: FieldAxis, units: dict[str, float], what: str, setting: str = "", given: str | None = None
) -> Float[np.ndarray, " n"]:
    """The axis in the unit that has the factor 1.

    **Arguments:**

    - `setting`, `given`: the name of the setting that says the unit of an axis without one, and
        what it says.

    **Raises:** `ValueError` for a unit that is none of them, another one `given` than the axis has,
    and for values that are not finite.
    """
    own = axis.unit.strip()
    unit = own or given or ""
    if given is not None and (given not in units or unit != given):
        raise ValueError(
            f"{setting} = {given}: {what} is in {own or 'no unit'}; one of {', '.join(units)}, "
            "and only for an axis without a unit"
        )
    if unit not in units:
        hint = f"; {setting} says it of an axis without one" if setting and not own else ""
        raise ValueError(
            f"{what} in {unit or 'no unit'}: one of {', '.join(units)} is needed{hint}"
        )
    values = np.asarray(axis.values, float) * units[unit]
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: {np.sum(~np.isfinite(values))} values are not finite")
    return values


def noise_sd(y: Float[np.ndarray, "*map n"]) -> Float[np.ndarray, "*map"]:
    """Of each spectrum, from second differences of neighbouring channels, which a spectrum changes
    little between. NaN are left out; what shows no noise has a millionth of the size of all."""
    second = np.diff(y, 2, axis=-1) / np.sqrt(6.0)
    there = np.isfinite(second).any(axis=-1)
    second = np.where(there[..., None], second, 0.0)
    spread = 1.4826 * np.nanmedian(np.abs(second), axis=-1)
    size = float(np.nanmax(np.abs(y))) or 1.0
    return np.maximum(spread, 1e-6 * size)


def _pixel_nm(axes: tuple[FieldAxis, ...]) -> tuple[float, float] | None:
    steps = [
        abs(a.step) * (nm_per(a.unit) or np.nan) if a.unit != PIXELS else np.nan
        for a in axes
        if len(a.values) > 1
    ]
    if not steps or not np.isfinite(steps).all() or not min(steps) > 0:
        return None
    return float(steps[0]), float(steps[-1])


def noise_options(name: str, y: Float[np.ndarray, "*map n"], noise: NoiseChoice) -> dict:
    """`noise`, `sigma` and `sigma_factor` of a problem module, from what the data show.

    **Raises:** `ValueError` for `poisson` where the values are no counts.
    """
    counted = are_counts(name, y, noise == "poisson")
    law = noise if noise != "auto" else "poisson" if counted else "normal"
    logs = np.log(noise_sd(y))
    return {
        "noise": law,
        "sigma": float(np.exp(np.median(logs))),
        # within two standard deviations of what the pixels of this map show
        "sigma_factor": float(np.exp(max(1.0, 2.0 * np.std(logs)))),
    }


def are_counts(name: str, y: Float[np.ndarray, "*map n"], stated: bool = False) -> bool:
    """Whether the values are whole numbers, not below 0, and scatter as counts do.

    **Arguments:**

    - `stated`: that they are: then only what can be no count is refused.

    **Raises:** `ValueError` for `stated` where they are none.
    """
    values = y[np.isfinite(y)]
    whole = bool((values >= 0).all() and (values == np.round(values)).all())
    whole &= bool(values.max(initial=0.0) < 2**53)  # above, all numbers are whole
    if stated and not whole:
        raise ValueError(
            f"{name}: values from {values.min():.6g} to {values.max():.6g}, which are no counts: "
            "whole numbers not below zero are needed for a Poisson law"
        )
    if stated or not whole or float(np.median(values)) < MANY:
        return whole
    gain = gain_of(y)
    if not SCATTER[0] < gain < SCATTER[1]:
        log.info("%s: whole numbers of %.3g times the variance of counts", name, gain)
        return False
    return True


def gain_of(y: Float[np.ndarray, "*map n"]) -> float:
    """The variance over the mean, from second differences of neighbouring channels."""
    second = np.diff(y, 2, axis=-1) ** 2 / 6.0
    mean = (y[..., 2:] + y[..., 1:-1] + y[..., :-2]) / 3.0
    size = float(np.nanpercentile(np.abs(y), 99.9)) or 1.0
    there = np.isfinite(second) & (mean > 1e-6 * size)
    # the median of chi^2 with one degree of freedom
    ratio = float(np.median(second[there] / mean[there])) / 0.4549 if there.any() else 0.0
    return ratio or 1e-9 * size


def even_axis(values: Float[np.ndarray, " n"], what: str) -> None:
    """**Raises:** `ValueError` for channels of different widths."""
    steps = np.diff(values)
    if np.ptp(steps) > 0.01 * np.median(steps):
        i = int(np.argmax(np.abs(steps - np.median(steps))))
        raise ValueError(
            f"{what}: channels of {np.median(steps):.4g}, but of {steps[i]:.4g} at "
            f"{values[i]:.6g}: an even axis is needed; choose a part of it, or fill gaps with NaN"
        )
