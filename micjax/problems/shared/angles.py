"""Angles of the pixels of a camera, from a file or a setting."""

from typing import Any

import numpy as np
from jaxtyping import Float

from micjax.io import Field, FieldAxis
from micjax.physics.electrons import optics


def both(name: str, given: Any) -> list[Any]:
    """One number for y and x, or one for each.

    **Raises:** `ValueError` for another number of them.
    """
    if not isinstance(given, list | tuple):
        return [given, given]
    if len(given) != 2:
        raise ValueError(f"{name} = {given}: two numbers, (y, x)")
    return list(given)


def axes_mrad(
    field: Field, axes: tuple[FieldAxis, ...], mrad_per_px: float | list | None, energy_keV: float
) -> list[Float[np.ndarray, "m"]]:
    """The angles along y and x: `mrad_per_px` from the first pixel on, or what the file says.

    **Raises:** `ValueError` where neither tells.
    """
    per = [_mrad_per(a.unit, energy_keV) for a in axes]
    if mrad_per_px is not None:
        steps = both("mrad_per_px", mrad_per_px)
        return [s * np.arange(len(a.values)) for s, a in zip(steps, axes, strict=True)]
    if None in per:
        raise ValueError(f"{field.name}: no angles in the file: set mrad_per_px")
    return [p * np.asarray(a.values) for p, a in zip(per, axes, strict=True)]


def centred(along: list[np.ndarray], centre_px: list) -> list[Float[np.ndarray, "m"]]:
    """The same angles, 0 at the pixel (row, column).

    **Raises:** `ValueError` for a pixel that is not on the camera.
    """
    pixels = both("centre_px", centre_px)
    shape = tuple(len(a) for a in along)
    if not all(0.0 <= c <= n - 1 for c, n in zip(pixels, shape, strict=True)):
        raise ValueError(f"centre_px = {centre_px}: not on a camera of {shape} pixels")
    return [a - np.interp(c, np.arange(len(a)), a) for a, c in zip(along, pixels, strict=True)]


def _mrad_per(unit: str, energy_keV: float) -> float | None:
    """None for a unit of no angle."""
    mrad_A = 1e3 * float(optics.wavelength_A(energy_keV))
    table = {"mrad": 1.0, "rad": 1e3, "1/nm": 0.1 * mrad_A, "1/Å": mrad_A, "1/A": mrad_A}
    return table.get(unit.strip().replace("\u212b", "Å"))
