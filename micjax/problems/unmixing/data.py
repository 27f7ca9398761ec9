"""A spectrum image from a file, for `micjax.problems.unmixing`."""

import logging
import pathlib
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.io import Field, FieldAxis, read
from micjax.io.fields import PIXELS, nm_per
from micjax.problems.shared.spectrum_images import channels_between, noise_sd

log = logging.getLogger("micjax")


def load(
    file,
    channel: str | None = None,
    components: int = 0,
    noise: Literal["auto", "poisson", "normal"] = "auto",
    signal_min: float | None = None,
    signal_max: float | None = None,
    known: str | None = None,
) -> tuple[dict[str, Any], Int[Array, "n"], Float[Array, "n f"]]:
    """A map of spectra [y, x, channel], or a line of them [x, channel]. Pixels with a NaN are left
    out.

    **Arguments:**

    - `channel`: which array of the file.
    - `components`: end members; 0: as many as the data show.
    - `noise`: `poisson` for counts, `normal` for other values; `auto`: counts if all values are
        whole numbers that are not below zero.
    - `signal_min`, `signal_max`: which part of the spectra, in the unit of the file's axis.
    - `known`: a file with the spectra of end members that are known, [channel] or [k, channel].

    **Raises:** `ValueError` for other shapes, no finite pixel, constant data, counts that are none,
    and a range without two channels.
    """
    field = read(file, channel)
    cube, axes = _cube(field)
    inside = channels_between(axes[-1], signal_min, signal_max)
    cube = cube[..., inside]
    flat = cube.reshape(-1, cube.shape[-1])
    there = np.isfinite(flat).all(axis=1)
    if not there.any() or np.ptp(flat[there]) == 0.0:
        raise ValueError(
            f"{field.name}: {there.sum()} of {len(there)} spectra are finite"
            + (", all values the same" if there.any() else "")
        )
    values = flat[there]
    if lost := len(there) - len(values):
        log.info("%d of %d pixels have values that are not finite: left out", lost, len(there))
    countable = bool((values >= 0).all() and (values == np.round(values)).all())
    if noise == "poisson" and not countable:
        raise ValueError(
            f"{field.name}: values from {values.min():.6g} to {values.max():.6g}, which are no "
            "counts: whole numbers not below zero are needed for noise = poisson"
        )
    law = noise if noise != "auto" else "poisson" if countable else "normal"
    log.info("%d spectra of %d channels, noise: %s", *values.shape, law)
    start, step = _even(axes[-1], inside)
    options: dict[str, Any] = {
        "ny": cube.shape[0],
        "nx": cube.shape[1],
        "channels": cube.shape[2],
        "components": components,
        "noise": law,
        "level": float(np.mean(np.abs(values))),
        "sigma": 1.0 if law == "poisson" else float(np.median(noise_sd(values))),
        "pixel_nm": _pixel_nm(axes[:-1]),
        "signal_start": start,
        "signal_step": step,
        "signal_unit": axes[-1].unit,
        "signal_name": axes[-1].name or "channel",
    }
    if known is not None:
        options["known"] = str(pathlib.Path(known).absolute())
    return options, jnp.asarray(np.flatnonzero(there)), jnp.asarray(values, float)


def _cube(field: Field) -> tuple[np.ndarray, tuple[FieldAxis, ...]]:
    data, axes = field.data, field.axes
    if data.dtype.kind == "c" or data.ndim not in (2, 3) or data.shape[-1] < 2:
        raise ValueError(
            f"{field.name}: {data.dtype} of shape {data.shape}; spectra [y, x, channel] or "
            "[x, channel] are needed"
        )
    if data.ndim == 2:
        data, axes = data[None], (FieldAxis("y", np.zeros(1), PIXELS), *axes)
    return np.asarray(data, np.float64), tuple(axes)


def _even(axis: FieldAxis, inside: np.ndarray) -> tuple[float, float]:
    """First value and step; the number of a channel where steps differ."""
    along = np.asarray(axis.values, float)[inside]
    steps = np.diff(along)
    if steps.min() > 0 and np.ptp(steps) < 1e-3 * steps.mean():
        return float(along[0]), float(steps.mean())
    log.warning("%s: the channels are not evenly spaced, numbered from 0", axis.name)
    return 0.0, 1.0


def _pixel_nm(axes: tuple[FieldAxis, ...]) -> float | None:
    steps = [
        abs(float(a.values[1] - a.values[0])) * (nm_per(a.unit) or np.nan)
        for a in axes
        if len(a.values) > 1
    ]
    if not steps or not np.isfinite(steps).all():
        return None
    if np.ptp(steps) > 1e-3 * max(steps):
        log.info("pixels of %s nm: maps are drawn in pixels", " x ".join(f"{s:.4g}" for s in steps))
        return None
    return steps[-1]
