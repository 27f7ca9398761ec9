"""Patches of an image at atomic resolution, from a file, for `micjax.problems.phase_map`."""

import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.core.ranges import positive
from micjax.io import Field, read
from micjax.io.fields import PIXELS
from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.rings import band
from micjax.physics.patches.samples import alike, of_every_grain, spread
from micjax.physics.patches.windows import Hann
from micjax.problems.phase_map.model import SampledPatches

log = logging.getLogger("micjax")

CELLS = 3.4  # of a window: fewer are hard to tell apart, more hold more than one grain
CANDIDATES = 500  # patches that are looked at
SLOWEST = 2.5  # periods in a window: what is slower is thickness, and leaks out of the mean
LEAST = 16  # pixels of a window
LEAST_PATCHES = 8


def load(
    file,
    channel: str | None = None,
    pixel_A: float | None = None,
    phases: int = 0,
    window_px: int | None = None,
    step_px: int | None = None,
    cell_A: float | None = None,
    k_max_perA: float | None = None,
    patches: int = 160,
    structures: str | None = None,
) -> tuple[dict[str, Any], SampledPatches, Float[Array, "n r t"]]:
    """An image of crystals at atomic resolution. Pixels that are NaN are holes.

    **Arguments:**

    - `channel`: which image of the file.
    - `pixel_A`: edge of a pixel where the file does not state it.
    - `phases`: how many; 0: as many as the patches show.
    - `window_px`: edge of a patch; some three and a half unit cells by default.
    - `step_px`: distance of neighbouring patches; an eighth of the window by default.
    - `cell_A`: about the edge of a unit cell; from the rings of the power spectrum by default.
    - `k_max_perA`: the highest frequency that is looked at; where noise begins by default.
    - `patches`: how many are learnt from, at most.
    - `structures`: a file of a crystal (CIF and others), or a folder of such files, to name the
        phases by.

    **Raises:** `ValueError` for what is no image with one value a pixel, constant values, a pixel
    size that is not known or not the same along y and x, a window that is larger than the image or
    smaller than a cell, besides what `micjax.io.read` raises.
    """
    field = read(file, channel, None if pixel_A is None else 0.1 * pixel_A)
    options, x, y = prepare(
        _image(field),
        _pixel_A(field),
        phases=phases,
        window_px=window_px,
        step_px=step_px,
        cell_A=cell_A,
        k_max_perA=k_max_perA,
        patches=patches,
    )
    if structures is not None:
        options["structures"] = str(pathlib.Path(structures).absolute())
    return options, x, y


def prepare(
    image: Float[np.ndarray, "h w"],
    pixel_A: float,
    *,
    phases: int = 0,
    window_px: int | None = None,
    step_px: int | None = None,
    cell_A: float | None = None,
    k_max_perA: float | None = None,
    patches: int = 160,
    radii: int = 32,
    angles: int = 90,
) -> tuple[dict[str, Any], SampledPatches, Float[Array, "n r t"]]:
    """The same of an array, as `load` does it.

    **Returns:** options of `problem`, the patches that are learnt from, their amplitudes.
    """
    positive(pixel_A=pixel_A)
    there = np.isfinite(image)
    if there.sum() < 2 or np.ptp(image[there]) == 0.0:
        raise ValueError(f"an image of {image.shape}, {there.sum()} finite pixels, is constant")
    measured = None if there.all() else there.astype(np.float32)
    solid = _standardised(image, there)
    if cell_A is None or k_max_perA is None:
        estimate = band(solid, measured, pixel_A)
        cell_A = estimate.cell_A if cell_A is None else cell_A
        k_max_perA = estimate.k_max_perA if k_max_perA is None else k_max_perA
    if window_px is None:
        window_px = max(LEAST, 8 * round(CELLS * cell_A / pixel_A / 8))
    if window_px > min(image.shape):
        raise ValueError(
            f"a window of {window_px} pixels is larger than the image of {image.shape[0]} x "
            f"{image.shape[1]}; a unit cell is some {cell_A / pixel_A:.3g} pixels (cell_A = "
            f"{cell_A:.3g})"
        )
    if window_px * pixel_A < cell_A:
        raise ValueError(
            f"a window of {window_px} pixels, {window_px * pixel_A:.3g} Å, is smaller than a unit "
            f"cell of some {cell_A:.3g} Å (cell_A)"
        )
    options: dict[str, Any] = {
        "phases": phases,
        "pixel_A": pixel_A,
        "window_px": int(window_px),
        "step_px": max(1, window_px // 8) if step_px is None else step_px,
        "cell_A": float(cell_A),
        "k_max_perA": float(k_max_perA),
        "radii": radii,
        "angles": angles,
    }
    polar = polar_for(options)
    corners = spread(image.shape, polar.local, CANDIDATES)
    sample, likeness = alike(solid, measured, polar, corners)
    rings = np.asarray(polar.above(jnp.asarray(sample.rings), sample.noise))
    size = np.sqrt((rings**2).sum((1, 2)))
    best = of_every_grain(rings, likeness, patches)
    if len(best) < LEAST_PATCHES:
        raise ValueError(
            f"{len(best)} of {len(corners)} patches show one lattice at one angle, and "
            f"{LEAST_PATCHES} at least have to: is the window larger than the grains (window_px)?"
        )
    kept = np.sort(best)
    unit = float(np.median(size[kept]))
    options["patches"] = len(kept)
    options["noise_sd"] = float(np.sqrt(0.5 * np.median(sample.noise[kept]))) / unit
    log.info(
        "window %d pixels (%.3g Å), step %d, frequencies %.3g to %.3g / Å; %d patches of one grain",
        window_px,
        window_px * pixel_A,
        options["step_px"],
        polar.k_min_perA,
        k_max_perA,
        len(kept),
    )
    mask = None if measured is None else jnp.asarray(measured)
    solid /= unit
    x = SampledPatches(jnp.arange(len(kept)), jnp.asarray(corners[kept]), jnp.asarray(solid), mask)
    return options, x, jnp.asarray(sample.rings[kept] / unit)


def _standardised(image, there) -> Float[np.ndarray, "h w"]:
    """Of mean 0 and variance 1, 0 in holes; line by line, as an image may be large.

    Whatever the unit and the offset of the camera are: single precision has seven digits.
    """
    mean = np.mean(image, where=there, dtype=np.float64)
    variance = [np.sum((line[known] - mean) ** 2) for line, known in zip(image, there, strict=True)]
    scale = np.sqrt(np.sum(variance) / there.sum())
    standard = np.zeros(image.shape, np.float32)
    for line, known, out in zip(image, there, standard, strict=True):
        out[known] = (line[known] - mean) / scale
    return standard


def polar_for(options: dict[str, Any]) -> Polar:
    """How patches are seen, by the options of `problem`."""
    local = LocalSpectra(
        Hann(), options["window_px"], options["step_px"], options["pixel_A"], options["k_max_perA"]
    )
    slowest = options.get("k_min_perA") or SLOWEST / (local.size * local.sampling_A)
    return Polar(local, slowest, options["radii"], options["angles"])


def _image(field: Field) -> np.ndarray:
    data = field.data
    if data.ndim == 3 and data.shape[-1] in (3, 4):
        raise ValueError(
            f"{field.name}: shape {data.shape}, a picture in colours; one value for each pixel is "
            "needed, without axes or scale bars drawn into it"
        )
    if data.ndim > 2:
        raise ValueError(
            f"{field.name}: shape {data.shape}, more than one image [y, x]; save one of them, or "
            "their mean, as a file of its own"
        )
    if data.ndim != 2 or data.dtype.kind == "c":
        raise ValueError(f"{field.name}: {data.dtype} of shape {data.shape} is no image [y, x]")
    return data.astype(float)


def _pixel_A(field: Field) -> float:
    if any(a.unit == PIXELS for a in field.axes):
        raise ValueError(f"{field.name}: no pixel size in the file, give --set pixel_A=...")
    dy, dx = (10.0 * p for p in field.pixel_nm)
    if abs(dy / dx - 1.0) > 1e-3:
        raise ValueError(f"{field.name}: pixels of {dy:.5g} x {dx:.5g} Å; they have to be square")
    return dx
